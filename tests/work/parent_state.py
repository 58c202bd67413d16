"""Functions that show the state of a worker, for `tests/test_state_of_the_parent.py`."""

from __future__ import annotations

import os
from subprocess import CompletedProcess


def check(done: CompletedProcess[str], output: str) -> None:
    assert (done.stdout, done.stderr, done.returncode) == (output, "", 0)


def seen(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def seen_by_row(_: object, name: str) -> str:
    return str(os.environ.get(name))
