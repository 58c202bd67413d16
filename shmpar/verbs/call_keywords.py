"""Keywords that neither a method for calls nor its function has: errors that name the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, ParamSpec, TypeVar

from shmpar.errors import with_keyword_advice
from shmpar.verbs.arguments import check_delayed
from shmpar.verbs.options import Options

P = ParamSpec("P")
R = TypeVar("R")

_ARGUMENTS: Final = frozenset({"args", "kwargs", "kwds"})
_OF_VERBS: Final = frozenset(Options.__annotations__) | {"axis", "dtype", "out"}
_OF_CALLS: Final = {
    **dict.fromkeys(
        ("callback", "error_callback"),
        "write pool.map_async(f, items, callback=...), or future.add_done_callback(f)",
    ),
    **dict.fromkeys(
        ("func", "function", "iterable", "iterables", "items"),
        "pass the function and the items by position",
    ),
    "batch_size": "write chunksize=",
    "chunk_size": "write chunksize=",
    "chunks": "write chunksize=",
    "key": "leave it out: a future needs no name",
    "max_workers": "write shmpar.Pool(n_workers=...)",
    "n_jobs": "write shmpar.Pool(n_workers=...)",
    "ordered": "write pool.imap_unordered(f, items) for the order of completion",
    "pre_dispatch": "write pool.map(f, items, buffersize=...)",
    "priority": "leave it out: calls begin in the order in which they are submitted",
    "processes": "write shmpar.Pool(n_workers=...)",
    "pure": "leave it out: each call is made",
    "timeout": "write next(timeout) of the iterator, or result(timeout) of the future",
}
_CHECKED: Final = _ARGUMENTS | _OF_VERBS | frozenset(_OF_CALLS)


def check_call(method: str, func: Any, keywords: Iterable[str] = ()) -> None:
    """Raise ``TypeError`` for a function that cannot be called, or for ``args=`` of a thread."""
    check_delayed(method, func)
    if not callable(func):
        raise TypeError(
            f"{method}: the function comes first; {type(func).__name__} is not callable: write "
            f"{method}(f, x), not {method}(f(x))"
        )
    for name in _CHECKED.intersection(keywords) if keywords else ():
        if not _takes_keyword(func, name):
            raise TypeError(f"{method}: the function has no {name}=; {_instead_of(name, method)}")


def _takes_keyword(func: Any, name: str) -> bool:
    # Why not the wrapped function: the wrapper may take it.
    try:
        signature = inspect.signature(func, follow_wrapped=False)
    except (TypeError, ValueError):
        return True
    several = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    return several or name in signature.parameters


def _instead_of(name: str, method: str) -> str:
    """Return advice for a keyword that a method for calls does not have."""
    if method == "submit" and name in _ARGUMENTS:
        return (
            "pass the arguments of the function as they are, as in submit(f, x, key=1), or write "
            "pool.apply_async(f, args, kwds)"
        )
    if name in _OF_CALLS:
        return _OF_CALLS[name]
    if name in _OF_VERBS:
        return f"parallel_map has it: write pool.parallel_map(f, items, {name}=...)"
    return f"for a keyword of the function write functools.partial(f, {name}=...)"


def names_keywords(method: Callable[P, R]) -> Callable[P, R]:
    """Return a method whose error for a keyword that it lacks names the call to write.

    A decorator around it hides its frames.
    """
    return with_keyword_advice(method, lambda name: _instead_of(name, method.__name__))
