"""Draw the pictures of the tutorial: ``python docs/tutorial_pictures.py [DIRECTORY]``.

The script runs the code of the page, so a picture always belongs to the code above it.
"""  # noqa: INP001 - a script

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import matplotlib as mpl

PAGE = Path(__file__).resolve().parent / "tutorial.md"


def program(page: Path) -> str:
    """Return the Python code of a page."""
    text = page.read_text(encoding="utf-8")
    return "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


mpl.use("Agg")
os.chdir(sys.argv[1] if sys.argv[1:] else PAGE.parent / "images")
exec(compile(program(PAGE), PAGE, "exec"))  # noqa: S102 - the code of the page
