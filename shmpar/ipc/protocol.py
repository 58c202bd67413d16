"""What a worker process and its parent say to each other.

Imports nothing of the package.

==================  ==============================================================================
to the worker
==================  ==============================================================================
``plan``            work on a generation of a run: :class:`PlanMessage`, segments
``outputs``         where the outputs of a run lie, whether they are several, segments
``abandon``         the run that waits for outputs is over
``task``            number, parcel, held segments, environment or None, segments
``initialize``      parcel, held segments, segments
``limit``           chunks and tasks after which it is to end
``segments``        segments that come ahead of the message that speaks of them
``forget``          key of a segment that is gone
``exit``            there is nothing more
==================  ==============================================================================

==================  ==============================================================================
to the parent
==================  ==============================================================================
``hello``           the magic number of its bytecode
``announce``        run, what the outputs must be
``failed``          run, chunk, shape of its block, exception, traceback
``finished``        run, generation, first and last ticket of a claim
``values``          run, results that are objects, with segments
``drained``         run, generation, tickets had, tickets handed out or None, seconds, what the
                    outputs in the scratch are or None, whether tickets may be left: it ends
``leaving``         it has done as much as it may, and ends
``refused``         run, exception, traceback: it does not load
``returned``        task, parcel, segments
``raised``          task, exception, traceback
``uncalled``        task: the initializer had failed
``broken``          exception, traceback: the initializer failed
==================  ==============================================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Environment", "PlanMessage", "Reference", "SegmentRecord", "Standing"]

Reference = tuple[int, int, tuple[int, ...], tuple[int, ...], str | np.dtype[Any]]
"""Key of a segment, offset (bytes), shape, strides (bytes), dtype or its name."""


class SegmentRecord(NamedTuple):
    """A segment whose descriptor comes with the message."""

    key: int
    size: int
    kind: str
    writable: bool
    private: bool


class Environment(NamedTuple):
    """What of the parent's state a function may depend on; sent when it has changed."""

    directory: str | None
    path: list[str] | None
    errors: dict[str, Any]
    filters: bytes | None


class PlanMessage(NamedTuple):
    """All of a plan and one generation of it.

    Attributes
    ----------
    run, generation, todo
        What to work on.
    counter : int
        Number under which to keep the counter; -1: not. If it is not known, its descriptor is
        the first one.
    tickets : str
        Kind of the counter.
    origin : float
        When the run began, by the clock that all processes share.
    environment : Environment or None
        None: as before.
    function : bytes or None
        Parcel of :class:`Function`, unless it is plain.
    standing : bytes
        Pickled fields of :class:`Standing`: they are the same for the same call.
    """

    run: int
    generation: int
    todo: tuple[int, ...] | None
    counter: int
    tickets: str
    origin: float
    environment: Environment | None
    function: bytes | None
    standing: bytes


class Standing(NamedTuple):
    """What of a plan is the same when a small call is made again.

    Attributes
    ----------
    workers, chunks
        Of the ledger.
    ledger : int
        Key of the ledger's segment.
    arrays : tuple of Reference
        The inputs.
    outputs : tuple of Reference or None
        None if they are not known yet.
    is_tuple : bool or None
        Goes with them.
    scratch : bool
        Outputs that are not known go into the ledger's scratch if they fit.
    reports : bool
        Whether the parent wants to hear of each claim that is finished.
    sums : Reference or None
        Where the checksum of each chunk's output goes.
    plan : bytes
        Pickled :class:`Plan`.
    function : bytes or None
        Parcel of a :class:`Function` that is plain: it leaves nothing for its next call.
    held : tuple of int
        Keys of the parcel's segments, in its order; ~key for one that is private.
    """

    workers: int
    chunks: int
    ledger: int
    arrays: tuple[Reference, ...]
    outputs: tuple[Reference, ...] | None
    is_tuple: bool | None
    scratch: bool
    reports: bool
    sums: Reference | None
    plan: bytes
    function: bytes | None
    held: tuple[int, ...]
