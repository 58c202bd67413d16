"""A pool on any executor: the same results as a local pool, failures, loss of the executor."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.cluster import host as serving
from shmpar.cluster.transport import ExecutorTransport, HostDown, HostUp
from tests import cluster_contract as contract
from tests import pools
from tests.cluster_contract import processes
from tests.interpreters import run_python


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    """Two processes."""
    with processes(2) as made:
        yield made


@pytest.fixture(scope="module")
def warm_cluster(executor: Executor) -> Iterator[shmpar.Pool]:
    """A pool on them, whose local workers are up."""
    with shmpar.Pool(engine=executor, hosts=2) as pool:
        contract.wait_for_hosts(pool, 2)
        yield pool


@pytest.fixture
def cluster(warm_cluster: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """The pool on the executor; its latest run is dropped after the test."""
    yield warm_cluster
    pools.drop_caches(warm_cluster)


@pytest.fixture(scope="module")
def lone() -> Iterator[Executor]:
    """A single process."""
    with processes(1) as made:
        yield made


@pytest.fixture
def own_cluster(lone: Executor, nothing_left: None) -> Iterator[shmpar.Pool]:
    """A pool for a test that kills its workers."""
    with shmpar.Pool(2, engine=lone) as pool:
        yield pool


@pytest.fixture
def local(process_pool: shmpar.Pool) -> shmpar.Pool:
    """A pool of this machine."""
    return process_pool


@pytest.mark.parametrize("name", contract.CALLS)
def test_a_call_gives_the_same_bytes(name: str, cluster: shmpar.Pool, local: shmpar.Pool) -> None:
    """All verbs are compared with the local pool."""
    contract.check_call(name, cluster, local)


def test_a_notebook_shows_the_hosts(cluster: shmpar.Pool) -> None:
    """The report has the table of hosts that a terminal shows, and the pool claims no worker."""
    cluster.map_blocks(np.negative, np.arange(8.0), chunks=1)
    report = cluster.last_run.report  # type: ignore[union-attr]
    shown = report._repr_html_()
    assert ">spans</th>" in shown
    for host in report.hosts:
        assert f">{host.name}</td>" in shown
        assert host.name in str(report)
    assert "on the hosts" in cluster._repr_html_()
    assert repr(cluster) == "<shmpar.Pool: executor, workers on hosts>"


def test_a_pool_on_threads_gives_the_same_bytes(local: shmpar.Pool) -> None:
    """The hosts of an executor of threads are this process, with one local pool."""
    with ThreadPoolExecutor(3) as ex, shmpar.Pool(2, engine=ex, hosts=3) as pool:
        for name in ("map_blocks", "map_overlap, periodic", "submit", "captured"):
            contract.check_call(name, pool, local)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have hosts seem to be on another machine."""
    for module in ("messages", "transport"):
        monkeypatch.setattr(f"shmpar.cluster.{module}.machine", lambda: "another machine")


@pytest.mark.usefixtures("elsewhere")
def test_windows_travel_to_hosts_on_other_machines(executor: Executor, local: shmpar.Pool) -> None:
    """A host that cannot map the memory of the client is sent the windows of inputs."""
    shared = local.array(contract.IMAGE)
    with shmpar.Pool(engine=executor, hosts=2) as pool:
        for name in contract.CALLS:
            if name.startswith(("map_", "block_reduce", "parallel_map")):
                contract.check_call(name, pool, local)
        found = pool.map_blocks(contract.smooth, shared, chunks=17, wait=False).result()
        assert np.array_equal(found, local.map_blocks(contract.smooth, shared, chunks=17))


@pytest.mark.usefixtures("elsewhere")
def test_windows_keep_the_order_of_bytes(lone: Executor) -> None:
    """A pickle of protocol 4, which executors may use, does not keep that of an array."""
    swapped = contract.IMAGE.astype(contract.IMAGE.dtype.newbyteorder())
    with shmpar.Pool(engine=lone) as pool:
        found = pool.map_blocks(np.copy, swapped, chunks=17)
    assert (found.dtype, found.tobytes()) == (swapped.dtype, swapped.tobytes())


@pytest.mark.usefixtures("elsewhere")
def test_a_store_beside_a_shared_array_on_another_machine(
    zarr: Any, lone: Executor, local: shmpar.Pool, tmp_path: Path
) -> None:
    """The host opens the store alone; the windows of the array come with the spans."""
    store = zarr.create_array(tmp_path / "in.zarr", shape=(70, 53), chunks=(16, 9), dtype="f8")
    store[...] = contract.IMAGE
    with shmpar.Pool(engine=lone) as pool:
        shared = local.array(contract.IMAGE)
        run = pool.map_blocks(np.add, shared, store, chunks=(16, 53), wait=False)
        assert np.array_equal(run.result(60), 2 * contract.IMAGE)


@pytest.mark.usefixtures("elsewhere")
def test_a_span_with_windows_of_shared_memory_is_bounded(
    lone: Executor, local: shmpar.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host elsewhere is sent no more at once of a shared array than of any other."""
    monkeypatch.setattr("shmpar.cluster.spans.SPAN_BYTES", 1 << 18)
    sent, send = [], ExecutorTransport.send

    def measured(self: Any, token: int, host: str, work: Any, head: Any) -> None:
        sent.append(work.nbytes)
        send(self, token, host, work, head)

    monkeypatch.setattr(ExecutorTransport, "send", measured)
    rows = local.array(np.random.default_rng(2).random((60, 4_000)))
    with shmpar.Pool(engine=lone) as pool:
        assert pool.parallel_map(np.sum, rows).tolist() == [row.sum() for row in rows]
    assert rows[0].nbytes < max(sent) <= 1 << 18


def test_the_first_exception_stops_the_others(cluster: shmpar.Pool, tmp_path: Path) -> None:
    """A run of chunks of 0.2 s ends soon after one of them has raised."""
    counted = tmp_path / "calls"
    counted.mkdir()

    def work(row: np.ndarray) -> float:
        (counted / str(int(row[0]))).touch()
        if row[0] == 1:
            raise ValueError("stop")
        time.sleep(0.05)
        return float(row[0])

    with pytest.raises(shmpar.ChunkError, match=r"chunk 1 .*ValueError: stop") as caught:
        cluster.parallel_map(work, np.arange(200.0)[:, None])
    assert caught.value.chunk == 1
    assert caught.value.run is cluster.last_run
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(list(counted.iterdir())) < 100


def test_a_dead_local_worker_is_replaced_by_its_host(
    own_cluster: shmpar.Pool, tmp_path: Path
) -> None:
    """A chunk whose worker dies is computed again, and fails alone if its workers die again."""
    first = tmp_path / "first"

    def work(row: np.ndarray) -> float:
        if row[0] == 3 and not first.exists():
            first.touch()
            os._exit(3)
        if row[0] == 7:
            os._exit(4)
        return float(row[0])

    with pytest.raises(ExceptionGroup) as caught:
        own_cluster.parallel_map(work, np.arange(9.0)[:, None], on_error="collect")
    (error,) = caught.value.exceptions
    assert isinstance(error, shmpar.WorkerDied)
    assert (error.chunk, error.exitcode, error.run) == (7, 4, own_cluster.last_run)
    assert "exited with status 4" in str(error)
    run = own_cluster.last_run
    assert run is not None
    assert np.array_equal(np.delete(run.out, 7), np.delete(np.arange(9.0), 7))


def test_a_timeout_is_that_of_a_chunk(own_cluster: shmpar.Pool) -> None:
    """A span may take longer than `task_timeout`, its chunks may not."""

    def work(item: str) -> str:
        time.sleep(60 if item == "five" else 0.05)
        return item

    items = ["some", "more", "five", "items"]
    with pytest.raises(
        shmpar.TaskTimeout, match=r"item 2 \('five'\): .*task_timeout=1 s"
    ) as caught:
        own_cluster.parallel_map(work, items, task_timeout=1, retries=0)
    assert (caught.value.chunk, caught.value.item) == (2, "five")


def test_a_cancelled_run_ends_and_can_be_resumed(cluster: shmpar.Pool, tmp_path: Path) -> None:
    """A cancel reaches the spans in progress; a resumed run computes the others."""
    begun = tmp_path / "begun"

    def work(row: np.ndarray) -> float:
        begun.touch()
        time.sleep(0.02)
        return 2 * float(row[0])

    run = cluster.parallel_map(work, np.arange(5000.0)[:, None], wait=False)
    while not begun.exists():
        time.sleep(0.01)
    assert run.cancel()
    began = time.monotonic()
    assert run.over.wait(30)
    assert time.monotonic() - began < 15
    assert run.cancelled()
    done, total = run.progress
    assert done < total
    again = run.resume()
    again.cancel()
    again.over.wait(30)
    assert again.progress[0] >= done


def test_an_interrupt_ends_the_call_and_the_pool_goes_on(
    own_cluster: shmpar.Pool, tmp_path: Path
) -> None:
    """Ctrl-C kills chunks in progress after a grace; the next call works."""
    begun = tmp_path / "begun"

    def work(_: np.ndarray) -> None:
        begun.touch()
        time.sleep(60)

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        own_cluster.parallel_map(work, np.ones((9, 2)))
    thread.join()
    assert time.monotonic() - began < 20
    assert own_cluster.parallel_map(np.sum, np.ones((9, 2))).tolist() == [2.0] * 9


def test_an_interrupt_of_a_run_leaves_the_calls_of_its_hosts(
    executor: Executor, tmp_path: Path
) -> None:
    """A call beside the run is made once, although the workers of the run are killed."""
    record, fifo = tmp_path / "record", str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def call() -> str:
        with open(record, "a", encoding="ascii") as file:
            file.write("made\n")
        return Path(fifo).read_text()

    def work(_: np.ndarray) -> None:
        os.kill(client, signal.SIGINT)
        time.sleep(60)

    client = os.getpid()
    with shmpar.Pool(engine=executor, hosts=1) as pool:
        beside = pool.submit(call)
        while not record.exists():
            time.sleep(0.005)
        with pytest.raises(KeyboardInterrupt):
            pool.parallel_map(work, np.ones((1, 2)))
        Path(fifo).write_text("go")
        assert beside.result(60) == "go"
    assert record.read_text() == "made\n"


class Flapping(ExecutorTransport):
    """Reports its host as lost, and as there again, while the test sends the first work."""

    inside, go = threading.Event(), threading.Event()

    def send(self, *args: Any) -> None:
        if not self.inside.is_set():
            self.inside.set()
            self.go.wait()
            self._tell(HostDown("host-0", "for a moment"))
            self._tell(HostUp("host-0", 1, True))
        super().send(*args)


def test_a_run_that_begins_while_its_host_comes_back(
    lone: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk is computed once: the host that was lost before the run is not lost to it."""
    record = tmp_path / "record"

    def work(row: np.ndarray) -> float:
        with open(record, "a", encoding="ascii") as file:
            file.write(f"{int(row[0])}\n")
        return float(row[0])

    monkeypatch.setattr("shmpar.cluster.connect.ExecutorTransport", Flapping)
    with shmpar.Pool(engine=lone) as pool:
        call = pool.submit(abs, -1)
        assert Flapping.inside.wait(60)
        run = pool.parallel_map(work, np.arange(40.0)[:, None], wait=False)
        Flapping.go.set()
        assert run.result(60).tolist() == list(range(40))
        assert call.result(60) == 1
    assert sorted(map(int, record.read_text().split())) == list(range(40))


def test_progress_and_completed_regions(cluster: shmpar.Pool) -> None:
    """Progress counts chunks; `completed` yields each region once."""
    seen: list[tuple[int, int]] = []
    result = cluster.map_blocks(
        np.negative, contract.IMAGE, chunks=9, progress=lambda *now: seen.append(now)
    )
    assert seen[-1][0] == seen[-1][1] > 1
    run = cluster.map_blocks(np.negative, contract.IMAGE, chunks=9, wait=False)
    regions = list(run.completed())
    assert len(regions) == len(set(map(str, regions))) == seen[-1][1]
    assert np.array_equal(run.result(), result)


class PicklesOnce:
    """An object that its worker can pickle, and its host cannot pickle again."""

    def __reduce__(self) -> Any:
        return threading.Lock, ()


def test_a_result_that_a_host_cannot_pickle(cluster: shmpar.Pool) -> None:
    """It is a failure of its chunk; the others have results, and the host goes on."""
    with pytest.raises(ExceptionGroup) as caught:
        cluster.parallel_map(
            lambda item: PicklesOnce() if item == 2 else item, range(6), on_error="collect"
        )
    (error,) = caught.value.exceptions
    assert isinstance(error, shmpar.ChunkError)
    assert "item 2 (2): the function returned a lock that its host cannot pickle" in str(error)
    assert cluster.last_run is not None
    assert cluster.last_run.progress == (6, 6)


def test_warnings_of_the_function_arrive(cluster: shmpar.Pool) -> None:
    """A warning is issued once, in the thread that has the result."""
    with pytest.warns(RuntimeWarning, match="cluster says so") as caught:
        cluster.map_blocks(contract.warned, contract.IMAGE, chunks=9)
    assert len(caught) == 1


def resumed(cluster: shmpar.Pool, tmp_path: Path, **options: Any) -> Any:
    """Make a call of which one chunk fails, and again, when it computes that chunk alone."""
    allowed, calls = tmp_path / "allowed", tmp_path / "calls"
    calls.mkdir()

    def work(block: np.ndarray, block_id: Any) -> np.ndarray:
        (calls / f"{block_id}-{time.monotonic_ns()}").touch()
        if block_id == (1, 1) and not allowed.exists():
            raise OSError("not yet")
        return block + 1

    options |= {"ledger": str(tmp_path / "ledger"), "dtype": float}
    with pytest.raises(ExceptionGroup):
        cluster.map_blocks(work, contract.IMAGE, on_error="collect", **options)
    allowed.touch()
    for path in calls.iterdir():
        path.unlink()
    result = cluster.map_blocks(work, contract.IMAGE, **options)
    assert len(list(calls.iterdir())) == 1
    return result


def test_a_ledger_resumes_a_run(cluster: shmpar.Pool, tmp_path: Path) -> None:
    """The same call with `ledger=` computes the chunks that failed, and no other."""
    result = resumed(cluster, tmp_path, chunks=20, out=str(tmp_path / "out.npy"))
    assert np.array_equal(result, contract.IMAGE + 1)


def test_workers_of_hosts_write_into_stores(
    zarr: Any, cluster: shmpar.Pool, local: shmpar.Pool, tmp_path: Path
) -> None:
    """A store is opened by the workers, as an input and as an output: no value comes back."""
    source = zarr.create_array(tmp_path / "in.zarr", shape=(70, 53), chunks=(16, 9), dtype="f8")
    source[...] = contract.IMAGE
    target = zarr.create_array(tmp_path / "out.zarr", shape=(70, 53), chunks=(16, 9), dtype="f8")
    found = cluster.map_overlap(contract.smooth, source, depth=2, chunks=(16, 18), out=target)
    assert found is target
    due = local.map_overlap(contract.smooth, contract.IMAGE, depth=2, chunks=(16, 18))
    assert np.array_equal(target[...], due)
    assert cluster.last_run is not None
    report = cluster.last_run.report
    assert sum(host.bytes_in + host.bytes_out for host in report.hosts) == 0
    assert report.store_written == due.nbytes
    path = str(tmp_path / "new.zarr")
    cluster.map_blocks(np.negative, contract.IMAGE, chunks=(16, 18), out=path)
    assert np.array_equal(zarr.open_array(path)[...], -contract.IMAGE)


def test_a_ledger_with_a_store_resumes_a_run(
    zarr: Any, cluster: shmpar.Pool, tmp_path: Path
) -> None:
    """The workers of hosts compute the checksums of their output."""
    out = str(tmp_path / "x.zarr")
    resumed(cluster, tmp_path, chunks=(16, 18), out=out)
    assert np.array_equal(zarr.open_array(out)[...], contract.IMAGE + 1)


def test_a_store_that_this_process_cannot_write(
    zarr: Any, cluster: shmpar.Pool, tmp_path: Path
) -> None:
    """A result that comes back and cannot be written fails its chunk, and nothing else."""
    path, engine = str(tmp_path / "x.zarr"), cluster._loop.engine

    def remove(block: np.ndarray, block_id: Any) -> np.ndarray:
        while block_id == (6, 0) and not os.path.exists(path):
            time.sleep(0.01)
        if block_id == (6, 0):
            shutil.rmtree(path)
        return block

    with pytest.raises(shmpar.ChunkError, match="is gone") as caught:
        cluster.map_blocks(remove, contract.IMAGE, chunks=(10, 53), out=path)
    assert isinstance(caught.value.__cause__, shmpar.StoreError)
    assert cluster._loop.engine is engine
    assert np.array_equal(cluster.map_blocks(np.negative, contract.IMAGE), -contract.IMAGE)


def test_an_initializer_runs_in_each_local_worker(lone: Executor, tmp_path: Path) -> None:
    """An initializer that raises is the error of every run."""
    path = str(tmp_path)

    def initialize(folder: str) -> None:
        Path(folder, str(os.getpid())).touch()

    with shmpar.Pool(
        engine=lone, initializer=initialize, initargs=(path,), env={"MINE": "yes"}
    ) as pool:
        assert pool.submit(os.getenv, "MINE").result() == "yes"
        assert str(pool.submit(os.getpid).result()) in os.listdir(path)

    def fails() -> None:
        raise ValueError("no model")

    with (
        shmpar.Pool(engine=lone, initializer=fails) as pool,
        pytest.raises(shmpar.ShmparError, match="no model"),
    ):
        pool.map_blocks(np.negative, contract.IMAGE, chunks=20)


def test_the_hosts_pools_end_with_the_pool(executor: Executor) -> None:
    """No local worker outlives the block."""
    pids: set[int] = set()
    with shmpar.Pool(engine=executor, hosts=2) as pool:
        contract.wait_for_hosts(pool, 2)
        while len(pids) < 2:  # Why: a single worker may be quicker than the others start.
            pids.update(pool.parallel_map(lambda _: os.getpid(), range(40), dtype=object))
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, "a local worker lives on"
        time.sleep(0.05)


def host_facts() -> tuple[int, int, int]:
    """Return the hosts, threads and descriptors of this process."""
    return len(serving._hosts), threading.active_count(), len(os.listdir("/proc/self/fd"))


def test_pools_leave_nothing_in_the_process_of_a_host(lone: Executor) -> None:
    """Heads, threads and descriptors of earlier pools are gone."""
    found = []
    _, threads, _ = lone.submit(host_facts).result()
    for _ in range(3):
        with shmpar.Pool(engine=lone) as pool:
            pool.map_blocks(contract.smooth, contract.IMAGE, chunks=20)
            assert pool.submit(pow, 2, 3).result() == 8
        facts = lone.submit(host_facts).result()
        deadline = time.monotonic() + 30
        while facts[:2] != (0, threads):
            assert time.monotonic() < deadline, facts
            time.sleep(0.02)
            facts = lone.submit(host_facts).result()
        found.append(facts)
    assert found[1] == found[2]


def test_work_that_comes_as_an_idle_host_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done by a new local pool, and not lost with the old one."""
    ends, go, close = threading.Event(), threading.Event(), serving.Host.close

    def slowly(host: serving.Host) -> None:
        ends.set()
        go.wait()
        close(host)

    def work(folder: Path) -> int:
        (folder / "begun").touch()
        while not (folder / "go").exists():
            time.sleep(0.005)
        return 1

    with ThreadPoolExecutor(1) as ex, shmpar.Pool(engine=ex) as pool:
        assert pool.submit(abs, -1).result() == 1
        (host,) = serving._hosts.values()
        monkeypatch.setattr(serving.Host, "close", slowly)
        host._parent = -1  # as if the parent of this process had ended
        assert ends.wait(60)
        call = pool.submit(work, tmp_path)
        while not (tmp_path / "begun").exists():
            time.sleep(0.005)
        go.set()
        assert host._loop._ended.wait(60)
        (tmp_path / "go").touch()
        assert call.result(60) == 1


def test_a_host_that_has_ended_takes_no_work() -> None:
    """Not even after its thread has looked once more if it is abandoned."""
    with ThreadPoolExecutor(1) as ex, shmpar.Pool(engine=ex) as pool:
        assert pool.submit(abs, -1).result() == 1
        (host,) = serving._hosts.values()
        host.close()
        host._is_abandoned()
        assert not host.begin()


def test_a_broken_executor_is_hosts_lost_and_another_pool_resumes(local: shmpar.Pool) -> None:
    """The finished chunks stay; `run.resume(pool)` computes the others."""
    here = os.getpid()

    def work(row: np.ndarray) -> float:
        if row[0] == 30 and os.getppid() != here:
            os.kill(os.getppid(), 9)
            time.sleep(60)
        return 2 * float(row[0])

    with processes(2) as ex, shmpar.Pool(engine=ex, hosts=2) as pool:
        with pytest.raises(shmpar.HostsLost, match="BrokenProcessPool") as caught:
            pool.parallel_map(work, np.arange(60.0)[:, None], dtype=float)
        with pytest.raises(shmpar.HostsLost, match="BrokenProcessPool"):
            pool.submit(os.getpid).result(30)
        with pytest.raises(shmpar.HostsLost):
            pool.map_blocks(np.negative, contract.IMAGE)
    run = caught.value.run
    assert run is not None
    assert run.progress[0] < 60
    assert np.array_equal(run.resume(local).result(), 2 * np.arange(60.0))


MPI = """
import numpy as np, shmpar
from mpi4py.futures import MPIPoolExecutor
if __name__ == "__main__":
    with MPIPoolExecutor(2) as executor, shmpar.Pool(engine=executor, hosts=2) as pool:
        found = pool.map_overlap(np.sort, np.ones((40, 30)), depth=1, chunks=(7, 30))
        hosts = sorted(host.name for host in pool.last_run.report.hosts)
        print(int(found.sum()), hosts, list(pool.map(abs, [-1, -2])))
"""


def test_an_executor_of_mpi(tmp_path: Path) -> None:
    """The processes of an MPI job are hosts."""
    pytest.importorskip("mpi4py")
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if mpiexec is None:
        pytest.skip("needs mpiexec")
    (tmp_path / "program.py").write_text(MPI)
    command = [mpiexec, "-n", "3", sys.executable, "-m", "mpi4py.futures", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    with shmpar.Pool(1) as pool:
        due = pool.map_overlap(np.sort, np.ones((40, 30)), depth=1, chunks=(7, 30))
    assert done.stdout == f"{int(due.sum())} ['host-0', 'host-1'] [1, 2]\n", done.stderr


def test_an_executor_that_was_shut_down_is_hosts_lost() -> None:
    """An executor that takes no calls any more has no hosts."""
    ex = ThreadPoolExecutor(1)
    ex.shutdown()
    with (
        shmpar.Pool(engine=ex, hosts=1) as pool,
        pytest.raises(shmpar.HostsLost, match="after shutdown"),
    ):
        pool.map_blocks(np.negative, contract.IMAGE)


def test_a_call_waits_for_hosts_although_there_were_none_for_long() -> None:
    """The time without hosts counts from the first work of an idle pool, for calls as for runs."""
    gate = threading.Event()
    with contextlib.ExitStack() as end:
        ex = end.enter_context(ThreadPoolExecutor(1))
        ex.submit(gate.wait)  # While the only thread waits, no host can be there.
        pool = end.enter_context(shmpar.Pool(engine=ex, host_timeout=600))
        end.callback(gate.set)
        first = pool.submit(abs, -1)
        pool._loop.settle()
        pool._loop.engine._without -= 3600  # as if an hour had passed
        pool._loop.engine.wake()
        with pytest.raises(shmpar.HostsLost, match="none has ever joined"):
            first.result(60)
        second = pool.submit(abs, -2)
        with pytest.raises(TimeoutError):
            second.result(0.1)
        gate.set()
        assert second.result(60) == 2


ORPHAN = """
import os, signal, time
import numpy as np, shmpar
from concurrent.futures import ThreadPoolExecutor

def parent_of(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])

def work(row):
    host = os.getppid()
    parent = parent_of(host)
    if row[0] == 0:
        os.kill(parent, signal.SIGKILL)
        while parent_of(host) == parent:
            time.sleep(0.01)
        time.sleep(0.3)  # Why: a host looks at its parent ten times a second.
    return float(row[0])

read, write = os.pipe()
if middle := os.fork():
    os.close(write)
    os.waitpid(middle, 0)
    os.read(read, 1)  # until all of them have ended
elif os.fork():
    signal.pause()
else:
    with ThreadPoolExecutor(1) as executor, shmpar.Pool(engine=executor) as pool:
        print(pool.parallel_map(work, np.arange(3.0)[:, None]), pool.submit(abs, -1).result(60))
"""


def test_a_host_goes_on_when_its_parent_ends() -> None:
    """A shell that has started it may end during a run. No bytes are compared with text."""
    done = run_python(ORPHAN, flags=["-bb"], timeout=30)
    assert (done.stdout, done.stderr) == ("[0. 1. 2.] 1\n", "")


def test_what_hosts_cannot_do_is_refused_before_the_run(
    cluster: shmpar.Pool, tmp_path: Path
) -> None:
    """Each refusal says what to do instead, and no function is called."""
    called = tmp_path / "called"

    def work(block: np.ndarray) -> np.ndarray:
        called.touch()
        return block

    image, shared = contract.IMAGE.copy(), cluster.array(contract.IMAGE)
    with pytest.raises(ValueError, match=r"the very input.*pass another output"):
        cluster.map_blocks(work, image, out=image)
    with pytest.raises(TypeError, match=r"SharedArray.*pass it to the verb as an input"):
        cluster.map_blocks(lambda block: work(block) + shared[0, 0], image)
    with pytest.raises(TypeError, match="SharedArray"):
        cluster.submit(np.sum, shared)
    mapped = np.memmap(tmp_path / "x", float, "w+", shape=image.shape)
    with pytest.raises(ValueError, match="shared_files=True"):
        cluster.map_blocks(work, image, out=mapped)
    with pytest.raises(ValueError, match="pass_out=True needs to know the output"):
        cluster.block_reduce(lambda block, out: called.touch(), image, pass_out=True)
    assert not called.exists()


def test_mapped_files_are_shared_or_sent(
    lone: Executor, tmp_path: Path, local: shmpar.Pool
) -> None:
    """With `shared_files=True` hosts open the files; with False this process writes them."""
    for shared in (True, False):
        source = np.memmap(tmp_path / f"in{shared}", float, "w+", shape=contract.IMAGE.shape)
        source[...] = contract.IMAGE
        target = np.memmap(tmp_path / f"out{shared}", float, "w+", shape=source.shape)
        with shmpar.Pool(engine=lone, shared_files=shared) as pool:
            found = pool.map_overlap(contract.smooth, source, depth=2, chunks=16, out=target)
        assert found is target
        due = local.map_overlap(contract.smooth, contract.IMAGE, depth=2, chunks=16)
        assert np.array_equal(np.fromfile(tmp_path / f"out{shared}").reshape(due.shape), due)


def test_arguments_of_a_pool_are_checked() -> None:
    """Errors name the argument, and the remedy."""
    with ThreadPoolExecutor(1) as ex:
        for error, match, options in (
            (ValueError, "hosts is a number", {"engine": ex, "hosts": 0}),
            (TypeError, "hosts", {"engine": ex, "hosts": "2"}),
            (ValueError, "host_timeout is a number", {"engine": ex, "host_timeout": 0}),
            (ValueError, "check=True compares the memory", {"engine": ex, "check": True}),
            (ValueError, "start the hosts with it", {"engine": ex, "python": "/usr/bin/python3"}),
            (ValueError, "hosts= is for an Executor", {"hosts": 2}),
            (TypeError, "distributed|Executor", {"engine": object()}),
            (ValueError, "engine is one of processes", {"engine": "cluster"}),
        ):
            with pytest.raises(error, match=match):
                shmpar.Pool(**options)
    with shmpar.Pool(1, engine="threads") as pool, pytest.raises(TypeError, match="use it itself"):
        shmpar.Pool(engine=pool)


class Minimal(Executor):
    """The least that an executor can be: it starts a thread for each call."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()

        def call() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=call).start()
        return future


def test_an_executor_of_a_few_lines_will_do(local: shmpar.Pool) -> None:
    """It need not know its processes; then `hosts` must be given."""
    with pytest.raises(ValueError, match=r"Minimal: pass hosts=, its calls in flight at a time"):
        shmpar.Pool(engine=Minimal())
    with shmpar.Pool(engine=Minimal(), hosts=2) as pool:
        contract.check_call("map_overlap, periodic", pool, local)


def test_dask_without_a_client_is_refused() -> None:
    """The error says how to make one."""
    pytest.importorskip("distributed")
    with pytest.raises(RuntimeError, match=r"there is none: make one by distributed.Client\(\)"):
        shmpar.Pool(engine="dask")


def test_another_version_of_shmpar_is_refused(
    lone: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has both versions."""
    monkeypatch.setattr("shmpar.cluster.messages.__version__", "99.0")
    with (
        shmpar.Pool(engine=lone) as pool,
        pytest.raises(
            shmpar.HostsLost, match=r"the host has shmpar .*this process has shmpar 99.0"
        ),
    ):
        pool.map_blocks(np.negative, contract.IMAGE)


def test_runs_of_several_threads_share_the_hosts(cluster: shmpar.Pool) -> None:
    """Each thread gets its own results."""
    found: dict[int, Any] = {}

    def run(number: int) -> None:
        found[number] = cluster.map_blocks(np.multiply, contract.IMAGE, number, chunks=9)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert np.array_equal(found[number], contract.IMAGE * number)
