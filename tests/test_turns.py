"""Turns: many at once or one alone, and nobody overtakes who waits to be alone."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from tests.turns import turn


class Person:
    """One of several, with descriptors of its own, as each process has."""

    def __init__(self, folder: Path) -> None:
        self.fds = [os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in ("door", "room")]

    def turn(self, *, alone: bool):
        return turn(*self.fds, alone=alone)

    def sees_the_door_taken(self) -> bool:
        """Whether somebody waits in the door."""
        try:
            fcntl.flock(self.fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.fds[0], fcntl.LOCK_UN)
        return False


@pytest.fixture
def people(tmp_path):
    """Three of them."""
    made = [Person(tmp_path) for _ in range(3)]
    yield made
    for person in made:
        for fd in person.fds:
            os.close(fd)


def test_others_are_in_the_room_at_once(people):
    """Neither waits for the other's end."""
    first, second, _ = people
    with first.turn(alone=False), second.turn(alone=False):
        assert not first.sees_the_door_taken()


def test_one_that_is_alone_waits_and_is_not_overtaken(people):
    """It gets in when those have left who came before, and before those who came later."""
    first, second, third = people
    came = []

    def come(person, name, *, alone):
        with person.turn(alone=alone):
            came.append(name)

    alone = threading.Thread(target=come, args=(second, "alone"), kwargs={"alone": True})
    later = threading.Thread(target=come, args=(third, "later"), kwargs={"alone": False})
    with first.turn(alone=False):
        alone.start()
        while not first.sees_the_door_taken():
            pass
        later.start()
        came.append("first")
    alone.join()
    later.join()
    assert came == ["first", "alone", "later"]
