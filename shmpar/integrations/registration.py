"""Register the backend "shmpar" with joblib, now or when joblib is imported.

This module is imported with the package, so it imports next to nothing.
"""

from __future__ import annotations

import sys
from typing import Any

_MODULE = "joblib.parallel"


def _backend(*args: Any, **kwargs: Any) -> Any:
    """Make a backend; joblib calls this for ``backend="shmpar"``."""
    from shmpar.integrations.joblib import ShmparBackend

    return ShmparBackend(*args, **kwargs)


def _register(module: Any) -> None:
    module.register_parallel_backend("shmpar", _backend)


class _Watch:
    """A finder of modules that waits for joblib, finds it by the other finders, and registers."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of joblib's module, which registers the backend; None for others."""
        if name != _MODULE:
            return None
        for finder in sys.meta_path:
            if finder is not _Watch and (spec := finder.find_spec(name, path, target)) is not None:
                _after(spec.loader)
                return spec
        return None


def _after(loader: Any) -> None:
    """Have a loader register the backend when it has executed its module."""
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        del loader.exec_module
        execute(module)
        _register(module)

    loader.exec_module = exec_module


def watch() -> None:
    """Register the backend if joblib is there; else as soon as it is imported."""
    if _MODULE in sys.modules:
        _register(sys.modules[_MODULE])
    elif _Watch not in sys.meta_path:
        sys.meta_path.insert(0, _Watch)
