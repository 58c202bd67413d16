"""What a run's report is made of, kept from its begin to its end and after.

Imports ledger, plan, segment and worker.

Guarantees
----------
What is kept after the end is a copy of the ledger, 11 bytes a chunk, and a few numbers an array;
no array, no function, no segment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shmpar.ledger import Held, Ledger
from shmpar.plan import Function
from shmpar.segment import kind_of
from shmpar.worker.along import ApplyAlongAxis

__all__ = ["Account", "Attempt"]

Array = np.ndarray[Any, Any]


class Attempt(NamedTuple):
    """An attempt that ended with its worker, or one that has not ended yet.

    Attributes
    ----------
    worker : int
        Whose.
    chunk : int or None
        The chunk that it ended in; None if none is to blame.
    begin, end : float
        From when the worker had its claim, or in a run with ``task_timeout`` its chunk, until its
        end was noticed: seconds after the run's begin.
    died : bool
        Whether it has ended.
    """

    worker: int
    chunk: int | None
    begin: float
    end: float
    died: bool = True


class Account:
    """The numbers of one run.

    Attributes
    ----------
    name : str
        What the user's function is called; empty if it has no name.
    began : float
        When the run was made, by :func:`time.perf_counter`.
    opened : float or None
        When all that its workers need was ready.
    cold : bool
        Whether no worker was up then.
    seconds : float or None
        How long it took, once it is over.
    attempts : list of Attempt
        Those that ended with their worker.
    """

    def __init__(self, function: Function) -> None:
        self.name = _name(function.call)
        self.began = time.perf_counter()
        self.opened: float | None = None
        self.cold = False
        self.seconds: float | None = None
        self.attempts: list[Attempt] = []
        self._kept: tuple[bytes, int, int] | None = None
        self._arrays: tuple[list[tuple[str, int]], list[tuple[str, int]]] | None = None

    def begin(self, ready: int) -> None:
        """All is ready, and so many workers are."""
        self.opened = time.perf_counter()
        self.cold = not ready

    def lose(self, worker: int, chunk: int | None, held: Held | None) -> None:
        """A worker is gone that held this."""
        if held is not None:
            begin, end = held.since * 1e-9 - self.began, time.monotonic() - self.began
            self.attempts.append(Attempt(worker, chunk, max(0.0, begin), end))

    def end(self) -> None:
        """The run is over."""
        self.seconds = time.perf_counter() - self.began

    def keep(self, ledger: Ledger) -> None:
        """Keep what a ledger says that is about to be another run's."""
        self._kept = ledger.copy(), ledger.workers, ledger.chunks

    def keep_arrays(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Keep where the arrays are and how large, but not them."""
        self._arrays = _described(inputs), _described(outputs)

    def ledger(self, current: Ledger | None) -> Ledger | None:
        """A copy of the ledger: that of the end, or of now."""
        if current is not None:
            return Ledger(current.copy(), workers=current.workers, chunks=current.chunks)
        if self._kept is None:
            return None
        copy, workers, chunks = self._kept
        return Ledger(copy, workers=workers, chunks=chunks)

    def arrays(
        self, inputs: Sequence[Array], outputs: Sequence[Array]
    ) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Where each input and output is, and its bytes: at the end, or of these now."""
        if self._arrays is not None:
            return self._arrays
        return _described(inputs), _described(outputs)


def _described(arrays: Sequence[Array]) -> list[tuple[str, int]]:
    return [(kind_of(array), array.nbytes) for array in arrays]


def _name(call: Any) -> str:
    """The name of a function, as text whatever it is."""
    try:
        if type(call) is ApplyAlongAxis:
            call = call.func1d
        return str(getattr(call, "__qualname__", None) or getattr(call, "__name__", ""))
    except Exception:  # noqa: BLE001 - the user's object may raise anything; this is for show
        return ""
