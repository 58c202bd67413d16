"""Will it fit: all the memory that a call is going to need, looked at before any of it is made.

Imports ``shmpar.errors``, and the ladder and room beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from shmpar.errors import SegmentFull
from shmpar.segment import ladder, room

__all__ = ["check_room"]


def check_room(who: str, needs: Sequence[tuple[str, int]]) -> None:
    """Raise `SegmentFull` unless there is room for all of some segments at once.

    Parameters
    ----------
    who : str
        Who needs them, for the message.
    needs : sequence of (str, int)
        What each segment is for, and its bytes.

    Notes
    -----
    A forecast: other processes take memory too. Each segment looks for itself when it is made.

    Cost: 300 us, so ask only for what is not :data:`SMALL`.
    """
    total = sum(nbytes for _, nbytes in needs)
    outlooks = ladder.survey()
    if _fits([nbytes for _, nbytes in needs], outlooks, room.memory()):
        return
    parts = " + ".join(f"{nbytes:,} for {what}" for what, nbytes in needs)
    free = ", ".join(f"{one.free:,} in {one.rung.where}" for one in outlooks)
    raise SegmentFull(
        f"{who} needs {total:,} bytes of shared memory ({parts}), more than there is room for "
        f"({free}); nothing was begun. Pass inputs as np.memmap or make them shared once "
        "(pool.array), out= a .npy path or an np.memmap, smaller dtypes, or part of the array"
    )


def _fits(sizes: Sequence[int], outlooks: Sequence[ladder.Outlook], memory: int) -> bool:
    """Whether each finds a rung, when all take from one memory."""
    free = {one.rung.kind: one.free for one in outlooks}
    for size in sizes:
        for one in outlooks:
            if size <= free[one.rung.kind] and (size <= memory or not one.in_memory):
                free[one.rung.kind] -= size
                memory -= size if one.in_memory else 0
                break
        else:
            return False
    return True
