"""A pool on hosts that share nothing: ``python -m tests.separate_hosts FOLDER SEED``, as root.

The program runs in new namespaces of the network, mounts and processes (see :data:`COMMAND`), so
nothing of it outlives its first process. Each host is a Dask worker with its nanny in a network
namespace and with a ``/dev/shm`` of its own. A pair of virtual devices connects it with this
process and the scheduler, so its bytes can be counted and its cable can be pulled. Hosts see the
same files. Each part prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import distributed
import numpy as np

import shmpar
from tests import cluster_contract as contract

COMMAND = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
HOSTS = 3
KILLS, CUTS = 10, 2
SCHEDULER = "tcp://10.77.0.1:8786"
_PREPARE = "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo ready && read line"
ROOT = str(Path(__file__).parent.parent)


def ip(*words: str, inside: int | None = None) -> None:
    """Run ``ip``, perhaps in the network namespace of a process."""
    enter = [] if inside is None else ["nsenter", "-t", str(inside), "-n"]
    subprocess.run([*enter, "ip", *words], check=True)


class Place:
    """Namespaces with a cable to the scheduler, and no way from there to other places."""

    def __init__(self, number: int) -> None:
        self.device, self.address = f"cable{number}", f"10.77.{number}.2"
        keep = ["unshare", "--net", "--mount", "sh", "-c", _PREPARE]
        self.kept = subprocess.Popen(keep, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.kept.stdout is not None
        self.kept.stdout.readline()
        self.pid = self.kept.pid
        self.enter = ["nsenter", "-t", str(self.pid), "-n", "-m", f"--wd={ROOT}", sys.executable]
        pair = ["type", "veth", "peer", "name", "end", "netns", str(self.pid)]
        ip("link", "add", self.device, *pair)
        ip("addr", "add", f"10.77.{number}.1/24", "dev", self.device)
        ip("link", "set", self.device, "up")
        ip("addr", "add", f"{self.address}/24", "dev", "end", inside=self.pid)
        ip("link", "set", "end", "up", inside=self.pid)
        ip("route", "add", "default", "via", f"10.77.{number}.1", inside=self.pid)


class Machine(Place):
    """A host in a place of its own."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(number)
        self.log = folder / f"host{number}.log"
        self.command = [*self.enter, "-m", "distributed.cli.dask_worker", SCHEDULER]
        self.command += ["--nworkers", "1", "--nthreads", "1", "--host", self.address]
        self.command += ["--no-dashboard", "--memory-limit", "0"]
        self.command += ["--local-directory", str(folder / f"dask{number}")]
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the worker and its nanny."""
        with open(self.log, "ab") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=log)

    def restart(self) -> None:
        """Plug the cable in, and start the worker again: Dask ends one that is cut off."""
        self.process.kill()
        self.process.wait()
        ip("link", "set", self.device, "up")
        self.process = self.start()

    def nbytes(self) -> int:
        """Return the bytes that have passed its cable, both ways."""
        lines = Path("/proc/net/dev").read_text().splitlines()
        (words,) = [line.split() for line in lines if line.split()[0] == f"{self.device}:"]
        return int(words[1]) + int(words[9])

    def segments(self) -> list[str]:
        """Return our names in its ``/dev/shm``; those of Dask stay if it is killed."""
        names = os.listdir(f"/proc/{self.pid}/root/dev/shm")
        return [name for name in names if name.startswith("shmpar")]


def local_workers() -> set[int]:
    """Return the local workers of hosts in all namespaces of this program."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                line = Path("/proc", name, "cmdline").read_bytes()
            except OSError:
                continue
            if b"exit_with_parent" in line:
                found.add(int(name))
    return found


def wait_without_workers(seconds: float) -> float:
    """Wait until no local worker is left; return the seconds."""
    began = time.monotonic()
    while local_workers():
        assert time.monotonic() < began + seconds, "a local worker lives on"
        time.sleep(0.02)
    return time.monotonic() - began


def double(block: np.ndarray) -> np.ndarray:
    """Return twice a block."""
    return block * 2


def results(pool: shmpar.Pool) -> dict[str, Any]:
    """Compare all calls with a local pool."""
    with shmpar.Pool(1) as local:
        for name in contract.CALLS:
            contract.check_call(name, pool, local)
    return {"calls": len(contract.CALLS)}


def wire(pool: shmpar.Pool, machines: list[Machine]) -> dict[str, Any]:
    """Count the bytes of a map of 100 MB."""
    array = np.random.default_rng(0).random((1000, 12_500))
    before = sum(one.nbytes() for one in machines)
    found = pool.map_blocks(double, array, chunks=100)
    moved = sum(one.nbytes() for one in machines) - before
    assert np.array_equal(found, 2 * array)
    return {"bytes": moved, "ratio": moved / (array.nbytes + found.nbytes)}


def kills(pool: shmpar.Pool, client: Any, folder: Path, chance: random.Random) -> dict[str, Any]:
    """Kill hosts at random moments."""
    killed, calls, slowest = 0, [], 0.0
    while killed < KILLS:
        began = time.monotonic()
        done, count = contract.lose_host(
            pool, folder, chance, lambda: contract.kill_one(client, chance)
        )
        killed, slowest = killed + done, max(slowest, time.monotonic() - began)
        calls.append(count)
        client.wait_for_workers(HOSTS, timeout=60)
    return {"killed": killed, "most calls for 128 chunks": max(calls), "slowest run": slowest}


def cuts(
    pool: shmpar.Pool, client: Any, folder: Path, machines: list[Machine], chance: random.Random
) -> dict[str, Any]:
    """Pull the cable of a host during a run."""
    calls, slowest = [], 0.0
    for _ in range(CUTS):
        machine = chance.choice(machines)
        began = time.monotonic()
        _, count = contract.lose_host(
            pool, folder, chance, lambda one=machine: ip("link", "set", one.device, "down")
        )
        calls.append(count)
        slowest = max(slowest, time.monotonic() - began)
        machine.restart()
        client.wait_for_workers(HOSTS, timeout=60)
    return {"cut": CUTS, "most calls for 128 chunks": max(calls), "slowest run": slowest}


CLIENT = """
import sys, time, numpy as np, distributed, shmpar
pool = shmpar.Pool(2, engine=distributed.Client(sys.argv[1]))
pool.parallel_map(lambda _: time.sleep(0.05), range(10_000))
"""


def client_killed() -> dict[str, Any]:
    """Kill a client during its run."""
    command = [sys.executable, "-W", "ignore", "-c", CLIENT, SCHEDULER]
    with subprocess.Popen(command) as process:
        while len(local_workers()) < 2 * HOSTS:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    return {"seconds": wait_without_workers(5.0)}


BEHIND = """
import json, sys, time, warnings, numpy as np, distributed, shmpar
client, rows = distributed.Client(sys.argv[1], timeout=2), np.arange(4e5).reshape(80, 5000)
with warnings.catch_warnings(record=True) as caught, shmpar.Pool(engine=client) as pool:
    warnings.simplefilter("always")
    assert pool.parallel_map(abs, range(-9, 0)) == [*range(9, 0, -1)]
    began = time.monotonic()
    assert pool.submit(pow, 2, 5).result() == 32
    assert pool.parallel_map(np.sum, rows).tolist() == rows.sum(axis=1).tolist()
    seconds = time.monotonic() - began
    found = [str(one.message) for one in caught if one.category is RuntimeWarning]
print(json.dumps({"seconds": seconds, "warnings": found}))
"""


def behind() -> dict[str, Any]:
    """Make calls from a place that reaches the scheduler alone."""
    command = [*Place(HOSTS + 1).enter, "-W", "ignore", "-c", BEHIND, SCHEDULER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    (text,) = found["warnings"]
    assert "cannot be reached from here" in text
    return found


def main(folder: Path, seed: int) -> None:
    """Start the hosts and go through all parts."""
    chance = random.Random(seed)
    ip("link", "set", "lo", "up")
    ip("addr", "add", "10.77.0.1/32", "dev", "lo")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    scheduler += ["--host", "10.77.0.1", "--port", "8786"]
    with open(folder / "scheduler.log", "wb") as log:
        # Why: the scheduler gives up a host that it cannot reach after so long.
        environment = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "4s"}
        subprocess.Popen(scheduler, stdout=log, stderr=log, env=environment)
    machines = [Machine(number, folder) for number in range(1, HOSTS + 1)]
    parts: dict[str, dict[str, Any]] = {}

    def part(name: str, found: dict[str, Any]) -> None:
        parts[name] = found
        print(json.dumps({name: found}), flush=True)

    with distributed.Client(SCHEDULER, timeout=60) as client:
        client.wait_for_workers(HOSTS, timeout=60)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pool = shmpar.Pool(engine=client)
        assert [one.category for one in caught] == [shmpar.SecurityWarning]
        with pool:
            contract.wait_for_hosts(pool, HOSTS)
            part("results", results(pool))
            part("wire", wire(pool, machines))
            part("kills", kills(pool, client, folder, chance))
            part("cuts", cuts(pool, client, folder, machines, chance))
            assert local_workers()
        part("end of the pool", {"seconds": wait_without_workers(5.0)})
        part("killed client", client_killed())
        part("behind the scheduler", behind())
        left = [machine.segments() for machine in machines]
        assert not any(left), left


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
