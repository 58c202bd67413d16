"""Time calls in turns, start and stop processes, measure memory, and describe the machine."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import selectors
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import shmpar

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Why: shmpar's workers run one thread each, so every measured process does.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


# Timing ---------------------------------------------------------------------------------------


def alternate(systems: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each system in each round, after a first round that does not count.

    Systems take turns within a round, so that noise hits all of them alike.
    """
    for call in systems.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, call in systems.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return times


def ratio(times: Mapping[str, list[float]], slower: str, faster: str) -> float:
    """Return the median, over the rounds, of one system's time divided by the other's."""
    pairs = zip(times[slower], times[faster], strict=True)
    return statistics.median(one / other for one, other in pairs)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of the middle half of all values."""
    if len(values) < 3:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def table(times: Mapping[str, list[float]], unit: float = 1e3, name: str = "ms") -> str:
    """Return a line for each system: median, quartiles, fastest and slowest round."""
    width, lines = max(map(len, times)), []
    for system, seconds in times.items():
        low, high = (bound * unit for bound in quartiles(seconds))
        lines.append(
            f"  {system:{width}}  median {statistics.median(seconds) * unit:9.3f} {name}"
            f"   quartiles {low:9.3f} to {high:9.3f}"
            f"   fastest {min(seconds) * unit:9.3f}   slowest {max(seconds) * unit:9.3f}"
        )
    return "\n".join(lines)


# Bare processes: the speed limit of any pool of processes -------------------------------------


@contextmanager
def forked_loop(loop: Callable[[int, int], None], workers: int) -> Iterator[Callable[[], None]]:
    """Fork processes that call ``loop(worker, workers)`` at each call of the yielded function.

    The processes are up and waiting before the block begins, so that a call costs one byte
    through a pipe each way.
    """
    pipes = []
    for worker in range(workers):
        start_read, start_write = os.pipe()
        done_read, done_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            _serve_loop(loop, worker, workers, start_read, done_write)
        os.close(start_read)
        os.close(done_write)
        pipes.append((pid, start_write, done_read))

    def run() -> None:
        for _, start, _ in pipes:
            os.write(start, b"g")
        for _, _, done in pipes:
            if os.read(done, 1) != b"d":
                raise RuntimeError("a bare process failed")

    try:
        yield run
    finally:
        for pid, start, done in pipes:
            os.close(start)
            os.close(done)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _serve_loop(
    loop: Callable[[int, int], None], worker: int, workers: int, start: int, done: int
) -> None:
    while os.read(start, 1):
        loop(worker, workers)
        os.write(done, b"d")
    os._exit(0)


# Processes and their memory -------------------------------------------------------------------

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
Process = tuple[int, str]  # pid and start time, since the system reuses pids


def _stat(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()  # state, parent, ...; [19] is the start


def family(pid: int) -> list[Process]:
    """Return a process and all of its descendants."""
    children: dict[int, list[int]] = {}
    starts: dict[int, str] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            fields = _stat(int(name))
            children.setdefault(int(fields[1]), []).append(int(name))
            starts[int(name)] = fields[19]
    found = [pid] if pid in starts else []
    for one in found:
        found.extend(children.get(one, ()))
    return [(one, starts[one]) for one in found]


def stop(pid: int) -> list[Process]:
    """Stop a process and all of its descendants; return them for :func:`resume`."""
    stopped: list[Process] = []
    # Why: a process may fork before it stops, so look again until nothing new is found.
    while new := [one for one in family(pid) if one not in stopped]:
        stopped += new
        _signal(new, signal.SIGSTOP)
        while any(map(_runs, new)):
            time.sleep(0)
    return stopped


def resume(stopped: list[Process]) -> None:
    """Continue stopped processes."""
    _signal(stopped, signal.SIGCONT)


def continue_without_parent() -> None:
    """Continue this process and its descendants if their parent dies while they are stopped.

    Why: a process that is stopped does not notice that its input has ended.
    """
    this, parent = os.getpid(), os.getppid()

    def resume_all(*_: object) -> None:
        if os.getpid() == this and os.getppid() != parent:  # Why: a forked child inherits this
            resume(family(this))

    signal.signal(signal.SIGCONT, resume_all)
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGCONT)


def _signal(processes: list[Process], number: int) -> None:
    for pid, _ in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def end(processes: list[Process], grace: float = 5.0) -> None:
    """Wait for processes to exit, then kill the rest."""
    until = time.monotonic() + grace
    while (alive := [one for one in processes if _lives(one)]) and time.monotonic() < until:
        time.sleep(0.05)
    _signal(alive, signal.SIGKILL)


def _lives(process: Process) -> bool:
    return _state(process) not in "ZX"


def _runs(process: Process) -> bool:
    """Return whether a process is neither stopped, nor dead, nor in an uninterruptible wait."""
    return _state(process) in "RS"


def _state(process: Process) -> str:
    pid, start = process
    try:
        fields = _stat(pid)
    except OSError:
        return "X"
    return fields[0] if fields[19] == start else "X"


def pss(pids: Iterable[int]) -> int:
    """Return the sum of the processes' proportional set sizes in bytes; shared pages count once."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return 1024 * total


def family_pss(pid: int) -> int:
    """Return the proportional set size of a process and its descendants, in bytes."""
    total = 0
    for one, _ in family(pid):
        with suppress(OSError, StopIteration):
            total += pss([one])
    return total


def peak_pss(run: shmpar.Run, pids: Iterable[int]) -> int:
    """Return the largest sum of set sizes that is seen until a run is done, in bytes."""
    processes, peak = list(pids), 0
    while not run.done():
        peak = max(peak, pss(processes))
        time.sleep(0.001)
    run.result()
    return max(peak, pss(processes))


# Measured processes ---------------------------------------------------------------------------


class Failed(Exception):
    """A measured process cannot go on; the message says why."""


def environment(directory: str, source: str = ROOT) -> dict[str, str]:
    """Return the environment of a measured process that imports from a checkout."""
    ours = {"PYTHONPATH": source, "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": directory}
    inherited = dict(os.environ)
    # Why: without cached bytecode each start would compile everything that it imports.
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**inherited, **ONE_THREAD, **ours}


def serve(server: object) -> None:
    """Answer requests by the methods of a server, until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Why: systems print to stdout, and that is not a reply.
    continue_without_parent()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(server, request.pop("do"))(**request)
        except Exception as error:  # noqa: BLE001 - other systems must go on
            reply = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(reply), file=replies, flush=True)


class Child:
    """A measured process, which runs :func:`serve`.

    Requests and replies are one line of JSON each.

    Between requests the process and all of its descendants are stopped, so that the process
    whose turn it is has the whole machine.
    """

    def __init__(self, name: str, arguments: Sequence[str], directory: str, source: str = ROOT):
        self.name = name
        with open(os.path.join(directory, f"{name}.log"), "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env=environment(directory, source),
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._stopped: list[Process] = []

    def send(self, do: str, **request: Any) -> None:
        """Continue the process and send a request."""
        if self._process.stdin.closed:
            raise Failed("its process was ended")
        self._resume()
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed("its process has exited") from None

    def receive(self, seconds: float) -> dict[str, Any]:
        """Wait for the reply, then stop the process."""
        try:
            return self._receive(seconds)
        finally:
            self._stopped = stop(self.pid)

    def _resume(self) -> None:
        stopped, self._stopped = self._stopped, []
        resume(stopped)

    def _receive(self, seconds: float) -> dict[str, Any]:
        if not self._selector.select(seconds):
            raise Failed(f"no answer in {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed("its process has exited")
        reply = json.loads(line)
        if "failed" in reply:
            raise Failed(reply["failed"])
        return reply

    def request(self, do: str, seconds: float = 120, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the reply."""
        self.send(do, **request)
        return self.receive(seconds)

    def peak_memory(self, do: str, seconds: float = 120, **request: Any) -> int:
        """Return the peak memory in bytes of the process and its descendants during a request.

        All processes are stopped while their sizes are read. Otherwise a page counts twice if one
        process owns it alone first and shares it before the size of the next process is read.
        """
        self.send(do, **request)
        until, peak = time.monotonic() + seconds, 0
        while True:
            began = time.monotonic()
            stopped = stop(self.pid)
            peak = max(peak, family_pss(self.pid))
            resume(stopped)
            pause = max(0.01, time.monotonic() - began)  # Why: run at least half of the time.
            if self._selector.select(pause):
                self.receive(1)
                return max(peak, family_pss(self.pid))
            if time.monotonic() > until:
                raise Failed(f"no answer in {seconds:.0f} s")

    def end(self, seconds: float = 20) -> None:
        """Close the process's input, wait for its exit, and kill all that is left of it."""
        self._resume()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        processes, until = set(family(self.pid)), time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
            processes.update(family(self.pid))  # Why: it may still start some.
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._selector.close()
        end(sorted(processes))


# The machine ----------------------------------------------------------------------------------


def _meminfo(key: str) -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key + ":"))


def available_memory() -> int:
    """Return how many bytes new processes may take."""
    return _meminfo("MemAvailable")


def cores() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine() -> dict[str, Any]:
    """Return CPU, cores, memory, kernel and Python."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        text = file.read()
    models = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": cores(),
        "memory_gb": round(_meminfo("MemTotal") / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "virtual": " hypervisor" in text,
    }


def load() -> float:
    """Return the average number of processes that were ready to run in the last minute."""
    return round(os.getloadavg()[0], 2)


def commit(checkout: str = ROOT) -> str:
    """Return the commit of a checkout, or "" where git does not know it."""
    command = ["git", "-C", checkout, "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
