"""Options and fixtures of the test suite.

``--stress`` runs the long campaigns, ``--stress-seed`` repeats one, and ``--fuzz-seconds`` limits
those that make up bytes. ``--verb`` runs the tests of one verb; ``verbs.py`` beside this file has
the table of them. The autouse fixture ``nothing_left`` is in ``nothing_left.py``, fresh
interpreters are in ``interpreters.py``, and the processes of one test run agree in ``turns.py``.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess

import hypothesis
import pytest

import shmpar
from tests import interpreters, nothing_left, pools, processes, turns, verbs

# Half of the usual hundred examples are a third of a minute less; --stress has a hundred times as
# many, and without CI each run draws others.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.register_profile("default", deadline=None, max_examples=40)
hypothesis.settings.register_profile("stress", deadline=None, max_examples=5_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of stress tests."""
    group = parser.getgroup("shmpar")
    group.addoption("--stress", action="store_true", help="also run the tests marked stress")
    group.addoption("--stress-seed", type=int, help="repeat a stress campaign with this seed")
    group.addoption("--verb", choices=sorted(verbs.FILES), help="only the tests of this verb")
    group.addoption("--fuzz-seconds", type=float, default=60, help="how long each fuzz target runs")


def pytest_configure(config: pytest.Config) -> None:
    """Mark our processes, choose a Hypothesis profile and a seed, watch for leaks."""
    os.environ[processes.TOKEN_NAME] = processes.TOKEN
    # where nobody has said otherwise: the threads of OpenBLAS spin at their start, for longer
    # than all else that a small program here does
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if config.getoption("stress_seed") is None:
        config.option.stress_seed = random.SystemRandom().randrange(2**32)
    if config.getoption("hypothesis_profile", None) is None:
        profile = "ci" if os.environ.get("CI") else "default"
        hypothesis.settings.load_profile("stress" if config.getoption("stress") else profile)
    config.pluginmanager.register(nothing_left, "shmpar-nothing-left")
    config.pluginmanager.register(turns, "shmpar-turns")
    config.pluginmanager.register(verbs, "shmpar-verbs")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Show the seed that repeats a stress campaign."""
    if config.getoption("stress"):
        return f"stress seed: {config.getoption('stress_seed')} (--stress-seed repeats it)"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the stress tests unless they are asked for."""
    if config.getoption("stress"):
        return
    for item in items:
        if item.get_closest_marker("stress"):
            item.add_marker(pytest.mark.skip(reason="a long campaign; runs with --stress"))


def pytest_collection_finish() -> None:
    """Leave what exists before the first test out of each later search for garbage.

    ``nothing_left`` searches after every test that had processes: a fifth of a second when it
    also walks through all that pytest and imported libraries hold.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def stress_seed(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> int:
    """Seed for a stress test's own random numbers, other for each test."""
    seed = pytestconfig.option.stress_seed
    print(f"repeat with --stress --stress-seed {seed}")  # shown where the test fails
    return random.Random(f"{seed} {request.node.nodeid}").getrandbits(32)


@pytest.fixture(scope="module", params=pools.ENGINES)
def warm_pool(request: pytest.FixtureRequest) -> Iterator[shmpar.Pool]:
    """A pool of each engine, for a module: each start of a worker takes time.

    The module's ``POOL``, if it has one, are keywords of these pools.
    """
    with pools.warm(request.param, **getattr(request.module, "POOL", {})) as made:
        yield made


@pytest.fixture
def any_pool(warm_pool: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """The module's pool; what it remembers of its runs goes with the test."""
    yield warm_pool
    pools.let_go(warm_pool)


@pytest.fixture
def pool(any_pool: shmpar.Pool) -> shmpar.Pool:
    """The same, where a module has no other pools."""
    return any_pool


@pytest.fixture
def run_python() -> Callable[..., CompletedProcess[str]]:
    """Run a snippet or script in a fresh interpreter; see :func:`tests.interpreters.run_python`."""
    return interpreters.run_python
