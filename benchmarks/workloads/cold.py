"""Cold starts: scripts as a user writes them, each run by a fresh interpreter, in turns."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks import harness, systems
from benchmarks.workloads import Workload

SCRIPT = """
import time
import numpy as np
{imports}

rows = np.arange(128.0).reshape(8, 16)

def done(result):
    print([began, time.monotonic(), [float(one) for one in result]], flush=True)

began = time.monotonic()
{body}
"""
LIMITS = {
    "import numpy": "import numpy",
    "import numpy, cloudpickle": "import numpy, cloudpickle",
}
AT_ONCE = "import numpy, cloudpickle, in as many as workers at once"
RIGHT = [sum(range(16 * row, 16 * row + 16)) for row in range(8)]

Measured = tuple[str, str, "list[float] | str"]


# Each system's file has its script.
WORKLOADS = {
    "cold": Workload(
        "cold start: sums of 8 rows",
        lambda _: [{"chunks": 8}],
        how="cold",
        rounds=7,
    )
}


def measure(names: list[str], rounds: int, workers: int, directory: str) -> Iterator[Measured]:
    """Yield (system, way, seconds of each round).

    The way "process" counts from the start of the interpreter, "pool" from the end of the imports.
    """
    scripts = _write(names, workers, directory)
    times: dict[tuple[str, str], list[float]] = {}
    failed: dict[str, str] = {}
    # Why: the first of several rounds reads files that are not in memory yet.
    first = 1 if rounds > 1 else 0
    for _ in range(first + rounds):
        for name, source in LIMITS.items():
            seconds, _, _ = _run(["-c", source], directory)
            times.setdefault((name, "process"), []).append(seconds)
        seconds = _run_at_once("import numpy, cloudpickle", workers, directory)
        times.setdefault((AT_ONCE, "process"), []).append(seconds)
        for name in [name for name in scripts if name not in failed]:
            seconds, inside, problem = _run([scripts[name]], directory)
            if problem:
                failed[name] = problem
            times.setdefault((name, "process"), []).append(seconds)
            times.setdefault((name, "pool"), []).append(inside)
    for (name, way), seconds in times.items():
        if name not in failed:
            yield name, way, seconds[first:]
    for name, problem in failed.items():
        yield name, "", problem


def _write(names: list[str], workers: int, directory: str) -> dict[str, str]:
    """Write the scripts of all systems that have a script; return their paths."""
    scripts = {}
    for name in names:
        parts = systems.load(name).cold
        if parts is not None:
            scripts[name] = os.path.join(directory, f"cold_{name}.py")
            body = parts[1].format(workers=workers, directory=os.path.join(directory, "c"))
            with open(scripts[name], "w", encoding="utf-8") as file:
                file.write(SCRIPT.format(imports=parts[0], body=body))
    return scripts


def _run_at_once(source: str, workers: int, directory: str) -> float:
    """Start so many interpreters at once; return the seconds until all have exited."""
    environment = harness.environment(directory)
    began = time.monotonic()
    started = [
        subprocess.Popen([sys.executable, "-c", source], cwd=directory, env=environment)
        for _ in range(workers)
    ]
    for process in started:
        process.wait()
    return time.monotonic() - began


def _run(arguments: list[str], directory: str) -> tuple[float, float, str]:
    """Return the seconds to the result, the seconds of that after the imports, and an error."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=directory,
        env=harness.environment(directory),
        text=True,
        start_new_session=True,
    )
    family: list[harness.Process] = []
    try:
        line = process.stdout.readline()
        arrived = time.monotonic()
        family = harness.family(process.pid)
        _, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return 0.0, 0.0, "no end in 60 s"
    finally:
        harness.end(family)
    if arguments[0] == "-c":
        return arrived - began, 0.0, ""
    if process.returncode or not line:
        return 0.0, 0.0, f"failed: {(errors.strip().splitlines() or ['?'])[-1][:200]}"
    pool, end, result = ast.literal_eval(line)
    return end - began, end - pool, "" if result == RIGHT else "the answer is wrong"
