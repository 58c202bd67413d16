"""Messages between the parent and a worker process: small pickles with descriptors.

Guarantees
----------
- A message arrives whole or not at all. No reader sees a part of a message of a dead writer.
- A long message lies in sealed memory: after the seals nobody can change it, not even its writer.
  The reader checks the seals, and copies a message that has none.
- Received descriptors are closed at exec from the moment when they exist. None has the number of a
  closed standard stream.
- A message that has lost descriptors, because the receiver may open no more, is an error.
"""

from __future__ import annotations

# Why: a worker has loaded _socket already; socket would first make enums of a hundred constants.
import _socket
import array
import contextlib
import errno
import fcntl
import mmap
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from shmpar.errors import SegmentError
from shmpar.ipc.protocol import decoded, encoded
from shmpar.memory import allocate, system
from shmpar.memory.limits import ClosedOnError, keep_standard_streams

MAX_DESCRIPTORS = 200  # a message carries at most 253 (SCM_MAX_FD); one more is for a long body
_INLINE = 48 * 1024  # bytes; two such messages fit the default buffer of a socket
_BUFFER = _INLINE + 1024
_CLOEXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
_TRUNCATED = _socket.MSG_CTRUNC | _socket.MSG_TRUNC
_ANCILLARY = _socket.CMSG_SPACE((MAX_DESCRIPTORS + 1) * array.array("i").itemsize)
_SEALS = sum(getattr(fcntl, f"F_SEAL_{one}", 0) for one in ("WRITE", "GROW", "SHRINK", "SEAL"))
_STDERR = 2
_BODY_FOLLOWS, _BODY_IN_MEMORY = b"\0", b"\1"  # the first byte of a message


class Wire:
    """An end of a pair of sockets that keep the bounds of messages.

    Parameters
    ----------
    sock : socket
        Of type SEQPACKET (or DGRAM on systems without it).
    end_other : callable, optional
        Ends the process at the other end; called when a message from there is lost.
    """

    def __init__(self, sock: _socket.socket, end_other: Callable[[], Any] = lambda: None) -> None:
        self._socket, self._end_other = sock, end_other

    @staticmethod
    def pair() -> tuple[_socket.socket, _socket.socket]:
        """Return two connected sockets, the first one not blocking."""
        ours, theirs = system.attempt(
            "SOCK_SEQPACKET",
            lambda: _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET),
            # Why: the life pipe, and a look at the process, tell of the end.
            lambda: _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM),
        )
        for end in (ours, theirs) if ours.type == _socket.SOCK_DGRAM else ():
            end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 2 * _BUFFER)
        ours.settimeout(0)
        return ours, theirs

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send one message.

        Raises
        ------
        BlockingIOError
            If this end does not block and the buffer of the other end is full.
        OSError
            If the other end is closed.
        """
        self.send_packed(pickle.dumps(encoded(message), 5), descriptors)

    def send_packed(self, body: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message that is pickled already, like :meth:`send`."""
        if len(body) <= _INLINE:
            try:
                self._sendmsg(_BODY_FOLLOWS, body, descriptors)
            except OSError as error:
                # Why: a machine may give sockets less memory (sysctl net.core.wmem_default).
                if error.errno != errno.EMSGSIZE:
                    raise
            else:
                return
        fd = _sealed(body)
        try:
            self._sendmsg(_BODY_IN_MEMORY, len(body).to_bytes(8, "little"), [*descriptors, fd])
        finally:
            os.close(fd)

    def _sendmsg(self, kind: bytes, body: bytes, descriptors: Sequence[int]) -> None:
        if not descriptors:
            self._socket.send(kind + body, _socket.MSG_NOSIGNAL)
            return
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", descriptors))]
        self._socket.sendmsg([kind, body], rights, _socket.MSG_NOSIGNAL)

    def receive(self, *, wait: bool = True) -> tuple[Any, list[int]]:
        """Return the next message and its descriptors, which the caller must close.

        Raises
        ------
        BlockingIOError
            If there is no message, and `wait` is false or this end does not block.
        EOFError
            If the other end is closed.
        SegmentError
            If a part of the message is lost.

        Notes
        -----
        Text that :mod:`faulthandler` has written to the other end comes as a `str`.
        """
        flags = _CLOEXEC if wait else _CLOEXEC | _socket.MSG_DONTWAIT
        try:
            data, ancillary, found, _ = self._recvmsg(flags)
        except ConnectionResetError:
            raise EOFError from None
        descriptors = _descriptors(ancillary) if ancillary else []
        if found & _TRUNCATED:
            self._lose(descriptors, f"only {len(descriptors)} of its descriptors had room")
        if not data:
            raise EOFError
        if data[:1] == _BODY_FOLLOWS:
            return decoded(pickle.loads(memoryview(data)[1:])), descriptors
        if data[:1] != _BODY_IN_MEMORY:
            return data.decode(errors="replace"), descriptors
        fd = descriptors.pop()
        try:
            body = _read(fd, int.from_bytes(data[1:9], "little"))
        except (OSError, MemoryError) as error:
            self._lose(descriptors, str(error) or "memory ran out")
        finally:
            os.close(fd)
        return decoded(pickle.loads(body)), descriptors

    def _recvmsg(self, flags: int) -> Any:
        try:
            return self._socket.recvmsg(_BUFFER, _ANCILLARY, flags)
        except ConnectionResetError:
            # Why: the other end was closed with unread messages. The kernel reports that once,
            # before it delivers the messages that the other end had sent.
            return self._socket.recvmsg(_BUFFER, _ANCILLARY, flags)

    def _lose(self, descriptors: list[int], why: str) -> NoReturn:
        """Give up a message with a missing part, and the process that sent it."""
        for fd in descriptors:
            os.close(fd)
        self._end_other()
        remedy = "close files, drop arrays, or raise the hard limit on open files (ulimit -Hn)"
        raise SegmentError(f"a message between this process and another was lost: {why}; {remedy}")


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors of a message, as :func:`socket.recv_fds` does."""
    found = array.array("i")
    for _, _, data in ancillary:  # Why: no socket of ours asks for any other kind
        found.frombytes(data[: len(data) - len(data) % found.itemsize])
    if not _CLOEXEC:
        for fd in found:
            os.set_inheritable(fd, False)  # noqa: FBT003 - positional by its signature
    return [fd if fd > _STDERR else _above_standard(fd) for fd in found]


def _above_standard(fd: int) -> int:
    """Return a descriptor in the place of one that got the number of a closed standard stream."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1)
    finally:
        os.close(fd)
        keep_standard_streams()


def _sealed(body: bytes) -> int:
    """Open a memory file that holds `body` and can never change, or a file that can."""
    return system.attempt("seals", lambda: _sealed_file(body), lambda: _plain_file(body))


def _sealed_file(body: bytes) -> int:
    fd = os.memfd_create("shmpar-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with ClosedOnError(fd):
        allocate.restrict(fd)
        allocate.write_all(fd, memoryview(body), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _plain_file(body: bytes) -> int:
    raw = memoryview(body)
    return allocate.make_file(len(body), lambda fd, _: allocate.write_all(fd, raw, 0)).fd


def _read(fd: int, size: int) -> mmap.mmap | bytes:
    """Return the body that lies in a file, in memory that nobody can change."""
    held = system.attempt(
        "F_GET_SEALS", lambda: fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS, lambda: -1
    )
    if held == _SEALS:
        with contextlib.suppress(OSError):  # Why: a copy needs no descriptor and no mapping
            return mmap.mmap(fd, size, access=mmap.ACCESS_READ)
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        body = file.read(size)
    if len(body) < size:
        raise OSError(errno.EIO, f"{size - len(body):,} bytes of it are missing")
    return body
