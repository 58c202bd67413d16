"""Objects that do not change once they are made.

Imports nothing of the package.  A frozen dataclass takes a millisecond to make, which each worker
would wait for at its start.
"""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["Fixed", "fix"]


class Fixed:
    """An object whose attributes are given once, by :func:`fix`."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} does not change: {name} cannot be assigned to")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} does not change: {name} cannot be deleted")


fix = object.__setattr__
"""Give an attribute of a :class:`Fixed` object."""
