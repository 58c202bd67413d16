"""The pool: the user's object, an engine with its memory and its defaults.

Imports verbs, driver, engines and array.
"""

from shmpar.pool.default import default_pool
from shmpar.pool.pool import Pool

__all__ = ["Pool", "default_pool"]
