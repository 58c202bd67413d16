"""Functions that read, and errors of any kind, for `tests/test_outcomes.py`."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def fail(item: int, engine: str) -> int:
    if item and engine == "processes":
        os._exit(3)
    if item:
        raise ZeroDivisionError
    return item


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Refuses new values of its attributes."""

    code: int


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots(Exception):
    """Refuses them too, and has none in a dict."""

    code: int


class Slots(Exception):
    """Has a slot that is no argument."""

    __slots__ = ("code",)

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Refusing(Exception):
    """Takes no attribute at all."""

    code = property(lambda self: self.args[0])

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class Keyword(Exception):
    """Takes a keyword, which pickle does not pass."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Reduced(Exception):
    """Cannot be pickled."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __reduce__(self) -> Any:
        raise RuntimeError("no")


class Rebuilt(Reduced):
    """Is pickled so that it does not unpickle."""

    def __reduce__(self) -> Any:
        return eval, ("1 / 0",)


class Another(Reduced):
    """Is pickled as an object that is no exception."""

    def __reduce__(self) -> Any:
        return int, ("7",)


class Leaving(Reduced):
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return exit, (3,)


class Missing(OSError):
    """Has more arguments than its base class."""

    def __init__(self, path: str, code: int) -> None:
        super().__init__(2, "gone", path)
        self.code = code


class Unnoted(Exception):
    """Takes no note, and has no message."""

    def __init__(self, code: int) -> None:
        self.code = code

    def add_note(self, note: str) -> None:
        raise ValueError(note)

    def __str__(self) -> str:
        raise ValueError("no text")


class Hidden(Exception):
    """Shows no traceback and no cause."""

    code = property(lambda self: self.args[0])
    __traceback__ = __cause__ = __context__ = property(lambda self: 1 / 0)  # type: ignore[assignment]


class Unreachable(Exception):
    """Raises for each of its attributes."""

    def __getattribute__(self, name: str) -> Any:
        raise ValueError(name)


def raise_unreachable(_: Any) -> None:
    raise Unreachable("far")


def initialize(kind: type[BaseException]) -> None:
    raise kind("not today")


def slow(block: Any) -> Any:
    time.sleep(0.06)
    return -block
