"""Progress of a run: a tqdm bar, or a function of the user, as ``progress=`` asks for.

A bar counts chunks, and those that failed. In a notebook it is an element of the page, which
``notebook.py`` draws.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from shmpar.runtime.run import Run

TICK_SECONDS = 0.1
"""How often progress is shown, and chunks that take too long are looked for."""

# Why no interval and no minimum: progress is shown ten times per second at most. Tqdm would adapt
# its minimum to a quick beginning, and the bar would stand still in a slow part.
_AT_ONCE: dict[str, Any] = {"mininterval": 0, "miniters": 1}

Fail = Callable[["Run", BaseException], None]
Progress = bool | str | Callable[[int, int], object]


class Observer(Protocol):
    """An object that shows the progress of a run."""

    def begin(self, total: int) -> None:
        """Begin in the thread that makes the call, which may return before the first update."""

    def update(self, done: int, total: int, failed: int = 0) -> None:
        """Show how many chunks are settled, of all, and how many of these failed."""

    def close(self) -> None:
        """End: the run is over."""


def observe(progress: Progress, verb: str, noun: str = "chunk") -> Observer | None:
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

    Raises
    ------
    TypeError
        If it is none of these.
    """
    if progress is False or progress is None:
        return None
    if progress is True or isinstance(progress, str):
        return _Bar(verb if progress is True else progress, noun)
    if callable(progress):
        return _Call(progress)
    raise TypeError(f"progress is True, a label or a callable, not {brief(progress)}")


class _Call:
    """Calls the user's function."""

    def __init__(self, function: Callable[[int, int], object]) -> None:
        self._function = function

    def begin(self, total: int) -> None:
        """Do nothing: there is no progress yet."""

    def update(self, done: int, total: int, failed: int = 0) -> None:
        self._function(done, total)

    def close(self) -> None:
        """Do nothing."""


class _Bar:
    """A tqdm bar that counts chunks or items, in a notebook or a terminal."""

    def __init__(self, label: str, noun: str) -> None:
        self._options = {"desc": label, "unit": noun, **_AT_ONCE}
        self._bar: Any = None
        self._began = time.time()

    def begin(self, total: int) -> None:
        # Why: the element of a notebook belongs to the cell that runs when it is displayed.
        if "ipykernel.zmqshell" in sys.modules:
            self._bar = self._make(total)

    def update(self, done: int, total: int, failed: int = 0) -> None:
        if self._bar is None:
            self._bar = self._make(total)
            # Why: the chunks that are done took their time before the bar was made.
            self._bar.start_t = self._bar.last_print_t = self._began
        bar = self._bar
        if failed:
            bar.show_failures(failed)
        bar.update(done - bar.n)

    def _make(self, total: int) -> Any:
        if "ipykernel.zmqshell" in sys.modules:
            # Why here: in most programs there is no notebook.
            from shmpar.runtime.notebook import in_notebook, make_bar

            if in_notebook():
                return make_bar(total=total, **self._options)
        from tqdm.auto import tqdm

        def show_failures(bar: Any, failed: int) -> None:
            bar.set_postfix_str(f"{failed:,} failed", refresh=False)

        # Why: tqdm's monitor thread would outlive the bar, and its default lock creates
        # a semaphore of multiprocessing.
        own = {"monitor_interval": 0, "_lock": threading.RLock(), "show_failures": show_failures}
        return type("Bar", (tqdm,), own)(total=total, **self._options)

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
