"""The verbs, as methods of the classes that a pool inherits."""

from shmpar.verbs.options import Defaults, Options
from shmpar.verbs.reductions import Reductions

__all__ = ["Defaults", "Options", "Reductions"]
