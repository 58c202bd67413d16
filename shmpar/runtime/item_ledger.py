"""``ledger=`` for a list of items: a later call computes only the items without a result on disk.

The ledger file says which call it belongs to, as for arrays, and has no chunks. The results lie in
the file beside it with the suffix ``.results`` (:mod:`shmpar.worker.results`).

Guarantees
----------
- A result belongs to the verb, the function with its keywords, and the item. So items may be added,
  removed or put in another order. Of equal items each has a result of its own.
- If the function gets ``rng`` or ``block_id``, its result also belongs to the position of the item.
- A result counts only as a whole: a process that was killed while it wrote one loses that alone.
- A failed item has no result, and is computed again.
- Without the ledger file, which may be removed to begin anew, no result counts.
"""

from __future__ import annotations

import hashlib
import secrets
import warnings
from collections import Counter
from typing import Any

from shmpar.errors import format_count
from shmpar.plan import KEY_BYTES, Function, Items, Plan, ResultsFile, Rows
from shmpar.runtime.checkpoint import (
    MADE,
    RESULTS_SUFFIX,
    Header,
    LedgerFile,
    checked_path,
    fingerprint,
)
from shmpar.runtime.error_texts import levels_to_user
from shmpar.runtime.outputs import Outputs
from shmpar.stores.store import Store, StoreRows
from shmpar.worker import results


def resume_items(
    ledger: Any,
    plan: Plan,
    function: Function,
    arrays: list[Any],
    outputs: Outputs,
    *,
    seeded: bool,
) -> tuple[Plan, tuple[int, ...] | None]:
    """Open the ledger of a call over items, and take the results that an earlier call has written.

    Parameters
    ----------
    ledger, seeded
        As for :func:`shmpar.runtime.checkpoint.resume`, which has the errors too.

    Returns
    -------
    plan : Plan
        The plan with the seed of the ledger and the file of the results.
    todo : tuple of int or None
        The items to compute; None for all.
    """
    values = outputs.values
    assert values is not None, "the results go into a list"
    path = checked_path(ledger, plan, outputs)
    header = Header.of(plan, 0, _identity(plan, function), seeded=seeded)
    # Why: without the ledger, the results beside it belong to nothing.
    header.identity[MADE] = secrets.token_hex(8)
    file = outputs.ledger_file = LedgerFile.open(path, header)
    try:
        seed = file.header.seed if plan.seed is not None else None
        keys = _keys(plan, function, arrays, file.header)
        target = ResultsFile(f"{path}{RESULTS_SUFFIX}", keys)
        plan = plan._replace(seed=seed, results_file=target)
        found, unread, todo = results.read(target.path), 0, list[int]()
        for chunk in range(plan.chunks):
            body = found.pop(target.key(chunk), None)
            if body is None:
                todo.append(chunk)
                continue
            try:
                values[chunk] = results.restore(body)
            except Exception:  # noqa: BLE001 - Why: its class may be gone; the item is computed
                unread += 1
                todo.append(chunk)
        if unread:
            text = (
                f"{plan.verb}: {format_count(unread, 'result')} in {target.path!r} cannot be read "
                "any more, since a class or an array of it is gone; the call computes "
                f"{'it' if unread == 1 else 'them'} again"
            )
            warnings.warn(text, RuntimeWarning, stacklevel=levels_to_user())
    except BaseException:
        # Lock: the traceback of an interrupt keeps this frame, and so the file, alive.
        file.unlock()
        raise
    return plan, None if len(todo) == plan.chunks else tuple(todo)


def _identity(plan: Plan, function: Function) -> dict[str, str]:
    """Return the fingerprints of the parts of a call over items, without the items."""
    call = function.call, function.keywords, sorted(plan.special_parameters)
    kinds = [type(one).__name__ for one in plan.arguments]
    return {"verb": plan.verb, "function": fingerprint(call), "inputs": ", ".join(kinds)}


def _keys(plan: Plan, function: Function, arrays: list[Any], header: Header) -> bytes:
    """Return the keys of all items, one after the other."""
    call = repr((sorted(header.identity.items()), header.seed))
    # Why: a unit of a store has many rows, and is decoded as a whole.
    arrays = [StoreRows(one) if isinstance(one, Store) else one for one in arrays]
    seen: Counter[str] = Counter()
    keys = []
    for chunk in range(plan.chunks):
        given = [_given(one, function, arrays, chunk) for one in plan.arguments]
        item = fingerprint(given[0] if len(given) == 1 else tuple(given))
        # Why: a random stream, and block_id, follow from the number of the chunk.
        which = chunk if plan.special_parameters else seen[item]
        seen[item] += 1
        text = f"{call} {item} {which}".encode("utf-8", "surrogatepass")
        keys.append(hashlib.sha256(text).digest()[:KEY_BYTES])
    return b"".join(keys)


def _given(argument: Any, function: Function, arrays: list[Any], chunk: int) -> Any:
    if isinstance(argument, Items):
        return function.values[argument.value][chunk]
    assert isinstance(argument, Rows), "a call over items has items and rows"
    return arrays[argument.array][chunk]
