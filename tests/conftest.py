"""Options and fixtures of the test suite.

``--stress`` runs the long campaigns, ``--stress-seed`` repeats one, and ``--fuzz-seconds`` sets the
duration of each fuzz target. ``--verb`` runs the tests of one verb. Four plugins are in modules of
their own: ``nothing_left.py`` finds leaks, ``docstrings.py`` prepares the examples in docstrings,
``exclusive.py`` runs tests marked ``alone``, and ``verbs.py`` has the table of the verbs' tests.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from types import ModuleType

import hypothesis
import pytest

import shmpar
from shmpar.memory import limits
from shmpar.runtime import futures
from tests import docstrings, exclusive, interpreters, nothing_left, pools, processes, verbs

# Why: fewer examples than Hypothesis' default of 100 keep the suite short; --stress draws more.
# The profile "ci" draws the same examples in each run.
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
    """Set the token of this run, a Hypothesis profile and a seed; register the plugins."""
    os.environ[processes.TOKEN_NAME] = processes.TOKEN
    # Why: otherwise each worker and each interpreter that a test starts would compile the package.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # Why: the threads of OpenBLAS spin when they start, which would dominate a small program.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Why: the test of a callback waits for the end of its thread.
    futures._IDLE_SECONDS = 0.01
    if config.getoption("stress_seed") is None:
        config.option.stress_seed = random.SystemRandom().randrange(2**32)
    if config.getoption("hypothesis_profile", None) is None:
        profile = "ci" if os.environ.get("CI") else "default"
        hypothesis.settings.load_profile("stress" if config.getoption("stress") else profile)
    config.pluginmanager.register(nothing_left, "shmpar-nothing-left")
    config.pluginmanager.register(docstrings, "shmpar-docstrings")
    config.pluginmanager.register(exclusive, "shmpar-exclusive")
    config.pluginmanager.register(verbs, "shmpar-verbs")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes of ``-n auto``: one more than CPUs.

    Why another one: tests often wait for the processes that they have started.
    """
    return limits.available_cpus() + 1


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
            reason = "a long campaign or program; runs with --stress"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Freeze all objects that exist before the first test."""
    nothing_left.freeze()


@pytest.fixture
def stress_seed(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> int:
    """Return the seed of a stress test's random numbers; it differs between tests."""
    seed = pytestconfig.option.stress_seed
    print(f"repeat with --stress --stress-seed {seed}")  # pytest shows it if the test fails
    return random.Random(f"{seed} {request.node.nodeid}").getrandbits(32)


@pytest.fixture(scope="session")
def kept_pools() -> Iterator[Callable[[str], shmpar.Pool]]:
    """A function that returns the pool of an engine, for all modules of the test run."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda engine: stack.enter_context(pools.warm(engine)))


@pytest.fixture(scope="module", params=pools.ENGINES)
def warm_pool(
    request: pytest.FixtureRequest, kept_pools: Callable[[str], shmpar.Pool]
) -> Iterator[shmpar.Pool]:
    """A pool of each engine, since the start of a worker takes longer than most tests.

    The global ``POOL`` of a module, if any, has the keyword arguments of pools of its own.
    """
    options = getattr(request.module, "POOL", None)
    if options is None:
        yield kept_pools(request.param)
        return
    with pools.warm(request.param, **options) as made:
        yield made


@pytest.fixture
def any_pool(warm_pool: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """The pool of the module; its caches are dropped after the test."""
    yield warm_pool
    pools.drop_caches(warm_pool)


@pytest.fixture(scope="module")
def warm_processes() -> Iterator[shmpar.Pool]:
    """Two worker processes of the module; the pool replaces those that tests kill."""
    with pools.warm("processes") as made:
        yield made


@pytest.fixture
def process_pool(warm_processes: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """The worker processes of the module; their caches are dropped after the test."""
    yield warm_processes
    pools.drop_caches(warm_processes)


@pytest.fixture
def pool(any_pool: shmpar.Pool) -> shmpar.Pool:
    """The fixture ``any_pool``; a module may define another fixture of this name."""
    return any_pool


@pytest.fixture(scope="session")
def zarr() -> ModuleType:
    """The library zarr, whose threads have started: they stay until the interpreter exits."""
    module: ModuleType = pytest.importorskip("zarr")
    module.config.set({"threading.max_workers": 1})
    module.create_array({}, shape=4, chunks=2, dtype="u1")[...] = 1
    return module


@pytest.fixture
def run_python() -> Callable[..., CompletedProcess[str]]:
    """Run a snippet or script in a fresh interpreter; see :func:`tests.interpreters.run_python`."""
    return interpreters.run_python
