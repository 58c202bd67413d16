"""A picture that is filled while its run computes: ``run.live()``.

The thread that asks for the picture draws it. A notebook shows it as an image that is updated by
its display id; a window is redrawn, and its events are handled meanwhile.
"""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.display import format_call
from shmpar.errors import format_count
from shmpar.plan import window_bounds
from shmpar.report.plot import png
from shmpar.runtime.notebook import in_notebook
from shmpar.stores.formats import library

if TYPE_CHECKING:
    from shmpar.runtime.run import Run

_PAUSE_SECONDS = 0.1  # between two pictures
_PAUSE_FACTOR = 4  # times the duration of a drawing; Why: drawing takes CPU time from the workers
_MOST_PIXELS = 1_000  # along an axis; Why: a screen has hardly more
_MOST_CHANNELS = 4
_TITLE = "shmpar-progress"  # marks a title that is ours
_MISSING = 0.8  # grey of elements that are not there yet
_DTYPES: dict[str, np.dtype[Any]] = {
    "b": np.dtype(np.uint8),
    "c": np.dtype(np.float64),
}  # of the picture, by kind

Array = np.ndarray[Any, Any]
Span = tuple[int, int]


def follow(run: Run, ax: Any, output: int, options: dict[str, Any]) -> Any:
    """Fill a picture until the run is over; return the image or the line of matplotlib.

    The errors of the run are raised by the caller.
    """
    library("matplotlib", "run.live()")  # Why here: before anything is drawn
    execution = run.execution
    if execution.plan.returns_objects:
        raise TypeError(
            f"live() draws numbers, but {execution.plan.verb} returns objects: use completed()"
        )
    screen, picture, own = _screen(ax), None, ax is None
    try:
        ready, pending = 0.0, [*execution.done_before()]
        for chunks in execution.finished_batches(_PAUSE_SECONDS):
            pending += chunks
            if picture is None and (made := _pick(run.out, output)) is not None:
                picture = _Picture(screen.axes, made, run, options, own=own)
            if picture is not None and pending and time.perf_counter() >= ready:
                began, first = time.perf_counter(), picture.artist is None
                picture.add(pending)
                picture.paint()
                screen.show()
                pending, now = [], time.perf_counter()
                # Why not after the first: it also loads fonts.
                share = 0.0 if first else _PAUSE_FACTOR * (now - began)
                ready = now + max(_PAUSE_SECONDS, share)
            else:
                screen.handle_events()
        run.resolved.wait()
        failed = run.cancelled() or run.exception() is not None
        if picture is None:
            found = run.out if failed else run.result() if run.out is None else run.out
            if (made := _pick(found, output)) is None:
                return None
            picture = _Picture(screen.axes, made, run, options, own=own)
        picture.add(pending)
        picture.paint(whole=not failed)
        screen.show(last=True)
    finally:
        screen.close()
    return picture.artist


def _pick(outputs: Any, output: int) -> Any:
    """Return one of the outputs; None while there is none, or if it is empty."""
    if isinstance(outputs, tuple):
        if not -len(outputs) <= output < len(outputs):
            raise IndexError(f"output={output}: the run has {len(outputs)} outputs")
        outputs = outputs[output]
    elif output not in {0, -1}:
        raise IndexError(f"output={output}: the run has a single output")
    if outputs is None or np.size(outputs) == 0:
        return None
    return outputs if np.ndim(outputs) else np.asarray(outputs).reshape(1)


class _Picture:
    """An output as an image, or as a line if it has a single axis.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        The axes to draw in.
    array : ndarray
        The output.
    run : Run
        Its run.
    options : dict
        Options of matplotlib's ``imshow`` or ``plot``.
    own : bool
        The figure is ours, and gets a colour bar.
    """

    artist: Any = None

    def __init__(
        self, axes: Any, array: Any, run: Run, options: dict[str, Any], *, own: bool
    ) -> None:
        self._axes, self._run, self._options, self._own = axes, run, dict(options), own
        self._array = array
        if array.dtype.kind not in "biufc":
            raise TypeError(f"live() draws numbers, not {array.dtype}: use completed()")
        shown = [axis for axis, length in enumerate(array.shape) if length != 1]
        shown = shown or [array.ndim - 1]
        self._channels = None
        if len(shown) > 2 and array.shape[shown[-1]] <= _MOST_CHANNELS:  # noqa: PLR2004 - an image
            self._channels = shown.pop()
        self._shown = shown[-2:]
        self._hidden = [axis for axis in range(array.ndim) if axis not in self._shown]
        self._colour = self._has_colours()
        self._steps = [-(-array.shape[axis] // _MOST_PIXELS) for axis in self._shown]
        self._plane: tuple[int, ...] | None = None  # index on each axis that is not shown
        self._done: list[list[Span]] = []  # windows
        self._painted = 0  # of them
        self._canvas = self._empty()
        norm = options.get("norm")
        self._limits = [options.get(key, getattr(norm, key, None)) for key in ("vmin", "vmax")]
        self._titled = bool(axes.get_title()) and axes.title.get_gid() != _TITLE

    def _has_colours(self) -> bool:
        """Return True if the last axis is a colour, of which each chunk has all parts."""
        if self._channels is None or self._array.dtype.kind != "u":
            return False
        length = self._array.shape[self._channels]
        (window,) = self._windows([0])
        return length > 2 and window[self._channels] == (0, length)  # noqa: PLR2004 - RGB, RGBA

    def _empty(self) -> Any:
        sizes = [self._array.shape[axis] for axis in self._shown]
        shape = [-(-size // step) for size, step in zip(sizes, self._steps, strict=True)]
        if self._colour:
            return np.full((*shape, 3), _MISSING, np.float32)
        dtype: np.dtype[Any] = self._array.dtype
        if dtype.itemsize > np.dtype(np.int64).itemsize and dtype.kind != "c":
            dtype = np.dtype(np.float64)
        zeros: Array = np.zeros(shape, _DTYPES.get(dtype.kind, dtype.newbyteorder("=")))
        return np.ma.array(zeros, mask=True)

    def add(self, chunks: Sequence[int]) -> None:
        """Note chunks that are done."""
        self._done += self._windows(chunks)

    def _windows(self, chunks: Sequence[int]) -> list[list[Span]]:
        plan, shape = self._run.execution.plan, self._array.shape
        window_of = plan.placement.windows(plan.grid, shape)
        return [window_bounds(window_of(chunk), shape) for chunk in chunks]

    def paint(self, *, whole: bool = False) -> None:
        """Copy the windows that are done to the picture; with `whole` all of it."""
        whole_window = [(0, length) for length in self._array.shape]
        latest = self._done[-1] if self._done else whole_window
        if whole:
            self._done.append(whole_window)
        plane = tuple(latest[axis][0] for axis in self._hidden)
        if plane != self._plane:
            self._canvas, self._plane, self._painted = self._empty(), plane, 0
        for spans in self._done[self._painted :]:
            places = dict(zip(self._hidden, plane, strict=True))
            if all(spans[axis][0] <= index < spans[axis][1] for axis, index in places.items()):
                self._copy(spans, places)
        self._painted = len(self._done)
        self._draw()

    def _copy(self, spans: list[Span], plane: dict[int, int]) -> None:
        index: list[Any] = [plane.get(axis) for axis in range(self._array.ndim)]
        places = []
        for axis, step in zip(self._shown, self._steps, strict=True):
            first, last = (-(-edge // step) for edge in spans[axis])
            places.append(slice(first, last))
            index[axis] = slice(first * step, spans[axis][1], step)
        if self._colour:
            index[self._channels or 0] = slice(0, 3)
        values = np.asarray(self._array[tuple(index)])
        if self._colour:
            values = values / np.iinfo(values.dtype).max
        self._canvas[tuple(places)] = np.abs(values) if values.dtype.kind == "c" else values

    def _draw(self) -> None:
        if len(self._shown) == 1:
            self._draw_line()
        elif self.artist is None:
            height, width = (self._array.shape[axis] for axis in self._shown)
            # Why: the extent has the pixels of the output, also if the picture has fewer.
            fixed = {"extent": (-0.5, width - 0.5, height - 0.5, -0.5), "interpolation": "nearest"}
            self.artist = self._axes.imshow(self._canvas, **{**fixed, **self._options})
            self.artist.set_cmap(self.artist.get_cmap().with_extremes(bad=str(_MISSING)))
            if self._own and not self._colour:
                self._axes.figure.colorbar(self.artist, ax=self._axes)
        else:
            self.artist.set_data(self._canvas)
        if len(self._shown) > 1 and not self._colour and self._canvas.count():
            self.artist.autoscale()
            self.artist.set_clim(*self._limits)
        if not self._titled:
            self._axes.set_title(self._progress(), gid=_TITLE)

    def _draw_line(self) -> None:
        places = np.arange(self._canvas.size) * self._steps[0]
        if self.artist is None:
            (self.artist,) = self._axes.plot(places, self._canvas, **self._options)
            self._axes.set_xlim(-0.5, self._array.shape[self._shown[0]] - 0.5)
        self.artist.set_data(places, self._canvas)
        self._axes.relim()
        self._axes.autoscale_view(scalex=False)

    def _progress(self) -> str:
        """Return the title: the function, the chunks and the failures."""
        run, (done, chunks) = self._run, self._run.progress
        call = format_call(run.execution.plan.verb, run.execution.name.rpartition(".")[2])
        text = f"{call}: {done:,} of {format_count(chunks, run.execution.noun)}"
        if failed := len(run.execution.errors):
            text += f", {failed:,} failed"
        planes = [
            str(index)
            for axis, index in zip(self._hidden, self._plane or (), strict=True)
            if self._array.shape[axis] > 1 and not (self._colour and axis == self._channels)
        ]
        return f"{text}\nplane {', '.join(planes)}" if planes else text


# The place of the picture


def _screen(ax: Any) -> _Window | _Cell:
    """Return the place of a picture; without axes, make a figure for it."""
    if ax is None:
        cell = in_notebook()
        pyplot = sys.modules.get("matplotlib.pyplot") if cell else None
        if not cell or (pyplot is not None and _is_live(pyplot.get_backend())):
            import matplotlib.pyplot as plt

            ax = plt.subplots(layout="constrained")[1]
        else:
            from matplotlib.figure import Figure

            ax = Figure(layout="constrained").subplots()
    figure = ax.figure.get_figure(root=True)
    live = _is_live(figure.canvas)
    return _Cell(ax, figure) if in_notebook() and not live else _Window(ax, figure)


def _is_live(canvas: Any) -> bool:
    """Return True for a canvas, or the name of a backend, that shows changes by itself."""
    if isinstance(canvas, str):
        return canvas.lower() not in {"agg", "inline", "module://matplotlib_inline.backend_inline"}
    names = [cls.__name__ for cls in type(canvas).__mro__]
    return canvas.required_interactive_framework is not None or any("WebAgg" in n for n in names)


class _Window:
    """A figure that draws itself: in a window, in a widget, or in memory alone."""

    def __init__(self, axes: Any, figure: Any) -> None:
        self.axes, self._canvas = axes, figure.canvas
        if _is_live(self._canvas) and self._canvas.manager is not None:
            self._canvas.manager.show()

    def show(self, *, last: bool = False) -> None:
        """Draw the figure."""
        self._canvas.draw()
        self._canvas.flush_events()

    def handle_events(self) -> None:
        """Let the window react to its user."""
        self._canvas.flush_events()

    def close(self) -> None:
        """Do nothing: the window belongs to the user."""


class _Cell:
    """An image below a cell of a notebook."""

    def __init__(self, axes: Any, figure: Any) -> None:
        from IPython.display import DisplayHandle

        self.axes, self._figure, self._handle = axes, figure, DisplayHandle()
        self._send = self._handle.display

    def show(self, *, last: bool = False) -> None:
        """Replace the image; the last one has twice the resolution."""
        data, size = png(self._figure, scale=2 if last else 1)
        bundle = {"image/png": base64.b64encode(data).decode(), "text/plain": repr(self._figure)}
        self._send(bundle, raw=True, metadata={"image/png": size})
        self._send = self._handle.update

    def handle_events(self) -> None:
        """Do nothing: an image has no events."""

    def close(self) -> None:
        """Take the figure from pyplot, which would show it again below the cell."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            pyplot.close(self._figure)
