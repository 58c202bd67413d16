"""Comparison of results and errors with those of NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def outcome(call: Any, *args: Any, **keywords: Any) -> Any:
    """Return the result, or the class and text of the error."""
    try:
        return call(*args, **keywords)
    except (ValueError, TypeError, IndexError) as error:
        return type(error), str(error)


def failed(due: Any) -> bool:
    """Return whether an outcome is an error."""
    return isinstance(due, tuple) and isinstance(due[0], type)


def same_class(got: Any, due: Any) -> None:
    """Both outcomes are errors, of the same kind."""
    assert failed(got)
    assert issubclass(got[0], ValueError) == issubclass(due[0], ValueError)


def same(got: Any, due: Any, *, within: float = 0) -> None:
    """Type, dtype, shape and values equal those of NumPy, or the kind of the error does."""
    if failed(due):
        same_class(got, due)
        return
    assert type(got) is type(due)
    assert np.asarray(got).dtype == np.asarray(due).dtype
    assert np.shape(got) == np.shape(due)
    if within:
        assert np.allclose(got, due, rtol=within, atol=0, equal_nan=True)
    else:
        np.testing.assert_array_equal(got, due)


def axes(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Draw an axis in any form."""
    found: st.SearchStrategy[Any] = st.none() | st.just(())
    if shape:
        found |= st.integers(-len(shape), len(shape) - 1) | hnp.valid_tuple_axes(len(shape))
    return found
