"""The code of the tutorial prints the shown output and draws its pictures.

The program computes for many seconds, so it is marked ``stress``: `.ci/run` has a step for it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interpreters import ROOT, run_python

DOCS = Path(ROOT, "docs")


@pytest.mark.stress
def test_the_tutorial_prints_the_shown_output_and_draws_its_pictures(tmp_path):
    """The blocks of the page form one program; the pictures have the names of the page."""
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    shown = "".join(re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    done = run_python(DOCS / "tutorial_pictures.py", str(tmp_path), timeout=200)
    assert (done.stdout, done.stderr, done.returncode) == (shown, "", 0)
    pictures = set(re.findall(r"\(images/(.+?\.png)\)", text))
    assert {file.name for file in tmp_path.iterdir()} == pictures
    assert all((DOCS / "images" / name).exists() for name in pictures)
