"""The code of docs/coming-from.md runs and leaves no segment."""

from __future__ import annotations

import os
import re

import pytest

from tests.interpreters import ROOT, run_python

PAGE = os.path.join(ROOT, "docs", "coming-from.md")


def sections():
    """Yield the title and the Python code of each section."""
    with open(PAGE, encoding="utf-8") as file:
        parts = re.split(r"^## (.+)$", file.read(), flags=re.MULTILINE)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        yield title, "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


SECTIONS = {title: code for title, code in sections() if code}  # "First guesses" has none
SETUP = """
import numpy as np
import shmpar

x = np.arange(12.0).reshape(3, 4)
"""
# Why: up to Python 3.12 an attached SharedMemory removes our name, as the page warns.
NO_TRACKER = """
from multiprocessing import resource_tracker
resource_tracker.register = resource_tracker.unregister = lambda *_: None
"""


@pytest.mark.parametrize("title", SECTIONS)
def test_the_code_of_each_section_runs(title):
    """Every assertion holds, and the program prints no error."""
    before = set(os.listdir("/dev/shm"))
    quiet = NO_TRACKER if title == "The standard library" else ""
    done = run_python(SETUP + quiet + SECTIONS[title])
    assert (done.stderr, done.returncode) == ("", 0)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name == "MyMemory"}


def test_every_library_has_a_section():
    """The page has a section with code for each of six libraries."""
    assert len(SECTIONS) == 6
