"""What is known of a ufunc before it is called: the dtypes of its results.

Imports the plan, and inputs beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar.plan import Argument, Blocks, Rows, Whole
from shmpar.verbs.inputs import Inputs

__all__ = ["check_casts", "ufunc_dtypes"]

DType = np.dtype[Any]


def ufunc_dtypes(func: Callable[..., Any], inputs: Inputs) -> tuple[DType, ...] | None:
    """The dtypes of a ufunc's results; None for what is no ufunc, or says so itself when called.

    Examples
    --------
    >>> from shmpar.verbs.inputs import blocks
    >>> ufunc_dtypes(np.sqrt, blocks("map_blocks", [np.arange(3)]))
    (dtype('float64'),)
    """
    if not isinstance(func, np.ufunc):
        return None
    given = [_dtype(argument, inputs) for argument in inputs.arguments]
    if any(one is None for one in given) or len(given) != func.nin:
        return None
    try:
        found = func.resolve_dtypes((*given, *[None] * func.nout))
    except TypeError:
        return None
    return tuple(found[func.nin :])


def _dtype(argument: Argument, inputs: Inputs) -> Any:
    """Of an argument; Python's numbers are weak, and are their type."""
    match argument:
        case Blocks(number) | Rows(number):
            return inputs.arrays[number].dtype
        case Whole(value):
            held = inputs.values[value]
            kind = type(held)
            return kind if kind in {int, float, complex} else getattr(held, "dtype", None)
    return None


def check_casts(
    verb: str,
    func: Callable[..., Any],
    results: Sequence[DType] | None,
    due: Sequence[DType | None] | None,
) -> None:
    """Raise ``TypeError`` if a ufunc's result does not cast to what is declared."""
    for result, dtype in zip(results or (), due or (), strict=False):
        if dtype is not None and not np.can_cast(result, dtype, "same_kind"):
            raise TypeError(
                f"{verb}: {func.__name__} gives dtype {result}, which does not cast to {dtype} "
                "without loss of kind; pass another dtype= or out="
            )
