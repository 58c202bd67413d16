"""The code of README.md prints the shown output, and its commands and links are valid."""

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
def test_the_code_prints_the_shown_output(code, output, tmp_path):
    """Each block is a complete program, which also runs from standard input."""
    done = run_python(Path("-"), input=code, cwd=tmp_path)
    assert (done.stdout, done.returncode) == (output, 0), done.stderr


def test_all_code_is_shown_with_its_output():
    """The test above covers every block."""
    assert len(SHOWN) == sum(kind == "python" for kind, _ in BLOCKS) == 2


def test_linked_files_exist():
    """Every linked file of the repository and every picture exists."""
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    missing = [link for link in links if "://" not in link and not os.path.exists(_path(link))]
    assert links
    assert not missing


def test_commands_use_existing_extras_and_scripts():
    """The first command runs an example, and the second runs the tests."""
    with open(_path("pyproject.toml"), "rb") as project:
        extras = tomllib.load(project)["project"]["optional-dependencies"]
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -e ")
        assert set(re.findall(r"\[(\w+)\]", command)) <= set(extras)
        assert all(os.path.exists(_path(path)) for path in re.findall(r"\S+\.py\b", command))
    assert COMMANDS[0].endswith(" examples/tiled_statistics.py")
    assert COMMANDS[1].endswith(" -m pytest -n auto")


def test_the_readme_is_short():
    """The landing page has at most 120 lines."""
    assert TEXT.count("\n") <= 120


def _path(name):
    return os.path.join(ROOT, name)
