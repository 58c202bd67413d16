"""Passes over the blocks of an array, and the combination of the partial results."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from shmpar.grid import Axis, Grid
from shmpar.grid.axis import axes_tuple
from shmpar.grid.grid import LEAST_BYTES
from shmpar.plan import InBlocks, PerChunk
from shmpar.verbs.arguments import as_input, blocks
from shmpar.verbs.call import Call, Caller
from shmpar.verbs.options import REDUCTION_OPTIONS
from shmpar.verbs.other_names import suggestion
from shmpar.verbs.outputs import OutputSpec

Array = np.ndarray[Any, Any]
Axes = tuple[int, ...]


def accumulator(values: Array, dtype: Any) -> tuple[Any, Any]:
    """Return the dtype of the accumulator, and that of the result if it differs."""
    if dtype is not None:
        return np.dtype(dtype), None
    if values.dtype.kind in "?biu":
        return np.dtype("f8"), None
    if values.dtype.type is np.float16:
        return np.dtype("f4"), np.dtype("f2")
    return None, None


class Partials(Caller):
    """Base of the classes that give a pool its reductions."""

    _share: Callable[[Array], Array]  # an array of which several passes make no copy

    def _reduction(self, verb: str, func: Any, array: Any, options: Any) -> Call:
        """Make the call of a reduction, whose function reduces the whole array."""
        values = as_input(array, verb)
        if not options.get("wait", True):
            raise TypeError(f"{verb}: a reduction always waits; map_blocks has wait=False")
        if foreign := [name for name in options if name not in (*REDUCTION_OPTIONS, "wait")]:
            known = inspect.signature(getattr(self, verb)).parameters
            meant = suggestion(foreign[0], known)
            raise TypeError(
                f"{verb}() got an unexpected keyword argument {foreign[0]!r}{meant}; beside its "
                f"own a reduction takes {', '.join(REDUCTION_OPTIONS)}. For another one use "
                "block_reduce, and NumPy on its result"
            )
        call = self._call(verb, func, options)
        call.inputs = blocks(verb, (values,))
        return call

    def _reduced(
        self, verb: str, whole: Any, array: Any, axis: Any, options: Any, *steps: Any, **final: Any
    ) -> Any:
        """Reduce each block of an array along axes, then the partial results.

        Parameters
        ----------
        whole : callable
            Reduces a whole array.
        *steps : callable
            Reductions of a block and of the partial results; without them, that of the array.
        **final
            Keyword arguments of the reductions of the whole array and of the partial results.
        """
        chunks, final["keepdims"] = options.pop("chunks", "auto"), options.pop("keepdims", False)
        call = self._reduction(verb, whole, array, options)
        (values,), (block, combine) = call.inputs.arrays, steps or (whole, whole)
        axis = tuple(axis) if isinstance(axis, list) else axis
        if values.size == 0 or values.ndim == 0:
            return whole(values[...], axis=axis, **final)
        axes = self._axes(call, axis)
        partials = self._map(call, partial(block, axis=axes, keepdims=True), chunks, axes)
        return combine(partials, axis=axes, **final)

    def _folded(
        self, verb: str, array: Any, axis: Any, dtype: Any, options: Any, *steps: Any
    ) -> Any:
        """Reduce by a function of blocks, and one of the partial results, which take a dtype."""
        values = as_input(array, verb)
        check_dtype(verb, dtype)
        half = values.dtype.type is np.float16 and (dtype is None or np.dtype(dtype) == np.float16)
        block, combine = (partial(one, dtype=np.float32 if half else dtype) for one in steps)
        total = self._reduced(verb, block, values, axis, options, block, combine)
        return total.astype(np.float16) if half else total

    def _axes(self, call: Call, axis: Any) -> Axes:
        """Return the reduced axes, after NumPy has checked them and the dtype."""
        (values,) = call.inputs.arrays
        # Why: NumPy raises its own errors on a single element, before anything starts.
        with np.errstate(all="ignore"):
            call.func(np.zeros((1,) * values.ndim, values.dtype), axis=axis)
        return tuple(range(values.ndim)) if axis is None else axes_tuple("axis", axis, values.ndim)

    def _map(
        self,
        call: Call,
        block: Any,
        chunks: Any,
        axes: Any = None,
        *,
        least: int = LEAST_BYTES,
        run: Callable[[Call], Any] | None = None,
    ) -> Any:
        """Return the results of all blocks, joined with one element per chunk along `axes`."""
        call.func, call.placement, call.output = block, PerChunk(), OutputSpec()
        # Why not along all axes: a single result is small in any case, and bands are faster.
        reduced = axes if axes is not None and len(axes) < len(call.inputs.shape) else ()
        grid = call.grid = call.inputs.cut(chunks, least=least, reduced=reduced)
        if axes is not None:
            cuts = [Axis.regular(len(a), 1) if k in axes else a for k, a in enumerate(grid.axes)]
            call.placement = InBlocks(tuple(range(grid.ndim)), tuple(cuts))
        return (run or self._run)(call)

    def _measure(self, call: Call, block: Any, *, chunks: Any) -> Any:
        """Do as :meth:`_map` in a pass of which a later one needs the result of every block."""
        return self._map(call, block, chunks, run=self._unfilled)

    def _collect(self, call: Call, grid: Grid, block: Callable[..., Any]) -> list[Any]:
        """Return the results of all blocks, which are any objects, in the order of the chunks."""
        call.func, call.placement, call.grid = block, PerChunk(), grid
        call.declare_output(dtype=object, objects=True)
        found: list[Any] = self._unfilled(call).ravel().tolist()
        return found

    def _unfilled(self, call: Call) -> Any:
        """Run a call in which no value stands for the elements of a failed block."""
        policy = call.policy
        if policy.on_error == "fill":
            call.policy = policy._replace(on_error="raise")
        found = self._run(call)
        call.policy = policy
        return found


def check_dtype(verb: str, dtype: Any) -> None:
    """Raise ``TypeError`` for a dtype of Python objects."""
    if dtype is not None and np.dtype(dtype).hasobject:
        raise TypeError(
            f"{verb}: partial results of dtype={dtype!r} cannot be shared; collect them with "
            "block_reduce(f, x, dtype=object), and reduce its result with NumPy"
        )
