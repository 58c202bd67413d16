"""The working directory is read without the release of the interpreter lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmpar.memory.system import working_directory


def test_it_is_that_of_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short, longer than its memory, and removed."""
    monkeypatch.chdir(tmp_path)
    assert working_directory() == os.getcwdb()
    for _ in range(25):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    assert len(working_directory() or b"") > 5000
    assert working_directory() == os.getcwdb()
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    assert working_directory() is None
