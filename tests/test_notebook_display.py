"""Bars, pictures and objects as a notebook shows them, in a real kernel."""

from __future__ import annotations

import base64
import importlib.util
import re
import sys
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

import shmpar

pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

PNG = b"\x89PNG"
SETUP = """
import sys, threading, time
import numpy as np, shmpar
pool = shmpar.Pool(2, engine="threads")
image = np.arange(60 * 40.0).reshape(60, 40)
go = threading.Event()

def slowly(block):
    time.sleep(0.01)
    return block + 1

def sometimes(block):
    if block[0, 0] == 0:
        raise ValueError("dark")
    return block

def waiting(block):
    assert go.wait(30)
    return block
"""
FILLED = "pool.map_blocks(sometimes, image, chunks=20, progress='<b>', on_error='fill');"
NOWAIT = "run = pool.map_blocks(waiting, image, chunks=20, progress=True, wait=False)"
CANCELLED = """
run.cancel()
while "being cancelled" not in repr(run): time.sleep(0.001)
go.set()
while not run.done(): time.sleep(0.001)
print(run)
"""
HIDDEN = "import sys; sys.modules['ipywidgets'] = None"


class Cell:
    """The messages of a cell that was executed."""

    def __init__(self, client: Any, code: str) -> None:
        self.displays: dict[str, list[dict[str, Any]]] = {}
        self.streams, self.results, self.comms, self.error = "", [], 0, ""
        request = client.execute(code)
        while True:
            message = client.get_iopub_msg(timeout=60)
            kind, content = message["msg_type"], message["content"]
            if kind.startswith("comm"):
                self.comms += 1
            elif kind == "stream":
                self.streams += content["text"]
            elif kind in {"display_data", "update_display_data"}:
                name = content["transient"]["display_id"]
                self.displays.setdefault(name, []).append(content["data"])
            elif kind == "execute_result":
                self.results.append(content["data"])
            elif kind == "error":
                self.error = content["ename"]
            own = message["parent_header"].get("msg_id") == request
            if own and kind == "status" and content["execution_state"] == "idle":
                return

    @property
    def states(self) -> list[dict[str, Any]]:
        """The states of the one display of the cell."""
        (states,) = self.displays.values()
        return states


def check_bars(run: Callable[[str], Cell]) -> None:
    """Without ipywidgets a bar is HTML; it counts failures and warns of nothing."""
    cell = run(FILLED)
    assert "TqdmWarning" not in cell.streams
    assert cell.comms == 0
    assert all(set(state) == {"text/html", "text/plain"} for state in cell.states)
    last = cell.states[-1]
    assert "6/6" in last["text/plain"]
    assert "1 failed" in last["text/plain"]
    assert "&lt;b&gt;: 100%" in last["text/html"]
    assert "<progress value='6' max='6'" in last["text/html"]
    assert ">1 failed</strong>" in last["text/html"]

    states = run(NOWAIT).states
    assert "value='0' max='6'" in states[0]["text/html"]
    assert run("run").results[0]["text/plain"].startswith("<shmpar.Run: map_blocks(waiting), run")
    assert "<td" in run("run").results[0]["text/html"]
    cell = run(CANCELLED)
    assert ", cancelled, " in cell.streams
    assert cell.states[-1]["text/plain"].endswith(", stopped")
    assert ">stopped</strong>" in cell.states[-1]["text/html"]


def check_widget(run: Callable[[str], Cell]) -> None:
    """With ipywidgets a bar is tqdm's widget, and HTML at its end: this is what is saved."""
    cell = run(FILLED)
    first, *_, last = cell.states
    assert "application/vnd.jupyter.widget-view+json" in first
    assert set(last) == {"text/html", "text/plain"}
    assert "6/6" in last["text/html"]
    assert ">1 failed</strong>" in last["text/html"]
    assert cell.comms > 0
    left = "from ipywidgets.widgets import widget; print(len(widget._instances))"
    assert run(left).streams == "0\n"


def check_pictures(run: Callable[[str], Cell]) -> None:
    """A picture is updated in place, and is shown once also if pyplot knows its figure."""
    plot = run("pool.map_blocks(slowly, image, chunks=20); pool.last_run.report.plot()")
    assert base64.b64decode(plot.results[0]["image/png"]).startswith(PNG)
    assert run("print('matplotlib.pyplot' in sys.modules)").streams == "False\n"
    call = "pool.map_blocks(slowly, image, chunks=4, wait=False)"
    for code in ("picture = {}.live()", "import matplotlib.pyplot as plt\n{}.live(plt.gca());"):
        cell = run(code.format(call))
        assert (cell.error, cell.streams) == ("", "")
        assert len(cell.states) >= 2
        pictures = [base64.b64decode(state["image/png"]) for state in cell.states]
        assert all(picture.startswith(PNG) for picture in pictures)
        assert len(pictures[0]) < len(pictures[-1])  # the last one has twice the resolution
    assert run("print((picture.get_array() == image + 1).all())").streams == "True\n"


def run_notebook() -> None:
    """Run the checks in a kernel, first without ipywidgets."""
    from jupyter_client import manager

    kernel, client = manager.start_new_kernel(kernel_name="python3")
    try:

        def run(code: str) -> Cell:
            return Cell(client, code)

        assert run(HIDDEN + SETUP).error == ""
        check_bars(run)
        check_pictures(run)
        assert run("del sys.modules['ipywidgets']").error == ""
        if importlib.util.find_spec("ipywidgets"):
            check_widget(run)
        assert run("pool.shutdown()").error == ""
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=False)
        kernel.cleanup_resources()
        client.context.destroy()


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="processes")
def test_a_kernel(run_python: Callable[..., CompletedProcess[str]]) -> None:
    """The outputs of each cell are those that the functions above describe."""
    done = run_python("from tests.test_notebook_display import *; run_notebook()")
    assert done.returncode == 0, done.stderr


def text_of(html: str) -> str:
    """Return the words of a fragment of HTML."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_a_pool_and_a_run_as_html(pool: shmpar.Pool) -> None:
    """They show workers, memory, the last run; state, progress, failures and the report."""

    def dark(block: Any) -> Any:
        if block[0] == 2:
            raise ValueError("<dark>")
        return block

    with pytest.raises(shmpar.ChunkError):
        pool.map_blocks(dark, np.arange(6), chunks=2)
    shown = text_of(pool._repr_html_())
    assert shown.startswith(f"Pool: {pool.engine}, open workers ")
    assert "worker" in shown
    assert "memory" in shown
    assert "last run map_blocks(test_a_pool_and_a_run_as_html" not in shown
    assert "last run map_blocks(dark), failed in 1 chunk" in shown
    run = pool.last_run
    assert run is not None
    html = run._repr_html_()
    assert "<details><summary" in html
    assert "&lt;dark&gt;" in html
    assert "<dark>" not in html
    shown = text_of(html)
    assert shown.startswith("Run: map_blocks(dark) state failed in 1 chunk chunks ")
    assert "failures 1; the first: map_blocks, chunk 1 " in shown
    assert "report ( run.report ) map_blocks(dark): 3 chunks in " in shown


def test_a_run_tells_its_state(pool: shmpar.Pool) -> None:
    """A repr has the state in plain words."""
    pool.map_blocks(np.negative, np.arange(6), chunks=2)
    assert repr(pool.last_run) == "<shmpar.Run: map_blocks(negative), done, 3 of 3 chunks>"

    def dark(block: Any) -> Any:
        raise ValueError("dark")

    with pytest.warns(RuntimeWarning, match="filled"):
        pool.map_blocks(dark, np.ones(3), chunks=1, on_error="fill", dtype=float)
    done = "done, 3 chunks failed and were filled, 3 of 3 chunks>"
    assert repr(pool.last_run) == f"<shmpar.Run: map_blocks(dark), {done}"


def test_a_closed_pool_as_html() -> None:
    """A closed pool has no memory, and keeps the line of its last run."""
    with shmpar.Pool(1, engine="threads") as pool:
        assert "last run none" in text_of(pool._repr_html_())
        pool.map_blocks(np.negative, np.arange(6))
    assert text_of(pool._repr_html_()) == (
        "Pool: threads, closed workers 1 worker thread, ended memory none in use "
        "last run map_blocks(negative), done, 1 of 1 chunk"
    )


def test_a_shared_array_as_html(tmp_path: Any) -> None:
    """It shows shape, dtype, size, its place and the values; and it gets no name by that."""
    with shmpar.zeros((3, 400_000), "U2") as array:
        array[0, 0] = "<&"
        shown = array._repr_html_()
        words = text_of(shown)
        assert words.startswith("SharedArray shape 3 x 400,000 dtype <U2".replace("<", "&lt;"))
        assert "size 9.2 MiB lies in " in words
        assert ", without a name" in words
        assert "&#x27;&lt;&amp;&#x27;" in shown
        name = array.name
        assert f"named {name}" in array._repr_html_()
        assert "3 x 1" in array[:, :1]._repr_html_()
    assert "the array was closed" in array._repr_html_()
    mapped = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", float, (2,))
    assert f"the mapped file {tmp_path}" in shmpar.asarray(mapped)._repr_html_()
    assert "shape ()" in text_of(shmpar.zeros(())._repr_html_())
