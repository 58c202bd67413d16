"""The command line: what is wrong here, which segments there are, removing those of the dead.

Imports all that it asks; nothing imports it.
"""

from __future__ import annotations

from shmpar.cli.main import main

__all__ = ["main"]
