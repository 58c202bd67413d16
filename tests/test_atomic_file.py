"""atomic_file() creates a complete file or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import shmpar
from shmpar.memory.allocate import atomic_file


@pytest.fixture(params=["nameless", "named"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on a system with or without nameless files."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")
    return tmp_path


def test_the_file_appears_at_the_end_of_the_block(folder: Path) -> None:
    """The file has the requested size and is readable by its user only."""
    path = folder / "file"
    with atomic_file(str(path), 10_000) as fd:
        os.pwrite(fd, b"head", 0)
        assert not path.exists()
    assert path.read_bytes() == b"head" + bytes(9_996)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(folder) == ["file"]


def test_an_existing_file_is_replaced_or_kept(folder: Path) -> None:
    """A process with the old file open keeps it."""
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


def test_nothing_is_left_of_an_unfinished_file(folder: Path) -> None:
    """An interrupt or an error removes the file."""
    with pytest.raises(KeyboardInterrupt), atomic_file(str(folder / "file"), 10):
        raise KeyboardInterrupt
    with pytest.raises(shmpar.SegmentFull), atomic_file(str(folder / "file"), 1 << 50):
        pass
    assert os.listdir(folder) == []


def test_a_missing_folder_is_an_error(folder: Path) -> None:
    """A missing folder raises FileNotFoundError."""
    with pytest.raises(FileNotFoundError), atomic_file(str(folder / "none" / "file"), 10):
        pass
