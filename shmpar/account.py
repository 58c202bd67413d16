"""What a run's report is made of, kept from its begin to its end and after.

Imports ledger, plan and segment.

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

__all__ = ["Account", "Loss"]

Array = np.ndarray[Any, Any]


class Loss(NamedTuple):
    """An attempt that ended with its worker.

    Attributes
    ----------
    worker : int
        Which one.
    chunk : int or None
        What it was computing; None if no chunk is to blame.
    begin, end : float
        From when it had its claim, or in a timed run its chunk, until its end was noticed:
        seconds of the monotonic clock.
    """

    worker: int
    chunk: int | None
    begin: float
    end: float


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
    seconds : float or None
        How long it took, once it is over.
    losses : list of Loss
        What ended with a worker.
    """

    def __init__(self, function: Function) -> None:
        self.name = _name(function.call)
        self.began = time.perf_counter()
        self.opened: float | None = None
        self.seconds: float | None = None
        self.losses: list[Loss] = []
        self._ledger: Ledger | None = None
        self._arrays: tuple[list[tuple[str, int]], list[tuple[str, int]]] | None = None

    def begin(self) -> None:
        """All is ready; workers may begin."""
        self.opened = time.perf_counter()

    def lose(self, worker: int, chunk: int | None, held: Held | None) -> None:
        """A worker is gone that held this."""
        if held is not None:
            self.losses.append(Loss(worker, chunk, held.since * 1e-9, time.monotonic()))

    def end(self) -> None:
        """The run is over."""
        self.seconds = time.perf_counter() - self.began

    def keep(self, ledger: Ledger) -> None:
        """Keep what a ledger says that is about to be another run's."""
        self._ledger = ledger.copy()

    def keep_arrays(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Keep where the arrays are and how large, but not them."""
        self._arrays = _described(inputs), _described(outputs)

    def ledger(self, current: Ledger | None) -> Ledger | None:
        """A copy of the ledger: that of the end, or of now."""
        return self._ledger if current is None else current.copy()

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
        call = getattr(call, "func1d", call)
        return str(getattr(call, "__qualname__", None) or getattr(call, "__name__", ""))
    except Exception:  # noqa: BLE001 - the user's object may raise anything; this is for show
        return ""
