"""The globals of functions that travelled by value, in a worker.

Imports numpy, for types alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Namespaces", "globals_of", "namespaces"]


class Namespaces:
    """The globals of modules whose functions arrived by value, in a worker.

    What an initializer has set is the worker's own: later functions bring the parent's values
    of their globals, but never over those.
    """

    def __init__(self) -> None:
        self._globals: dict[str, dict[str, Any]] = {}
        self._own: dict[str, dict[str, Any]] = {}

    def of(self, module: str, attributes: dict[str, Any]) -> dict[str, Any]:
        """The globals dict that stands for a module."""
        found = self._globals.setdefault(module, {})
        found.update(attributes)
        return found

    def keep_own(self) -> None:
        """Restore what the initializer has set."""
        for module, values in self._own.items():
            self._globals[module].update(values)

    def run_initializer(self, initializer: Callable[[], object]) -> None:
        """Call it, and remember each global that it has set."""
        before = {module: dict(values) for module, values in self._globals.items()}
        initializer()
        absent = object()
        for module, values in self._globals.items():
            old = before.get(module, {})
            self._own[module] = {
                name: value for name, value in values.items() if old.get(name, absent) is not value
            }

    def forget(self, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        """Drop the globals that are these arrays, so that their memory is released."""
        ids = {id(array) for array in arrays}
        for values in self._globals.values():
            for name in [name for name, value in values.items() if id(value) in ids]:
                del values[name]


namespaces = Namespaces()
"""The one of this process; functions that travelled by value hold its dicts."""


def globals_of(module: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """As :meth:`Namespaces.of`; what a pickle calls in the process where it arrives."""
    return namespaces.of(module, attributes)
