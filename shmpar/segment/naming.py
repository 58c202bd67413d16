"""Names of segments: making, checking, linking, opening and removing them.

Imports ``shmpar.errors`` and the descriptors and ladder beside it.

Guarantees
----------
A name is either a plain file name in ``/dev/shm`` or exactly ``/proc/<pid>/fd/<n>``; nothing else
is ever opened by name.  What is opened is a regular file of the same user, no symbolic link is
followed, and through ``/proc`` only files that have no name at all.  It is looked at before it is
opened, since opening a device or a pipe does something, and after, since it may be another by then.
A name is removed only while it still leads to the very file that it was given to.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from shmpar.errors import SegmentGone
from shmpar.segment import descriptors, ladder

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["checked", "descriptor_name", "generated", "leads", "link", "open_named", "remove"]

Identity = tuple[int, int]  # device, inode

_LONGEST: Final = 255
_MARKER: Final = re.compile(r"shmpar_[0-9a-f]+\.marker")
_DESCRIPTOR: Final = re.compile(r"/proc/[1-9][0-9]{0,9}/fd/[0-9]{1,9}")


def generated(suffix: str = "") -> str:
    """Make a fresh name of at most 31 characters.

    Examples
    --------
    >>> len(generated()) <= 31
    True
    """
    return f"shmpar_{os.urandom(8).hex()}{suffix}"


def checked(name: str) -> str:
    """Give back a name that a user chose.

    Raises
    ------
    TypeError
        It is no str.
    ValueError
        It is no plain file name of printable text, or looks like a marker of ours.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    # Printable: a marker has one line a name, and a terminal shows them. Surrogates are not.
    plain = name.isprintable() and "/" not in name and "@" not in name
    short = plain and name not in {"", ".", ".."} and len(name.encode()) <= _LONGEST
    if not short or _MARKER.fullmatch(name):
        shown = f"{name[:60]!r}..." if len(name) > _LONGEST else repr(name)
        raise ValueError(
            f"{shown} cannot name a segment: use a file name of printable characters, "
            "without '/' and '@'"
        )
    return name


def descriptor_name(fd: int) -> str:
    """How others find a file of this process that cannot be linked."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def link(fd: int, name: str) -> None:
    """Give a nameless file in ``/dev/shm`` a name.

    Raises
    ------
    FileExistsError
        The name is taken.
    OSError
        The file lies elsewhere, or the system cannot link what was never named.
    """
    with _folder() as folder:  # linkat needs a folder to follow the link in /proc
        os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=folder, dst_dir_fd=folder)


@contextmanager
def _folder() -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = descriptors.opened(lambda: os.open(ladder.SHM, flags))
    try:
        yield fd
    finally:
        os.close(fd)


def leads(name: str, identity: Identity) -> bool:
    """Whether a name in ``/dev/shm`` belongs to that file, of this user."""
    try:
        found = os.lstat(f"{ladder.SHM}/{name}")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == identity and found.st_uid == os.geteuid()


def remove(name: str, identity: Identity) -> bool:
    """Remove a name in ``/dev/shm`` if it still belongs to that file; say whether it did."""
    with suppress(OSError):
        if leads(name, identity):
            os.unlink(f"{ladder.SHM}/{name}")
            return True
    return False


def open_named(name: str) -> tuple[int, bool]:
    """Open a segment by name; gives the descriptor and whether it may be written.

    Raises
    ------
    ValueError
        The name is neither plain nor a descriptor's, or leads to something that is no segment.
    SegmentGone
        There is nothing of that name.
    PermissionError
        It belongs to another user.
    """
    path, flags = _path(name), os.O_CLOEXEC | os.O_NONBLOCK
    if not path.startswith("/proc/"):
        flags |= os.O_NOFOLLOW
    fd, writable = _open(path, flags, name)
    try:
        vet(os.fstat(fd), name)
    except BaseException:
        os.close(fd)
        raise
    return fd, writable


def _path(name: str) -> str:
    if _DESCRIPTOR.fullmatch(name) and sys.platform == "linux":
        return name
    return f"{ladder.SHM}/{checked(name)}"


def _open(path: str, flags: int, name: str) -> tuple[int, bool]:
    try:
        vet(os.stat(path, follow_symlinks=path.startswith("/proc/")), name)
        try:
            return descriptors.opened(lambda: os.open(path, os.O_RDWR | flags)), True
        except PermissionError:
            return os.open(path, os.O_RDONLY | flags), False
    except (FileNotFoundError, ProcessLookupError):
        raise SegmentGone(
            f"no segment {name!r}: it was closed, its owner has ended, or it never existed; "
            "keep the owner's array alive until others have attached"
        ) from None
    except PermissionError:
        raise
    except OSError as error:  # a symbolic link, a folder, a socket
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            raise
        raise ValueError(f"{name!r} is no segment: {error.strerror}") from None


def vet(found: os.stat_result, name: str) -> None:
    """Raise ``ValueError`` or ``PermissionError`` unless the file can be a segment."""
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{name!r} is no segment: not a regular file")
    if name.startswith("/proc/") and found.st_nlink:
        raise ValueError(f"{name!r} is no segment: the file has a name of its own")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"segment {name!r} belongs to user {found.st_uid}; attach as them")
