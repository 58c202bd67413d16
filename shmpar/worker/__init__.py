"""The worker: takes tickets and runs chunks; the only code that calls the user's function.

Imports plan, and what lies below it.
"""

from shmpar.worker.inside import in_worker

__all__ = ["in_worker"]
