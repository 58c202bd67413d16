"""Segments: memory that several processes can map, and the managers that release it.

Imports ``shmpar.errors``, NumPy and the standard library; its names, when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmpar.lazy import attach

if TYPE_CHECKING:
    from shmpar.segment.copying import copy_in, share
    from shmpar.segment.files import appear
    from shmpar.segment.forecast import check_room
    from shmpar.segment.ladder import SMALL
    from shmpar.segment.manager import Manager, default_manager
    from shmpar.segment.mapping import Mapping
    from shmpar.segment.marker import inventory, reap
    from shmpar.segment.place import Place, kind_of, locate
    from shmpar.segment.segment import Segment, create
    from shmpar.segment.slab import Slab

__all__ = [
    "SMALL",
    "Manager",
    "Mapping",
    "Place",
    "Segment",
    "Slab",
    "appear",
    "check_room",
    "copy_in",
    "create",
    "default_manager",
    "inventory",
    "kind_of",
    "locate",
    "reap",
    "share",
]

__getattr__ = attach(
    __name__,
    {
        "shmpar.segment.copying": "copy_in share",
        "shmpar.segment.files": "appear",
        "shmpar.segment.forecast": "check_room",
        "shmpar.segment.ladder": "SMALL",
        "shmpar.segment.manager": "Manager default_manager",
        "shmpar.segment.mapping": "Mapping",
        "shmpar.segment.marker": "inventory reap",
        "shmpar.segment.place": "Place kind_of locate",
        "shmpar.segment.segment": "Segment create",
        "shmpar.segment.slab": "Slab",
    },
)
