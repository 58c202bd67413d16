"""``ledger=``: what an earlier process has done of the same call.

Imports identity, ledgerfile, outputs, plan and segment, and the neighbours in this package.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from shmpar.failures import levels_to_user
from shmpar.identity import identify
from shmpar.ledgerfile import LedgerFile, Owner
from shmpar.outputs import NpyFile, Outputs
from shmpar.placement import InBlocks
from shmpar.plan import Announcement, Function, Output, Plan
from shmpar.segment import locate
from shmpar.verbs.shapes import check_shape
from shmpar.verbs.targets import Targets

__all__ = ["check_kept", "take_up"]

Array = np.ndarray[Any, Any]

_OUTLIVE = (
    "ledger= needs results that outlive this process: pass out='result.npy' or an np.memmap "
    "(mode 'r+' or 'w+')"
)


def check_kept(plan: Plan, ledger: Any, targets: Targets, *, in_place: bool) -> str:
    """The absolute path of a ledger on disk, for a call whose results are there too.

    Raises
    ------
    TypeError
        If it is no path.
    ValueError
        If no ledger can be there, or the results of the call cannot outlive this process.
    """
    verb = plan.verb
    if not isinstance(ledger, str | os.PathLike):
        raise TypeError(f"{verb}: ledger= is the path of a file, not {type(ledger).__name__}")
    path = os.path.abspath(os.fspath(ledger))
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        raise ValueError(f"{verb}: ledger={path!r}: its folder is not there, or it is one")
    if in_place:
        raise ValueError(
            f"{verb}: ledger= cannot serve a call in place: a chunk that was begun has overwritten "
            "what it would be computed from"
        )
    if targets.collects:
        raise ValueError(f"{verb}: ledger= cannot keep Python objects (dtype=object)")
    # Where blocks are put together there are results; elsewhere the function may return None.
    blocks = isinstance(plan.placement, InBlocks)
    if targets.given is None and (blocks or targets.dtypes is not None):
        raise ValueError(f"{verb}: {_OUTLIVE}")
    for one in targets.given or ():
        if isinstance(one, NpyFile):
            if one.path == path:
                raise ValueError(f"{verb}: ledger= and out= are one file, {path!r}")
        elif not _on_disk(one):
            raise ValueError(f"{verb}: {_OUTLIVE}; out= (shape {one.shape}) lies in memory")
    return path


def _on_disk(array: Array) -> bool:
    place = locate(array)
    return place is not None and place.segment.kind == "file"


def take_up(
    path: str,
    plan: Plan,
    function: Function,
    arrays: list[Array],
    outputs: Outputs,
    *,
    seeded: bool,
) -> tuple[Plan, tuple[int, ...] | None]:
    """Open the ledger of a call, and go on where an earlier process has ended.

    Parameters
    ----------
    seeded : bool
        Whether the user chose the seed; else the first process' holds for all.

    Returns
    -------
    plan : Plan
        With the seed that is in the ledger.
    todo : tuple of int or None
        The chunks that are to be computed; None for all.

    Raises
    ------
    ValueError
        If the ledger belongs to another call, or is none.
    RuntimeError
        If another run has it.
    """
    call, seed = identify(plan, function, arrays), _plain(plan.seed)
    if seeded:
        call["seed"] = repr(seed)
    ledger = outputs.ledger = LedgerFile.open(path, Owner(plan.chunks, seed, call))
    if plan.seed is not None:
        plan = plan._replace(seed=ledger.owner.seed)
    return plan, _todo(plan, outputs, ledger) if ledger.sums.any() else None


def _plain(seed: Any) -> Any:
    """A seed as JSON has it."""
    return [int(part) for part in seed] if isinstance(seed, Sequence) else seed


def _todo(plan: Plan, outputs: Outputs, ledger: LedgerFile) -> tuple[int, ...] | None:
    """The chunks that are to be computed, None for all; the others' outputs are there.

    What the ledger says of chunks that are not in the outputs as they were written is not
    believed; a warning counts them.
    """
    begun, found = int(np.count_nonzero(ledger.sums)), _found(plan, outputs)
    if found is None:
        lost = ledger.forget()
    else:
        lost = ledger.settle(lambda chunk: plan.windows(chunk, found))
    if lost:
        warnings.warn(
            f"{plan.verb}: of {begun:,} chunks that {ledger.path!r} has as done, {lost:,} are "
            "not in the output as they were written: it was emptied, changed or removed since; "
            "they are computed again",
            RuntimeWarning,
            stacklevel=levels_to_user(),
        )
    if lost == begun:
        return None
    if found:
        outputs.given = found
        shapes = tuple(Output(one.shape, one.dtype) for one in found)
        outputs.allocate(Announcement(shapes, several=bool(plan.several)))
    return ledger.pending()


def _found(plan: Plan, outputs: Outputs) -> list[Array] | None:
    """The outputs of an earlier run, if all are there and could be this run's; none is all."""
    found: list[Array] = []
    dtypes = plan.dtypes or (None,) * len(outputs.given or ())
    for one, dtype in zip(outputs.given or (), dtypes, strict=True):
        array = one.reopen() if isinstance(one, NpyFile) else one
        if array is None or (dtype is not None and array.dtype != dtype):
            return None
        try:
            check_shape(plan, array)
        except ValueError:
            return None
        found.append(array)
    return found
