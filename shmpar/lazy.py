"""Names of a package that are imported when they are first used.

Imports the standard library only.  A worker imports the few modules that its work takes, which is
a third of its start; who asks for a package's name gets the module that it lives in then.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["attach"]


def attach(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a package's ``__getattr__``, as of PEP 562.

    Parameters
    ----------
    package : str
        Its name.
    homes : mapping
        Names that it has, in one string with spaces, by the module that each lives in.

    Examples
    --------
    >>> attach("shmpar", {"shmpar.errors": "PlanError SegmentError"})("PlanError").__module__
    'shmpar.errors'
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def getattribute(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return getattribute
