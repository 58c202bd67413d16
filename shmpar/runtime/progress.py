"""Progress of a run: a tqdm bar, or a function of the user, as ``progress=`` asks for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from shmpar.runtime.execution import Observer

Progress = bool | str | Callable[[int, int], object]


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
        return _Callback(progress)
    raise TypeError(f"progress is True, a label or a callable, not {progress!r}")


class _Callback:
    def __init__(self, function: Callable[[int, int], object]) -> None:
        self._function = function

    def update(self, done: int, total: int) -> None:
        self._function(done, total)

    def close(self) -> None:
        """Do nothing: there is no bar to close."""


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
