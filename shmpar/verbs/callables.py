"""What the user's function asks for.

Imports named.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from shmpar.named import is_named

__all__ = ["check_callable", "check_signature", "entropy", "wants"]

_OFFERED = ("block_id", "block_info", "rng")


def check_callable(verb: str, func: Any) -> None:
    """Raise ``TypeError`` if `func` cannot be called."""
    if not callable(func):
        raise TypeError(f"{verb}: the function comes first; {type(func).__name__} is not callable")


def wants(func: Callable[..., Any], keywords: Mapping[str, Any]) -> frozenset[str]:
    """Which of ``block_id``, ``block_info`` and ``rng`` the function has as free parameters.

    Examples
    --------
    >>> sorted(wants(lambda block, rng, block_id=None: block, {"rng": 1}))
    ['block_id']
    """
    names = _parameters(func)
    return frozenset(name for name in _OFFERED if name in names and name not in keywords)


def check_signature(
    verb: str,
    func: Callable[..., Any],
    count: int,
    keywords: Mapping[str, Any],
    wanted: frozenset[str],
) -> None:
    """Raise ``TypeError`` if `func` wants a parameter that nobody passes.

    Cost: nothing to speak of for plain functions, ufuncs and compiled ones that were looked at
    before; 20 to 100 us for others.
    """
    if isinstance(func, np.ufunc) and count != func.nin:
        raise TypeError(
            f"{verb}: {func.__name__} takes {func.nin} arrays, not {count}; where its result goes "
            "is out="
        )
    if not (keywords or wanted) and _takes(func, count):
        return
    try:
        signature = inspect.signature(func)
    except ValueError as error:
        if isinstance(func, functools.partial) and "incorrect arguments" in str(error):
            raise TypeError(f"{verb}: {error}") from None
        return
    except TypeError:  # compiled functions need not have a signature
        return
    try:
        signature.bind(*[None] * count, **{**keywords, **dict.fromkeys(wanted)})
    except TypeError as error:
        blocks = "1 argument" if count == 1 else f"{count} arguments"
        raise TypeError(
            f"{verb}: the function cannot be called with {blocks} and "
            f"kwargs={sorted(keywords)}: {error}; pass what it wants besides in kwargs="
            + (", or out by pass_out=True" if "'out'" in str(error) else "")
        ) from None


def _takes(func: Callable[..., Any], count: int) -> bool:
    """Whether it is seen at once that so many arguments are right."""
    if isinstance(func, np.ufunc):
        return True
    if is_named(func):
        return _takes_named(func, count)
    if not isinstance(func, types.FunctionType) or hasattr(func, "__wrapped__"):
        return False
    most = func.__code__.co_argcount
    return most - len(func.__defaults__ or ()) <= count <= most and not (
        func.__code__.co_kwonlyargcount
    )


@functools.lru_cache(maxsize=256)
def _takes_named(func: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(func).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # it need not have a signature
        pass
    return True


def _parameters(func: Callable[..., Any]) -> Collection[str]:
    if is_named(func):
        return _parameters_named(func)
    if isinstance(func, types.FunctionType) and not hasattr(func, "__wrapped__"):
        code = func.__code__
        return set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    if isinstance(func, np.ufunc):
        return set()
    names = _signed(func)
    while isinstance(func, functools.partial):
        names -= set(func.keywords)
        func = func.func
    return names


@functools.lru_cache(maxsize=256)
def _parameters_named(func: Callable[..., Any]) -> frozenset[str]:
    return frozenset(_signed(func))


def _signed(func: Callable[..., Any]) -> set[str]:
    """The names of all parameters; none of a compiled function that does not say."""
    try:
        return set(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return set()


def entropy(seed: Any) -> Any:
    """The entropy of a run's random streams; fresh for None."""
    return np.random.SeedSequence(seed).entropy
