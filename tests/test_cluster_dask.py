"""A pool on Dask's distributed: the same results, hosts that come, go and are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar import cli
from shmpar.cluster import host as serving
from tests import cluster_contract as contract
from tests.interpreters import run_python

dask: Any = pytest.importorskip("dask")
distributed: Any = pytest.importorskip("distributed")


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Replace the search for leaks: sockets and processes of Dask come and go at any time."""


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Three hosts with one thread each, in processes that a nanny starts again."""
    with (
        # Why: a cluster closes a worker that is away again so long after an earlier loss.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, dashboard_address=":0", memory_limit=0
        ) as made,
        distributed.Client(made) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def cluster(client: Any) -> Iterator[shmpar.Pool]:
    """A pool on them."""
    with shmpar.Pool(engine=client, host_timeout=20) as pool:
        contract.wait_for_hosts(pool, 3)
        yield pool


@pytest.fixture(scope="module")
def local(warm_processes: shmpar.Pool) -> shmpar.Pool:
    """A pool of this machine."""
    return warm_processes


@pytest.fixture(autouse=True)
def all_hosts(client: Any) -> None:
    """Begin each test with all hosts."""
    wait_for_all(client)


def wait_for_all(client: Any) -> None:
    """Wait until all hosts are there again.

    Why not by Dask: its cluster loses count of its workers if one is killed meanwhile.
    """
    end = time.monotonic() + 60
    while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.running)) < 3:
        assert time.monotonic() < end, "a host has not come back"
        time.sleep(0.05)


# Why not all: hosts of an executor make each call in the default suite, and get the same messages.
SOME = {
    *("map_blocks", "map_blocks, several", "map_overlap, periodic", "block_reduce, objects"),
    *("parallel_map", "parallel_map, items", "parallel_map, nothing", "reduction, mean"),
    *("histogram", "failures", "filled", "out", "captured", "error state", "submit", "map"),
}


@pytest.mark.parametrize(
    "name",
    [
        name if name in SOME else pytest.param(name, marks=pytest.mark.stress)
        for name in contract.CALLS
    ],
)
def test_a_call_gives_the_same_bytes(name: str, cluster: shmpar.Pool, local: shmpar.Pool) -> None:
    """All verbs are compared with the local pool."""
    contract.check_call(name, cluster, local)


def test_windows_travel_to_hosts_that_share_no_memory(
    client: Any, local: shmpar.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs and outputs of 1 MB take little more bytes than they have."""
    for module in ("messages", "dask"):
        monkeypatch.setattr(f"shmpar.cluster.{module}.machine", lambda: "another machine")
    image = np.random.default_rng(3).random((400, 320))
    with shmpar.Pool(engine=client) as pool:
        for name in ("map_blocks, backward", "map_overlap, periodic", "parallel_map, rows"):
            contract.check_call(name, pool, local)
        found = pool.map_blocks(contract.smooth, image, chunks=40)
        assert np.array_equal(found, local.map_blocks(contract.smooth, image, chunks=40))
        assert pool.last_run is not None
        hosts = pool.last_run.report.hosts
        sent = sum(host.bytes_out + host.bytes_in for host in hosts)
        assert image.nbytes + found.nbytes <= sent <= 1.1 * (image.nbytes + found.nbytes)
        assert sum(host.spans for host in hosts) >= 3


def test_stores_are_opened_by_the_hosts(
    zarr: Any, cluster: shmpar.Pool, local: shmpar.Pool, tmp_path: Path
) -> None:
    """An input in zarr travels as its opener."""
    path = str(tmp_path / "x.zarr")
    store = zarr.create_array(path, shape=(70, 53), chunks=(16, 9), dtype="f8")
    store[...] = contract.IMAGE
    for call in (
        lambda pool: pool.map_blocks(contract.smooth, shmpar.open(path), chunks=(16, 9)),
        lambda pool: pool.map_overlap(contract.smooth, store, depth=2, chunks=(16, 9)),
        lambda pool: pool.block_reduce(np.sum, store, chunks=(16, 9)),
        lambda pool: pool.mean(store, axis=0),
    ):
        assert list(contract.leaves(call(cluster))) == list(contract.leaves(call(local)))


def test_a_host_that_is_killed_costs_one_span(
    cluster: shmpar.Pool, client: Any, tmp_path: Path
) -> None:
    """The result is right, and few chunks are computed twice."""
    assert lose_one(cluster, client, tmp_path, random.Random(5))[0]
    assert cluster.last_run is not None
    report = cluster.last_run.report
    lost = [one for one in report.hosts if one.lost]
    assert len(lost) == 1
    assert "it has left the cluster" in lost[0].lost
    assert lost[0].lost in str(report)


@pytest.mark.stress
def test_hosts_are_killed_at_random_moments(
    zarr: Any, cluster: shmpar.Pool, client: Any, tmp_path: Path, stress_seed: int
) -> None:
    """Fifty hosts are killed, each in a run of its own; every second run writes into a store."""
    chance = random.Random(stress_seed)
    calls: list[int] = []
    while len(calls) < 50:
        folder = tmp_path / str(len(calls))
        out = str(folder / "x.zarr") if len(calls) % 2 else None
        died, count = lose_one(cluster, client, folder, chance, out)
        calls += [count] * died
        shutil.rmtree(folder)
        wait_for_all(client)
    again = sum(calls) - 128 * len(calls)
    print(f"{len(calls)} hosts killed, {again} chunks twice, {max(calls) - 128} at most in a run")


def lose_one(
    pool: shmpar.Pool, client: Any, folder: Path, chance: random.Random, out: str | None = None
) -> tuple[bool, int]:
    """Kill a host during a run; see :func:`cluster_contract.lose_host`."""
    return contract.lose_host(pool, folder, chance, lambda: contract.kill_one(client, chance), out)


@pytest.mark.stress
def test_events_that_the_pool_does_not_hear(client: Any, tmp_path: Path) -> None:
    """A killed host, and its successor, are found although the events go to the user alone."""
    heard: list[Any] = []
    with shmpar.Pool(engine=client, host_timeout=20) as pool:
        contract.wait_for_hosts(pool, 3)
        client.subscribe_topic("all", heard.append)
        assert lose_one(pool, client, tmp_path, random.Random(6))[0]
        contract.wait_for_hosts(pool, 3)
    hear(client, heard, "the topic is still the user's")
    client.unsubscribe_topic("all")


def test_a_handler_of_the_user_hears_on(client: Any) -> None:
    """It hears all events beside a pool, and after the end of the pool."""
    heard: list[Any] = []
    client.subscribe_topic("all", heard.append)
    with shmpar.Pool(engine=client) as pool:
        hear(client, heard, "a text")
        assert pool.parallel_map(np.sum, np.ones((4, 3))).tolist() == [3.0] * 4
    hear(client, heard, {"of": "the user"})
    client.unsubscribe_topic("all")


def hear(client: Any, heard: list[Any], event: Any) -> None:
    """Log an event until a handler has heard it: Dask does not confirm a subscription."""
    end = time.monotonic() + 30
    while event not in [one for _, one in heard]:
        assert time.monotonic() < end, heard
        client.log_event("all", event)
        time.sleep(0.01)


@contextlib.contextmanager
def without_hosts() -> Iterator[tuple[Any, shmpar.Pool]]:
    """Make a cluster in this process that has no worker yet, and a pool on it."""
    with (
        distributed.LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address=":0", processes=False
        ) as growing,
        distributed.Client(growing, set_as_default=False) as other,
        shmpar.Pool(engine=other) as pool,
    ):
        yield growing, pool


def test_a_worker_that_joins_with_the_pool() -> None:
    """Dask subscribes a client late; a worker that has joined before is found."""
    for _ in range(3):
        with without_hosts() as (growing, pool):
            growing.scale(1)
            run = pool.parallel_map(np.sum, np.ones((20, 3)), wait=False)
            assert run.result(30).tolist() == [3.0] * 20


def test_the_oldest_dask_tells_its_workers_without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler of Dask 2024.8 takes no number of workers in a question for them."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", processes=False
        ) as made,
        distributed.Client(made, set_as_default=False) as other,
    ):

        def identity() -> Any:
            return made.scheduler.identity()

        monkeypatch.setitem(made.scheduler.handlers, "identity", identity)
        with shmpar.Pool(engine=other) as pool:
            assert pool.submit(abs, -1).result(30) == 1


def test_a_result_does_not_wait_for_the_scheduler(cluster: shmpar.Pool, client: Any) -> None:
    """A host answers at the end of a span, though its messages to the scheduler are held back."""

    def hold_back(seconds: float, dask_worker: Any) -> float:
        before, dask_worker.batched_stream.interval = dask_worker.batched_stream.interval, seconds
        return float(before)

    (usual,) = set(client.run(hold_back, 5.0).values())
    began = time.monotonic()
    try:
        for number in range(4):
            assert cluster.parallel_map(abs, [-number]) == [number]
            assert cluster.submit(abs, -number).result(60) == number
        # Why so much: the machine may be busy. With each result held back, it would be 40 s.
        assert time.monotonic() - began < 20
    finally:
        client.run(hold_back, usual)


@pytest.mark.stress
def test_a_host_that_cannot_answer_at_once(client: Any, local: shmpar.Pool) -> None:
    """The results come by the way of Dask: after a long span, or without the plugin's handler."""

    def others(dask_worker: Any) -> set[str]:
        return set(dask_worker.handlers)

    def drop(known: dict[str, set[str]], dask_worker: Any) -> int:
        new = set(dask_worker.handlers) - known[dask_worker.address]
        return len([dask_worker.handlers.pop(name) for name in new])

    known = client.run(others)
    with shmpar.Pool(engine=client) as pool:
        assert pool.parallel_map(time.sleep, [0.7]) == [None]
        assert list(client.run(drop, known).values()) == [1, 1, 1]
        for name in ("map_blocks", "parallel_map, items", "submit"):
            contract.check_call(name, pool, local)


@pytest.mark.stress
def test_a_host_that_is_killed_while_windows_are_sent_to_it(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others get its windows, and nobody takes it for a host that cannot be reached."""
    for module in ("messages", "dask"):
        monkeypatch.setattr(f"shmpar.cluster.{module}.machine", lambda: "another machine")
    rows = np.random.default_rng(4).random((48, 250_000))
    with warnings.catch_warnings(), shmpar.Pool(engine=client, host_timeout=20) as pool:
        warnings.simplefilter("error")
        contract.wait_for_hosts(pool, 3)
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGSTOP)  # Why: then it takes no more than the sockets hold.
        run = pool.parallel_map(np.sum, rows, wait=False)
        while not run.progress[0]:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert run.result(60).tolist() == [row.sum() for row in rows]
        assert [bool(host.lost) for host in run.report.hosts].count(True) == 1


@pytest.mark.stress
def test_one_deadly_chunk_is_blamed_alone(cluster: shmpar.Pool) -> None:
    """A chunk that kills its host is tried again alone, and is named; the others are done."""

    def work(row: np.ndarray) -> float:
        if row[0] == 37:
            contract.kill_host()
            time.sleep(60)
        return 2 * float(row[0])

    with pytest.raises(ExceptionGroup) as caught:
        cluster.parallel_map(
            work, np.arange(64.0)[:, None], on_error="collect", dtype=float, retries=1
        )
    (error,) = caught.value.exceptions
    assert isinstance(error, shmpar.WorkerDied)
    assert error.chunk == 37
    assert "was on host tcp://127.0.0.1" in str(error)
    run = cluster.last_run
    assert run is not None
    assert np.array_equal(np.delete(run.out, 37), np.delete(2 * np.arange(64.0), 37))


@pytest.mark.stress
def test_one_deadly_call_is_blamed_alone() -> None:
    """Calls that were beside it on the host have results; so has a run with a deadly chunk."""

    def work(number: int) -> int:
        if number in {3, 100}:
            contract.kill_host()
            time.sleep(60)
        time.sleep(0.2)
        return 2 * number

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=3, dashboard_address=":0", memory_limit=0
        ) as made,
        distributed.Client(made, set_as_default=False) as other,
        shmpar.Pool(engine=other) as pool,
    ):
        calls = [pool.submit(work, number) for number in range(12)]
        run = pool.parallel_map(work, range(90, 110), on_error="collect", wait=False)
        assert isinstance(calls.pop(3).exception(120), shmpar.WorkerDied)
        assert [call.result(60) for call in calls] == [2 * n for n in range(12) if n != 3]
        with pytest.raises(ExceptionGroup) as caught:
            run.result(120)
        (error,) = caught.value.exceptions
        assert isinstance(error, shmpar.WorkerDied)
        assert error.chunk == 10


def test_without_hosts_a_run_is_lost_and_hosts_that_join_take_part() -> None:
    """`host_timeout` ends runs and calls; hosts that come later resume them, and share a run."""
    with (
        distributed.LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address=":0", processes=False
        ) as growing,
        distributed.Client(growing, set_as_default=False) as other,
        shmpar.Pool(engine=other, host_timeout=0.5) as pool,
    ):
        with pytest.raises(shmpar.HostsLost, match=r"no host for host_timeout=0.5 s") as caught:
            pool.map_blocks(np.negative, contract.IMAGE)
        call = pool.submit(pow, 2, 3)
        with pytest.raises(shmpar.HostsLost):
            call.result(30)
        growing.scale(1)
        # Why not by Dask: the pool, which would wait for half a second, hears of the host later.
        while not pool._loop.engine._hosts:  # type: ignore[union-attr]
            time.sleep(0.01)
        assert caught.value.run is not None
        found = caught.value.run.resume().result(60)
        assert np.array_equal(found, -contract.IMAGE)
        run = pool.parallel_map(lambda _: time.sleep(0.02), range(10_000), wait=False)
        while not run.progress[0]:
            time.sleep(0.01)
        growing.scale(2)
        while len(run.execution._active.hosts) < 2:  # type: ignore[union-attr]
            time.sleep(0.01)
        run.cancel()
        run.over.wait(30)
        assert len(run.report.hosts) == 2


def slowly(row: np.ndarray) -> float:
    time.sleep(0.01)
    return float(row.sum())


@pytest.mark.stress
def test_a_run_waits_for_its_first_host() -> None:
    """A run and a call that begin without a host are computed as soon as there is one.

    A host that has dropped the head of a run asks for it.
    """
    with without_hosts() as (growing, pool):
        run = pool.parallel_map(np.sum, np.ones((20, 3)), wait=False)
        call = pool.submit(pow, 2, 3)
        growing.scale(1)
        assert run.result(60).tolist() == [3.0] * 20
        assert call.result(60) == 8
        run = pool.parallel_map(slowly, np.ones((200, 3)), wait=False)
        for done in (10, 60, 120):
            while run.progress[0] < done:
                time.sleep(0.005)
            for host in serving._hosts.values():
                with host._state:
                    host._loaded.clear()
        assert run.result(60).tolist() == [3.0] * 200


def test_the_hosts_pools_end_with_the_pool(client: Any) -> None:
    """No local worker outlives the block, and the plugin is gone."""
    with shmpar.Pool(1, engine=client) as pool:
        pids = set(pool.parallel_map(lambda _: os.getpid(), range(60), dtype=object))
    wait_for_end(pids, 30)


LEDGER = """
import os, sys, time, numpy as np, distributed, shmpar
address, folder = sys.argv[1:]
def work(block, block_id):
    open(os.path.join(folder, f"{block_id[0]}-{os.getpid()}"), "a").close()
    if not os.path.exists(os.path.join(folder, "fast")):
        time.sleep(0.05)
    return block + 1
client = distributed.Client(address)
with shmpar.Pool(engine=client) as pool:
    image = np.arange(400 * 8.0).reshape(400, 8)
    store, ledger = os.path.join(folder, "x.zarr"), os.path.join(folder, "ledger")
    pool.map_blocks(work, image, chunks=(4, 8), dtype=float, out=store, ledger=ledger)
    print(pool.last_run.report.computed)
"""


@pytest.mark.stress
def test_a_client_is_killed_and_a_later_process_computes_the_rest(
    client: Any, tmp_path: Path
) -> None:
    """No local worker is left after 5 s; the ledger and the store have whole chunks."""
    zarr: Any = pytest.importorskip("zarr")
    command = [sys.executable, "-c", LEDGER, client.scheduler.address, str(tmp_path)]
    with subprocess.Popen(command) as killed:
        while len(os.listdir(tmp_path)) < 40:
            assert killed.poll() is None
            time.sleep(0.02)
        killed.kill()
    wait_for_end({int(one.name.partition("-")[2]) for one in tmp_path.glob("*-*")}, 5)
    (tmp_path / "fast").touch()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) < 100
    due = np.arange(400 * 8.0).reshape(400, 8) + 1
    assert np.array_equal(zarr.open_array(str(tmp_path / "x.zarr"))[...], due)


def wait_for_end(pids: set[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline, "a local worker lives on"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_engines_by_name_and_address(client: Any) -> None:
    """The name "dask" is the current client; an address gets a client of the pool's own."""
    for engine in ("dask", client.scheduler.address, client.get_executor()):
        hosts = None if isinstance(engine, str) else 2
        with shmpar.Pool(engine=engine, hosts=hosts) as pool:
            assert pool.submit(pow, 2, 5).result(60) == 32
    with pytest.raises(TypeError, match=r"distributed.Client\(cluster\)"):
        shmpar.Pool(engine=client.cluster)
    with pytest.raises(ValueError, match="knows its hosts"):
        shmpar.Pool(engine=client, hosts=2)

    async def refused() -> None:
        async with distributed.Client(
            client.scheduler.address, asynchronous=True, set_as_default=False
        ) as other:
            with pytest.raises(TypeError, match="asynchronous=False"):
                shmpar.Pool(engine=other)

    asyncio.run(refused())


def test_an_open_scheduler_on_another_machine_gets_a_warning() -> None:
    """A scheduler that anybody can use is named, once."""
    from shmpar.cluster.dask import warn_if_open

    with pytest.warns(shmpar.SecurityWarning, match="neither encrypted nor authenticated"):
        warn_if_open("tcp://10.1.2.3:8786")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for address in ("tcp://127.0.0.1:1", "tls://10.1.2.3:1", "inproc://10.1.2.3/1/2"):
            warn_if_open(address)


def test_a_closed_client_is_refused_and_a_lost_one_loses_the_hosts() -> None:
    """A client that closes during the life of the pool ends its runs."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", processes=False
    ) as made:
        other = distributed.Client(made, set_as_default=False)
        pool = shmpar.Pool(engine=other, host_timeout=60)
        run = pool.parallel_map(lambda _: time.sleep(0.1), range(1000), wait=False)
        while not run.progress[0]:
            time.sleep(0.05)
        other.close()
        with pytest.raises(shmpar.HostsLost, match="client of Dask is closed"):
            run.result(30)
        pool.shutdown()
        with pytest.raises(RuntimeError, match="make a new one"):
            shmpar.Pool(engine=other)


def test_the_doctor_shows_the_hosts(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m shmpar doctor --engine` lists each host with its versions."""
    address = client.scheduler.address
    cli.main(["doctor", "--engine", address, "--json"])
    hosts = json.loads(capsys.readouterr().out)["cluster"]["hosts"]
    assert len(hosts) == 3
    for host in hosts:
        assert host["near"] is True
        assert host["refused"] == ""
        assert f"NumPy {np.__version__}" in host["versions"]
    address = address.removeprefix("tcp://")  # as `dask worker` takes it
    cli.main(["doctor", "--engine", address])
    shown = capsys.readouterr().out
    assert f"Hosts of {address}" in shown
    assert "1 thread" in shown


def test_the_doctor_shows_what_would_be_refused(
    client: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts of another version, and a scheduler that does not answer, are problems with advice."""
    monkeypatch.setattr("shmpar.cluster.messages.__version__", "99.0")
    assert cli.main(["doctor", "--engine", client.scheduler.address]) == 1
    shown = capsys.readouterr().out
    assert shown.count("would be refused: the host has shmpar") == 3
    assert "install the same versions there" in shown
    monkeypatch.setattr("shmpar.cluster.dask._CLOSE_SECONDS", 0.5)
    assert cli.main(["doctor", "--engine", "tcp://127.0.0.1:9"]) == 1
    assert "tcp://127.0.0.1:9 cannot be reached" in capsys.readouterr().out


def test_the_doctor_makes_no_client_for_an_impossible_address() -> None:
    """Dask would print a traceback at exit, after twice its time limit."""
    source = """
from shmpar.cluster.dask import inspect
for address in ("no://scheduler:1", "scheduler", "tcp://scheduler", "tls://127.0.0.1:9"):
    try:
        inspect(address)
    except ValueError as error:
        print(error)
"""
    done = run_python(source)
    assert done.stderr == ""
    scheme, *ports, certificates = done.stdout.splitlines()
    assert scheme.startswith("unknown address scheme 'no'")
    assert ports == ["missing port number in address 'scheduler'"] * 2
    assert certificates.startswith("tls:// needs certificates")


def certificate(folder: Path) -> Any:
    """Make a certificate that the scheduler, its workers and the client share."""
    key, cert = str(folder / "key.pem"), str(folder / "cert.pem")
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *name]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    parts = {f"tls_{part}_{kind}": path for part in ("scheduler", "worker", "client")
             for kind, path in (("key", key), ("cert", cert))}  # fmt: skip
    return distributed.Security(tls_ca_file=cert, require_encryption=True, **parts)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")
def test_a_scheduler_with_tls_serves_a_pool(tmp_path: Path, local: shmpar.Pool) -> None:
    """All connections of Dask are encrypted, and the results are the same."""
    security = certificate(tmp_path)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", protocol="tls",
            security=security, processes=False,
        ) as made,
        distributed.Client(made, set_as_default=False) as other,
        shmpar.Pool(engine=other) as pool,
    ):  # fmt: skip
        assert other.scheduler.address.startswith("tls://")
        for name in ("map_blocks", "map_overlap, reflect", "submit"):
            contract.check_call(name, pool, local)
