"""``python -m shmpar``: see ``shmpar.cli``."""

from __future__ import annotations

import sys

from shmpar.cli import main

if __name__ == "__main__":
    sys.exit(main())
