"""What runs a plan: ``serial``, ``threads``, ``processes``."""

from shmpar.engines.exits import Exit

__all__ = ["TICK_SECONDS", "Exit"]

TICK_SECONDS = 0.1
"""How often a run's observer is told, and overdue chunks are looked for."""
