"""Arguments of the user's function for a chunk: views of the inputs, and special parameters.

Work that does not depend on the chunk is done once per plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar.grid import Axis, Grid, Halo, Mode
from shmpar.plan import Blocks, Items, Plan, Rows, Whole

Array = np.ndarray[Any, Any]
Axes = tuple[int | None, ...]
Getter = Callable[[int], Any]


def getters(plan: Plan, arrays: Sequence[Array], values: Sequence[Any]) -> list[Getter]:
    """Return a function for each argument that returns the argument for a chunk.

    Notes
    -----
    Cost of a call: a view; a copy only of a window that a boundary pads.
    """
    return [_getter(plan, argument, arrays, values) for argument in plan.arguments]


def _getter(plan: Plan, argument: Any, arrays: Sequence[Array], values: Sequence[Any]) -> Getter:
    match argument:
        case Whole(value):
            constant = values[value]
            return lambda _chunk: constant
        case Items(value):
            return values[value].__getitem__  # type: ignore[no-any-return]
        case Rows(number):
            return arrays[number].__getitem__
        case Blocks(number, axes) if plan.halo is not None:
            return _window_getter(plan.grid, plan.halo, arrays[number], axes)
        case Blocks(number, axes):
            return _block_getter(plan.grid, arrays[number], axes)
    raise TypeError(argument)


def _block_getter(grid: Grid, array: Array, axes: Axes) -> Getter:
    if axes == ():
        return lambda _chunk: array[...]  # Why: the function may change the shape of its view
    if axes == tuple(range(grid.ndim)):
        cut = grid.cutter()
        return lambda chunk: array[cut(chunk)]

    def block(chunk: int) -> Array:
        cell = grid.core(chunk)
        return array[tuple(slice(None) if axis is None else cell[axis] for axis in axes)]

    return block


def _window_getter(grid: Grid, halo: Halo, array: Array, axes: Axes) -> Getter:
    """Return the getter of the block of an array with its halo.

    An axis that is not cut arrives whole, without a halo.
    """
    if axes == tuple(range(grid.ndim)):
        return lambda chunk: halo.gather(array, grid, chunk)
    lengths = zip(axes, array.shape, strict=True)
    own_grid = Grid(
        tuple(
            Axis.regular(length, max(1, length)) if axis is None else grid.axes[axis]
            for axis, length in lengths
        )
    )
    no_boundary = (Mode.NONE, Mode.NONE)
    own_halo = Halo(
        tuple((0, 0) if axis is None else halo.depth[axis] for axis in axes),
        tuple(no_boundary if axis is None else halo.boundary[axis] for axis in axes),
    )

    def window(chunk: int) -> Array:
        number = own_grid.number(_select(axes, grid.index(chunk), 0))
        return own_halo.gather(array, own_grid, number)

    return window


def special_arguments(plan: Plan, arrays: Sequence[Array]) -> dict[str, Getter]:
    """Return the functions for those of ``block_id``, ``block_info`` and ``rng`` that are passed.

    The values follow from the plan alone: a function must not see which chunk was the first.
    """
    getters: dict[str, Getter] = {
        "block_id": plan.grid.index,
        "block_info": lambda chunk: _block_info(plan, arrays, chunk),
        "rng": lambda chunk: np.random.default_rng(
            np.random.SeedSequence(plan.seed, spawn_key=(chunk,))
        ),
    }
    return {name: get for name, get in getters.items() if name in plan.special_parameters}


def _block_info(
    plan: Plan, arrays: Sequence[Array], chunk: int
) -> dict[int | None, dict[str, Any]]:
    """Return the dictionary that Dask's ``map_blocks`` passes under this name."""
    info: dict[int | None, dict[str, Any]] = {}
    grid, index = plan.grid, plan.grid.index(chunk)
    core = [(part.start, part.stop) for part in grid.core(chunk)]
    # A window that is padded begins below 0 or ends beyond the array.
    window = core if plan.halo is None else list(plan.halo.window(grid, chunk))
    for position, argument in enumerate(plan.arguments):
        if isinstance(argument, Blocks | Rows):
            array = arrays[argument.array]
            uncut = (None,) * (array.ndim - 1)
            axes = argument.axes if isinstance(argument, Blocks) else (0, *uncut)
            info[position] = {
                "shape": array.shape,
                "num-chunks": _select(axes, grid.numblocks, 1),
                "chunk-location": _select(axes, index, 0),
                "array-location": [
                    (0, length) if axis is None else window[axis]
                    for axis, length in zip(axes, array.shape, strict=True)
                ],
                "dtype": array.dtype,
            }
    info[None] = {
        "shape": grid.shape,
        "num-chunks": grid.numblocks,
        "chunk-location": index,
        "array-location": core,
        "chunk-shape": tuple(stop - start for start, stop in core),
        "dtype": plan.dtypes[0] if plan.dtypes else None,
    }
    return info


def _select(axes: Axes, values: Sequence[int], uncut: int) -> tuple[int, ...]:
    """Return the value of the grid's axis for each axis, and `uncut` for an axis without one."""
    return tuple(uncut if axis is None else values[axis] for axis in axes)
