"""Show the output of a run in a napari viewer while it is computed."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from shmpar.runtime.run import Run

__all__ = ["show"]

_WAIT_SECONDS: Final = 0.002


def show(viewer: Any, run: Run, every: float = 0.1, *, layer: str = "image", **options: Any) -> Any:
    """Add the output of a run to a viewer as a layer, which follows the run.

    The layer shows the shared buffer of the run, ``run.out``. A panel tells the chunks that are
    done, and has a button that cancels the run.

    Parameters
    ----------
    viewer : napari.Viewer or napari.components.ViewerModel
        The viewer. A model without a window gets no panel.
    run : Run
        A run that the verb returned with ``wait=False``.
    every : float
        Seconds between two refreshes of the layer.
    layer : {"image", "labels"}
        Kind of the layer. Labels need an output of integers.
    **options
        For ``viewer.add_image`` or ``viewer.add_labels``: a name, contrast limits, a colormap.
        Without contrast limits, those of an image follow the values.

    Returns
    -------
    layer or list of layer
        The layer, or one per output of the run.

    Raises
    ------
    TypeError
        If `run` is no run: a verb returns one with ``wait=False``.
    ValueError
        If `every` is not positive, or the output has no axes or is not in memory.
    ShmparError, CancelledError
        If the run ended before its output was known.

    Notes
    -----
    Call it in the thread of the viewer. It returns when the shape of the output is known: at once
    with ``out=`` or ``dtype=``, else after the first chunk.

    Cost: no copy. A refresh draws the visible part of the layer.

    A thread follows the run. It refreshes the layer in the thread of the viewer, and
    ends with the run. If the run fails, the panel says so, and ``run.result()`` raises the error.
    Closing the viewer leaves the run alone.

    Examples
    --------
    >>> import numpy as np, shmpar
    >>> import napari  # doctest: +SKIP
    >>> from shmpar.integrations.napari import show
    >>> viewer = napari.Viewer()  # doctest: +SKIP
    >>> pool = shmpar.Pool()  # doctest: +SKIP
    >>> run = pool.map_blocks(np.sqrt, np.ones((4096, 4096)), wait=False)  # doctest: +SKIP
    >>> show(viewer, run)  # doctest: +SKIP
    """
    if not isinstance(run, Run):
        raise TypeError(
            f"show: {type(run).__name__} is no run; pass the run of a verb with wait=False"
        )
    if not every > 0:
        raise ValueError(f"show: every={every!r} must be a positive number of seconds")
    if layer not in {"image", "labels"}:
        raise ValueError(f"show: layer={layer!r}; pass 'image' or 'labels'")
    outputs = _wait_for_output(run)
    add = getattr(viewer, f"add_{layer}")
    verb = run.execution.plan.verb
    layers = []
    for number, array in enumerate(outputs):
        named = {"name": verb if len(outputs) == 1 else f"{verb} {number}", **options}
        layers.append(add(array, **named))
    follows_values = layer == "image" and "contrast_limits" not in options
    _View(viewer, run, layers, follows_values=follows_values).start(every)
    return layers[0] if len(layers) == 1 else layers


def _wait_for_output(run: Run) -> list[Any]:
    """Return the outputs of a run as soon as their shapes are known."""
    while run.out is None and not run.done():
        time.sleep(_WAIT_SECONDS)
    out = run.out
    if out is None:
        out = run.result()  # which raises the error of a run that failed
    outputs = list(out) if isinstance(out, tuple) else [out]
    for one in outputs:
        if not isinstance(one, np.ndarray) or one.ndim == 0:
            raise ValueError(
                "show: this run has no output with axes in memory; pass out= a path of a .npy, or "
                "add the store to the viewer by yourself"
            )
    return outputs


class _View:
    """Layers of a run, and the thread that refreshes them.

    Invariant: layers and widgets are touched in the thread of the viewer alone, if it has a window.
    """

    def __init__(self, viewer: Any, run: Run, layers: list[Any], *, follows_values: bool) -> None:
        self.run, self.layers, self.follows_values = run, layers, follows_values
        self.viewer = weakref.ref(viewer)
        self.panel = _Panel(viewer, run) if hasattr(viewer, "window") else None
        self.post: Callable[[Callable[[], None]], Any] = _call
        if self.panel is not None:
            utils = importlib.import_module("superqt.utils")
            self.post = utils.ensure_main_thread(_call)

    def start(self, every: float) -> None:
        """Start the thread; it ends with the run."""
        follow = threading.Thread(
            target=self._follow, args=(every,), name="shmpar-napari", daemon=True
        )
        follow.start()

    def _follow(self, every: float) -> None:
        """Refresh the layers when chunks are done, at most once in so many seconds."""
        due, changed, error = 0.0, False, None
        for chunks in self.run.execution.finished_batches(every):
            changed |= bool(chunks)
            if changed and time.monotonic() >= due:
                self.post(self._refresh)
                due, changed = time.monotonic() + every, False
        try:
            self.run.result()
        except BaseException as found:  # noqa: BLE001 - the result of the run raises it again
            error = found
        self.post(partial(self._refresh, ended=True, error=error))

    def _refresh(self, *, ended: bool = False, error: BaseException | None = None) -> None:
        """Draw the layers again, and tell the progress."""
        viewer = self.viewer()
        # Why: the user may have closed the viewer, whose widgets are then gone.
        with contextlib.suppress(RuntimeError):
            for layer in self.layers:
                if viewer is None or layer not in viewer.layers:
                    continue
                if self.follows_values:
                    layer.reset_contrast_limits_range("slice")
                    layer.reset_contrast_limits("slice")
                layer.refresh()
            if self.panel is not None:
                self.panel.tell(self.run, ended=ended, error=error)


def _call(function: Callable[[], None]) -> None:
    function()


class _Panel:
    """A dock widget with the progress of a run, and the button that cancels it."""

    def __init__(self, viewer: Any, run: Run) -> None:
        widgets = importlib.import_module("qtpy.QtWidgets")
        self.box = widgets.QWidget()
        row = widgets.QHBoxLayout(self.box)
        self.bar = widgets.QProgressBar()
        self.bar.setRange(0, max(1, run.progress[1]))
        self.label = widgets.QLabel("")
        self.button = widgets.QPushButton("Cancel")
        self.button.clicked.connect(lambda _checked: run.cancel())
        for one in (self.bar, self.label, self.button):
            row.addWidget(one)
        name = f"shmpar: {run.execution.plan.verb}"
        viewer.window.add_dock_widget(self.box, name=name, area="bottom")
        self.tell(run)

    def tell(self, run: Run, *, ended: bool = False, error: BaseException | None = None) -> None:
        """Show the progress, or the end."""
        done, chunks = run.progress
        self.bar.setValue(done)
        text = f"{done:,} of {chunks:,} chunks"
        if ended:
            self.button.setEnabled(False)
            word = "cancelled" if run.cancelled() else "failed" if error is not None else "done"
            text += f", {word}"
            self.label.setToolTip("" if error is None else str(error))
        self.label.setText(text)
