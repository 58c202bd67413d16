"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import shmpar
from shmpar.memory.allocate import atomic_file


@pytest.fixture(params=["nameless", "named"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, on a system that knows nameless files or does not."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")
    return tmp_path


def test_it_is_there_at_the_end_of_the_block(folder: Path) -> None:
    """With as many bytes as were said, and this user's alone."""
    path = folder / "file"
    with atomic_file(str(path), 10_000) as fd:
        os.pwrite(fd, b"head", 0)
        assert not path.exists()
    assert path.read_bytes() == b"head" + bytes(9_996)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(folder) == ["file"]


def test_one_that_is_there_is_replaced_or_kept(folder: Path) -> None:
    """Who has the old one open keeps it."""
    path = folder / "file"
    path.write_bytes(b"old")
    with path.open("rb") as held:
        with pytest.raises(FileExistsError), atomic_file(str(path), 3):
            pass
        assert path.read_bytes() == b"old"
        with atomic_file(str(path), 3, replace=True) as fd:
            os.pwrite(fd, b"new", 0)
        assert (held.read(), path.read_bytes()) == (b"old", b"new")
    assert os.listdir(folder) == ["file"]


def test_nothing_is_left_of_one_that_was_not_finished(folder: Path) -> None:
    """Whatever stopped it."""
    with pytest.raises(KeyboardInterrupt), atomic_file(str(folder / "file"), 10):
        raise KeyboardInterrupt
    with pytest.raises(shmpar.SegmentFull), atomic_file(str(folder / "file"), 1 << 50):
        pass
    assert os.listdir(folder) == []


def test_a_folder_that_is_not_there_is_an_error(folder: Path) -> None:
    """As of any file."""
    with pytest.raises(FileNotFoundError), atomic_file(str(folder / "none" / "file"), 10):
        pass
