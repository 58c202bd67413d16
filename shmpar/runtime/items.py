"""The items of a run of `parallel_map`, and the table of their results."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.errors import shortened
from shmpar.ipc.ledger import DONE, FAILED, LostClaim
from shmpar.plan import Function, Items, Plan
from shmpar.runtime.outputs import Weak, held

if TYPE_CHECKING:
    from shmpar.ipc.ledger import Ledger

_MOST_CHARACTERS = 200
_STATUS = {DONE: "done", FAILED: "failed"}

_brief = reprlib.Repr()
_brief.maxother = _brief.maxstring = _brief.maxlong = 120


class RunItems:
    """The items that the function of a run gets.

    Parameters
    ----------
    sequences : sequence of sequence
        The items of each argument that gives items.
    """

    def __init__(self, sequences: Sequence[Sequence[Any]]) -> None:
        self._sequences = sequences

    @classmethod
    def of(cls, plan: Plan, function: Function) -> RunItems:
        """Return the items of a call."""
        values = function.values
        return cls([values[one.value] for one in plan.arguments if isinstance(one, Items)])

    def parts(self, chunk: int) -> tuple[Any, ...]:
        """Return the item of each argument; None for a large array that nobody holds any more."""
        found = [items[chunk] for items in self._sequences]
        return tuple([one() if isinstance(one, Weak) else one for one in found])

    def __getitem__(self, chunk: int) -> Any:
        """Return the item of a chunk; a tuple of them if several arguments give items."""
        parts = self.parts(chunk)
        return parts[0] if len(parts) == 1 else parts

    def describe(self, chunk: int) -> str:
        """Return the item for a message, in at most a few hundred characters."""
        text = ", ".join(map(_describe, self.parts(chunk)))
        return f"item {chunk} ({shortened(text, _MOST_CHARACTERS)})"

    def release(self) -> None:
        """Keep large arrays only as long as somebody else does."""
        self._sequences = [
            items if isinstance(items, range) else [held(one) for one in items]
            for items in self._sequences
        ]


def _describe(item: Any) -> str:
    if isinstance(item, np.ndarray):
        return f"array of shape {item.shape}"
    try:
        return _brief.repr(item).replace("\n", " ")
    except BaseException:  # noqa: BLE001 - Why: __repr__ is the user's code
        return f"a {type(item).__name__}"


class Table(list[dict[str, Any]]):
    """Records of the items of a run, in input order; a list of dicts.

    Each record has these entries:

    ``item``
        The item, or the tuple of items.
    ``status``
        "done", "failed" or "pending".
    ``result``
        The value that the function returned; None unless the item is done.
    ``error``
        The error of the item; None unless the item failed.
    ``seconds``
        Time that the item took in its worker; None if that is not known, as for an item whose
        result was read from a ledger.
    ``worker``
        Number of the worker, None if it is not known.
    """

    def to_frame(self) -> Any:
        """Return the records as a :class:`pandas.DataFrame`, one row per item.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            text = "to_frame() needs pandas; the table itself is a list of dicts"
            raise ImportError(text) from error
        columns = {name: [record[name] for record in self] for name in COLUMNS}
        # Why objects: pandas would turn None into NaN, and numbers of mixed types into floats.
        kept = {name: pd.Series(values, dtype=object) for name, values in columns.items()}
        kept["seconds"] = pd.Series(columns["seconds"], dtype="float64")
        kept["worker"] = pd.Series(columns["worker"], dtype="Int64")
        return pd.DataFrame(kept)


COLUMNS = ("item", "status", "result", "error", "seconds", "worker")


def make_table(
    items: RunItems,
    chunks: int,
    values: Any,
    errors: dict[int, Any],
    ledger: Ledger | None,
    attempts: Sequence[LostClaim],
) -> Table:
    """Make the table of a run.

    Parameters
    ----------
    chunks : int
        Number of items.
    values : callable
        Return the result of a chunk.
    errors : dict of int to ShmparError
        Failures, by chunk.
    ledger : Ledger or None
        None if the run has not begun.
    attempts : sequence of LostClaim
        Claims that ended with their worker.
    """
    lost = {one.chunk: one for one in attempts}
    table = Table()
    for chunk in range(chunks):
        status, seconds, worker = "pending", None, None
        if ledger is not None:
            status = _STATUS.get(int(ledger.status[chunk]), status)
            seconds = float(ledger.times.seconds[chunk]) or None
        error = errors.get(chunk)
        if error is not None:
            status = "failed"
        if ledger is not None and seconds is not None:
            worker = int(ledger.claims(chunk)[0])
        elif error is not None and chunk in lost:
            seconds, worker = lost[chunk].end - lost[chunk].begin, lost[chunk].worker
        result = values(chunk) if status == "done" else None
        record = (items[chunk], status, result, error, seconds, worker)
        table.append(dict(zip(COLUMNS, record, strict=True)))
    return table
