"""The contract between the engine of many machines and a transport, and addresses of memory."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from shmpar.cluster.messages import File, Head, Memory, Settings, Span, Submitted, machine
from shmpar.errors import SecurityWarning
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment
from shmpar.runtime.error_texts import warn_user

Array = np.ndarray[Any, Any]

LANES = 2
"""Spans that a host may hold: one is computed while the windows of the next arrive."""


# Reports of a transport


class HostUp(NamedTuple):
    """A host is there.

    Attributes
    ----------
    host : str
        Its key in this transport.
    workers : int
        Its local workers.
    near : bool or None
        It maps memory of this process; None: that is not known yet.
    name : str
        Its name for people.
    memory : int
        Bytes that it may use; 0 if there is no limit.
    calls : int
        Pieces of work that its process does at a time.
    """

    host: str
    workers: int
    near: bool | None
    name: str
    memory: int = 0
    calls: int = 1


class HostDown(NamedTuple):
    """A host is gone, or leaves."""

    host: str
    reason: str


class Answer(NamedTuple):
    """The result of a piece of work, or the exception of the transport."""

    token: int
    value: Any
    error: BaseException | None
    seconds: float = 0.0


class Broken(NamedTuple):
    """No host will come any more."""

    reason: str


Report = HostUp | HostDown | Answer | Broken


class Transport(Protocol):
    """Carries work to hosts and reports on them. Any thread may be told; none may wait.

    Attributes
    ----------
    name : str
        As the engine's name.
    hosts : int
        Most hosts at a time.
    places : int
        Calls that the hosts which were there at the start make at a time.
    """

    name: str
    hosts: int
    places: int

    def start(self, settings: Settings, tell: Callable[[Report], object]) -> None:
        """Begin to look for hosts; report by `tell`."""

    def send(self, token: int, host: str, work: Span | Submitted, head: Head | None) -> None:
        """Send work to a host; its answer has the token. `head` is that of the span's run."""

    def stop(self, run: int, hosts: Sequence[str], *, kill: bool) -> None:
        """Tell hosts to stop a run, as far as this transport can."""

    def forget(self, run: int) -> None:
        """Drop the objects that were kept for a run."""

    def withdraw(self, token: int) -> None:
        """Cancel work that no host has begun, as far as this transport can."""

    def close(self) -> None:
        """End the hosts' pools, and wait for it if they can be reached."""


# Addresses


def memory_of(segment: Segment) -> Memory:
    """Return the address of a segment's memory for processes of this machine."""
    device, inode = segment.identity()
    here = machine()
    return Memory(here, os.getpid(), segment.fileno(), device, inode, segment.size, segment.kind)


def memory_address(array: Array) -> Memory:
    """Return the address of the memory of an array in a segment."""
    place = locate(array)
    assert place is not None, "it lies in a segment"
    return memory_of(place.segment)


def file_address(array: Array) -> File | None:
    """Return the address of an array in a mapped file; None if it lies elsewhere."""
    place = locate(array)
    if place is None or place.segment.kind != "file" or place.segment.path is None:
        return None
    segment = place.segment
    where = array.shape, array.strides, array.dtype
    return File(str(segment.path), place.offset, *where, segment.writable)


def warn_if_open(address: str) -> None:
    """Warn of a scheduler on another machine that anybody can use.

    Examples
    --------
    >>> warn_if_open("tcp://127.0.0.1:8786"), warn_if_open("tls://10.0.0.1:8786")
    (None, None)
    """
    scheme, _, rest = address.partition("://")
    name = rest.rpartition(":")[0].strip("[]") or rest
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = name in {"localhost", ""}
    if scheme in {"tcp", "ws", "ucx"} and not local:
        warn_user(
            f"{address} is neither encrypted nor authenticated: anybody who reaches it can run "
            "code on its hosts and read your data; use tls:// with a Security of distributed, or "
            "a network that nobody else reaches",
            SecurityWarning,
        )
