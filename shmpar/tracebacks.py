"""Tracebacks that begin and end in the user's code.

Frames of this package are left out, so that an error reads as if the function had been called here.
``SHMPAR_TRACEBACK=full`` keeps all frames. An exception that this package does not raise on purpose
keeps them too, since only they explain a defect.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import CodeType, TracebackType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PACKAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
"""Folder of this package; names of its files begin with it."""

IN_WORKER = "In the worker:\n"
"""Begin of the note that has the traceback of a worker."""

# Why: their frames lie between those of this package, and say nothing of the user's code.
_CALLED = (os.path.join("concurrent", "futures", "_base.py"), os.path.join("", "cloudpickle", ""))
_ON_PURPOSE = (
    BaseExceptionGroup, ImportError, KeyboardInterrupt, MemoryError, NotImplementedError, OSError,
    RuntimeError, TypeError, ValueError, Warning,
)  # fmt: skip
_MOST_LINES = 8  # of a worker's traceback in a notebook
_MOST_ERRORS = 3  # of a group in a notebook
_MOST_WIDTH = 500  # of a line of a worker in a notebook
_FRAME = (
    r'(?m)^(?P<lead>[ |+]*)File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<name>\S+)\n'
    r"(?!(?P=lead)  \S)"
)


_kept: list[bool] = []  # not empty in a process that keeps all frames


def keep_frames() -> None:
    """Keep all frames from now on, in a child that the user's function has forked.

    Why: at its end the innermost frame tells whether the user's code raised an exception.
    """
    _kept.append(True)


def is_full() -> bool:
    """Return whether all frames are shown."""
    return bool(_kept) or os.environ.get("SHMPAR_TRACEBACK") == "full"


def hide_frames(function: Callable[P, R], *, delivers: bool = False) -> Callable[P, R]:
    """Return the function with short tracebacks of the exceptions that it raises.

    Parameters
    ----------
    delivers : bool
        Its exceptions are those of the user's function; none is a defect of this package.

    Examples
    --------
    >>> @hide_frames
    ... def half(number):
    ...     if number % 2:
    ...         raise ValueError("odd")
    ...     return number // 2
    >>> half(4)
    2
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True  # for pytest and IPython
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            shorten(error, delivered=delivers)
            # Invariant: a bare `raise` adds no frame of its own to the traceback.
            raise

    return wrapper


delivering = partial(hide_frames, delivers=True)


class hiding:  # noqa: N801 - as contextlib.suppress
    """Give the exceptions of the block short tracebacks; for a generator.

    Parameters
    ----------
    delivers : bool
        As of :func:`hide_frames`.
    """

    def __init__(self, *, delivers: bool = True) -> None:
        self._delivers = delivers

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            shorten(error, delivered=self._delivers)


def shorten(error: BaseException, *, delivered: bool = False) -> None:
    """Remove the frames of this package from an exception, and causes that are internal.

    Parameters
    ----------
    delivered : bool
        It is an exception of the user's function; otherwise a defect keeps its frames.
    """
    if is_full() or (not delivered and _is_defect(error)):
        return
    todo, seen = [error], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        # Why suppressed: a class of the user's may raise for any attribute.
        with contextlib.suppress(Exception):
            BaseException.with_traceback(one, visible(_get(one, "__traceback__")))
            for name in ("__cause__", "__context__"):
                other = _get(one, name)
                if other is not None and _is_internal(other):
                    _set(one, name, None)
                elif other is not None:
                    todo.append(other)
            if isinstance(one, BaseExceptionGroup):
                todo += one.exceptions


def visible(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of this package, None if no frame is left."""
    kept: list[TracebackType] = []
    hidden = False
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        hidden = name.startswith(PACKAGE) or (hidden and any(part in name for part in _CALLED))
        if not hidden:
            kept.append(trace)
        trace = trace.tb_next
    found: TracebackType | None = None
    for one in reversed(kept):
        found = TracebackType(found, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return found


def _get(error: BaseException, name: str) -> Any:
    return vars(BaseException)[name].__get__(error)


def _set(error: BaseException, name: str, value: Any) -> None:
    vars(BaseException)[name].__set__(error, value)


def _is_public(error: BaseException) -> bool:
    return any(kind.__module__ == "shmpar.errors" for kind in type(error).__mro__)


def _is_defect(error: BaseException) -> bool:
    """Return whether an exception of an unexpected type comes from a frame of this package."""
    if isinstance(error, _ON_PURPOSE) or _is_public(error):
        return False
    return is_raised_here(error)


def is_raised_here(error: BaseException) -> bool:
    """Return whether a frame of this package has raised an exception."""
    trace = _get(error, "__traceback__")
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(PACKAGE)


def _is_internal(error: BaseException) -> bool:
    """Return whether a cause says nothing to the user: no line of the user's code raised it."""
    module = type(error).__module__
    if module.startswith("shmpar."):
        return module != "shmpar.errors"
    trace = _get(error, "__traceback__")
    return trace is not None and visible(trace) is None and not _is_public(error)


# Text of a worker's traceback


def with_sources(text: str) -> str:
    r"""Add the source lines that a worker could not read: of a notebook's cell, of ``python -c``.

    Examples
    --------
    >>> import linecache
    >>> linecache.cache["<cell>"] = 10, None, ["x = 1 / 0\n"], "<cell>"
    >>> with_sources('  File "<cell>", line 1, in f\n')
    '  File "<cell>", line 1, in f\n    x = 1 / 0\n'
    """

    def complete(found: re.Match[str]) -> str:
        line = _source_line(found["file"], int(found["line"]), found["name"])
        return found[0] + f"{found['lead']}  {line}\n" * bool(line)

    return re.sub(_FRAME, complete, text)


def _source_line(file: str, number: int, name: str) -> str:
    # Why: Python 3.13 takes all code of a file of this name for the program's.
    if file != "<string>":
        return linecache.getline(file, number).strip()
    if "-c" not in sys.orig_argv[1:-1]:
        return ""
    source = sys.orig_argv[sys.orig_argv.index("-c") + 1]
    with contextlib.suppress(SyntaxError, ValueError):
        # Why: other code than the program's has this name of a file too.
        for code in _codes(compile(source, file, "exec")):
            if code.co_name == name and number in {line for *_, line in code.co_lines()}:
                return source.splitlines()[number - 1].strip()
    return ""


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


# In a notebook


def render(error: BaseException) -> list[str]:
    """Return the lines that IPython shows for an error of a chunk, at most 20 with short messages.

    The message comes first and last; in between the lines of the worker and of the call.
    """
    if is_full():
        return traceback.format_exception(error)
    message = f"{type(error).__name__}: {error}"
    first = message.split("\n", 1)[0]
    remote, notes = _remote_lines(error, _MOST_LINES)
    last = _without_middle("\n".join([message, *getattr(error, "__notes__", ()), *notes]))
    return [_named(line) for line in [first, "", *remote, *_call_lines(error), *last]]


def _without_middle(text: str) -> list[str]:
    lines = text.splitlines()
    return lines if len(lines) <= _MOST_LINES else [*lines[:3], "...", *lines[4 - _MOST_LINES :]]


def render_group(group: BaseExceptionGroup[Any]) -> list[str]:
    """Return the lines that IPython shows for a group of errors of chunks, at most 20.

    They have the first messages, and the lines of the worker for the first of them.
    """
    if is_full():
        return traceback.format_exception(group)
    name, errors = type(group).__name__, group.exceptions
    shown = [f"  {_one_line(error)}" for error in errors[:_MOST_ERRORS]]
    more = len(errors) - len(shown)
    shown += [f"  ... and {more:,} more"] * bool(more)
    remote, _ = _remote_lines(errors[0], _MOST_LINES - 2)
    lines = [f"{name}: {group.message}", *shown, "", *remote, *_call_lines(group)]
    return [_named(line) for line in [*lines, f"{name}: {_one_line(group, 600)}"]]


def _one_line(error: BaseException, most: int = 200) -> str:
    text = " ".join(str(error)[: 10 * most].split())
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def _remote_lines(error: BaseException, most: int) -> tuple[list[str], list[str]]:
    """Return the lines of the worker for an error, and the other notes of its cause."""
    cause = error.__cause__
    if cause is None:
        return [], []
    notes = list(getattr(cause, "__notes__", ()))
    remote = [one for one in notes if one.startswith(IN_WORKER)]
    text = remote[0][len(IN_WORKER) :] if remote else "".join(traceback.format_exception(cause))
    lines = _compact(text, most)
    found = [IN_WORKER.strip(), *lines, ""] if lines else []
    return found, [one for one in notes if one not in remote]


def _call_lines(error: BaseException) -> list[str]:
    """Return the lines of the cell, or of the script, that made the call."""
    calls = _compact("".join(traceback.format_tb(_below_shell(error.__traceback__))), 4)
    return ["Called from:", *calls, ""] if calls else []


def show_in_ipython(kind: type[BaseException]) -> None:
    """Have IPython show a class of groups by its own lines, unless the user has such a handler.

    Why: IPython prints a group as Python does, with the lines of up to 15 errors.
    """
    shell = _shell()

    def show(shell: Any, kind: Any, error: Any, *_: Any, **__: Any) -> list[str]:
        lines: list[str] = error._render_traceback_()
        shell._showtraceback(kind, error, lines)  # noqa: SLF001 - as IPython's own handlers do
        return lines

    if shell is not None and not shell.custom_exceptions:
        shell.set_custom_exc((kind,), show)


def _shell() -> Any:
    """Return the shell of IPython in which this program runs, None without one."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def _below_shell(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the cell on."""
    shell = os.path.join("", "IPython", "")
    trace = visible(trace)
    while trace is not None and shell in trace.tb_frame.f_code.co_filename:
        trace = trace.tb_next
    return trace


def _compact(text: str, most: int) -> list[str]:
    """Return the lines of frames and messages, without the middle if there are too many."""
    lines = [line for line in text.splitlines() if line.strip(" ^~|+-")]
    lines = [line for line in lines if "(most recent call last)" not in line]
    if lines and not lines[-1].startswith(" "):
        lines.pop()  # Why: the message of the error has it.
    if len(lines) > most:
        lines = [*lines[:2], "  ...", *lines[3 - most :]]
    return [line if len(line) <= _MOST_WIDTH else f"{line[:_MOST_WIDTH]} ..." for line in lines]


def _named(line: str) -> str:
    """Return a line with the name that a notebook shows for the file of a cell."""
    found = re.match(r' *File "([^"]+)"(.*)', line)
    name = getattr(getattr(_shell(), "compile", None), "format_code_name", lambda _: None)
    if found is not None and (cell := name(found[1])) is not None:
        return f"  {' '.join(cell)}{found[2]}"
    return line
