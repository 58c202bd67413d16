"""The verbs: what the user calls.

Imports run and what lies below; the pool that executes them is above.
"""

from shmpar.verbs.blocks import Verbs
from shmpar.verbs.options import Defaults, Options
from shmpar.verbs.reductions import Reductions

__all__ = ["Defaults", "Options", "Reductions", "Verbs"]
