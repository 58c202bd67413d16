"""How a worker process tells its parent of outputs, results and failures.

Imports the neighbours in this package, ledger, plan, travel and wire.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.errors import PlanError
from shmpar.ledger import SAID, Ledger
from shmpar.placement import ResultError
from shmpar.plan import Announcement, Failure
from shmpar.wire import MAX_DESCRIPTORS
from shmpar.worker.messages import SegmentRecord

if TYPE_CHECKING:
    from shmpar.travel.parcel import Parcel
    from shmpar.worker.process import WorkerProcess

__all__ = ["SocketChannel", "lent", "packed"]

Array = np.ndarray[Any, Any]
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class SocketChannel:
    """A worker process' channel to the run."""

    interruptible = False

    def enough(self) -> bool:
        """Never: the parent is told of the end."""
        return False

    def __init__(self, process: WorkerProcess, run: int, scratch: Ledger | None) -> None:
        self._process = process
        self._run = run
        self._scratch = scratch
        self._values: list[tuple[int, bytes, list[SegmentRecord]]] = []
        self._descriptors: list[int] = []
        self._parcels: list[Parcel] = []
        self.said: Announcement | None = None

    def allocate(self, announcement: Announcement) -> tuple[Sequence[Array], bool]:
        """Say what the outputs must be, and wait until the parent has made them.

        Small ones lie in the scratch, and what they must be is said at the end.
        """
        if self._scratch is not None:
            arrays = self._scratch.carve(announcement.outputs)
            if arrays is not None:
                self.said = announcement
                # For the case that this process does not live to say it.
                self._scratch.slot(self._process.number)[SAID] = announcement.digest()
                return arrays, announcement.several
        self._process.wire.send(("announce", self._run, announcement.pack()))
        references, several = self._process.await_outputs(self._run)
        views = [self._process.view(reference, writable=True) for reference in references]
        return views, several

    def failed(self, failure: Failure) -> None:
        """Report a chunk that failed, with the exception if it pickles."""
        body, text = packed(failure.error)
        self._process.wire.send(("failed", self._run, failure.chunk, failure.shape, body, text))

    def values(self, values: Sequence[tuple[int, Any]]) -> None:
        """Keep results until the claim is finished; one that does not pickle fails its chunk."""
        from shmpar.travel.packing import pack_result

        for chunk, value in values:
            try:
                parcel = pack_result(value)
            except PlanError as error:
                raise _unpicklable(value) from error
            if len(self._descriptors) + len(parcel.segments) > MAX_DESCRIPTORS:
                self.flush()
            records, descriptors = lent(parcel)
            self._values.append((chunk, parcel.body, records))
            self._descriptors += descriptors
            self._parcels.append(parcel)

    def finished(self, generation: int, first: int, last: int) -> None:
        """Say that the tickets ``first <= t < last`` are done, or have failed."""
        self._process.wire.send(("finished", self._run, generation, first, last))

    def flush(self) -> None:
        """Send the results; the kernel keeps them if this process dies now."""
        values, self._values = self._values, []
        descriptors, self._descriptors = self._descriptors, []
        if values:
            self._process.wire.send(("values", self._run, values), descriptors)
        self._parcels.clear()


def lent(parcel: Parcel) -> tuple[list[SegmentRecord], list[int]]:
    """Records and descriptors of the segments that a result speaks of."""
    records = [
        SegmentRecord(one.key, one.size, one.kind, one.writable, private=False)
        for one in parcel.segments
    ]
    return records, [one.fileno() for one in parcel.segments]


def _unpicklable(value: Any) -> ResultError:
    return ResultError(f"the function returned a {type(value).__qualname__}, which does not pickle")


def packed(error: BaseException) -> tuple[bytes | None, str]:
    """The exception as a pickle, if it makes one, and its traceback as text."""
    text = "".join(traceback.format_exception(type(error), error, _of_user(error.__traceback__)))
    try:
        from shmpar.travel.packing import pack_error  # most workers meet none

        return pack_error(error), text
    except BaseException:  # noqa: BLE001 - whatever it raises, the text has to do
        return None, text


def _of_user(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the user's function on: the frames above it are ours."""
    below = trace
    while below is not None and below.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        below = below.tb_next
    return below or trace
