"""Units of stores and chunks of a call: the law of one writer, and units that are read again.

A store writes a unit as a whole. Two workers that write parts of the same unit each read the old
unit, and the later write restores the old part of the other worker. So no two chunks of a call
may write into one unit of an output store.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod
from typing import Any

from shmpar.errors import format_count
from shmpar.grid import Axis
from shmpar.plan import Along, Blocks, InBlocks, Plan
from shmpar.stores.store import Store

_MAX_PIECES = 1_000  # units of a new store within one chunk


def output_cuts(plan: Plan, ndim: int) -> list[Axis | None]:
    """Return the chunks along each axis of an output; None for an axis that every chunk spans.

    Examples
    --------
    >>> from shmpar.grid import Grid
    >>> from shmpar.plan import PerChunk
    >>> output_cuts(Plan("block_reduce", Grid.cut((10,), (4,)), (), PerChunk()), 2)
    [Axis(size=3, step=1, count=3, edges=None), None]
    """
    grid, placement = plan.grid, plan.placement
    if isinstance(placement, InBlocks):
        return list(placement.cuts)
    if isinstance(placement, Along):
        before, after = grid.axes[: placement.axis], grid.axes[placement.axis + 1 :]
        return [*before, *[None] * (ndim - grid.ndim + 1), *after]
    places = [Axis.regular(count, 1) for count in grid.numblocks]
    return [*places, *[None] * (ndim - grid.ndim)]


def check_one_writer(
    plan: Plan, shape: Sequence[int], unit: Sequence[int] | None, where: str
) -> None:
    """Raise ``ValueError`` if two chunks would write into one unit of an output store.

    Parameters
    ----------
    plan : Plan
        The call.
    shape : sequence of int
        Shape of the output.
    unit : sequence of int or None
        Elements along each axis that the store writes at once; None for single elements.
    where : str
        Name of the store, for the message.
    """
    if unit is None or not prod(shape):
        return
    for axis, (cut, length) in enumerate(zip(output_cuts(plan, len(shape)), unit, strict=True)):
        edge = None if cut is None else _edge_inside(cut, length)
        if edge is not None:
            raise ValueError(
                f"{plan.verb}: out= ({where}) is stored {length} elements at a time along axis "
                f"{axis}, and a chunk ends at {edge}: two workers would write into one piece of "
                f"the store, and one of the two writes would be lost; "
                f"{_remedy(plan, axis, length)}"
            )


def _edge_inside(cut: Axis, unit: int) -> int | None:
    """Return the first edge between two chunks that lies inside of a unit; None without one."""
    edges = cut.edges[1:-1] if cut.edges else (cut.step,) * (cut.count > 1)
    return next((edge for edge in edges if edge % unit), None)


def _remedy(plan: Plan, axis: int, unit: int) -> str:
    if not isinstance(plan.placement, InBlocks):
        made = f"make the store with chunks of 1 element along axis {axis}"
        if plan.verb == "parallel_map":
            return f"{made}, or call map_blocks with chunks= a multiple of {unit} there"
        return f"{made}, since a chunk of {plan.verb} has 1 element there"
    source, cut = plan.placement.axes[axis], plan.placement.cuts[axis]
    if source is None or cut == plan.grid.axes[source]:
        along = "there" if source in {None, axis} else f"along axis {source} of the input"
        return f"pass chunks= a multiple of {unit} {along}"
    return (
        f"pass chunks= and out_chunks= so that each block of the result has a multiple of {unit} "
        "elements there"
    )


def units_for(plan: Plan, shape: Sequence[int], where: str) -> tuple[int, ...]:
    """Return the units of a new store: as long as the chunks, so that each has one writer.

    Raises
    ------
    ValueError
        If the lengths of chunks have so small a common divisor that a chunk would have very many
        units.
    """
    units, pieces = [], 1
    for axis, (cut, size) in enumerate(zip(output_cuts(plan, len(shape)), shape, strict=True)):
        edges = () if cut is None or cut.edges is None else cut.edges[1:-1]
        unit = gcd(*edges) if edges else size if cut is None else cut.step
        pieces *= -(-cut.step // unit) if edges and cut is not None else 1
        if pieces > _MAX_PIECES:
            raise ValueError(
                f"{plan.verb}: out={where!r} would be stored {unit} elements at a time along axis "
                f"{axis}, since the lengths of chunks= have no larger common divisor, which makes "
                f"more than {format_count(_MAX_PIECES, 'piece')} per chunk; pass chunks= of one "
                "length there, or a store of your own"
            )
        units.append(max(1, unit))
    return tuple(units)


def times_read(plan: Plan, arrays: Sequence[Any]) -> tuple[float, tuple[int, ...]]:
    """Return how often a run reads each unit of its stores, on average, and the units.

    These are the number and the units of the input store whose units are read most often; 1 and no
    unit without such a store.

    Examples
    --------
    >>> from shmpar.grid import Grid
    >>> from shmpar.plan import PerChunk
    >>> plan = Plan("map_blocks", Grid.cut((100,), (30,)), (Blocks(0, (0,)),), PerChunk())
    >>> times_read(plan, [Store(b"", (100,), "u1", (20,), "zarr", "x.zarr")])
    (1.4, (20,))
    """
    found: list[tuple[float, tuple[int, ...]]] = [(1.0, ())]
    for argument in plan.arguments:
        if not isinstance(argument, Blocks):
            continue
        store = arrays[argument.array]
        if not isinstance(store, Store) or store.unit is None or not store.size:
            continue
        halos = ((0, 0),) * store.ndim if argument.halo is None else argument.halo.depth
        sides = zip(argument.axes, store.shape, store.unit, halos, strict=True)
        times = [
            _along(None if k is None else plan.grid.axes[k], size, unit, halo)
            for k, size, unit, halo in sides
        ]
        # Why: the chunks along an axis that the store does not have read the same units.
        others = [len(one) for k, one in enumerate(plan.grid.axes) if k not in argument.axes]
        found.append((prod(times) * prod(others), store.unit))
    return max(found)


def _along(cut: Axis | None, size: int, unit: int, halo: tuple[int, int]) -> float:
    """Return how often the units along one axis are read."""
    if cut is None:
        return 1.0
    before, after = halo
    spans = map(cut.span, range(cut.count))
    touched = [
        -(-min(size, stop + after) // unit) - max(0, start - before) // unit
        for start, stop in spans
    ]
    return sum(touched) / -(-size // unit)
