"""All workers of a pool have one hash of a string: the parent's where its seed is known."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]

SOURCE = """
import os, signal, sys, shmpar

def look(_):
    return os.getpid(), hash("a word"), tuple({"some", "words", "of", "a", "set"})

def hashes(pool):
    found = {}
    while len(found) < pool.n_workers:
        found.update({pid: told for pid, *told in map(tuple, pool.map(look, range(8)))})
    return found

for env in ENVIRONMENTS:
    with shmpar.Pool(2, env=env) as pool, shmpar.Pool(1, env=env) as other:
        first = hashes(pool)
        os.kill(next(iter(first)), signal.SIGKILL)
        pool.submit(int).result()
        while set(second := hashes(pool)) == set(first):
            pass
        told = [*first.values(), *second.values(), *hashes(other).values()]
        same = all(one == told[0] for one in told)
        own = told[0] == list(look(0)[1:])
        seeds = set(pool.map(lambda _: os.environ["PYTHONHASHSEED"], range(4)))
    print("same" if same else told, "own" if own else "other", *seeds)
"""


def told(
    run_python: Run, seed: str | None, flags: list[str], *environments: dict[str, str] | None
) -> list[list[str]]:
    """Return the words that the program prints for pools with each of these environments."""
    # Why a path: Python under -I and -E does not read PYTHONPATH.
    given = environments or (None,)
    source = f"import sys; sys.path[:0] = {PATHS!r}; ENVIRONMENTS = {given!r}\n{SOURCE}"
    done = run_python(source, flags=flags, env={"PYTHONHASHSEED": seed or "random"})
    assert (done.stderr, done.returncode) == ("", 0)
    return [line.split() for line in done.stdout.splitlines()]


PATHS = [__file__.rpartition("/tests/")[0]]


# Why stress: -I implies -E, and -R is the default.
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([], id="plain"),
        pytest.param(["-I"], id="I", marks=pytest.mark.stress),
        pytest.param(["-E"], id="E", marks=pytest.mark.stress),
        pytest.param(["-R"], id="R", marks=pytest.mark.stress),
    ],
)
def test_workers_have_one_seed(run_python: Run, flags: list[str]) -> None:
    """Replaced workers and other pools have it too."""
    ((same, _, seed),) = told(run_python, None, flags)
    assert same == "same"
    assert int(seed) > 0


@pytest.mark.parametrize("seed", [pytest.param("0", marks=pytest.mark.stress), "4294967295"])
def test_workers_have_the_seed_of_the_parent_or_of_their_pool(run_python: Run, seed: str) -> None:
    """A number in env= comes first; the word random there means the number of the parent."""
    own = ({"PYTHONHASHSEED": "7"}, {"PYTHONHASHSEED": "random"})
    due = [["same", "own", seed], ["same", "other", "7"], ["same", "own", seed]]
    assert told(run_python, seed, [], None, *own) == due


@pytest.mark.parametrize("flag", ["-I", pytest.param("-E", marks=pytest.mark.stress)])
def test_an_ignored_seed_is_not_the_parent_s(run_python: Run, flag: str) -> None:
    """The parent draws a seed; its workers have one too, and not the variable's."""
    ((same, _, seed),) = told(run_python, "5", [flag])
    assert same == "same"
    assert int(seed) > 0
    assert seed != "5"
