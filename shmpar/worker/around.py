"""What of the parent's state a function may depend on, and how a worker takes it on.

Imports travel, and messages in this package.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

import numpy as np

from shmpar.travel.unpacking import unpack
from shmpar.worker.messages import Environment

__all__ = ["drifted", "enter"]

_filters: list[list[object]] = []  # as they were taken on


def enter(environment: Environment) -> None:
    """Have the parent's working directory, path, error handling and warning filters."""
    with contextlib.suppress(OSError):  # a directory that is gone is no reason to fail
        if environment.directory is not None:
            os.chdir(environment.directory)
    if environment.path is not None:
        sys.path[:] = environment.path
    np.seterr(**environment.errors)
    if environment.filters is not None:
        warnings.filters[:] = unpack(environment.filters)[0]  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]  # noqa: SLF001
        _filters[:] = [list(warnings.filters)]


def drifted(environment: Environment) -> bool:
    """Whether a function has changed any of it in this process since.  Cost: 3 us."""
    if environment.path is not None and sys.path != environment.path:
        return True
    if np.geterr() != environment.errors or (_filters and warnings.filters != _filters[0]):
        return True
    try:
        return environment.directory is not None and os.getcwd() != environment.directory
    except OSError:  # it was removed, or is the function's that has been
        return True
