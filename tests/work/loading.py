"""Objects that do not load in every process, for tests of what happens then."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


class Fatal:
    """A function that kills each worker that loads it."""

    def __call__(self, block: Any) -> Any:
        return block

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return die_elsewhere, (os.getpid(),)


def die_elsewhere(pid: int) -> Fatal:
    if os.getpid() != pid:
        os._exit(3)
    return Fatal()


class Hanging:
    """A function that hangs in each worker that loads it, and makes a file before."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, block: Any) -> Any:
        return block

    def __reduce__(self) -> tuple[Callable[[int, str], Any], tuple[int, str]]:
        return hang_elsewhere, (os.getpid(), self.path)


def hang_elsewhere(pid: int, path: str) -> Hanging:
    if os.getpid() != pid:
        with open(path, "w"):
            pass
        signal.pause()
    return Hanging(path)


class Elsewhere:
    """A result that loads in no other process than that which has made it."""

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return load_here, (os.getpid(),)


def load_here(pid: int) -> Elsewhere:
    if os.getpid() != pid:
        raise ValueError("it does not load")
    return Elsewhere()
