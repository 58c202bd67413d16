"""README.md: its code prints what it shows, its commands and links lead to what exists."""

from __future__ import annotations

import os
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from tests.interpreters import ROOT, run_python

with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
    TEXT = file.read()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SHOWN = [
    (code, output)
    for (kind, code), (following, output) in pairwise(BLOCKS)
    if (kind, following) == ("python", "text")
]
COMMANDS = [code.strip() for kind, code in BLOCKS if kind == "sh"]


@pytest.mark.parametrize(("code", "output"), SHOWN, ids=["first", "error"])
def test_code_prints_what_is_shown(code, output, tmp_path):
    """Each block is a program of its own, and needs no guard, nor even a file."""
    done = run_python(Path("-"), input=code, cwd=tmp_path)
    assert (done.stdout, done.returncode) == (output, 0), done.stderr


def test_all_python_is_shown_with_its_output():
    """No block escapes the test above."""
    assert len(SHOWN) == sum(kind == "python" for kind, _ in BLOCKS) == 2


def test_links_lead_somewhere():
    """Every link to a file of the repository, and every picture."""
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    missing = [link for link in links if "://" not in link and not os.path.exists(_path(link))]
    assert links
    assert not missing


def test_commands_use_what_exists():
    """One sets up and runs the main job, one sets up and tests; extras and scripts are real."""
    with open(_path("pyproject.toml"), "rb") as project:
        extras = tomllib.load(project)["project"]["optional-dependencies"]
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -e ")
        assert set(re.findall(r"\[(\w+)\]", command)) <= set(extras)
        assert all(os.path.exists(_path(path)) for path in re.findall(r"\S+\.py\b", command))
    assert COMMANDS[0].endswith(" examples/tiled_statistics.py")
    assert COMMANDS[1].endswith(" -m pytest -n auto")


def test_it_is_short():
    """As the landing page it stays below 120 lines."""
    assert TEXT.count("\n") <= 120


def _path(name):
    return os.path.join(ROOT, name)
