"""NumPy's ``apply_along_axis`` on a block, as a function that travels by name.

Imports nothing of the package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["ApplyAlongAxis"]


class ApplyAlongAxis:
    """Calls a function on each line of a block.

    Attributes
    ----------
    func1d : callable
        The user's function of a one-dimensional array.
    axis : int
        The axis along which the lines lie.
    args, kwargs : tuple, dict
        What else it gets.
    """

    __slots__ = ("args", "axis", "func1d", "kwargs")

    def __init__(
        self,
        func1d: Callable[..., Any],
        axis: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.func1d = func1d
        self.axis = axis
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        return f"ApplyAlongAxis({self.func1d!r}, axis={self.axis})"

    def __call__(self, block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The results of the block's lines."""
        return np.apply_along_axis(self.func1d, self.axis, block, *self.args, **self.kwargs)
