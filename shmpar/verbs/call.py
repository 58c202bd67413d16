"""Verbs made into runs: the meaning of each verb is here, in a page.

Imports the neighbours in this package, grid, outputs, plan and run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from shmpar.grid import BLOCK_BYTES, Grid, Halo
from shmpar.plan import (
    Along,
    Announcement,
    Function,
    InBlocks,
    Output,
    PerChunk,
    PerItem,
    Placement,
    Plan,
)
from shmpar.runtime.execution import Policy
from shmpar.runtime.outputs import NpyFile
from shmpar.runtime.run import Run
from shmpar.verbs.arguments import (
    Inputs,
    blocks,
    check_callable,
    check_signature,
    cut,
    entropy,
    items,
    special_parameters,
)
from shmpar.verbs.outputs import (
    OutputSpec,
    axes_tuple,
    check_casts,
    check_overlap,
    parse_targets,
    place_blocks,
    ufunc_dtypes,
)

__all__ = [
    "Request",
    "apply_along_axis",
    "block_reduce",
    "map_blocks",
    "map_overlap",
    "parallel_map",
    "reduction",
]

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]

_STREAM_BYTES: Final = 8 << 20  # of a ufunc's blocks, which need no room for temporaries


class Request(NamedTuple):
    """What all verbs pass on.

    Attributes
    ----------
    verb : str
        Its name.
    func : callable
        The user's function.
    keywords : mapping
        Its ``kwargs``.
    out, dtype : object
        As the user gave them.
    seed : object
        As the user gave it.
    policy : Policy
        What becomes of the run when something goes wrong.
    pass_out : bool
        The function writes into its window itself.
    ledger : object
        As the user gave it.
    """

    verb: str
    func: Callable[..., Any]
    keywords: Mapping[str, Any]
    out: Any
    dtype: Any
    seed: Any
    policy: Policy
    pass_out: bool = False
    ledger: Any = None


class Cut(NamedTuple):
    """How the inputs are cut, and where results go; as in :class:`shmpar.plan.Plan`."""

    grid: Grid
    placement: Placement
    halo: Halo | None = None
    trim: bool = True


def map_blocks(
    request: Request,
    arrays: Sequence[Any],
    chunks: Any,
    drop_axis: Any,
    new_axis: Any,
    out_chunks: Any,
) -> Run:
    """Blocks to blocks, put together."""
    check_callable(request.verb, request.func)
    inputs = blocks(request.verb, arrays)
    drop = axes_tuple("drop_axis", drop_axis, len(inputs.shape))
    most = _STREAM_BYTES if isinstance(request.func, np.ufunc) else BLOCK_BYTES
    grid = cut(inputs, chunks, whole=drop, most=most)
    placement = place_blocks(grid, drop, new_axis, out_chunks)
    if request.pass_out and placement == InBlocks.like(grid):
        placement = InBlocks.exactly(grid)  # it cannot show another length than its window's
    targets = parse_targets(request.verb, request.out, request.dtype)
    # In place, a chunk's output must lie where its input does.
    fits = targets.given is not None and placement == InBlocks.like(grid)
    in_place = check_overlap(request.verb, targets.given, inputs.arrays, in_place=fits)
    return _run(request, inputs, Cut(grid, placement), targets, in_place=in_place)


def map_overlap(
    request: Request, arrays: Sequence[Any], chunks: Any, halo: tuple[Any, Any], *, trim: bool
) -> Run:
    """Blocks that reach over their chunk to blocks of the chunk's own shape."""
    check_callable(request.verb, request.func)
    inputs = blocks(request.verb, arrays)
    grid, reach = _with_halo(inputs, chunks, halo)
    if request.pass_out and reach is not None and trim:
        raise ValueError(
            f"{request.verb}: with pass_out=True the function is passed the chunk's own window, "
            "without halo, so it takes trim=False"
        )
    targets = parse_targets(request.verb, request.out, request.dtype)
    check_overlap(request.verb, targets.given, inputs.arrays, in_place=False)
    return _run(request, inputs, Cut(grid, InBlocks.exactly(grid), reach, trim), targets)


def _with_halo(inputs: Inputs, chunks: Any, halo: tuple[Any, Any]) -> tuple[Grid, Halo | None]:
    """The grid, and the halo if it reaches over any chunk."""
    depth, boundary = halo
    reach = Halo.parse(depth, boundary, len(inputs.shape))
    for array in inputs.arrays:
        reach.check_constants(array.dtype)
    if not reach:
        return cut(inputs, chunks), None
    return Grid.cut(inputs.shape, chunks, itemsize=inputs.itemsize, depth=depth), reach


def block_reduce(
    request: Request, arrays: Sequence[Any], chunks: Any, halo: tuple[Any, Any]
) -> Run:
    """Blocks to values, one a chunk."""
    check_callable(request.verb, request.func)
    inputs = blocks(request.verb, arrays)
    grid, reach = _with_halo(inputs, chunks, halo)
    targets = parse_targets(request.verb, request.out, request.dtype, objects=True)
    check_overlap(request.verb, targets.given, inputs.arrays, in_place=False)
    return _run(request, inputs, Cut(grid, PerChunk(), reach, trim=False), targets)


def parallel_map(request: Request, arrays: Sequence[Any], axis: int) -> Run:
    """Items to values, stacked."""
    check_callable(request.verb, request.func)
    inputs = items(request.verb, arrays, axis)
    grid = cut(inputs, (1,))
    targets = parse_targets(request.verb, request.out, request.dtype, objects=True)
    in_place = check_overlap(request.verb, targets.given, inputs.arrays, in_place=True)
    return _run(request, inputs, Cut(grid, PerItem()), targets, in_place=in_place)


def apply_along_axis(request: Request, array: Array, axis: int) -> Run:
    """Blocks of lines to blocks of their results."""
    inputs = blocks(request.verb, (array,))
    grid = cut(inputs, "auto", whole=(axis,))
    targets = parse_targets(request.verb, None, None)
    return _run(request, inputs, Cut(grid, Along(axis)), targets._replace(is_tuple=False))


def reduction(request: Request, inputs: Inputs, how: Cut) -> Run:
    """Blocks to the partial results of a reduction."""
    return _run(request, inputs, how, parse_targets(request.verb, None, None))


def _run(
    request: Request, inputs: Inputs, how: Cut, targets: OutputSpec, *, in_place: bool = False
) -> Run:
    plan = _plan(request, inputs, how, targets)
    outputs = targets.outputs(request.policy)
    asked = not request.keywords and (targets.dtypes is not None or plan.chunks == 0)
    results = ufunc_dtypes(request.func, inputs) if asked else None
    check_casts(request.verb, request.func, results, targets.dtypes)
    known = _known_outputs(plan, inputs, targets, results)
    if request.pass_out and (known is None or targets.returns_objects):
        raise ValueError(
            f"{request.verb}: pass_out=True needs to know the output before the function is "
            "called: pass out=" + (", or dtype=" if isinstance(how.placement, InBlocks) else "")
        )
    function = Function(request.func, dict(request.keywords), tuple(inputs.values))
    todo = None
    if request.ledger is not None:
        from shmpar.runtime.checkpoint import check_kept, take_up  # loads what few calls need

        path = check_kept(plan, request.ledger, targets.given, in_place=in_place)
        seeded = request.seed is not None
        plan, todo = take_up(path, plan, function, inputs.arrays, outputs, seeded=seeded)
    outputs.known = known
    policy = request.policy
    if in_place:  # there is no place for a pattern
        policy = policy._replace(in_place=True)
        plan = plan._replace(check=False)
    return Run(plan, function, inputs.arrays, outputs, policy, todo)


def _plan(request: Request, inputs: Inputs, how: Cut, targets: OutputSpec) -> Plan:
    wanted = special_parameters(request.func, request.keywords)
    if request.pass_out and "out" in request.keywords:
        raise TypeError(f"{request.verb}: pass_out=True passes out, which is in kwargs= too")
    passed = wanted | {"out"} if request.pass_out else wanted
    check_signature(request.verb, request.func, len(inputs.arguments), request.keywords, passed)
    return Plan(
        verb=request.verb,
        grid=how.grid,
        arguments=tuple(inputs.arguments),
        placement=how.placement,
        halo=how.halo,
        trim=how.trim,
        dtypes=targets.dtypes,
        is_tuple=targets.is_tuple,
        returns_objects=targets.returns_objects,
        special_parameters=wanted,
        pass_out=request.pass_out,
        seed=entropy(request.seed) if "rng" in wanted else None,
        fail_fast=request.policy.on_error == "raise",
        timed=request.policy.task_timeout is not None,
        check=request.policy.check and not targets.returns_objects,
    )


def _known_outputs(
    plan: Plan, inputs: Inputs, targets: OutputSpec, results: tuple[DType, ...] | None
) -> Announcement | None:
    """What the outputs are, if that is known without calling the function.

    `results` are the dtypes of its results, if it is a ufunc.
    """
    if targets.returns_objects:
        return Announcement((Output(plan.grid.numblocks, np.dtype(object)),), is_tuple=False)
    if targets.given is not None:
        return _given_outputs(plan, targets, targets.given)
    shape = _known_shape(plan)
    if plan.chunks == 0:
        one = results if results is not None and len(results) == 1 else (_input_dtype(inputs),)
        dtypes = targets.dtypes or one
    elif shape is not None and targets.dtypes is not None:
        dtypes = targets.dtypes
    else:
        return None
    outputs = tuple(
        Output(_empty_shape(plan) if shape is None else shape, dtype)
        for dtype in dtypes
        if dtype is not None
    )
    if len(outputs) != len(dtypes):
        return None
    return Announcement(outputs, is_tuple=bool(targets.is_tuple))


def _given_outputs(
    plan: Plan, targets: OutputSpec, given: Sequence[Array | NpyFile]
) -> Announcement | None:
    """What the user's outputs are; None if one is a file whose shape or dtype is not known yet."""
    shape, outputs = _known_shape(plan), []
    for one, dtype in zip(given, targets.dtypes or (), strict=True):
        if isinstance(one, np.ndarray):
            plan.check_shape(one)
            outputs.append(Output(one.shape, one.dtype))
        elif shape is not None and dtype is not None:
            outputs.append(Output(shape, dtype))
    if len(outputs) < len(given):
        return None
    return Announcement(tuple(outputs), is_tuple=bool(targets.is_tuple))


def _known_shape(plan: Plan) -> tuple[int, ...] | None:
    """The output's shape where it follows from the grid: all its axes are cut."""
    placement = plan.placement
    if not isinstance(placement, InBlocks) or None in placement.cuts:
        return None
    return tuple(cut.size for cut in placement.cuts if cut is not None)


def _empty_shape(plan: Plan) -> tuple[int, ...]:
    """The shape of an output for which the function was never called."""
    if not isinstance(plan.placement, InBlocks):
        return plan.grid.numblocks
    return tuple(1 if axis is None else plan.grid.shape[axis] for axis in plan.placement.axes)


def _input_dtype(inputs: Inputs) -> np.dtype[Any]:
    return inputs.arrays[0].dtype if inputs.arrays else np.dtype(float)
