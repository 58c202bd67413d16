"""What runs a plan: ``serial``, ``threads``, ``processes``."""

from shmpar.engines.exits import Exit

__all__ = ["TICK_SECONDS", "Exit", "patience"]

TICK_SECONDS = 0.1
"""How often a run's observer is told, and overdue chunks are looked for."""


def patience(workers: int) -> int:
    """How many workers may end one after another before they have anything.

    Each of them and one that took its place, and two more: beyond, the cause is not chance.
    """
    return 2 * workers + 2
