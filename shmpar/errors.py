"""Errors that shmpar raises.

The tree, with the builtin exception that each class also is::

    ShmparError (Exception)
    ├── ChunkError                      the user's function failed on one chunk
    ├── WorkerDied                      a worker process exited while it computed a chunk
    ├── TaskTimeout (TimeoutError)      a chunk took longer than ``task_timeout``
    ├── PlanError                       the function cannot be sent to a worker
    ├── HostsLost                       no host of a cluster is left
    ├── StoreError (OSError)            a store cannot be opened, read or written
    └── SegmentError                    shared memory
        ├── SegmentGone (FileNotFoundError)   it was closed or removed
        └── SegmentFull (MemoryError)         there is not enough of it
    FailedChunks (ExceptionGroup)       the errors that ``on_error="collect"`` has collected

Guarantees
----------
Each message names the failure, its place (chunk number and slices, or item) and the remedy.
Each error pickles with its attributes, and without the run to which it belongs.
A message has at most 10,000 characters: the middle of a longer one is cut, and the message says so.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, ParamSpec, Self, TypedDict, TypeVar, Unpack

from shmpar import tracebacks

P = ParamSpec("P")
R = TypeVar("R")
Region = tuple[slice, ...] | None


def format_count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, for a message.

    Examples
    --------
    >>> format_count(1, "chunk"), format_count(1_000, "chunk"), format_count(2, "axis", "axes")
    ('1 chunk', '1,000 chunks', '2 axes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


class _Place(TypedDict, total=False):
    """The chunk of an error and its run, as keywords."""

    chunk: int | None
    region: Region
    run: Any
    item: Any


# Why: a message has 1,000 characters more, so the text of an exception in it is not cut again.
MOST_OF_EXCEPTION = 9_000


def shortened(text: str, most: int = 10_000) -> str:
    """Return a text for people; without its middle if it has more characters than `most`.

    Examples
    --------
    >>> len(shortened("x" * 10**6))
    10000
    """
    if len(text) <= most:
        return text
    half = most // 2 - 30
    note = f" [... {len(text) - 2 * half:,} characters are cut ...] "
    return text[:half] + note + text[len(note) + half - most :]


def summarize(error: object) -> str:
    """Return the type and the message of an exception, as the last line of a traceback has them.

    A long message lacks its middle.

    Examples
    --------
    >>> summarize(ValueError("odd")), summarize(AssertionError())
    ('ValueError: odd', 'AssertionError')
    """
    kind = type(error)
    try:
        text = shortened(str(error), MOST_OF_EXCEPTION)
    except BaseException as failure:  # noqa: BLE001 - Why: __str__ is the user's code
        text = f"(its message raised {type(failure).__name__})"
    return f"{kind.__name__}: {text}" if text else kind.__name__


def no_attribute(owner: object, name: str, advice: str | None = "") -> AttributeError:
    """Return the error for a name that an object lacks, with the call to write instead.

    Examples
    --------
    >>> no_attribute(3, "compute", "leave it out")
    AttributeError("int has no attribute 'compute'; leave it out")
    """
    text = f"; {advice}" if advice else ""
    kind = type(owner).__name__
    return AttributeError(f"{kind} has no attribute {name!r}{text}", name=name, obj=owner)


def closest(name: str, known: Iterable[str], likeness: float = 0.75) -> str:
    """Return the known name that is most like a wrong one; empty if none is so much like it.

    Examples
    --------
    >>> closest("map_block", ["map_blocks", "submit"])
    'map_blocks'
    """
    import difflib  # Why here: most programs meet no wrong name.

    return "".join(difflib.get_close_matches(name, list(known), 1, likeness))


def with_keyword_advice(function: Callable[P, R], advise: Callable[[str], str]) -> Callable[P, R]:
    """Return a function whose error for a keyword that it lacks has advice.

    A decorator around it hides its frames.

    Examples
    --------
    >>> def square(number):
    ...     return number * number
    >>> with_keyword_advice(square, lambda name: f"leave {name} out")(2, quickly=True)
    Traceback (most recent call last):
    TypeError: square() got an unexpected keyword argument 'quickly'; leave quickly out
    """
    import inspect  # Why here: `shmpar.ChunkError` and its like load this module alone.

    parameters = inspect.signature(function).parameters.values()
    known = {one.name for one in parameters if one.kind is not one.VAR_POSITIONAL}

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}; "
                    f"{advise(name)}"
                )
        return function(*args, **kwargs)

    return wrapper


class ShmparError(Exception):
    """Base class of the errors of this library."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*[shortened(one) if isinstance(one, str) else one for one in args])


class _FailedChunk(ShmparError):
    """Failure of one chunk of a run.

    Attributes
    ----------
    chunk : int or None
        Number of the chunk in C order; None if the failure belongs to no chunk.
    region : tuple of slice or None
        Window of the chunk in array coordinates.
    item : object
        Item that the function got, or the tuple of its items; None if it got none. The copy of an
        error in another process has None for an item that does not pickle.
    run : Run or None
        Run that failed or that collected the error; None after pickling.
    """

    def __init__(
        self,
        message: str,
        *,
        chunk: int | None = None,
        region: Region = None,
        run: Any = None,
        item: Any = None,
    ) -> None:
        super().__init__(message)
        self.chunk, self.region, self.run, self.item = chunk, region, run, item

    def __reduce__(self) -> tuple[Any, ...]:
        # Why: a run holds processes and memory of this process, and does not pickle.
        state = {**self.__dict__, "run": None}
        try:
            pickle.dumps(self.item)
        except Exception:  # noqa: BLE001 - Why: the error must arrive, also without its item
            state["item"] = None
        return type(self), self.args, state

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows."""
        return tracebacks.render(self)


class ChunkError(_FailedChunk):
    """The user's function raised an exception, or returned a result that does not fit.

    The exception of the function is ``__cause__``, with the worker's traceback as a note.

    Attributes
    ----------
    shape : tuple of int or None
        Shape of the block that the function received.
    """

    def __init__(
        self, message: str, *, shape: tuple[int, ...] | None = None, **place: Unpack[_Place]
    ) -> None:
        super().__init__(message, **place)
        self.shape = shape


class WorkerDied(_FailedChunk):
    """A worker process exited while it computed a chunk, more often than ``retries`` allows.

    Attributes
    ----------
    exitcode : int or None
        As in :class:`subprocess.Popen`: the exit status, or minus the number of the signal.
    """

    def __init__(
        self, message: str, *, exitcode: int | None = None, **place: Unpack[_Place]
    ) -> None:
        super().__init__(message, **place)
        self.exitcode = exitcode


class TaskTimeout(_FailedChunk, TimeoutError):
    """A chunk took longer than ``task_timeout`` seconds; its worker was replaced."""


class FailedChunks(ExceptionGroup[ShmparError]):
    """Errors that a run with ``on_error="collect"`` has collected.

    As of any ExceptionGroup, ``exceptions`` is the tuple of all errors; they have the order of the
    chunks or items. The texts show the first of them. A notebook shows the first three, and the
    lines of the first.

    Attributes
    ----------
    run : Run or None
        Run that collected them; None after pickling.
    hint : str
        The place of further records of the failures.

    Examples
    --------
    >>> FailedChunks("2 chunks of map_blocks failed", [ChunkError("one"), ChunkError("two")])
    FailedChunks('2 chunks of map_blocks failed', [ChunkError('one'), ... 1 more])
    """

    run: Any = None
    hint = ""

    def derive(self, errors: Sequence[Any], /) -> Any:
        """Return a group of some of the errors, for ``except*`` and ``split()``."""
        made = FailedChunks(self.message, errors)
        made.run, made.hint = self.run, self.hint
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = self.message, list(self.exceptions)
        return type(self), arguments, {**self.__dict__, "run": None, "hint": ""}

    def __repr__(self) -> str:
        first, more = self.exceptions[0], len(self.exceptions) - 1
        rest = f", ... {more:,} more" if more else ""
        return f"{type(self).__name__}({self.message!r}, [{shortened(repr(first), 300)}{rest}])"

    def __str__(self) -> str:
        count = len(self.exceptions)
        first = shortened(str(self.exceptions[0]), 1_000)
        all_of_them = f"error.exceptions has all {count:,}" if count > 1 else "see error.exceptions"
        return f"{self.message}; the first: {first}; {all_of_them}{self.hint}"

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows."""
        return tracebacks.render_group(self)


class PlanError(ShmparError):
    """The function, or an object that it holds, cannot be sent to a worker."""


class StoreError(ShmparError, OSError):
    """A store cannot be opened, or a window of it cannot be read or written.

    The error of the library is ``__cause__``. ``errno`` is the number of the error of the system,
    such as that of a full disk, or None.

    Attributes
    ----------
    opener : str
        Name of the format or of the function that opens it.
    where : str
        Path, URL or call that leads to it.
    """

    def __init__(
        self, message: str, *, opener: str = "", where: str = "", errno: int | None = None
    ) -> None:
        super().__init__(message)
        self.opener, self.where, self.errno = opener, where, errno

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {**self.__dict__, "errno": self.errno}


class SegmentError(ShmparError):
    """Shared memory could not be used as requested."""


class SegmentGone(SegmentError, FileNotFoundError):
    """The segment was closed, or removed by its owner."""


class SegmentFull(SegmentError, MemoryError):
    """There is not enough shared memory; nothing was allocated."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make an error."""
        # Why: that of MemoryError, which would be inherited, refuses this class if it is called by
        # name. tblib does so, which distributed installs for all exceptions.
        return BaseException.__new__(cls, *args, **kwargs)


class HostsLost(ShmparError):
    """No host of a cluster is left, or none came within ``host_timeout``.

    The finished chunks stay done: ``error.run.resume()`` computes the others when there are hosts
    again, and ``error.run.resume(pool)`` does so in another pool.

    Attributes
    ----------
    run : Run or None
        Run that was lost; None after pickling, and for a submitted call.
    """

    def __init__(self, message: str, *, run: Any = None) -> None:
        super().__init__(message)
        self.run = run

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {**self.__dict__, "run": None}


class SecurityWarning(UserWarning):
    """A connection is neither encrypted nor authenticated, and leads to another machine."""
