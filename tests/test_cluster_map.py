"""`submit` and `map` on the hosts of a cluster: the outcome of each item, and of lost hosts."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests import cluster_contract as contract
from tests import pools
from tests.work.map_slices import die, log, mostly_plain, mostly_readable, nap, refuse

MANY = 400  # items, so many that several go with a call
BOUND = 60


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    """Two processes."""
    with contract.processes(2) as made:
        yield made


@pytest.fixture(scope="module")
def warm(executor: Executor) -> Iterator[shmpar.Pool]:
    """Two hosts with a worker each, which are up."""
    with shmpar.Pool(engine=executor, hosts=2) as pool:
        contract.wait_for_hosts(pool, 2)
        yield pool


@pytest.fixture
def hosts(warm: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """The pool on the executor."""
    yield warm
    pools.drop_caches(warm)


@pytest.mark.parametrize("count", [0, 1, 33, MANY, 20_001])
def test_each_item_has_its_result_in_order(hosts: shmpar.Pool, count: int) -> None:
    """Lists, generators and several iterables give the same as the built-in map."""
    due = [-item for item in range(count)]
    assert list(hosts.map(refuse, range(count), [None] * count)) == due
    assert list(hosts.map(abs, iter(due))) == list(range(count))
    assert list(hosts.map(abs, due, chunksize=count // 3 + 1)) == list(range(count))
    assert list(hosts.map(abs, due[:300], buffersize=5)) == list(range(len(due[:300])))


@pytest.mark.parametrize("bad", [0, 1, 57, MANY - 1])
def test_an_error_comes_after_the_results_before_it(hosts: shmpar.Pool, bad: int) -> None:
    """The iterator yields each earlier result, raises with the traceback there, and is over."""
    results = hosts.map(refuse, range(MANY), [bad] * MANY)
    assert [next(results) for _ in range(bad)] == [-item for item in range(bad)]
    with pytest.raises(ValueError) as caught:
        next(results)
    assert caught.value.args == (bad,)
    assert "refuse" in caught.value.__notes__[0]
    assert list(results) == []


def test_a_dead_local_worker_costs_the_item_to_blame(executor: Executor) -> None:
    """The items that were sent with it have their results; the host lives."""
    with shmpar.Pool(2, engine=executor, hosts=2, retries=0) as pool:
        results = pool.map(die, range(MANY), [77] * MANY)
        assert [next(results) for _ in range(77)] == [-item for item in range(77)]
        with pytest.raises(shmpar.WorkerDied, match="die") as caught:
            next(results)
        assert caught.value.exitcode == 7
        calls = [pool.submit(die, item, 3) for item in range(8)]
        assert isinstance(calls.pop(3).exception(BOUND), shmpar.WorkerDied)
        assert [call.result(BOUND) for call in calls] == [0, -1, -2, -4, -5, -6, -7]
        with pytest.raises(shmpar.WorkerDied, match=r"^submit, die: "):
            pool.map_async(partial(die, bad=3), [3]).get(BOUND)


@pytest.mark.parametrize(
    ("work", "error", "match"),
    [
        (mostly_plain, shmpar.PlanError, "does not pickle"),
        (mostly_readable, ValueError, "invalid literal"),
    ],
)
def test_a_result_that_does_not_travel_comes_at_its_item(
    hosts: shmpar.Pool, work: Any, error: type[Exception], match: str
) -> None:
    """The results before it are kept."""
    results = hosts.map(work, range(MANY), [123] * MANY, chunksize=MANY)
    assert [next(results) for _ in range(123)] == list(range(123))
    with pytest.raises(error, match=match):
        next(results)


def test_each_item_is_computed_once(hosts: shmpar.Pool, tmp_path: Path) -> None:
    """Slices that end early leave no item out and repeat none; both hosts take part."""
    path = str(tmp_path / "log")

    def slow(item: int) -> int:
        time.sleep(0.001)
        log(path, item)
        return os.getppid()

    pids = list(hosts.map(slow, range(1_000)))
    assert sorted(map(int, Path(path).read_text().split())) == list(range(1_000))
    assert len(set(pids)) == 2


def test_items_and_results_of_many_bytes(hosts: shmpar.Pool) -> None:
    """Large arrays travel there and back."""
    rows = [np.full(40_000, number, float) for number in range(12)]
    found = list(hosts.map(np.negative, rows))
    assert all(np.array_equal(one, -row) for one, row in zip(found, rows, strict=True))


@pytest.mark.parametrize("chunksize", [None, MANY])
def test_closing_the_iterator_stops_the_items_of_a_call(
    hosts: shmpar.Pool, tmp_path: Path, chunksize: int | None
) -> None:
    """A call in progress on a host begins no item after it has heard of the close."""
    path = str(tmp_path / "log")

    def work(item: int) -> int:
        time.sleep(0.02)
        return log(path, item)

    results = hosts.map(work, range(MANY), chunksize=chunksize)
    while not os.path.exists(path):
        time.sleep(0.005)
    results.close()
    assert list(results) == []
    calls = [hosts.submit(abs, -n) for n in range(4)]  # made when the hosts have left the items
    assert [call.result(BOUND) for call in calls] == [0, 1, 2, 3]
    begun = Path(path).read_text().split()
    assert len(begun) < MANY // 4


def test_all_hosts_count_for_batches_and_jobs(hosts: shmpar.Pool, tmp_path: Path) -> None:
    """Batches of map_async, those of imap ahead, and the jobs of joblib are cut for two hosts."""
    joblib = pytest.importorskip("joblib")
    from shmpar.integrations.joblib import ShmparBackend

    loads, taken = str(tmp_path / "loads"), itertools.count()

    def load(client: int) -> Any:
        if os.getpid() != client:
            log(loads, 0)
        return abs

    class Loaded:
        def __reduce__(self) -> Any:
            return load, (os.getpid(),)

        def __call__(self, _: int) -> int:
            raise AssertionError

    def host() -> int:
        time.sleep(0.05)
        return os.getppid()

    assert hosts.map_async(Loaded(), range(-16, 0)).get(BOUND) == list(range(16, 0, -1))
    assert Path(loads).read_text().count("0") == 4 * 2
    assert next(hosts.imap(abs, taken)) == 0
    assert next(taken) == 64 * 2 + 1
    with joblib.parallel_config(backend=ShmparBackend(pool=hosts)):
        found = joblib.Parallel()(joblib.delayed(host)() for _ in range(8))
    assert len({*found} - {os.getppid()}) == 2


def test_leaving_the_block_computes_all_items(executor: Executor, tmp_path: Path) -> None:
    """Items whose results nobody has taken are computed, as in concurrent.futures."""
    path = str(tmp_path / "log")
    with shmpar.Pool(engine=executor, hosts=2) as pool:
        results = pool.map(log, [path] * MANY, range(MANY))
        cut = pool.map(nap, [0.01] * 20, chunksize=5)
        first = next(cut)
    assert sorted(map(int, Path(path).read_text().split())) == list(range(MANY))
    assert list(results) == list(range(MANY))
    assert len({first, *cut}) <= 2


def test_a_late_result_is_a_timeout(hosts: shmpar.Pool) -> None:
    """The timeout counts from the call of map, and the pool goes on."""
    results = hosts.map(nap, [0.0] * 3 + [1.0], timeout=0.6)
    with pytest.raises(TimeoutError):
        list(results)
    assert hosts.submit(pow, 2, 4).result(BOUND) == 16


def test_calls_of_several_threads(hosts: shmpar.Pool) -> None:
    """Each thread gets its own results, beside a run."""
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        found[number] = list(hosts.map(pow, range(200), [number] * 200))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    image = hosts.map_blocks(np.negative, contract.IMAGE, chunks=9)
    for thread in threads:
        thread.join()
    assert np.array_equal(image, -contract.IMAGE)
    assert found == {k: [n**k for n in range(200)] for k in range(3)}
