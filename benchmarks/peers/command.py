"""``python -m benchmarks peers [WORKLOAD ...] [--systems A,B] [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.peers import figures, machine, systems, workloads
from benchmarks.peers.conduct import Conductor

SHARED = ("numpy", "scipy", "cloudpickle")  # that several systems use


def choose(given: str | None, known: tuple[str, ...], parser: argparse.ArgumentParser) -> list[str]:
    """Names from a list with commas, or all."""
    names = given.split(",") if given else list(known)
    unknown = sorted(set(names) - set(known))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
    return [name for name in known if name in names]


def main(arguments: list[str]) -> None:
    """Measure, print, and keep what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers", description=__doc__)
    parser.add_argument("workloads", nargs="*", help=", ".join(workloads.NAMES))
    parser.add_argument("--systems", help=", ".join(systems.NAMES))
    parser.add_argument("--workers", type=int, default=machine.cores())
    parser.add_argument("--quick", action="store_const", dest="size", const="quick", default="full")
    parser.add_argument("--smoke", action="store_const", dest="size", const="smoke")
    parser.add_argument("--json", metavar="FILE", help="where to keep the figures")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # processes and files are to go
    chosen = choose(",".join(options.workloads) or None, workloads.NAMES, parser)
    names = choose(options.systems, systems.NAMES, parser)
    kept = measure(chosen, names, options.size, options.workers)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            file.write(dumps(kept))


def measure(chosen: list[str], names: list[str], size: str, workers: int) -> dict[str, Any]:
    """Measure workloads with systems; return all that is kept."""
    began, load = time.time(), machine.load()
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - as joblib does
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=place, ignore_cleanup_errors=True) as home,
        Conductor(names, size, workers, home) as conductor,
    ):
        for name in chosen:
            print(f"== {name}: {workloads.load(name).title}", flush=True)
            records = conductor.measure(name, lambda text: print(f"   {text}", file=sys.stderr))
            print(figures.table(records), flush=True)
    for name, reason in conductor.left_out.items():
        print(f"left out: {name}: {reason}")
    return {
        "format": 1,
        "size": size,
        "workers": workers,
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "seconds": round(time.time() - began),
        "machine": machine.describe(),
        "load": [load, machine.load()],
        "commit": machine.commit(),
        "versions": {**_versions(*SHARED), **conductor.versions},
        "left_out": conductor.left_out,
        "records": [figures.rounded(record) for record in conductor.records],
    }


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def dumps(kept: dict[str, Any]) -> str:
    """JSON with a line a record, so that a later run can be compared line by line."""
    records = ",\n".join("  " + json.dumps(record) for record in kept["records"])
    head = json.dumps({**kept, "records": None}, indent=1)
    return head.replace('"records": null', f'"records": [\n{records}\n ]') + "\n"
