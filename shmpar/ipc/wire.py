"""Messages between the parent and a worker process: small pickles with descriptors.

Imports errors.

Guarantees
----------
- A message arrives whole or not at all; no reader ever sees half of one, however its writer died.
- A long message lies in sealed memory, which the reader checks: not even who made it can change
  it any more. Where there is no such memory, the reader has a copy.
- Received descriptors are closed at exec, from the moment they exist.
- A message that has lost descriptors, because the receiver may open no more, is an error.
"""

from __future__ import annotations

import _socket
import array
import errno
import fcntl
import mmap
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from shmpar.errors import SegmentError

__all__ = ["MAX_DESCRIPTORS", "Wire"]

MAX_DESCRIPTORS = 200  # a message carries at most 253 (SCM_MAX_FD); one is for a long body
_INLINE = 48 * 1024  # bytes; two of them fit the default buffer of a socket
_BUFFER = _INLINE + 1024
# Of _socket, which a worker has at once: socket makes enums of a hundred numbers first.
_CLOEXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
_NOW = _CLOEXEC | _socket.MSG_DONTWAIT
_NOSIGNAL = _socket.MSG_NOSIGNAL
_SOCKET, _RIGHTS = _socket.SOL_SOCKET, _socket.SCM_RIGHTS
_CUT = _socket.MSG_CTRUNC | _socket.MSG_TRUNC
_SPACE = _socket.CMSG_SPACE((MAX_DESCRIPTORS + 1) * 4)
_SEALS = (
    fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    if hasattr(os, "memfd_create")
    else 0
)
_HERE, _IN_MEMORY = b"\0", b"\1"


class Wire:
    """One end of a pair of sockets that keep the bounds of messages.

    Parameters
    ----------
    sock : socket
        Of type SEQPACKET (or DGRAM where there is none).
    end_other : callable, optional
        Ends the process at the other end; called when something that it has said is lost.
    """

    def __init__(
        self, sock: _socket.socket, end_other: Callable[[], object] = lambda: None
    ) -> None:
        self._socket = sock
        self._end_other = end_other

    @staticmethod
    def pair() -> tuple[_socket.socket, _socket.socket]:
        """Two connected sockets, the first one not blocking."""
        try:
            ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        except OSError:  # macOS has no SEQPACKET; its end of file comes from the life pipe
            ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM)
            for end in (ours, theirs):
                end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 2 * _BUFFER)
        ours.settimeout(0)
        return ours, theirs

    def fileno(self) -> int:
        """Descriptor of the socket."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send one message.

        Raises
        ------
        BlockingIOError
            If this end does not block and the other one has not read for long.
        OSError
            If the other end is gone.
        """
        self.send_packed(pickle.dumps(message, 5), descriptors)

    def send_packed(self, body: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message that is pickled already, as :meth:`send`."""
        if len(body) <= _INLINE:
            self._sendmsg(_HERE, body, descriptors)
            return
        fd = _sealed(body)
        try:
            self._sendmsg(_IN_MEMORY, len(body).to_bytes(8, "little"), [*descriptors, fd])
        finally:
            os.close(fd)

    def _sendmsg(self, kind: bytes, body: bytes, descriptors: Sequence[int]) -> None:
        ancillary = []
        if descriptors:
            packed = array.array("i", descriptors)
            ancillary.append((_SOCKET, _RIGHTS, packed))
        self._socket.sendmsg([kind, body], ancillary, _NOSIGNAL)

    def receive(self, *, wait: bool = True) -> tuple[Any, list[int]]:
        """Take the next message and its descriptors, which are the caller's to close.

        Raises
        ------
        BlockingIOError
            If there is none, and `wait` is false or this end does not block.
        EOFError
            If the other end is gone.
        SegmentError
            If the message cannot be had whole; it is lost.
        """
        flags = _CLOEXEC if wait else _NOW
        try:
            data, ancillary, found, _ = self._received(flags)
        except ConnectionResetError:
            raise EOFError from None
        descriptors = _descriptors(ancillary) if ancillary else []
        if found & _CUT:
            self._refuse(descriptors, f"only {len(descriptors)} of its descriptors had room")
        if not data:
            raise EOFError
        if data[:1] == _HERE:
            return pickle.loads(memoryview(data)[1:]), descriptors
        fd = descriptors.pop()
        try:
            body = _read(fd, int.from_bytes(data[1:9], "little"))
        except OSError as error:
            self._refuse(descriptors, str(error))
        finally:
            os.close(fd)
        return pickle.loads(body), descriptors

    def _refuse(self, descriptors: list[int], why: str) -> NoReturn:
        """Give up a message of which a part is missing: nobody could say which."""
        for fd in descriptors:
            os.close(fd)
        self._end_other()
        raise SegmentError(
            f"a message between this process and another was lost: {why}; close files, drop "
            "arrays, or raise the hard limit on open files (ulimit -Hn)"
        )

    def _received(self, flags: int) -> Any:
        try:
            return self._socket.recvmsg(_BUFFER, _SPACE, flags)
        except ConnectionResetError:
            # The other end was closed with messages that it had not read. The kernel says so
            # once, before it gives what the other end had sent.
            return self._socket.recvmsg(_BUFFER, _SPACE, flags)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == _SOCKET and kind == _RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    if not _CLOEXEC:
        for fd in found:
            os.set_inheritable(fd, False)  # noqa: FBT003 - positional by its signature
    return found.tolist()


def _sealed(body: bytes) -> int:
    """A memory file that holds `body` and can never change."""
    if not _SEALS:
        import tempfile

        with tempfile.TemporaryFile(prefix="shmpar") as file:
            file.write(body)
            file.flush()
            return os.dup(file.fileno())
    fd = os.memfd_create("shmpar-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(body)
    try:
        os.fchmod(fd, 0o600)  # it is made with 0o777
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def _read(fd: int, size: int) -> mmap.mmap | bytes:
    """The body that lies there, in memory that nobody can write to."""
    if _SEALS and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS:
        return mmap.mmap(fd, size, access=mmap.ACCESS_READ)
    if _SEALS:
        raise PermissionError(errno.EPERM, "a message lies in memory that is not sealed")
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read(size)
