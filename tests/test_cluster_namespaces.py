"""A campaign on hosts that share nothing: each has a network, processes and /dev/shm of its own."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests import cluster_contract as contract
from tests import pools
from tests.interpreters import ROOT

distributed: Any = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::shmpar.SecurityWarning"),
    pytest.mark.stress,
    pytest.mark.skipif(
        os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")),
        reason="makes network namespaces, which needs root and iproute2",
    ),
]

BRIDGE, NET = "shmpar-br", "10.213.7"
HOST = """
mount -t tmpfs tmpfs /dev/shm && mount -t proc proc /proc && \
exec ip netns exec {name} {python} -m distributed.cli.dask_worker tcp://{net}.1:{port} \
    --nthreads 1 --nworkers 1 --memory-limit 0 --no-dashboard --host {net}.{last} \
    --local-directory {folder}
"""


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Replace the search for leaks: sockets and processes of Dask come and go at any time."""


def ip(*words: str) -> None:
    """Configure a network."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def network(hosts: int) -> Iterator[list[str]]:
    """Make a bridge, and a namespace for each host."""
    names = [f"shmpar-{number}" for number in range(hosts)]
    with contextlib.ExitStack() as undo:
        ip("link", "add", BRIDGE, "type", "bridge")
        undo.callback(ip, "link", "del", BRIDGE)
        ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            ip("link", "add", f"{name}-a", "type", "veth", "peer", "name", f"{name}-b")
            ip("link", "set", f"{name}-a", "master", BRIDGE, "up")
            ip("link", "set", f"{name}-b", "netns", name)
            inside = "netns", "exec", name, "ip"
            ip(*inside, "addr", "add", f"{NET}.{number + 2}/24", "dev", f"{name}-b")
            ip(*inside, "link", "set", f"{name}-b", "up")
            ip(*inside, "link", "set", "lo", "up")
        yield names


def start_host(name: str, last: int, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a Dask worker in its namespaces; its processes end with it."""
    script = HOST.format(
        name=name, python=sys.executable, net=NET, port=port, last=last, folder=folder
    )
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three hosts, and a function that kills one and starts another in its place."""
    folder = tmp_path_factory.mktemp("dask")
    with network(3) as names, contextlib.ExitStack() as stack:
        made = distributed.LocalCluster(
            n_workers=0, host=f"{NET}.1", dashboard_address=":0", protocol="tcp://"
        )
        stack.enter_context(made)
        port = int(made.scheduler_address.rpartition(":")[2])
        running = [start_host(name, k + 2, port, folder) for k, name in enumerate(names)]
        stack.callback(lambda: [one.kill() for one in running])
        client = stack.enter_context(distributed.Client(made))
        client.wait_for_workers(3, timeout=60)

        def replace(number: int) -> None:
            running[number].send_signal(signal.SIGKILL)
            running[number].wait()
            running[number] = start_host(names[number], number + 2, port, folder)

        yield client, replace


def test_nothing_is_shared_and_the_bytes_are_the_same(hosts: Any) -> None:
    """Each verb gives the bytes of a local pool on hosts that can map nothing of this process."""
    client, _ = hosts
    with shmpar.Pool(engine=client) as pool, pools.warm("processes") as local:
        for name in contract.CALLS:
            contract.check_call(name, pool, local)
        assert pool.last_run is not None
        array = np.random.default_rng(0).random((1000, 1000))
        found = pool.map_blocks(np.negative, array, chunks=100)
        assert np.array_equal(found, -array)
        report = pool.last_run.report.hosts
        sent = sum(host.bytes_out for host in report), sum(host.bytes_in for host in report)
        assert sent == (array.nbytes, found.nbytes)


def test_hosts_die_at_random_moments(hosts: Any, stress_seed: int) -> None:
    """Ten runs lose a host each; their results are right."""
    client, replace = hosts
    chance = random.Random(stress_seed)
    image = np.random.default_rng(1).random((96, 64))

    def work(block: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return contract.smooth(block)

    with shmpar.Pool(engine=client) as pool:
        due = pool.map_overlap(work, image, depth=2, chunks=8)
        for _ in range(10):
            run = pool.map_overlap(work, image, depth=2, chunks=8, wait=False)
            until = chance.random() * 80
            while run.progress[0] < until:
                time.sleep(0.005)
            replace(chance.randrange(3))
            assert np.array_equal(run.result(120), due)
            client.wait_for_workers(3, timeout=60)
