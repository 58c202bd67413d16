"""Progress of a run: a tqdm bar, or a function of the user, as ``progress=`` asks for."""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Callable
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from shmpar.runtime.run import Run

TICK_SECONDS = 0.1
"""How often progress is shown, and chunks that take too long are looked for."""

Fail = Callable[["Run", BaseException], None]
Progress = bool | str | Callable[[int, int], object]


class Observer(Protocol):
    """An object that shows the progress of a run."""

    def update(self, done: int, total: int) -> None:
        """Show how many chunks are settled, of all."""

    def close(self) -> None:
        """End: the run is over."""


def observe(progress: Progress, verb: str) -> Observer | None:
    """Return the observer for ``progress=``; None for False.

    Parameters
    ----------
    progress : bool, str or callable
        True is a tqdm bar labelled with the verb, a str is a bar with this label, and a callable
        gets ``(done, total)``.
    verb : str
        Name of the verb.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    if progress is False or progress is None:
        return None
    if progress is True or isinstance(progress, str):
        return _Bar(verb if progress is True else progress)
    if callable(progress):
        return types.SimpleNamespace(update=progress, close=lambda: None)
    raise TypeError(f"progress is True, a label or a callable, not {brief(progress)}")


class _Bar:
    """A tqdm bar that counts chunks, in a notebook or a terminal."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None

    def update(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm.auto import tqdm

            # Why: tqdm's monitor thread would outlive the bar, and its default lock creates
            # a semaphore of multiprocessing.
            bar = type("Bar", (tqdm,), {"monitor_interval": 0, "_lock": threading.RLock()})
            self._bar = bar(total=total, desc=self._label, unit="chunk")
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        bar, self._bar = self._bar, None
        # Why: the run is complete; a bar that cannot be drawn (stderr is closed) must not hide it.
        with contextlib.suppress(Exception):
            if bar is not None:
                bar.close()


def show_progress(run: Run, observer: Observer, fail: Fail) -> None:
    """Show the progress of a run until it is over, in the thread that waits for it."""
    try:
        while not run.over.wait(TICK_SECONDS):
            if not show_once(run, observer, fail):
                run.over.wait()
                return
        observer.update(*run.progress)
    finally:
        observer.close()


def show_once(run: Run, observer: Observer, fail: Fail) -> bool:
    """Show the progress once; the run fails with an error that this raises."""
    try:
        observer.update(*run.progress)
    except Exception as error:  # noqa: BLE001 - the user's code
        fail(run, error)
        return False
    return True
