"""Names of multiprocessing, concurrent.futures, joblib and dask that users try first.

A name works here if it means the same. Any other one gets an error that names the call to write.
The page "Coming from another way to share arrays" gives the reason for each.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import CancelledError, Future
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, Self, TypeVar

from shmpar.errors import closest, no_attribute, with_keyword_advice
from shmpar.grid.axis import positive_number, whole_number
from shmpar.memory.limits import available_cpus
from shmpar.runtime.error_texts import call_name
from shmpar.runtime.futures import PoolFuture
from shmpar.runtime.loop import AT_ONCE, Loop
from shmpar.tracebacks import delivering, hide_frames, hiding
from shmpar.verbs.functions import (
    check_callable,
    held_by,
    refusal,
    signature_of,
    takes_keyword,
    warn_of_random,
)
from shmpar.verbs.options import Options
from shmpar.verbs.other_names import CALL_KEYWORDS, NO_POOL_KEYWORDS, POOL_KEYWORDS, advice, look_up
from shmpar.worker.items import each, each_star

P = ParamSpec("P")
R = TypeVar("R")
Callback = Callable[[Any], object] | None
_TUPLES: Final[dict[Any, str]] = {
    zip: "for {method}(f, zip(a, b)) write {method}(f, a, b)",
    enumerate: "for {method}(f, enumerate(a)) write {method}(f, range(len(a)), a)",
    type({}.items()): "for {method}(f, d.items()) write {method}(f, d.keys(), d.values())",
    itertools.product: "for {method}(f, product(a, b)) write {method}(f, *zip(*product(a, b)))",
}
SPAWN: Final = "pass each call a generator of its own as an argument, for example from rng.spawn()"
_AHEAD: Final = 64  # batches per worker that are read from an iterable without a length


_ARGUMENTS: Final = frozenset({"args", "kwargs", "kwds"})
_OF_VERBS: Final = frozenset(Options.__annotations__) | {"axis", "dtype", "out"}
_CHECKED: Final = _ARGUMENTS | _OF_VERBS | frozenset(" ".join(CALL_KEYWORDS).split())


def check_call(method: str, func: Any, keywords: Iterable[str] = ()) -> None:
    """Raise ``TypeError`` for a function that cannot be called, or for ``args=`` of a thread."""
    check_callable(method, func, f": write {method}(f, x), not {method}(f(x))")
    for name in _CHECKED.intersection(keywords) if keywords else ():
        if not takes_keyword(func, name):
            raise TypeError(f"{method}: the function has no {name}=; {_instead_of(name, method)}")


def _instead_of(name: str, method: str) -> str:
    """Return advice for a keyword that a method for calls does not have."""
    if method == "submit" and name in _ARGUMENTS:
        return (
            "pass the arguments of the function as they are, as in submit(f, x, key=1), or write "
            "pool.apply_async(f, args, kwds)"
        )
    if text := look_up(CALL_KEYWORDS, name):
        return text
    if name in _OF_VERBS:
        return f"parallel_map has it: write pool.parallel_map(f, items, {name}=...)"
    return f"for a keyword of the function write functools.partial(f, {name}=...)"


def names_keywords(method: Callable[P, R]) -> Callable[P, R]:
    """Return a method whose error for a keyword that it lacks names the call to write."""
    advise = partial(_instead_of, method=method.__name__)
    return hide_frames(with_keyword_advice(method, advise))


def accepts_other_names(init: Callable[P, None]) -> Callable[P, None]:
    """Return the constructor of a pool, which takes keywords of other libraries too."""

    @hide_frames
    @wraps(init)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        if len(args) > 2:  # noqa: PLR2004 - the pool and n_workers
            args = _name_positions(args, kwargs)
        for name in [name for name in kwargs if name not in _known(init)]:
            other = look_up(POOL_KEYWORDS, name)
            if not other:
                raise TypeError(
                    f"Pool() got an unexpected keyword argument {name!r}{_on_keyword(init, name)}"
                )
            if other in kwargs or (other == "n_workers" and len(args) > 1):
                raise TypeError(f"Pool() got {other}= twice: {name}= means the same")
            value = kwargs.pop(name)
            kwargs[other] = _like_joblib(value) if name == "n_jobs" else value
        init(*args, **kwargs)

    return wrapper


def _known(init: Callable[..., None]) -> tuple[str, ...]:
    code = init.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _on_keyword(init: Callable[..., None], name: str) -> str:
    if text := look_up(NO_POOL_KEYWORDS, name):
        return f"; {text}"
    close = closest(name, _known(init)[1:], 0.7)
    return f"; did you mean {close}=?" if close else f"; it takes {', '.join(_known(init)[1:])}"


def _name_positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Name the arguments of ``multiprocessing.Pool(processes, initializer, initargs)``."""
    names = ("initializer", "initargs", "max_tasks_per_worker")
    given = dict(zip(names, args[2:], strict=False))
    fits = given["initializer"] is None or callable(given["initializer"])
    if not fits or len(args) > 2 + len(names) or given.keys() & kwargs.keys():
        raise TypeError(
            "Pool() takes n_workers alone by its position; name the others, as in "
            f'Pool({args[1]!r}, engine="threads") or Pool({args[1]!r}, initializer=f, initargs=())'
        )
    kwargs.update(given)
    return args[:2]


def _like_joblib(jobs: Any) -> Any:
    """Return the workers that joblib means by a number: -1 is all CPUs, -2 all but one."""
    if jobs is None:
        return None
    number = whole_number(jobs, "n_jobs")
    return number if number > 0 else max(1, available_cpus() + 1 + number) if number else 0


class FirstGuesses:
    """Gives a pool the methods of :class:`multiprocessing.pool.Pool`, and advice on other names."""

    submit: Callable[..., Any]
    shutdown: Callable[..., None]

    _open: bool
    _places: Callable[[], int]
    _checked: Callable[[], Loop]
    _close: Callable[..., None]

    @delivering
    @names_keywords
    def apply(
        self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}
    ) -> Any:
        """Call a function once in a worker, and return its result.

        As :meth:`multiprocessing.pool.Pool.apply`; :meth:`submit` does not wait. Costs and errors
        are those of :meth:`submit`.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.apply(pow, (2, 5))
        32
        """
        return self.apply_async(func, args, kwds).result()

    @names_keywords
    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> Any:
        """Call a function once in a worker; return a future, as :meth:`submit`.

        The future has the methods ``get``, ``wait``, ``ready`` and ``successful`` too. A callback
        gets the result, or the exception, in a thread of its own.

        Raises
        ------
        TypeError
            If `args` is no tuple of the function's arguments.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.apply_async(pow, (2, 5)).get()
        32
        """
        given = argument_tuple("args", "function", args)
        return _with_callbacks(self.submit(func, *given, **kwds), callback, error_callback)

    @names_keywords
    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> Any:
        """Call a function on each item, in workers; return a future of the list of results.

        As :meth:`multiprocessing.pool.Pool.map_async`. The default of `chunksize` gives each
        worker about four batches. Costs and errors are those of :meth:`submit` for each batch.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.map_async(abs, [-1, 2, -3]).get()
        [1, 2, 3]
        """
        found = self._all("map_async", func, each, iterable, chunksize)
        return _with_callbacks(found, callback, error_callback)

    @delivering
    @names_keywords
    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """Call a function on the items of each tuple, in workers; return the list of results.

        As :meth:`multiprocessing.pool.Pool.starmap`. Costs and errors are those of
        :meth:`map_async`.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool.starmap(pow, [(2, 5), (3, 2)])
        [32, 9]
        """
        found: list[Any] = self.starmap_async(func, iterable, chunksize).result()
        return found

    @names_keywords
    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> Any:
        """Return a future of the results of :meth:`starmap`, as :meth:`map_async`."""
        found = self._all("starmap", func, each_star, iterable, chunksize)
        return _with_callbacks(found, callback, error_callback)

    def _all(
        self, method: str, func: Any, batch: Any, iterable: Any, chunksize: int | None
    ) -> PoolFuture:
        _check_batches(method, func)
        items = list(_items(method, iterable))
        if batch is each_star and items and not hasattr(type(items[0]), "__iter__"):
            raise TypeError(
                f"{method}: an item is a {type(items[0]).__name__}, not a tuple of arguments; for "
                "one argument write pool.map_async(f, items).get()"
            )
        share = max(1, -(-len(items) // (4 * self._places())))
        size = positive_number(share if chunksize is None else chunksize, "chunksize")
        batches = [self.submit(partial(batch, func), part) for part in _batched(iter(items), size)]
        return Batches(batches, call_name(func))

    @names_keywords
    def imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        """Call a function on each item, in workers; yield the results in order.

        As :meth:`multiprocessing.pool.Pool.imap`, with ``next(timeout)``. A list, or another
        iterable that has a length, is sent at once. Any other iterable is read 64 batches per
        worker ahead of the results that were taken, so it may be infinite.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     list(pool.imap(abs, [-1, 2, -3]))
        [1, 2, 3]
        """
        return self._results(func, iterable, chunksize, ordered=True)

    @names_keywords
    def imap_unordered(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        """Yield the results of :meth:`imap` as they are there, in any order.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     sorted(pool.imap_unordered(abs, [-1, 2, -3]))
        [1, 2, 3]
        """
        return self._results(func, iterable, chunksize, ordered=False)

    def _results(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int, *, ordered: bool
    ) -> Iterator[Any]:
        _check_batches("imap", func)
        items = iter(_items("imap", iterable))
        batches = _batched(items, positive_number(chunksize, "chunksize"))
        more = map(partial(self.submit, partial(each, func)), batches)
        ahead = None if isinstance(iterable, Sized) else _AHEAD * self._places()
        return _AsDone(more, ahead, ordered=ordered)

    @hide_frames
    def restart(self) -> None:
        """Replace the worker processes by new ones, which import every module anew.

        Runs and calls in flight are finished by the old workers. The next run or call starts the
        new ones, which call the initializer; a pool whose initializer had failed works again if it
        succeeds now.

        A module of the user's that is reloaded or changed needs no restart. A library that has
        state of its own, or that was installed anew, does.

        Raises
        ------
        RuntimeError
            If the pool is closed.

        Notes
        -----
        Cost: as much as the start of the workers. Threads, and the engine serial, use the modules
        of this process: there is nothing to replace. On many machines restart the hosts themselves,
        with Dask by ``client.restart()``.

        Examples
        --------
        >>> import os, shmpar
        >>> with shmpar.Pool(1) as pool:
        ...     before = pool.submit(os.getpid).result()
        ...     pool.restart()
        ...     pool.submit(os.getpid).result() == before
        False
        """
        self._checked().restart()

    def terminate(self) -> None:
        """End the workers at once; runs and calls in flight are cancelled or fail.

        As :meth:`multiprocessing.pool.Pool.terminate`. It does not wait; :meth:`join` does.
        """
        self._close(AT_ONCE, wait=False)

    terminate_workers = kill_workers = terminate

    def close(self) -> None:
        """Take no further calls; the workers exit when those in flight are done.

        As :meth:`multiprocessing.pool.Pool.close`, and ``shutdown(wait=False)``.
        """
        self.shutdown(wait=False)

    @hide_frames
    def join(self) -> None:
        """Wait until all workers have exited, after :meth:`close` or :meth:`terminate`.

        Raises
        ------
        ValueError
            If the pool is open.
        """
        if self._open:
            raise ValueError("this pool is open: call close() or terminate() before join()")
        self.shutdown(wait=True)

    @delivering
    def __call__(self, tasks: Iterable[Any], /, *more: Any) -> list[Any]:
        """Make the calls of ``joblib.delayed``, and return the list of their results.

        Examples
        --------
        >>> import shmpar
        >>> with shmpar.Pool(2) as pool:
        ...     pool((abs, (number,), {}) for number in [-1, 2])
        [1, 2]
        """
        found = []
        refusal = TypeError(
            "a pool is called with joblib's delayed(f)(...) alone; write "
            "pool.parallel_map(f, items), or pool.submit(f, x)"
        )
        if more:
            raise refusal
        for task in _items("a call of the pool", tasks):
            match task:
                case (func, args, kwargs) if callable(func):
                    found.append(self.submit(func, *args, **kwargs))
                case _:
                    raise refusal
        return [future.result() for future in found]

    if not TYPE_CHECKING:  # Why: a type checker would take any name for an attribute.

        def __getattr__(self, name: str) -> NoReturn:
            text = "" if name.startswith("_") else advice(name, dir(type(self)))
            with hiding():
                raise no_attribute(self, name, text)


class Mapped:
    """Advice to users of ``multiprocessing.Pool.map``, which returns a list."""

    @hide_frames
    def _no_list(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "pool.map returns an iterator, as concurrent.futures.Executor.map; write "
            "list(pool.map(f, items)), or pool.map_async(f, items).get()"
        )

    __getitem__ = __len__ = __array__ = _no_list

    if not TYPE_CHECKING:  # Why: a type checker would take any name for an attribute.

        def __getattr__(self, name: str) -> NoReturn:
            text = "" if name.startswith("_") else "write list(pool.map(f, items))"
            with hiding():
                raise no_attribute(self, name, text)

    def __bool__(self) -> bool:
        return True


class Batches(PoolFuture):
    """A future of the list of results of calls that return batches."""

    def __init__(self, parts: list[Future[list[Any]]], name: str) -> None:
        super().__init__()
        self._parts, self.name = parts, name
        # Why a counter: its steps are atomic, and the last of the threads that step finishes.
        self._left = itertools.count(len(parts) - 1, -1)
        for part in parts:
            part.add_done_callback(self._one_done)
        if not parts:
            self._finish()

    def cancel(self) -> bool:
        """Cancel the calls that no worker has; return whether it is cancelled."""
        cancelled = [part.cancel() for part in self._parts]
        return self.cancelled() or (all(cancelled) and bool(cancelled))

    def _one_done(self, _: Future[list[Any]]) -> None:
        if next(self._left) == 0:
            self._finish()

    def _finish(self) -> None:
        parts, self._parts = self._parts, []
        for part in parts:
            if isinstance(part, PoolFuture) and part.warned:
                self.warned, part.warned = {**part.warned, **(self.warned or {})}, None
        if any(part.cancelled() for part in parts):
            super().cancel()
            self.set_running_or_notify_cancel()
        elif self.set_running_or_notify_cancel():
            errors = (part.exception(0) for part in parts)
            error = next((one for one in errors if one is not None), None)
            if error is None:
                self.set_result([one for part in parts for one in part.result(0)])
            else:
                self.set_exception(error)
        self.resolved.set()
        self.run_callbacks()


class _AsDone(Iterator[Any]):
    """The results of calls that return batches.

    Parameters
    ----------
    more : iterator of Future
        Submits a further batch at each step.
    ahead : int or None
        Batches that are submitted before their results are taken.
    ordered : bool
        Yield the results in the order of the calls.
    """

    def __init__(self, more: Iterator[Future[Any]], ahead: int | None, *, ordered: bool) -> None:
        self._more, self._ordered = more, ordered
        self._calls = deque[Future[Any]]()
        self._done = queue.SimpleQueue[Future[Any]]()
        self._batch = deque[Any]()
        self._waiting = 0
        self._error: Exception | None = None  # of the iterable
        self._submit(ahead)
        if not self._waiting:  # Why at once: no result comes before it.
            self._raise()

    def _submit(self, most: int | None) -> None:
        try:
            for call in itertools.islice(self._more, most):
                self._waiting += 1
                if self._ordered:
                    self._calls.append(call)
                else:
                    call.add_done_callback(self._done.put)
        except Exception as error:  # noqa: BLE001 - it is raised later
            # Why later: the results of the items before it come first, as in multiprocessing.
            self._more, self._error = iter(()), error

    def _raise(self) -> None:
        """Raise the exception of the iterable, if there is one."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # Why: its traceback has this frame, which would hold it.

    @delivering
    def next(self, timeout: float | None = None) -> Any:
        """Return the next result.

        Raises
        ------
        TimeoutError
            If it is not there in time; it may be asked for again.
        """
        while not self._batch:
            if not self._waiting:
                self._raise()
                raise StopIteration
            if self._ordered:
                with contextlib.suppress(CancelledError):  # Why: it is raised below.
                    self._calls[0].exception(timeout)
                call = self._calls.popleft()
            else:
                try:
                    call = self._done.get(timeout=timeout)
                except queue.Empty:
                    raise TimeoutError(f"no result within {timeout:g} s") from None
            self._waiting -= 1
            self._submit(1)
            self._batch.extend(call.result())
        return self._batch.popleft()

    @delivering
    def __next__(self) -> Any:
        return self.next()

    def __iter__(self) -> Self:
        return self


def _check_batches(method: str, func: Any) -> None:
    check_call(method, func)
    warn_of_random(method, held_by(func), SPAWN)


def check_iterables(method: str, func: Callable[..., Any], iterables: tuple[Any, ...]) -> None:
    """Raise ``TypeError`` for arguments that have no items, and for tuples of several arguments."""
    for place, one in enumerate(iterables):
        if not hasattr(type(one), "__iter__"):
            if place and type(one) is int:
                raise TypeError(
                    f"{method}: an int has no items; for the third argument of multiprocessing "
                    f"write chunksize={one}, and for one of the function functools.partial"
                )
            _items(method, one)
    if len(iterables) == 1 and (remedy := unzipped(method, func, iterables[0])):
        raise TypeError(f"{method}: the function takes more than one argument{remedy}")


def unzipped(method: str, func: Callable[..., Any], items: Any) -> str:
    """Return advice if the only argument has tuples, as of zip(), that the function does not take.

    Examples
    --------
    >>> unzipped("map", pow, zip([2], [5]))
    '; for map(f, zip(a, b)) write map(f, a, b)'
    >>> unzipped("map", sum, zip([2], [5]))
    ''
    """
    remedy = next((text for kind, text in _TUPLES.items() if isinstance(items, kind)), None)
    with contextlib.suppress(ValueError):  # Why: the call reports the error of a partial.
        if remedy is not None and refusal(signature_of(func), 1, {}) is not None:
            return f"; {remedy.format(method=method)}"
    return ""


def _with_callbacks(future: PoolFuture, callback: Callback, error_callback: Callback) -> PoolFuture:
    def tell(future: Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None and callback is not None:
            callback(future.result())
        elif error is not None and error_callback is not None:
            error_callback(error)

    if callback is not None or error_callback is not None:
        future.add_done_callback(tell)
    return future


def argument_tuple(name: str, owner: str, given: Any) -> tuple[Any, ...]:
    """Return the arguments of a function, which were given as one object."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(
            f"{name} is a tuple of the {owner}'s arguments, not {given!r}: write ({given!r},)"
        )
    return tuple(given)


def _batched(items: Iterator[Any], size: int) -> Iterator[tuple[Any, ...]]:
    return iter(lambda: tuple(itertools.islice(items, size)), ())


def _items(method: str, iterable: Any) -> Iterable[Any]:
    try:
        found: Iterable[Any] = iter(iterable)
    except TypeError:
        raise TypeError(
            f"{method}: the {type(iterable).__name__} has no items; pass an iterable, and further "
            "arguments by functools.partial"
        ) from None
    return found
