"""``Pool(check=True)``: was every window written once and whole, and nothing else.

Imports checksum, outputs, pattern, plan and segment.

Guarantees
----------
- Outputs are filled with a pattern before the first chunk; the windows of a chunk that was begun
  and is computed again, before it is.
- At the end each window that is done is as its worker has left it, each that was not begun has its
  pattern, and the inputs are as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from shmpar import pattern
from shmpar.checksum import checksum, crc
from shmpar.errors import ChunkError
from shmpar.ledger import DONE, PENDING, Ledger
from shmpar.outputs import new_output
from shmpar.plan import Plan, describe_region

__all__ = ["Verification"]

Array = np.ndarray[Any, Any]


class Verification:
    """What is checked of one run.

    Parameters
    ----------
    plan : Plan
        Of the run.
    inputs : sequence of ndarray
        Those that no output lies in.
    todo : tuple of int or None
        The chunks that are to be computed; None: all.
    sums : ndarray of uint32 or None
        Where checksums are kept already.

    Attributes
    ----------
    sums : ndarray of uint32
        Where workers write the checksum of each chunk.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Sequence[Array],
        todo: tuple[int, ...] | None,
        sums: Array | None,
    ) -> None:
        self._plan, self._inputs, self._todo = plan, inputs, todo
        self._before = [crc(one) for one in inputs]
        self._outputs: Sequence[Array] = ()
        self.sums = new_output((plan.chunks,), np.dtype("<u4")) if sums is None else sums

    def watch(self, outputs: Sequence[Array]) -> None:
        """Fill the outputs, as far as they are to be computed."""
        self._outputs = outputs
        if self._todo is not None:
            self.again(self._todo)
            return
        for output in outputs:
            pattern.fill(output, pattern.FIRST)

    def again(self, chunks: Iterable[int]) -> None:
        """Fill the windows of chunks that were begun, perhaps, and are to be computed."""
        for chunk in chunks:
            self.sums[chunk] = 0
            for window in self._plan.windows(chunk, self._outputs):
                pattern.fill(window, pattern.FIRST)

    def verdict(self, ledger: Ledger, run: Any) -> ChunkError | None:
        """What is wrong, now that nobody writes any more; None if nothing is."""
        wrong = [
            chunk for chunk, status in enumerate(ledger.status) if self._differs(chunk, status)
        ]
        if wrong:
            first, plan = wrong[0], self._plan
            more = f", and those of {len(wrong) - 1:,} more chunks" if len(wrong) > 1 else ""
            return ChunkError(
                f"{plan.verb}, chunk {first} at {describe_region(plan.region(first))}: check=True: "
                f"its window of the output was changed by somebody else than its worker{more}; the "
                "function, or another process, writes outside of its window",
                chunk=first,
                region=plan.region(first),
                run=run,
            )
        for number, (one, before) in enumerate(zip(self._inputs, self._before, strict=True)):
            if crc(one) != before:
                return ChunkError(
                    f"{self._plan.verb}: check=True: input {number} (shape {one.shape}) was "
                    "changed while the run was in progress",
                    run=run,
                )
        return None

    def _differs(self, chunk: int, status: int) -> bool:
        windows = self._plan.windows(chunk, self._outputs)
        if status == DONE:
            return bool(checksum(windows) != self.sums[chunk])
        if status == PENDING:
            return not all(pattern.left(window, pattern.FIRST).all() for window in windows)
        return False
