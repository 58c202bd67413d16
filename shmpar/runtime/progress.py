"""Progress of a run: a tqdm bar, or a function of the user, as ``progress=`` asks for.

A bar counts chunks, and those that failed. In a notebook it is an element of the page, which
``notebook.py`` draws.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from shmpar.runtime.run import Run

TICK_SECONDS = 0.1
"""How often progress is shown, and chunks that take too long are looked for."""

# Why no interval and no minimum: progress is shown ten times per second at most. Tqdm would adapt
# its minimum to a quick beginning, and the bar would stand still in a slow part.
_AT_ONCE: dict[str, Any] = {"mininterval": 0, "miniters": 1}

Fail = Callable[["Run", BaseException], None]
Progress = bool | str | Callable[[int, int], object]


class Observer:
    """Shows the progress of a run; each part that a subclass leaves out does nothing."""

    def begin(self, total: int) -> None:
        """Begin in the thread that makes the call, which may return before the first update."""

    def update(self, done: int, total: int, failed: int = 0) -> None:
        """Show how many chunks are settled, of all, and how many of these failed."""

    def close(self) -> None:
        """End: the run is over."""


def observe(
    progress: Progress, verb: str, noun: str = "chunk", initial: int = 0
) -> Observer | None:
    """Return the observer for ``progress=``; None for False.

    Parameters
    ----------
    progress : bool, str or callable
        True is a tqdm bar labelled with the verb, a str is a bar with this label, and a callable
        gets ``(done, total)``.
    verb : str
        Name of the verb.
    noun : str
        The word for a chunk.
    initial : int
        Chunks that were done before the call.

    Raises
    ------
    TypeError
        If it is none of these, or cannot be called so.
    """
    if isinstance(progress, np.bool_):
        progress = bool(progress)
    if progress is False or progress is None:
        return None
    if progress is True or isinstance(progress, str):
        if sys.stderr is None:  # Why: it was closed before Python started.
            return None
        return _Bar(verb if progress is True else progress, noun, initial)
    if callable(progress):
        _check_callable(progress)
        return _Call(progress)
    raise TypeError(f"progress is True, a label or a callable, not {brief(progress)}")


def _check_callable(function: Callable[..., object]) -> None:
    """Raise TypeError for a function that cannot be called with two numbers."""
    import inspect  # Why here: few programs pass a function.

    # Why str: it is None for a method in C.
    if str(getattr(function, "__module__", "")).partition(".")[0] == "tqdm":
        raise TypeError("progress=True shows a bar of tqdm; a function gets (done, total)")
    try:
        # Why: a decorator may supply arguments of the function beneath it.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # Why: some functions in C have none.
        return
    try:
        signature.bind(0, 1)
    except TypeError as error:
        raise TypeError(f"progress is called as f(done, total), which fails: {error}") from None


class _Call(Observer):
    """Calls the user's function."""

    def __init__(self, function: Callable[[int, int], object]) -> None:
        self._function = function

    def update(self, done: int, total: int, failed: int = 0) -> None:
        self._function(done, total)


class _Bar(Observer):
    """A tqdm bar that counts chunks or items, in a notebook or a terminal."""

    def __init__(self, label: str, noun: str, initial: int) -> None:
        # Why initial: the rate, and the time that is left, are those of this call.
        self._options = {"desc": label, "unit": noun, "initial": initial, **_AT_ONCE}
        self._bar: Any = None
        self._began = time.time()

    def begin(self, total: int) -> None:
        # Why: the element of a notebook belongs to the cell that runs when it is displayed.
        if "ipykernel.zmqshell" in sys.modules:
            self._bar = self._make(total)

    def update(self, done: int, total: int, failed: int = 0) -> None:
        # Why suppressed: a bar that cannot be drawn (a broken pipe, a full disk) ends no run.
        with contextlib.suppress(OSError):
            self._draw(done, total, failed)

    def _draw(self, done: int, total: int, failed: int) -> None:
        if self._bar is None:
            self._bar = self._make(total)
            # Why: the chunks that are done took their time before the bar was made.
            self._bar.start_t = self._bar.last_print_t = self._began
        self._bar.show_failures(failed)
        self._bar.update(done - self._bar.n)

    def _make(self, total: int) -> Any:
        # Why here: in most programs there is no bar.
        from shmpar.runtime.notebook import in_notebook, make_bar

        make = make_bar if in_notebook() else _terminal_bar(os.getpid())
        return make(total=total, **self._options)

    def close(self) -> None:
        bar, self._bar = self._bar, None
        # Why: the run is complete; a bar that cannot be drawn (stderr is closed) must not hide it.
        with contextlib.suppress(Exception):
            if bar is not None:
                bar.close()


@cache
def _terminal_bar(_pid: int) -> Any:
    """Return the class of the bars of a process in a terminal; they share a lock.

    Why one per process: in a child that was forked while a bar was drawn, its lock stays locked.
    """
    from tqdm.auto import tqdm

    from shmpar.runtime.notebook import QuietBar

    class TerminalBar(QuietBar, tqdm):  # type: ignore[misc]
        """A bar of tqdm's."""

        _lock = threading.RLock()

    return TerminalBar


def show_progress(run: Run, observer: Observer, fail: Fail) -> None:
    """Show the progress of a run until it is over, in the thread that waits for it."""
    try:
        while not run.over.wait(TICK_SECONDS):
            if not show_once(run, observer, fail):
                run.over.wait()
                return
        update(run, observer)
    finally:
        observer.close()


def show_once(run: Run, observer: Observer, fail: Fail) -> bool:
    """Show the progress once; the run fails with an error that this raises."""
    try:
        update(run, observer)
    except Exception as error:  # noqa: BLE001 - the user's code
        fail(run, error)
        return False
    return True


def update(run: Run, observer: Observer) -> None:
    """Show the progress as it is now."""
    observer.update(*run.progress, len(run.execution.errors))
