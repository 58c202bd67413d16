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

with shmpar.Pool(2, env=ENV) as pool, shmpar.Pool(1, env=ENV) as other:
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


def told(run_python: Run, seed: str | None, flags: list[str], env: str = "None") -> list[str]:
    """Return the words that the program prints."""
    # Why a path: Python under -I and -E does not read PYTHONPATH.
    source = f"import sys; sys.path[:0] = {PATHS!r}; ENV = {env}\n{SOURCE}"
    done = run_python(source, flags=flags, env={"PYTHONHASHSEED": seed or "random"})
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.split()


PATHS = [__file__.rpartition("/tests/")[0]]


# Why stress: -I implies -E, and -R is the default.
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([], id="plain"),
        pytest.param(["-I"], id="I"),
        pytest.param(["-E"], id="E", marks=pytest.mark.stress),
        pytest.param(["-R"], id="R", marks=pytest.mark.stress),
    ],
)
def test_workers_have_one_seed(run_python: Run, flags: list[str]) -> None:
    """Replaced workers and other pools have it too."""
    same, _, seed = told(run_python, None, flags)
    assert same == "same"
    assert int(seed) > 0


@pytest.mark.parametrize("seed", [pytest.param("0", marks=pytest.mark.stress), "4294967295"])
def test_workers_have_the_seed_of_the_parent(run_python: Run, seed: str) -> None:
    """A seed that the user has set holds for the parent and for its workers."""
    assert told(run_python, seed, []) == ["same", "own", seed]


def test_an_ignored_seed_is_not_the_parent_s(run_python: Run) -> None:
    """Under -E the parent draws a seed; its workers have one too, and not the variable's."""
    same, _, seed = told(run_python, "5", ["-E"])
    assert same == "same"
    assert seed != "5"


@pytest.mark.parametrize(("given", "seed"), [("7", "7"), ("random", None)])
def test_a_pool_s_own_environment_may_set_it(run_python: Run, given: str, seed: str) -> None:
    """A number in env= is taken; the word random means one number for all workers."""
    same, own, found = told(run_python, "5", [], f"{{'PYTHONHASHSEED': {given!r}}}")
    assert same == "same"
    assert found == (seed or "5")
    assert own == ("other" if seed else "own")
