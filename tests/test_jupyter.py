"""A notebook: functions of cells, an interrupted cell, a bar, and nothing left with the kernel."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
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


def said(client: object, code: str, interrupt: int | None = None) -> tuple[str, str, str]:
    """Run a cell; return what it printed, to standard error too, and the name of its exception."""
    request = client.execute(code)
    streams, raised = {"stdout": "", "stderr": ""}, ""
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
        elif message["msg_type"] == "error":
            raised = content["ename"]
        elif message["msg_type"] == "status" and content["execution_state"] == "idle":
            return streams["stdout"], streams["stderr"], raised


def play() -> None:
    """Run the cells in a kernel."""
    from jupyter_client import manager

    kernel, client = manager.start_new_kernel(kernel_name="python3")
    try:
        pid = kernel.provisioner.pid
        out, drawn, raised = said(client, POOL)
        assert (out, raised) == ("[1, 4, 7, 10, 13, 16]\n", "")
        assert "3/3" in drawn or "3/3" in out
        assert said(client, AGAIN)[0] == "[0, 5, 10, 15]\n"
        assert said(client, LONG, interrupt=pid)[2] == "KeyboardInterrupt"
        assert said(client, AGAIN)[0] == "[0, 5, 10, 15]\n"
        assert said(client, "pool.shutdown()")[2] == ""
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=False)
        kernel.cleanup_resources()
        client.context.destroy()


def test_a_notebook(run_python: Callable[..., CompletedProcess[str]]) -> None:
    """Cells in order; an interrupt ends one, and the next one works; the kernel leaves nothing."""
    done = run_python("from tests.test_jupyter import play; play(); print('played')")
    assert (done.stdout, done.returncode) == ("played\n", 0), done.stderr
