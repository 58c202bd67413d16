"""A napari viewer that shows a run while it is computed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("napari") is None, reason="napari is not installed"
)

# Chunks wait for a file each, so that the test decides on the order of events.
PROGRAM = """
import os, sys, tempfile, threading, time
import numpy as np
import shmpar
from shmpar.integrations.napari import show

folder = tempfile.mkdtemp()

def stripe(block, block_id):
    while not os.path.exists(os.path.join(folder, str(block_id[0]))):
        time.sleep(0.01)
    if block_id[0] == 9:
        raise ValueError("the ninth stripe is torn")
    return block + 1 + block_id[0]

def let(*stripes):
    for one in stripes:
        open(os.path.join(folder, str(one)), "w").close()

def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        turn()
        time.sleep(0.01)

def threads():
    return [one for one in threading.enumerate() if one.name == "shmpar-napari"]

image = np.zeros((64, 80), np.float32)
"""

MODEL = """
from napari.components import ViewerModel
turn = lambda: None
viewer = ViewerModel()
with shmpar.Pool(2, engine=sys.argv[1]) as pool:
    let(0)
    run = pool.map_blocks(stripe, image, chunks=(16, 80), wait=False)
    layer = show(viewer, run, every=0.02)
    assert viewer.layers[0] is layer and layer.name == "map_blocks"
    assert np.shares_memory(layer.data, run.out)
    drawn = []
    layer.events.set_data.connect(lambda event: drawn.append(run.progress[0]))
    let(1, 2)
    wait_for(lambda: drawn and drawn[-1] >= 2)
    let(3)
    run.result()
    wait_for(lambda: not threads())
    assert drawn[-1] == 4
    assert tuple(layer.contrast_limits) == (1, 4)

    # Labels, several outputs, and options of the layer.
    run = pool.map_blocks(lambda b: (b > 0, b.astype(int)), image, chunks=16, wait=False)
    both = show(viewer, run, layer="labels", opacity=0.5)
    assert [one.name for one in both] == ["map_blocks 0", "map_blocks 1"]
    assert both[1].opacity == 0.5 and type(both[1]).__name__ == "Labels"
    run.result()
    wait_for(lambda: not threads())

    # A failure is raised by the result, and the thread ends.
    let(9)
    high = np.zeros((160, 8), np.float32)
    run = pool.map_blocks(stripe, high, chunks=(16, 8), dtype="f4", wait=False)
    show(viewer, run, contrast_limits=(0, 1))
    let(4, 5, 6, 7, 8)
    assert isinstance(run.exception(), shmpar.ChunkError)
    wait_for(lambda: not threads())
    assert tuple(viewer.layers[-1].contrast_limits) == (0, 1)

    # A run that failed before its output was known raises its error.
    def fail(block):
        raise ValueError("no output")
    run = pool.map_blocks(fail, image, wait=False)
    try:
        show(viewer, run)
    except shmpar.ChunkError as error:
        assert "no output" in str(error)
    else:
        raise AssertionError("the error of the run was lost")
    for wrong, kind in [((viewer, image), TypeError), ((viewer, run, 0), ValueError)]:
        try:
            show(*wrong)
        except kind as error:
            assert "show:" in str(error)
        else:
            raise AssertionError("a wrong argument was taken")
"""

VIEWER = """
import napari
from qtpy.QtWidgets import QApplication, QPushButton
viewer = napari.Viewer(show=True)
turn = QApplication.processEvents
main = threading.get_ident()
with shmpar.Pool(2) as pool:
    let(0)
    run = pool.map_blocks(stripe, image, chunks=(16, 80), wait=False)
    layer = show(viewer, run, every=0.05)
    drawn = []
    layer.events.set_data.connect(lambda event: drawn.append(threading.get_ident()))
    let(2)
    wait_for(lambda: run.progress[0] == 2 and drawn)
    wait_for(lambda: tuple(layer.contrast_limits)[1] == 3)
    assert set(drawn) == {main}, "the layer was drawn in another thread"
    if len(sys.argv) > 2:
        viewer.screenshot(sys.argv[2], canvas_only=False, flash=False)
    window = viewer.window._qt_window
    button, = [one for one in window.findChildren(QPushButton) if one.text() == "Cancel"]
    button.click()
    let(1, 3)
    wait_for(run.done)
    assert run.cancelled()
    wait_for(lambda: not threads() and not button.isEnabled())
    let(1, 3)
    again = pool.map_blocks(stripe, image, chunks=(16, 80), wait=False)
    show(viewer, again)
    viewer.close()  # the run goes on without the viewer
    assert float(again.result().max()) == 4
    wait_for(lambda: not threads())
print("closed")
"""


def run(program: str, *args: str, **env: str) -> str:
    """Run a program in a new interpreter, and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, *args],
        capture_output=True, text=True, timeout=120, env={**os.environ, **env}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def display() -> Iterator[str]:
    """Start an X server without a screen."""
    if shutil.which("Xvfb") is None or importlib.util.find_spec("qtpy") is None:
        pytest.skip("a window needs Xvfb and Qt")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as number:
            yield f":{number.readline().strip()}"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_a_layer_follows_a_run(engine: str) -> None:
    run(MODEL, engine)


def test_a_window_shows_the_run_and_its_button_cancels_it(display: str) -> None:
    picture = [os.environ["SHMPAR_PICTURE"]] if "SHMPAR_PICTURE" in os.environ else []
    found = run(VIEWER, "processes", *picture, DISPLAY=display, LIBGL_ALWAYS_SOFTWARE="1")
    assert "closed" in found
