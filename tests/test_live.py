"""``run.live()``: pictures of each kind of output, in axes of matplotlib."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

import shmpar

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

IMAGE = np.arange(60 * 40.0).reshape(60, 40)


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """Draw once: matplotlib keeps the files of its fonts open."""
    figure = Figure()
    figure.subplots().set_title("once")
    FigureCanvasAgg(figure).draw()


@pytest.fixture
def axes() -> Any:
    return Figure().subplots()


def shown(run: shmpar.Run, axes: Any, **options: Any) -> Any:
    """Return the picture as a plain array; each element must be there."""
    picture = run.live(axes, **options).get_array()
    assert not np.ma.is_masked(picture)
    return np.asarray(picture)


def test_an_image_equals_the_output(pool: shmpar.Pool, axes: Any) -> None:
    """The picture is the output, and the title has the progress."""
    run = pool.map_blocks(lambda b: b + 1, IMAGE, chunks=(7, 11), wait=False)
    assert np.array_equal(shown(run, axes), IMAGE + 1)
    assert axes.get_title() == "map_blocks(<lambda>): 36 of 36 chunks"
    assert axes.images[0].get_clim() == (1, 2400)
    assert axes.get_xlim() == (-0.5, 39.5)


def test_a_single_chunk_is_counted(pool: shmpar.Pool, axes: Any) -> None:
    """One chunk is one chunk."""
    run = pool.map_blocks(np.negative, np.ones(4), chunks=-1, wait=False)
    run.live(axes)
    assert axes.get_title() == "map_blocks(negative): 1 of 1 chunk"


def test_the_picture_fills_while_the_run_computes(axes: Any) -> None:
    """A drawing shows the chunk that is done, and no other; the next one follows it."""
    go, seen = threading.Event(), []

    def work(block: Any) -> Any:
        if block[0, 0]:
            assert go.wait(30)
        return block

    def drawn(_: Any) -> None:
        seen.append(axes.images[0].get_array().copy())
        go.set()

    FigureCanvasAgg(axes.figure).mpl_connect("draw_event", drawn)
    with shmpar.Pool(1, engine="threads") as pool:
        run = pool.map_blocks(work, IMAGE, chunks=(30, 40), wait=False)
        assert repr(run).startswith("<shmpar.Run: map_blocks(work), running, ")
        run.live(axes)
    assert seen[0].mask[30:].all()
    assert np.array_equal(seen[0][:30].filled(-1), IMAGE[:30])
    assert np.array_equal(seen[-1].filled(-1), IMAGE)


@pytest.mark.parametrize("done", [True, False])
def test_a_run_that_the_caller_has_waited_for(axes: Any, done: bool) -> None:
    """Its picture is that of the result; a dropped result is an error."""
    with shmpar.Pool(1, engine="threads") as pool:
        result = pool.map_blocks(np.negative, IMAGE, chunks=20)
        assert pool.last_run is not None
        if done:
            assert np.array_equal(shown(pool.last_run, axes), -IMAGE)
        else:
            left = weakref.ref(result)
            del result
            until = time.monotonic() + 30
            while left() is not None:  # Why: the pool thread drops it too, soon.
                assert time.monotonic() < until
                time.sleep(0.001)
            with pytest.raises(shmpar.ShmparError, match="dropped"):
                pool.last_run.live(axes)


def test_an_output_with_one_axis_is_a_line(pool: shmpar.Pool, axes: Any) -> None:
    """The line has the values at their places."""
    line = pool.parallel_map(np.sum, IMAGE, wait=False).live(axes, color="red")
    assert np.array_equal(line.get_xdata(), np.arange(60))
    assert np.array_equal(line.get_ydata(), IMAGE.sum(axis=1))
    assert line.get_color() == "red"


def test_outputs_of_a_tuple(pool: shmpar.Pool, axes: Any) -> None:
    """`output` picks one of them; other numbers are refused."""

    def work(block: Any) -> Any:
        return block.min(), block.max()

    run = pool.block_reduce(work, IMAGE, chunks=20, wait=False)
    assert np.array_equal(shown(run, axes, output=1), run.result()[1])
    assert np.array_equal(shown(run, Figure().subplots()), run.result()[0])
    with pytest.raises(IndexError, match="output=2: the run has 2 outputs"):
        run.live(Figure().subplots(), output=2)
    run = pool.map_blocks(np.negative, IMAGE, wait=False)
    run.result()
    with pytest.raises(IndexError, match="single"):
        run.live(axes, output=1)


@pytest.mark.parametrize("dtype", ["?", "i2", ">i4", "u8", "f2", ">f8", "g", "c8", "c16"])
def test_every_number_can_be_drawn(axes: Any, dtype: str) -> None:
    """Values are those of the output, and magnitudes of complex numbers."""
    values = (IMAGE[:5, :4] % 7 - 3).astype(dtype)
    with shmpar.Pool(1, engine="threads") as pool:
        picture = shown(pool.map_blocks(np.copy, values, chunks=2, wait=False), axes)
    assert np.array_equal(picture, np.abs(values) if values.dtype.kind == "c" else values)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours(axes: Any, dtype: str, channels: int) -> None:
    """An unsigned last axis of 3 or 4 is a colour."""
    values = np.random.default_rng(0).integers(0, 255, (20, 30, channels)).astype(dtype)
    with shmpar.Pool(1, engine="threads") as pool:
        run = pool.map_blocks(np.copy, values, chunks=(8, 8, -1), wait=False)
        assert np.allclose(shown(run, axes), values[..., :3] / np.iinfo(dtype).max)
        run = pool.map_blocks(np.copy, values, chunks=(8, 8, 1), wait=False)
        plane = shown(run, axes)
    assert axes.get_title().startswith("map_blocks(copy): ")
    assert np.array_equal(plane, values[..., int(axes.get_title().split()[-1])])


def test_a_stack_shows_the_plane_of_the_latest_chunk(axes: Any) -> None:
    """The title has the number of the plane."""
    stack = np.arange(3 * 4 * 5 * 6).reshape(3, 4, 5, 6)
    with shmpar.Pool(1, engine="threads") as pool:
        plane = shown(pool.map_blocks(np.negative, stack, chunks=(1, 1, 3, 3), wait=False), axes)
    assert axes.get_title().endswith("\nplane 2, 3")
    assert np.array_equal(plane, -stack[2, 3])


@pytest.mark.parametrize("chunks", [(999, 70), (13, 7)])
def test_a_large_output_is_thinned(axes: Any, chunks: tuple[int, int]) -> None:
    """The picture has every third row, at its place."""
    values = np.arange(2003 * 90).reshape(2003, 90)
    with shmpar.Pool(1, engine="threads") as pool:
        picture = shown(pool.map_blocks(np.negative, values, chunks=chunks, wait=False), axes)
    assert np.array_equal(picture, -values[::3])
    assert axes.get_ylim() == (2002.5, -0.5)


def test_limits_and_titles_of_the_user_stay(pool: shmpar.Pool, axes: Any) -> None:
    """The range follows the values, as far as the user has not set it."""
    axes.set_title("mine")
    run = pool.map_blocks(np.negative, IMAGE, chunks=20, wait=False)
    assert run.live(axes, vmin=-5).get_clim() == (-5, 0)
    assert axes.get_title() == "mine"
    run = pool.map_blocks(np.exp, IMAGE / 1000, chunks=20, wait=False)
    picture = run.live(Figure().subplots(), norm=LogNorm(vmax=2), cmap="magma")
    assert picture.get_clim() == (1, 2)
    assert picture.get_cmap().name == "magma"


@pytest.mark.filterwarnings("ignore:1 chunk failed")
def test_failed_chunks(pool: shmpar.Pool, axes: Any) -> None:
    """A failed chunk is grey, or has its fill value at the end; the title counts it."""

    def work(block: Any) -> Any:
        if block[0, 0] == 0:
            raise ValueError("dark")
        return block

    run = pool.map_blocks(work, IMAGE, chunks=20, on_error="collect", wait=False)
    with pytest.raises(ExceptionGroup):
        run.live(axes)
    mask = axes.images[0].get_array().mask
    assert mask[:20, :20].all()
    assert mask.sum() == 400
    assert axes.get_title().endswith("6 of 6 chunks, 1 failed")
    run = pool.map_blocks(work, IMAGE, chunks=20, on_error="fill", fill_value=7.0, wait=False)
    assert (shown(run, Figure().subplots())[:20, :20] == 7).all()


def test_a_resumed_run_shows_all_chunks(pool: shmpar.Pool, axes: Any, tmp_path: Any) -> None:
    """The chunks that the first run has computed are in the picture of the second."""
    ready = tmp_path / "ready"

    def work(block: Any) -> Any:
        if block[0, 0] == 0 and not ready.exists():
            raise ValueError("dark")
        return block

    run = pool.map_blocks(work, IMAGE, chunks=20, on_error="collect", wait=False)
    with pytest.raises(ExceptionGroup):
        run.live(axes)
    ready.touch()
    assert np.array_equal(shown(run.resume(), Figure().subplots()), IMAGE)


def test_a_cancelled_run_keeps_its_picture(axes: Any) -> None:
    """The cancellation is raised, and the repr tells it."""
    go = threading.Event()
    with shmpar.Pool(1, engine="threads") as pool:
        run = pool.map_blocks(lambda b: (go.wait(30), b)[1], IMAGE, chunks=20, wait=False)
        run.cancel()
        go.set()
        with pytest.raises(CancelledError):
            run.live(axes)
    assert ", cancelled, " in repr(run)


def test_objects_are_refused(axes: Any) -> None:
    """The error names the other way; nothing is drawn for an empty output."""
    with shmpar.Pool(1, engine="threads") as pool:
        run = pool.parallel_map(str, IMAGE, dtype=object, wait=False)
        with pytest.raises(TypeError, match=r"returns objects: use completed\(\)"):
            run.live(axes)
        dates = np.zeros((4, 4), "M8[s]")
        with pytest.raises(TypeError, match=r"draws numbers, not datetime64"):
            pool.map_blocks(np.copy, dates, wait=False).live(axes)
        assert pool.map_blocks(np.negative, IMAGE[:0], wait=False).live(axes) is None
    assert not axes.images


def test_without_axes_the_figure_is_that_of_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure is the current one, with a colour bar."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    plt = pytest.importorskip("matplotlib.pyplot")
    with shmpar.Pool(1, engine="threads") as pool:
        picture = pool.map_blocks(np.negative, IMAGE, wait=False).live()
    figure = plt.gcf()
    plt.close(figure)
    assert picture.figure is figure
    assert len(figure.axes) == 2
    assert np.array_equal(picture.get_array(), -IMAGE)
