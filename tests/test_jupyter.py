"""A notebook runs functions of its cells, shows a progress bar, and can be interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess

import pytest

pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

POOL = """
import time
import numpy as np, shmpar
pool = shmpar.Pool(2)
class Scale:
    def __init__(self, by): self.by = by
    def __call__(self, block): return block * self.by
scale = Scale(3)
six = np.arange(6)
print(pool.map_blocks(lambda block: scale(block) + 1, six, chunks=2, progress=True).tolist())
"""
AGAIN = "scale.by = 5; print(pool.map_blocks(lambda b: scale(b), np.arange(4), chunks=2).tolist())"
LONG = "print('at work', flush=True); pool.parallel_map(lambda n: time.sleep(60), range(4))"


def run_cell(client: object, code: str, interrupt: int | None = None) -> tuple[str, str, str]:
    """Run a cell; return its standard output, its displays as text, and its exception's name."""
    request = client.execute(code)
    streams, displays, raised = {"stdout": "", "stderr": ""}, "", ""
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != request:
            continue
        content = message["content"]
        if message["msg_type"] == "stream":
            streams[content["name"]] += content["text"]
            if interrupt is not None and "at work" in streams["stdout"]:
                os.kill(interrupt, signal.SIGINT)
                interrupt = None
        elif message["msg_type"] in {"display_data", "update_display_data"}:
            displays += content["data"]["text/plain"] + "\n"
        elif message["msg_type"] == "error":
            raised = content["ename"]
        elif message["msg_type"] == "status" and content["execution_state"] == "idle":
            return streams["stdout"], displays, raised


@contextlib.contextmanager
def started_kernel() -> Iterator[tuple[object, int]]:
    """Start a kernel; yield its client and its process."""
    from jupyter_client import manager

    kernel, client = manager.start_new_kernel(kernel_name="python3")
    try:
        yield client, kernel.provisioner.pid
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=False)
        kernel.cleanup_resources()
        client.context.destroy()


def run_notebook() -> None:
    """Run the cells in a kernel."""
    with started_kernel() as (client, pid):
        out, drawn, raised = run_cell(client, POOL)
        assert (out, raised) == ("[1, 4, 7, 10, 13, 16]\n", "")
        assert "3/3" in drawn
        assert run_cell(client, AGAIN)[0] == "[0, 5, 10, 15]\n"
        assert run_cell(client, LONG, interrupt=pid)[2] == "KeyboardInterrupt"
        assert run_cell(client, AGAIN)[0] == "[0, 5, 10, 15]\n"
        assert run_cell(client, "pool.shutdown()")[2] == ""


def test_a_notebook(run_python: Callable[..., CompletedProcess[str]]) -> None:
    """Each cell works, also after an interrupt, and the kernel leaves no process."""
    done = run_python("from tests.test_jupyter import run_notebook; run_notebook(); print('done')")
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
