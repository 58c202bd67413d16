"""Memory that a process has for itself, as the kernel tells.

Imports nothing of the package.
"""

from __future__ import annotations

__all__ = ["private"]


def private(pid: int) -> int:
    """Bytes in memory that no file and no other process has, ``RssAnon`` in ``/proc/<pid>/status``.

    0 where there is no such process, or no ``/proc``.

    Examples
    --------
    >>> import os
    >>> private(os.getpid()) > 1_000_000
    True
    """
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("RssAnon:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0
