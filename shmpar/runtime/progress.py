"""Observers of a run: what ``progress=`` may be.

Imports policy; tqdm where it is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from shmpar.runtime.execution import Observer

__all__ = ["Progress", "observe"]

Progress = bool | str | Callable[[int, int], object]


def observe(progress: Progress, verb: str) -> Observer | None:
    """Make the observer that ``progress=`` asks for.

    Parameters
    ----------
    progress : bool, str or callable
        True is a tqdm bar with the verb's name, a str one with this label; a callable is the
        observer itself.
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
    """A function of the user that gets ``(done, total)``."""

    def __init__(self, call: Callable[[int, int], object]) -> None:
        self._call = call

    def update(self, done: int, total: int) -> None:
        self._call(done, total)

    def close(self) -> None:
        """Nothing is open."""


class _Bar:
    """A tqdm bar, in a notebook or a terminal, that counts chunks.

    It has no monitor thread, which would outlive it, and a lock of this process alone.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None

    def update(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm.auto import tqdm

            bar = type("Bar", (tqdm,), {"monitor_interval": 0, "_lock": threading.RLock()})
            self._bar = bar(total=total, desc=self._label, unit="chunk")
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
