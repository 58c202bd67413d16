"""Files of the user's that appear whole or not at all.

Imports the ladder and descriptors beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from shmpar.segment import descriptors, ladder

__all__ = ["appear"]

_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}


@contextlib.contextmanager
def appear(path: str, nbytes: int, *, mode: int = 0o600, replace: bool = False) -> Iterator[int]:
    """Make a file of reserved zeros, to be written inside the ``with``; it is there at its end.

    Parameters
    ----------
    path : str
        Its name.
    nbytes : int
        Bytes, at least 1.
    mode : int
        Its permissions, before the umask.
    replace : bool
        Take the name from a file that has it; who has that one open keeps it.

    Raises
    ------
    FileExistsError
        If there is one and it is not to be replaced.
    SegmentFull
        If its disk has no room.

    Notes
    -----
    The file has no name before (``O_TMPFILE``), so nothing is left of it when this process is
    killed. Where the file system does not know such files, or one is replaced, it has a name that
    ends in ``.tmp`` for as long as it takes to rename it, or to write it.
    """
    folder, flags = os.path.dirname(path) or ".", os.O_RDWR | os.O_CLOEXEC
    rough: str | None = None
    try:
        fd = descriptors.opened(lambda: os.open(folder, flags | os.O_TMPFILE, mode))
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NAMELESS:
            raise
        rough = _rough(path)
        fd = os.open(rough, flags | os.O_CREAT | os.O_EXCL, mode)
    try:
        ladder.reserve_window(fd, 0, nbytes)
        yield fd
        if replace and rough is None and os.path.lexists(path):
            _link(fd, rough := _rough(path))
        if rough is None:
            _link(fd, path)
        elif replace:
            os.replace(rough, path)
            rough = None
        else:
            os.link(rough, path)
    finally:
        os.close(fd)
        if rough is not None:
            os.unlink(rough)


def _rough(path: str) -> str:
    return f"{path}.{os.urandom(4).hex()}.tmp"


def _link(fd: int, path: str) -> None:
    name, flags = os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    folder = descriptors.opened(lambda: os.open(name, flags))
    try:  # linkat alone follows the link in /proc, and needs a folder
        os.link(f"/proc/self/fd/{fd}", os.path.basename(path), src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)
