"""Take the results of a box of chunks: write them into the outputs, mark them, report them.

Any exception of unpickling, ``SystemExit`` too, is a failure of its chunk alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar.cluster.messages import BoxResult, SpanBox
from shmpar.engines.engine import ActivePlan, HostTraffic
from shmpar.engines.packing import unpack_error
from shmpar.errors import ShmparError
from shmpar.ipc import protocol
from shmpar.ipc.ledger import DONE, FAILED
from shmpar.plan import Announcement, Output, ResultError
from shmpar.stores.store import Part
from shmpar.worker.verify import StoredChecksum

Array = np.ndarray[Any, Any]
Tell = Callable[[protocol.Event], object]


def as_index(chunks: Sequence[int]) -> Any:
    """Return an index of the ledger's arrays: a slice where the chunks are consecutive."""
    if isinstance(chunks, range) and chunks.step == 1:
        return slice(chunks.start, chunks.stop)
    return list(chunks)


def take_box(
    active: ActivePlan, box: SpanBox, result: BoxResult, traffic: HostTraffic, tell: Tell
) -> None:
    """Take the result of a box.

    Parameters
    ----------
    traffic : HostTraffic
        Counts the bytes.
    tell : callable
        Takes an event of the run.
    """
    done, failed = result.done, 0
    if result.fatal is not None and not active.stopped:
        tell(protocol.PlanRejected(active.number, unpack_error(result.fatal)))
    if result.announcement is not None and not _agrees(active, result.announcement, tell):
        done, failed = (), 1
    if done and result.parts is not None:
        traffic.bytes_in += sum(part.nbytes for part, _ in result.parts)
        written = _write(active, box, done, result.parts, tell)
        failed, done = failed + len(done) - len(written), written
    for chunk, body in result.values:
        traffic.bytes_in += len(body)
        if not _take_value(active, chunk, body, tell):
            failed += 1
            done = [one for one in done if one != chunk]
    if done:
        active.ledger.status[as_index(done)] = DONE
        _note_sums(active, box, done, result)
    for chunk, error, shape, final in result.failed:
        failed += 1
        active.ledger.status[chunk] = FAILED
        tell(protocol.ChunkFailed(active.number, chunk, unpack_error(error), shape, final))
    explained = active.stopped or result.fatal is not None
    if len(done) + failed < len(box.chunks) and not (failed or explained):
        lacking = ShmparError("a host has returned a span that it has not computed")
        tell(protocol.PlanRejected(active.number, lacking))


def _agrees(active: ActivePlan, packed: tuple[Any, ...], tell: Tell) -> bool:
    """Allocate the outputs, or compare the announcement of a host with them."""
    said = Announcement.unpack(packed)
    if active.outputs is None:
        try:
            active.allocate(said)
        except Exception as error:  # noqa: BLE001 - the run is told
            tell(protocol.PlanRejected(active.number, error))
            return False
        return True
    if said.chunk < 0:
        return True
    here = tuple(Output(one.shape, one.dtype) for one in active.outputs)
    reason = said.disagrees(Announcement(here, bool(active.is_tuple)))
    if reason is not None:
        active.ledger.status[said.chunk] = FAILED
        tell(protocol.ChunkFailed(active.number, said.chunk, ResultError(reason)))
    return reason is None


def _take_value(active: ActivePlan, chunk: int, body: bytes, tell: Tell) -> bool:
    """Unpickle an object; return whether it unpickles here."""
    try:
        value = pickle.loads(body)
    except BaseException as error:  # noqa: BLE001 - whatever unpickling raises
        active.ledger.status[chunk] = FAILED
        tell(protocol.ChunkFailed(active.number, chunk, error))
        return False
    tell(protocol.ObjectsReturned(active.number, [(chunk, value)]))
    return True


def _write(
    active: ActivePlan,
    box: SpanBox,
    done: Sequence[int],
    parts: Sequence[tuple[Array, tuple[int, ...]]],
    tell: Tell,
) -> Sequence[int]:
    """Write the windows of chunks that are done; return those chunks that were written.

    A store may refuse a window: then its chunk alone fails.
    """
    try:
        _write_parts(active, box, done, parts)
    except Exception:  # noqa: BLE001 - it comes again below, with its chunk
        written = []
        for chunk in done:
            try:
                _write_parts(active, box, [chunk], parts)
            except Exception as error:  # noqa: BLE001 - the run is told
                active.ledger.status[chunk] = FAILED
                tell(protocol.ChunkFailed(active.number, chunk, error))
                if active.plan.fail_fast:
                    break
            else:
                written.append(chunk)
        return written
    return done


def _write_parts(
    active: ActivePlan,
    box: SpanBox,
    done: Sequence[int],
    parts: Sequence[tuple[Array, tuple[int, ...]]],
) -> None:
    """Write the windows of chunks that are done into the outputs."""
    for (part, origin), output in zip(parts, active.outputs or (), strict=True):
        if len(done) == len(box.chunks):
            pairs = zip(origin, part.shape, strict=True)
            place: Any = (*[slice(first, first + n) for first, n in pairs], ...)
            output[place] = part
            continue
        whole = Part(part, origin, output.shape)
        window_of = active.plan.placement.windows(active.plan.grid, output.shape)
        for chunk in done:
            where: Any = (*window_of(chunk), ...)
            output[where] = whole[where]


def _note_sums(active: ActivePlan, box: SpanBox, done: Sequence[int], result: BoxResult) -> None:
    """Note the checksums of chunks: those of the hosts, or of the windows that were written."""
    if active.checksums is None:
        return
    if result.sums is not None:
        base = box.chunks[0]
        active.checksums[as_index(done)] = result.sums[[chunk - base for chunk in done]]
        return
    checksum_of = StoredChecksum(active.plan, list(active.outputs or ()))
    for chunk in done:
        active.checksums[chunk] = checksum_of(chunk)
