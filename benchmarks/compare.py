"""Compare this checkout with another one, workload by workload.

PATH is another checkout of the project: the commit before a change, for example. Each checkout
is measured in a process of its own, which uses the public API only. In each round both take a
turn, in random order; the process that waits is stopped. A turn warms up, repeats the call for a
while, and gives its median. The place of a process in memory makes it faster or slower for as
long as it lives, so both processes start again after every third round.

For each workload this prints both medians and the median, over the rounds, of

    the figure of PATH / the figure of this checkout

with the bounds of the middle half of these ratios. So 2.0 means that this checkout takes half
the time (or memory), and 1.0 that nothing has changed. A ratio whose middle half includes 1 is
no evidence of a change: repeat it with more rounds. Compare two equal checkouts first: their
ratios show the noise of the machine, and a smaller difference means nothing.

To measure a change of a hot path:

    git worktree add ../before HEAD~1
    python -m benchmarks compare ../before floor floor_busy tiny_rows --rounds 45

All workloads with 15 rounds take a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks import harness
from benchmarks.cases import CASES
from benchmarks.figures import show
from benchmarks.harness import ROOT, Child, Failed

SIDES = ("other", "this")
ROUNDS_PER_START = 3  # Why: a process's place in memory decides its speed.
RANDOM = random.Random()  # noqa: S311


@dataclass
class Comparison:
    """The figures of a workload in each round, of both checkouts."""

    name: str
    other: list[float] = field(default_factory=list)
    this: list[float] = field(default_factory=list)
    failed: str = ""

    @property
    def ratios(self) -> list[float]:
        """The figure of the other checkout divided by that of this one, in each round."""
        return [one / two for one, two in zip(self.other, self.this, strict=True)]

    def __str__(self) -> str:
        """A line of the table."""
        if self.failed:
            return f"{self.name:12} {self.failed}"
        unit = CASES[self.name].unit
        medians = (show(statistics.median(values), unit) for values in (self.other, self.this))
        low, high = harness.quartiles(self.ratios)
        return (
            f"{self.name:12} {next(medians):>10} {next(medians):>10}"
            f"   {statistics.median(self.ratios):.3f} ({low:.3f} to {high:.3f})"
            f"   {len(self.ratios)}"
        )

    def record(self) -> dict[str, Any]:
        """Return everything as JSON."""
        record = {"workload": self.name, "unit": CASES[self.name].unit}
        if self.failed:
            return {**record, "failed": self.failed}
        return {
            **record,
            "other": self.other,
            "this": self.this,
            "ratio": statistics.median(self.ratios),
            "quartiles": harness.quartiles(self.ratios),
        }


def main(arguments: list[str]) -> None:
    """Compare, print a line per workload, and write the records to a file."""
    options = _parser().parse_args(arguments)
    checkout = os.path.abspath(options.path)
    if not os.path.isfile(os.path.join(checkout, "shmpar", "__init__.py")):
        _parser().error(f"{options.path} is not a checkout: it has no shmpar/__init__.py")
    unknown = set(options.names) - set(CASES)
    if unknown:
        _parser().error(f"no such workload: {', '.join(sorted(unknown))}")
    print(f"other: {checkout} ({harness.commit(checkout)})")
    print(f"this:  {ROOT} ({harness.commit()})\n")
    print(
        f"{'workload':12} {'other':>10} {'this':>10}   other / this (middle half)   rounds",
        flush=True,
    )
    began, load, comparisons = time.time(), harness.load(), []
    for comparison in compare(checkout, options.names or list(CASES), options.rounds, options.size):
        print(comparison, flush=True)
        comparisons.append(comparison)
    print(f"\n{time.time() - began:.0f} s")
    if options.json:
        found = {
            "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
            "other": harness.commit(checkout),
            "this": harness.commit(),
            "rounds": options.rounds,
            "size": options.size,
            "machine": harness.describe_machine(),
            "load": [load, harness.load()],
            "records": [comparison.record() for comparison in comparisons],
        }
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
    if any(comparison.failed for comparison in comparisons):
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    workloads = "\n".join(f"  {name:12} {case.about}" for name, case in CASES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description=__doc__,
        epilog=f"workloads:\n{workloads}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="another checkout of the project")
    parser.add_argument("names", nargs="*", metavar="NAME", help="workloads (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each checkout")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    large = "arrays of up to 800 MB instead of 80 MB"
    parser.set_defaults(size="default")
    parser.add_argument("--large", action="store_const", dest="size", const="large", help=large)
    quick = "tiny arrays: a test of the benchmark itself"
    flags = ("--quick", "--smoke")
    parser.add_argument(*flags, action="store_const", dest="size", const="smoke", help=quick)
    return parser


def compare(checkout: str, names: Sequence[str], rounds: int, size: str) -> Iterator[Comparison]:
    """Measure workloads in both checkouts; yield each comparison when it is complete."""
    sources = {"other": checkout, "this": ROOT}
    with tempfile.TemporaryDirectory(prefix="compare-", ignore_cleanup_errors=True) as home:
        for name in names:
            comparison = Comparison(name)
            try:
                for first in range(0, rounds, ROUNDS_PER_START):
                    some = min(ROUNDS_PER_START, rounds - first)
                    _measure(comparison, sources, some, size, home)
            except Failed as failure:
                comparison.failed = str(failure)
            yield comparison


def _measure(
    comparison: Comparison, sources: dict[str, str], rounds: int, size: str, home: str
) -> None:
    """Start both processes and run some rounds."""
    children: dict[str, Child] = {}
    with ExitStack() as stack:
        for side in RANDOM.sample(SIDES, 2):
            with _blame(side):
                children[side] = _start(side, sources[side], home)
                stack.callback(children[side].end)
                children[side].request("load", name=comparison.name, size=size)
        for _ in range(rounds):
            turn: dict[str, float] = {}
            for side in RANDOM.sample(SIDES, 2):
                with _blame(side):
                    turn[side] = children[side].request("measure")["value"]
            comparison.other.append(turn["other"])
            comparison.this.append(turn["this"])


@contextmanager
def _blame(side: str) -> Iterator[None]:
    """Add the checkout to the message of a failure."""
    try:
        yield
    except Failed as failure:
        raise Failed(f"failed in the {side} checkout: {failure}") from None


def _start(side: str, source: str, home: str) -> Child:
    """Start the process of a checkout, and check that it imports shmpar from there."""
    script = os.path.join(ROOT, "benchmarks", "cases.py")
    child = Child(side, ["-P", script], home, source)
    try:
        _check_import(child.request("open")["file"], source)
    except BaseException:
        child.end()
        raise
    return child


def _check_import(file: str, source: str) -> None:
    file, source = os.path.realpath(file), os.path.realpath(source)
    if os.path.commonpath([file, source]) != source:
        raise Failed(f"shmpar was imported from {file}, not from {source}")
