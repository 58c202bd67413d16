"""A parcel: what is sent for one object.

Imports segment, for types alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from shmpar.segment import Segment

__all__ = ["Parcel"]


class Parcel(NamedTuple):
    """What is sent for one object.

    Attributes
    ----------
    body : bytes
        A pickle that names segments by their place in `segments`.
    segments : tuple of Segment
        Kept alive by whoever sends the parcel until it has arrived.
    private : tuple of bool
        Whether the worker maps the segment copy on write.
    plain : bool
        Whether it is a function that leaves nothing for its next call, so that who has opened the
        same parcel last may use what it got.
    """

    body: bytes
    segments: tuple[Segment, ...] = ()
    private: tuple[bool, ...] = ()
    plain: bool = False
