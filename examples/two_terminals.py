"""Share an array between two terminals: each process sees the values that the other writes.

    python examples/two_terminals.py create                # in the first terminal
    python examples/two_terminals.py attach shmpar_demo    # in the second one

The array lies in memory once, under a name.  Ctrl-C ends each process.  The creator removes the
name.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import shmpar

NAME = "shmpar_demo"
SHAPE = (3, 4)
CREATOR, ATTACHED = 0, 1  # the row that each process writes
SECONDS = 0.2  # between two reads of the array


def say(text: str) -> None:
    """Print and flush."""
    print(text, flush=True)


def talk(array: Any, mine: int, theirs: int, rounds: int | None) -> None:
    """Write to one row; print the other row when it has changed."""
    seen = array[theirs].copy()
    count = 0
    while rounds is None or count < rounds:
        count += 1
        array[mine, count % array.shape[1]] = count
        time.sleep(SECONDS)
        if not np.array_equal(array[theirs], seen):
            seen = array[theirs].copy()
            say(f"the other process wrote {seen.astype(int).tolist()}")


def create(name: str, rounds: int | None) -> None:
    """Create the array; its name is removed when the block ends."""
    try:
        array = shmpar.zeros(SHAPE, name=name)
    except FileExistsError:
        raise SystemExit(
            f"the name {name!r} exists: another 'create' is running; choose another name\n"
            "(if that process was killed, the next shmpar.Pool() removes the name)"
        ) from None
    with array:
        say(f"created {array.name!r}: shape {array.shape}, {array.dtype}. In another terminal:")
        say(f"    python {sys.argv[0]} attach {array.name}")
        with suppress(KeyboardInterrupt):
            talk(array, CREATOR, ATTACHED, rounds)
    say("\nremoved the name; the last process that uses the memory releases it")


def attach(name: str, rounds: int | None) -> None:
    """Attach to the array; the creator keeps it."""
    try:
        array = shmpar.attach(name, SHAPE, float)
    except shmpar.SegmentGone:
        raise SystemExit(
            f"there is no array {name!r}; first start this in another terminal:\n"
            f"    python {sys.argv[0]} create {name}"
        ) from None
    say(f"attached {name!r}: shape {array.shape}, {array.dtype}")
    with suppress(KeyboardInterrupt):
        talk(array, ATTACHED, CREATOR, rounds)
    say("\ndetached; the creator still has the array")


def smoke() -> None:
    """Act as both terminals: attach too early, create, attach, detach, press Ctrl-C."""
    name = f"{NAME}_{time.time_ns():x}"
    script = [sys.executable, str(Path(__file__).resolve())]
    early = subprocess.run(
        [*script, "attach", name], capture_output=True, text=True, check=False, timeout=60
    )
    print(early.stderr, end="")
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    creator = subprocess.Popen([*script, "create", name], **pipes)
    try:
        print("1:", creator.stdout.readline(), end="")
        second = subprocess.run(
            [*script, "attach", name, "--rounds", "5"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        for line in second.stdout.split("\n"):
            if line:
                print("2:", line)
        creator.send_signal(signal.SIGINT)
        said, complaints = creator.stdout.read(), creator.stderr.read()
        creator.wait(60)
    finally:
        creator.kill()
        creator.wait()
    for line in said.split("\n"):
        if line:
            print("1:", line)
    try:
        shmpar.attach(name, SHAPE, float)
        gone = False
    except shmpar.SegmentGone:
        gone = True
    checks = {
        "attach before create has a clear error": early.returncode == 1 and "first" in early.stderr,
        "the second process saw the first": "the other process wrote" in second.stdout,
        "the first process saw the second": "the other process wrote" in said,
        "both processes ended without an error": (second.stderr + complaints).strip() == ""
        and (second.returncode, creator.returncode) == (0, 0),
        "nothing is left": gone,
    }
    for claim, holds in checks.items():
        print(f"{'ok' if holds else 'NOT OK':<8}{claim}")
    if not all(checks.values()):
        raise SystemExit(second.stderr + complaints + "a check failed")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=["create", "attach"])
    parser.add_argument("name", nargs="?", default=NAME)
    parser.add_argument("--rounds", type=int, help="stop after this number of writes")
    parser.add_argument("--smoke", action="store_true", help="act as both terminals, and check")
    options = parser.parse_args()
    if options.smoke:
        smoke()
    elif options.command is None:
        parser.error("the command must be create or attach")
    else:
        with suppress(KeyboardInterrupt):
            {"create": create, "attach": attach}[options.command](options.name, options.rounds)


if __name__ == "__main__":
    main()
