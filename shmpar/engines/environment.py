"""What of the parent's state a function may depend on, taken at the start of each run.

Imports worker.messages and travel.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np

from shmpar.errors import PlanError
from shmpar.travel.packing import pack
from shmpar.worker.messages import Environment

__all__ = ["current_environment"]


class _Filters:
    """The warning filters, pickled again only when they have changed."""

    taken: list[Any] | None = None
    packed: bytes | None = None

    @classmethod
    def current(cls) -> bytes | None:
        if cls.taken != warnings.filters:
            cls.taken = list(warnings.filters)
            try:
                cls.packed = pack(cls.taken).body
            except PlanError:  # a category that cannot travel: the workers keep what they have
                cls.packed = None
        return cls.packed


class _Latest:
    """What was found last: most calls find the same."""

    environment: Environment | None = None


def current_environment(*, foreign: bool) -> Environment:
    """The working directory, ``sys.path``, NumPy's error handling and the warning filters.

    Parameters
    ----------
    foreign : bool
        The workers are another version of Python, which has a path of its own.

    Returns
    -------
    Environment
        The same object as before while nothing changes.
    """
    try:
        directory = os.getcwd()
    except OSError:  # it was removed
        directory = None
    errors: dict[str, Any] = np.geterr()  # type: ignore[assignment]
    path, filters = (None, None) if foreign else (sys.path, _Filters.current())
    found = Environment(directory, path, errors, filters)
    if found != _Latest.environment:
        _Latest.environment = found if path is None else found._replace(path=list(path))
    return _Latest.environment
