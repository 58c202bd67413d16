"""The function of the user: its parameters, and the objects that it holds."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import itertools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np

from shmpar.errors import format_count
from shmpar.pickling.changes import global_names, parts_of, python_function
from shmpar.pickling.pack import is_importable, is_pickled_by_name
from shmpar.runtime.error_texts import warn_user

Names = frozenset[str]

_SPECIAL_PARAMETERS: Final = frozenset({"block_id", "block_info", "rng"})
_MOST_HELD: Final = 200
_NOTHING_HELD: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, type, types.ModuleType, np.ufunc}
)


def special_parameters(func: Callable[..., Any], keywords: Mapping[str, Any]) -> Names:
    """Return those of ``block_id``, ``block_info`` and ``rng`` that are parameters of `func`.

    Examples
    --------
    >>> sorted(special_parameters(lambda block, rng, block_id=None: block, {"rng": 1}))
    ['block_id']
    """
    names: set[str] = set()
    func = python_function(func) or func  # Why: the parameters are the same, and sooner found.
    if _is_plain_function(func):
        code = func.__code__
        names.update(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    elif not isinstance(func, np.ufunc):
        found = _SPECIAL_PARAMETERS.intersection(parameters_of(func))
        names.update(name for name in found if takes_keyword(func, name))
    while isinstance(func, functools.partial):
        names -= set(func.keywords)
        func = func.func
    return _SPECIAL_PARAMETERS.intersection(names).difference(keywords)


def parameters_of(func: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function by their names; none if they are not known."""
    with contextlib.suppress(ValueError):  # Why: check_signature() reports this error.
        return getattr(signature_of(func), "parameters", {})
    return {}


def check_signature(
    verb: str,
    func: Callable[..., Any],
    count: int,
    keywords: Mapping[str, Any],
    special: Names,
    advise: Callable[[], str] = str,
) -> None:
    """Raise ``TypeError`` if `func` cannot be called with `count` arguments and these keywords.

    The message ends with the text that `advise` returns.
    """
    if isinstance(func, np.ufunc) and count != func.nin:
        raise TypeError(
            f"{verb}: {func.__name__} takes {format_count(func.nin, 'array')}, not {count}; pass "
            "the place for its result as out="
        )
    if not (keywords or special) and _obviously_takes(python_function(func) or func, count):
        return
    given = {**keywords, **dict.fromkeys(special)}
    if is_importable(func) and _takes(func, count, frozenset(given)):
        return
    try:
        error = refusal(signature_of(func), count, given)
        if error is not None:
            # Why: a decorator may supply an argument that the function beneath it names. One in C
            # has no signature of its own, and supplies none (np.sum, functools.lru_cache).
            own = _inspected(func, follow_wrapped=False)
            error = error if own is None else refusal(own, count, given)
    except ValueError as wrong:
        raise TypeError(f"{verb}: {wrong}") from None
    if error is not None:
        raise TypeError(
            f"{verb}: the function cannot be called with {format_count(count, 'argument')} and "
            f"kwargs={list(keywords)}: {error}{_advice_on(error, func)}{advise()}"
        )


def check_callable(method: str, func: Any, remedy: str = "") -> None:
    """Raise ``TypeError`` for a function that cannot be called; the message ends with `remedy`."""
    code = getattr(func, "__code__", None)
    of_joblib = getattr(code, "co_name", "") == "delayed_function"
    # Why: a function of joblib's or Dask's `delayed` calls nothing.
    if of_joblib or type(func).__module__ == "dask.delayed":
        raise TypeError(f"{method}: leave delayed out: write {method}(f, ...), not delayed(f)")
    if not callable(func):
        kind = type(func).__name__
        raise TypeError(f"{method}: the function comes first; {kind} is not callable{remedy}")


def _advice_on(error: TypeError, func: Callable[..., Any]) -> str:
    """Return advice for an error of :func:`_refusal`."""
    if "unexpected keyword" in str(error):
        return f"; it takes {', '.join(parameters_of(func))}"
    if "'task'" in str(error):
        return "; write pool.submit(f, x), which alone passes a task"
    or_out = ", or out by pass_out=True" if "'out'" in str(error) else ""
    return f"; pass its other parameters in kwargs={or_out}"


def refusal(
    signature: inspect.Signature | None, count: int, keywords: Mapping[str, Any]
) -> TypeError | None:
    """Return the error of a call with `count` arguments and these keywords, None without one."""
    try:
        if signature is not None:
            signature.bind(*[None] * count, **keywords)
    except TypeError as error:
        return error
    return None


def takes_keyword(func: Callable[..., Any], name: str) -> bool:
    """Return whether a function, or its outermost decorator, takes an argument of this name."""
    try:
        signature = _inspected(func, follow_wrapped=False)
        if signature is not None:
            signature.bind_partial(**{name: None})
    except TypeError:
        return False
    except ValueError:  # Why: the call reports the error of a partial.
        return True
    return True


def _is_plain_function(func: Any) -> bool:
    return isinstance(func, types.FunctionType) and not hasattr(func, "__wrapped__")


def _obviously_takes(func: Any, count: int) -> bool:
    """Return True if `func` takes `count` arguments, as far as that is quick to find out."""
    if isinstance(func, np.ufunc):
        return True
    if not _is_plain_function(func):
        return False
    code, optional = func.__code__, len(func.__defaults__ or ())
    fits = code.co_argcount - optional <= count <= code.co_argcount
    return fits and not code.co_kwonlyargcount


def signature_of(func: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of a function; None for a compiled function that has none.

    Raises
    ------
    ValueError
        For a :func:`functools.partial` with arguments that its function does not take.
    """
    return _cached_signature(func) if is_importable(func) else _inspected(func)


def _inspected(
    func: Callable[..., Any], *, follow_wrapped: bool = True
) -> inspect.Signature | None:
    """Return the signature of a function, or that of its outermost decorator."""
    try:
        return inspect.signature(func, follow_wrapped=follow_wrapped)
    except (TypeError, ValueError) as error:
        if isinstance(func, functools.partial) and "incorrect arguments" in str(error):
            raise
        return None


_cached_signature = functools.lru_cache(maxsize=256)(_inspected)


@functools.lru_cache(maxsize=256)
def _takes(func: Callable[..., Any], count: int, keywords: Names) -> bool:
    """Return whether an importable function takes `count` arguments and these keywords."""
    return refusal(_cached_signature(func), count, dict.fromkeys(keywords)) is None


def held_by(function: Any, values: Iterable[Any] = ()) -> list[Any]:
    """Return the objects that a function holds and that are sent with it, and the function.

    These are its closure, its defaults and attributes, and the globals that it names; also the
    arguments of a partial, the object of a method, and the items of containers. Each of these
    objects may hold others, which count too. A compiled function of a module holds nothing, and is
    left out itself.

    Parameters
    ----------
    function : object
        The function. If it is importable, it is sent as its name, so of its globals only arrays
        count: they are the caller's on engines in this process.
    values : iterable
        Its constant arguments.

    Notes
    -----
    Objects behind the first 200 are left out, and those behind a compiled object.

    Examples
    --------
    >>> [type(one).__name__ for one in held_by(functools.partial(np.add, np.ones(3)))]
    ['partial', 'dict', 'tuple', 'ndarray']
    """
    todo, seen = [function, *values], dict[int, Any]()
    while todo and len(seen) < _MOST_HELD:
        one = todo.pop()
        kind = type(one)
        if kind in _NOTHING_HELD or id(one) in seen or is_importable(one):
            continue
        seen[id(one)] = one
        if kind is types.FunctionType:
            todo += _held_by_function(one)
        elif kind is not np.ndarray:
            with contextlib.suppress(Exception):  # Why: a list of the user's may raise anything.
                todo += itertools.islice(_held_by_object(one), _MOST_HELD)
    return list(seen.values())


def _held_by_function(function: types.FunctionType) -> list[Any]:
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # Why: the variable is not bound yet.
            held.append(cell.cell_contents)
    space = function.__globals__
    found = [space.get(name) for name in global_names(function.__code__).read]
    named = [one for one in (*found, *vars(function).values()) if type(one) not in _NOTHING_HELD]
    if named and is_pickled_by_name(function):
        named = [value for value in named if isinstance(value, np.ndarray)]
    if held or named:
        module = function.__module__ or ""
        return [] if module.startswith("shmpar.") else [*held, *named]
    return []


def _held_by_object(one: Any) -> Iterable[Any]:
    """Return the objects that an object holds directly, without its class."""
    match one:
        case list() | tuple() | set() | frozenset() | deque():
            return one
        case dict():
            return one.values()
        case np.ndarray():
            return ()
        case functools.partial() | types.MethodType() | types.BuiltinMethodType():
            return gc.get_referents(one)
    parts = parts_of(one)
    if parts is None and isinstance(vars(type(one)).get("__module__"), str):
        # Why the test: a class of Python has a name there.
        parts = [part for part in gc.get_referents(one) if not issubclass(type(part), type)]
    # Why not the referents of others: a compiled object may hold the globals of its module.
    return getattr(one, "__dict__", {}).values() if parts is None else parts


def types_of(library: str, *names: str) -> tuple[Any, ...]:
    """Return classes of a library, for ``isinstance``; empty if the library is not imported."""
    # Why a default: the library may be in the midst of its import.
    return tuple([getattr(sys.modules.get(library), name, ()) for name in names])


def warn_of_random(where: str, held: Iterable[Any], remedy: str) -> None:
    """Warn once if there is a random generator among the objects that a function holds."""
    found = [one for one in held if type(one) not in {types.FunctionType, np.ndarray}]
    if not found:
        return
    kinds = types_of("numpy.random", "Generator", "RandomState", "BitGenerator")
    kinds += types_of("random", "Random")
    for one in found:
        if issubclass(type(one), kinds) and type(one).__name__ != "SystemRandom":
            text = (
                f"{where}: the function holds a {type(one).__name__}. Each worker process gets a "
                f"copy in the same state, so its numbers repeat; {remedy}"
            )
            warn_user(text)
            return
