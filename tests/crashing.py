"""Functions, arguments, results and exceptions that end the process which handles them.

Workers import this module by name: it imports nothing that takes time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

DEADLY = ("_exit", "segfault", "SIGKILL")
MILD = ("raise", "exit")
STATUS = {"_exit": 7, "segfault": -signal.SIGSEGV, "SIGKILL": -signal.SIGKILL}


class Struck(ValueError):
    """What everything here raises that does no worse."""


def strike(how: str) -> Any:
    """End this process, or raise."""
    match how:
        case "_exit":
            os._exit(STATUS[how])
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            sys.exit(3)
        case "raise":
            raise Struck("struck")
        case _:
            os.kill(os.getpid(), getattr(signal, how))


class Guest:
    """Strikes at a site: when it is pickled, unpickled, or deleted in another process.

    Parameters
    ----------
    site : str
        ``"<kind> pickle"``, ``"<kind> unpickle"`` or ``"<kind> del"``; other sites are not its
        own.
    how : str
        As for :func:`strike`.
    home : int
        The process in which deletion does no harm.
    """

    kind = "argument"

    def __init__(self, site: str, how: str, home: int) -> None:
        self.site, self.how, self.home = site, how, home

    def __reduce__(self) -> Any:
        if self.site == f"{self.kind} pickle":
            strike(self.how)
        if self.site == f"{self.kind} unpickle":
            return strike, (self.how,)
        return type(self), self._state()

    def _state(self) -> tuple[Any, ...]:
        return self.site, self.how, self.home

    def __del__(self) -> None:
        if self.site == f"{self.kind} del" and os.getpid() != self.home:
            strike(self.how)


class Result(Guest):
    """What a function returns."""

    kind = "result"


class Work(Guest):
    """A function: `inner`, unless it strikes, or returns or raises what does."""

    kind = "function"

    def __init__(self, site: str, how: str, home: int, inner: Callable[..., Any]) -> None:
        super().__init__(site, how, home)
        self.inner = inner

    def _state(self) -> tuple[Any, ...]:
        return *super()._state(), self.inner

    def __call__(self, value: Any, guest: Guest | None = None) -> Any:
        if self.site == "function run":
            strike(self.how)
        if self.site.startswith("result"):
            return Result(*super()._state())
        if self.site.startswith("error"):
            raise Deadly(*super()._state())
        return self.inner(value)


class Deadly(Exception):
    """Strikes when it is pickled, unpickled or shown."""

    def __init__(self, site: str, how: str, home: int) -> None:
        super().__init__("deadly")
        self.site, self.how, self.home = site, how, home

    def __reduce__(self) -> Any:
        if self.site == "error pickle":
            strike(self.how)
        if self.site == "error unpickle":
            return strike, (self.how,)
        return Deadly, (self.site, self.how, self.home)

    def __str__(self) -> str:
        at_home = os.getpid() == self.home
        if (self.site == "error text" and not at_home) or (
            self.site == "error text home" and at_home
        ):
            strike(self.how)
        return "deadly"
