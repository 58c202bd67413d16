"""Functions, arguments, results and exceptions that crash the process in which they are used.

Workers import this module by name, so it imports nothing slow.
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


class MildError(ValueError):
    """An error that does not end the process."""


def crash(how: str) -> Any:
    """End this process, or raise an error."""
    match how:
        case "_exit":
            os._exit(STATUS[how])
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            sys.exit(3)
        case "raise":
            raise MildError("mild")
        case _:
            os.kill(os.getpid(), getattr(signal, how))


class CrashingArgument:
    """An argument that crashes when it is pickled, unpickled, or deleted in another process.

    Parameters
    ----------
    site : str
        Place of the crash: ``"<kind> pickle"``, ``"<kind> unpickle"`` or ``"<kind> del"``; the
        object ignores other sites.
    how : str
        Kind of crash, as for :func:`crash`.
    parent_pid : int
        Process in which the object may be deleted without a crash.
    """

    kind = "argument"

    def __init__(self, site: str, how: str, parent_pid: int) -> None:
        self.site, self.how, self.parent_pid = site, how, parent_pid

    def __reduce__(self) -> Any:
        if self.site == f"{self.kind} pickle":
            crash(self.how)
        if self.site == f"{self.kind} unpickle":
            return crash, (self.how,)
        return type(self), self._state()

    def _state(self) -> tuple[Any, ...]:
        return self.site, self.how, self.parent_pid

    def __del__(self) -> None:
        if self.site == f"{self.kind} del" and os.getpid() != self.parent_pid:
            crash(self.how)


class CrashingResult(CrashingArgument):
    """A result that crashes in the same ways."""

    kind = "result"


class CrashingFunction(CrashingArgument):
    """Call `inner`, or crash, or return or raise an object that crashes."""

    kind = "function"

    def __init__(self, site: str, how: str, parent_pid: int, inner: Callable[..., Any]) -> None:
        super().__init__(site, how, parent_pid)
        self.inner = inner

    def _state(self) -> tuple[Any, ...]:
        return *super()._state(), self.inner

    def __call__(self, value: Any, argument: CrashingArgument | None = None) -> Any:
        if self.site == "function run":
            crash(self.how)
        if self.site.startswith("result"):
            return CrashingResult(*super()._state())
        if self.site.startswith("error"):
            raise CrashingError(*super()._state())
        return self.inner(value)


class CrashingError(Exception):
    """An error that crashes when it is pickled, unpickled or shown."""

    def __init__(self, site: str, how: str, parent_pid: int) -> None:
        super().__init__("crashing")
        self.site, self.how, self.parent_pid = site, how, parent_pid

    def __reduce__(self) -> Any:
        if self.site == "error pickle":
            crash(self.how)
        if self.site == "error unpickle":
            return crash, (self.how,)
        return CrashingError, (self.site, self.how, self.parent_pid)

    def __str__(self) -> str:
        in_parent = os.getpid() == self.parent_pid
        if (self.site == "error text" and not in_parent) or (
            self.site == "error text in parent" and in_parent
        ):
            crash(self.how)
        return "crashing"
