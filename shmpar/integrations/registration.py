"""Register the backend "shmpar" with joblib, now or when joblib is imported.

This module is imported with the package, so it imports next to nothing.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

_MODULE = "joblib.parallel"


def _backend(*args: Any, **kwargs: Any) -> Any:
    """Make a backend; joblib calls this for ``backend="shmpar"``."""
    from shmpar.integrations.joblib import ShmparBackend

    return ShmparBackend(*args, **kwargs)


def _register(module: Any) -> None:
    # Why suppressed: a joblib of another version must be usable as it is without this package.
    with contextlib.suppress(Exception):
        module.register_parallel_backend("shmpar", _backend)


class _Watch:
    """A finder of modules that has the other finders find joblib, and registers the backend.

    It stays, so that a reload of joblib registers the backend again.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of joblib's module; None for others."""
        if name != _MODULE:
            return None
        for finder in list(sys.meta_path):
            find = None if finder is _Watch else getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """A loader that registers the backend when the loader that it stands for is done.

    Why not a change of that one: the modules of a zip file share theirs.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        """Return the module, None for one that the import system makes."""
        create = getattr(self._loader, "create_module", None)
        return None if create is None else create(spec)

    def exec_module(self, module: Any) -> None:
        """Execute the module, which keeps the loader that it would have without this package."""
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register(module)


def watch() -> None:
    """Register the backend if joblib is there, and as soon as it is imported or reloaded."""
    if _Watch not in sys.meta_path:
        sys.meta_path.insert(0, _Watch)
    if _MODULE in sys.modules:
        _register(sys.modules[_MODULE])
