"""How many bytes the chunks of a run read and write.

Imports grid and plan.
"""

from __future__ import annotations

from collections.abc import Sequence

from shmpar.grid import Axis, Halo
from shmpar.plan import Blocks, Plan, Rows

__all__ = ["bytes_read"]


def bytes_read(plan: Plan, sizes: Sequence[int]) -> int:
    """Bytes of the inputs that the function is given, over all chunks.

    A halo counts in each chunk that has it; so does an array, or an axis of it, that arrives
    whole. Items of an iterable and constants do not count.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each of the run's arrays.

    Examples
    --------
    >>> from shmpar.grid import Grid
    >>> from shmpar.placement import InBlocks
    >>> grid = Grid.cut((6, 4), (3, 2))
    >>> arguments = Blocks(0, (0, 1)), Blocks(1, (None, 1))
    >>> plan = Plan("map_blocks", grid, arguments, InBlocks.like(grid))
    >>> bytes_read(plan, [6 * 4 * 8, 1 * 4 * 8])
    256
    """
    total = 0.0
    for argument in plan.arguments:
        if isinstance(argument, Rows):
            total += sizes[argument.array]
        elif isinstance(argument, Blocks):
            total += sizes[argument.array] * _times_read(plan, argument)
    return round(total)


def _times_read(plan: Plan, argument: Blocks) -> float:
    """How often each element of an input is read, on average."""
    times = 1.0
    for number, axis in enumerate(plan.grid.axes):
        if number not in argument.axes:
            times *= len(axis)
        elif plan.halo is not None:
            times *= _seen(axis, plan.halo, number) / max(axis.size, 1)
    return times


def _seen(axis: Axis, halo: Halo, number: int) -> int:
    """Elements of an axis that all windows together see; what lies beyond it is made, not read."""
    before, after = halo.depth[number]
    spans = [axis.span(i) for i in range(len(axis))]
    return sum(min(axis.size, stop + after) - max(0, start - before) for start, stop in spans)
