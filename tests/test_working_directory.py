"""The working directory and the stamps of files are read with the interpreter lock held."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmpar.memory import system
from shmpar.memory.system import file_stamp, working_directory


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


@pytest.mark.parametrize("by_statx", [True, False])
def test_a_stamp_changes_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_statx: bool
) -> None:
    """An edit, another time alone, and the end of a file are seen; reading it changes nothing."""
    if not by_statx:
        monkeypatch.setattr(system, "_statx", lambda: lambda _: None)
    path = tmp_path / "m\xe9.py"
    assert file_stamp(str(path)) is None
    path.write_text("K = 1")
    first = file_stamp(str(path))
    assert path.read_text() == "K = 1"
    assert file_stamp(str(path)) == first
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000))
    second = file_stamp(str(path))
    assert second not in (None, first)
    path.write_text("K = 10")
    assert file_stamp(str(path)) not in (None, first, second)
    path.unlink()
    assert file_stamp(str(path)) is None
