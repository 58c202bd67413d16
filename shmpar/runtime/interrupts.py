"""When an interrupt (Ctrl-C) is let through.

Imports nothing of the package.

Python raises KeyboardInterrupt between any two instructions of the main thread: between the start
of a process and the line that notes its number, too. What must not be cut in half runs under
:class:`held_back`; where it waits, for workers or for the user's code, it says :class:`allowed`.

Guarantees
----------
- An interrupt that came while it was held back reaches the user's handler at the end of the
  block, or where the block first allows it; none is lost.
- Threads other than the main one, which no interrupt ever reaches, and programs that handle SIGINT
  without Python, are left alone.
"""

from __future__ import annotations

import os
import sys
import threading
from _signal import getsignal, signal  # type: ignore[import-not-found]
from collections.abc import Callable
from signal import SIGINT
from types import FrameType
from typing import Any

__all__ = ["allowed", "held_back"]

# Without the enums of signal, which cost microseconds.


_NUMBER = int(SIGINT)


class _Held:
    """The user's handler while interrupts are held back, and whether one has come."""

    handler: Callable[[int, FrameType | None], Any] | None = None
    noted = False


def _note(_number: int, _frame: FrameType | None) -> None:
    _Held.noted = True


def _hold() -> bool:
    """Put our handler in the place of the user's, if there is one."""
    if threading.get_ident() != threading.main_thread().ident or _Held.handler is not None:
        return False
    handler = getsignal(_NUMBER)
    if not callable(handler):
        return False
    signal(_NUMBER, _note)
    _Held.handler = handler
    return True


def _release() -> None:
    """Put the user's handler back, and call it for an interrupt that has come."""
    handler, _Held.handler = _Held.handler, None
    if handler is None:
        return
    if getsignal(_NUMBER) is _note:  # else the user's code has set another
        signal(_NUMBER, handler)
    noted, _Held.noted = _Held.noted, False
    if noted:
        handler(_NUMBER, sys._getframe(1))  # noqa: SLF001 - what a handler is given


def _after_fork() -> None:
    """In a child of the user, which is not what was held back from: give it his handler."""
    _Held.noted = False
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class held_back:  # noqa: N801 - reads as a verb: with held_back()
    """No interrupt in the block, but where it says that it is allowed."""

    __slots__ = ("_held",)

    def __enter__(self) -> None:
        self._held = _hold()

    def __exit__(self, *_: object) -> None:
        if self._held:
            _release()


class allowed:  # noqa: N801 - reads as a verb: with allowed()
    """A block inside one of :class:`held_back` in which an interrupt may come after all."""

    __slots__ = ("_held",)

    def __enter__(self) -> None:
        self._held = False
        if _Held.handler is not None and threading.get_ident() == threading.main_thread().ident:
            try:
                _release()
            except BaseException:
                _hold()
                raise
            self._held = True

    def __exit__(self, *_: object) -> None:
        if self._held:
            try:
                _hold()
            except BaseException:  # one that has come at the last moment
                _hold()
                raise
