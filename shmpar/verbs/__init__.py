"""The verbs: what the user calls.

Imports run and what lies below; the pool that executes them is above.
"""

from shmpar.verbs.options import Defaults, Options
from shmpar.verbs.reductions import Reductions
from shmpar.verbs.verbs import Verbs

__all__ = ["Defaults", "Options", "Reductions", "Verbs"]
