"""The page for users of other libraries: its code runs, in order, and leaves nothing."""

from __future__ import annotations

import os
import re

import pytest

from tests.interpreters import ROOT, run_python

PAGE = os.path.join(ROOT, "docs", "coming-from.md")


def sections():
    """Split the page into its sections and the Python code of each."""
    with open(PAGE, encoding="utf-8") as file:
        parts = re.split(r"^## (.+)$", file.read(), flags=re.MULTILINE)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        yield title, "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


SECTIONS = dict(sections())
SETUP = """
import numpy as np
import shmpar

x = np.arange(12.0).reshape(3, 4)
"""
# what the page tells about: up to 3.12 their attachment removes our name, and says so
UNTRACKED = """
from multiprocessing import resource_tracker
resource_tracker.register = resource_tracker.unregister = lambda *_: None
"""


@pytest.mark.parametrize("title", SECTIONS)
def test_the_code_of_each_section_runs(title):
    """Every assertion holds, and nothing is printed at exit."""
    before = set(os.listdir("/dev/shm"))
    quiet = UNTRACKED if title == "The standard library" else ""
    done = run_python(SETUP + quiet + SECTIONS[title])
    assert (done.stderr, done.returncode) == ("", 0)
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name == "MyMemory"}


def test_every_system_has_its_section():
    """Each of the five that we take users from."""
    assert len(SECTIONS) == 5
    assert all(SECTIONS.values())
