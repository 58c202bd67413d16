"""What the function gets for a chunk: views of the inputs, and what it asked for by name.

Imports plan.  Everything that does not depend on the chunk is worked out once a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar.grid import Axis, Grid, Halo, Mode
from shmpar.plan import Blocks, Items, Plan, Rows, Whole

__all__ = ["Getter", "extras", "getters"]

Array = np.ndarray[Any, Any]
Index = tuple[int, ...]
Getter = Callable[[int], Any]


def getters(plan: Plan, arrays: Sequence[Array], values: Sequence[Any]) -> list[Getter]:
    """Make the functions that give each argument of a chunk.

    Notes
    -----
    Cost of a call: a view; a copy only of a window that a boundary pads.
    """
    return [_argument(plan, argument, arrays, values) for argument in plan.arguments]


def _argument(plan: Plan, argument: Any, arrays: Sequence[Array], values: Sequence[Any]) -> Getter:
    match argument:
        case Whole(value):
            held = values[value]
            return lambda _chunk: held
        case Items(value):
            return values[value].__getitem__  # type: ignore[no-any-return]
        case Rows(number):
            return arrays[number].__getitem__
        case Blocks(number, axes):
            return _blocks(plan, arrays[number], axes)
    raise TypeError(argument)


def _blocks(plan: Plan, array: Array, axes: tuple[int | None, ...]) -> Getter:
    grid, halo = plan.grid, plan.halo
    if halo is not None:
        return _windows(grid, halo, array, axes)
    if axes == ():
        return lambda _chunk: array[...]  # a view of its own: the function may change its shape
    if axes == tuple(range(grid.ndim)):
        cut = grid.cutter()
        return lambda chunk: array[cut(chunk)]

    def block(chunk: int) -> Array:
        cell = grid.core(chunk)
        return array[tuple(slice(None) if axis is None else cell[axis] for axis in axes)]

    return block


def _windows(grid: Grid, halo: Halo, array: Array, axes: tuple[int | None, ...]) -> Getter:
    if axes == tuple(range(grid.ndim)):
        return lambda chunk: halo.gather(array, grid, chunk)
    own, mine = _selected(grid, halo, array, axes)

    def window(chunk: int) -> Array:
        index = grid.index(chunk)
        number = own.number([0 if axis is None else index[axis] for axis in axes])
        return mine.gather(array, own, number)

    return window


def _selected(
    grid: Grid, halo: Halo, array: Array, axes: tuple[int | None, ...]
) -> tuple[Grid, Halo]:
    """The grid and the halo on the axes that an array has; those that arrive whole have none."""
    cuts = [
        Axis.regular(length, max(1, length)) if axis is None else grid.axes[axis]
        for axis, length in zip(axes, array.shape, strict=True)
    ]
    depth = [(0, 0) if axis is None else halo.depth[axis] for axis in axes]
    none = (Mode.NONE, Mode.NONE)
    boundary = [none if axis is None else halo.boundary[axis] for axis in axes]
    return Grid(tuple(cuts)), Halo(tuple(depth), tuple(boundary))


def extras(plan: Plan, arrays: Sequence[Array]) -> Callable[[int], dict[str, Any]] | None:
    """Make the function that gives ``block_id``, ``block_info`` and ``rng``; None if none is due.

    They follow from the plan alone: a function must not see which chunk was the first.
    """
    makers: dict[str, Getter] = {}
    if "block_id" in plan.special_parameters:
        makers["block_id"] = plan.grid.index
    if "block_info" in plan.special_parameters:
        makers["block_info"] = lambda chunk: _block_info(plan, arrays, chunk)
    if "rng" in plan.special_parameters:
        makers["rng"] = lambda chunk: _stream(plan.seed, chunk)
    if not makers:
        return None
    return lambda chunk: {name: make(chunk) for name, make in makers.items()}


def _stream(seed: Any, chunk: int) -> np.random.Generator:
    """The chunk's own random stream: child number `chunk` of the run's seed sequence."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(chunk,)))


def _block_info(
    plan: Plan, arrays: Sequence[Array], chunk: int
) -> dict[int | None, dict[str, Any]]:
    """The dictionary that Dask's ``map_blocks`` passes under this name."""
    info: dict[int | None, dict[str, Any]] = {}
    grid, index = plan.grid, plan.grid.index(chunk)
    for position, argument in enumerate(plan.arguments):
        if isinstance(argument, Blocks | Rows):
            array = arrays[argument.array]
            whole = (None,) * (array.ndim - 1)
            axes = argument.axes if isinstance(argument, Blocks) else (0, *whole)
            info[position] = {
                "shape": array.shape,
                "num-chunks": _of(axes, grid.numblocks, 1),
                "chunk-location": _of(axes, index, 0),
                "array-location": _location(plan, axes, array.shape, chunk),
                "dtype": array.dtype,
            }
    core = [(part.start, part.stop) for part in grid.core(chunk)]
    info[None] = {
        "shape": grid.shape,
        "num-chunks": grid.numblocks,
        "chunk-location": index,
        "array-location": core,
        "chunk-shape": tuple(stop - start for start, stop in core),
        "dtype": plan.dtypes[0] if plan.dtypes else None,
    }
    return info


def _of(axes: tuple[int | None, ...], values: Sequence[int], absent: int) -> Index:
    return tuple(absent if axis is None else values[axis] for axis in axes)


def _location(
    plan: Plan, axes: tuple[int | None, ...], shape: tuple[int, ...], chunk: int
) -> list[tuple[int, int]]:
    """The window that the function receives, half-open, in array coordinates.

    It begins below 0, or ends beyond the array, where it is padded.
    """
    if plan.halo is None:
        window = [(part.start, part.stop) for part in plan.grid.core(chunk)]
    else:
        window = list(plan.halo.window(plan.grid, chunk))
    return [
        (0, length) if axis is None else window[axis]
        for axis, length in zip(axes, shape, strict=True)
    ]
