"""One array in two terminals: what either process writes, the other one sees.

    python examples/two_terminals.py create                # in the first terminal
    python examples/two_terminals.py attach shmpar_demo    # in the second one

The array lies in memory once, under a name.  Ctrl-C ends either; the creator takes the name along.
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
CREATOR, ATTACHED = 0, 1  # rows: each process writes one of its own
SECONDS = 0.2  # between two looks at the array


def say(text: str) -> None:
    """Print at once, into a pipe too."""
    print(text, flush=True)


def talk(array: Any, mine: int, theirs: int, rounds: int | None) -> None:
    """Write the own row, print the other one's whenever it has changed."""
    seen = array[theirs].copy()
    count = 0
    while rounds is None or count < rounds:
        count += 1
        array[mine, count % array.shape[1]] = count
        time.sleep(SECONDS)
        if not np.array_equal(array[theirs], seen):
            seen = array[theirs].copy()
            say(f"the other one wrote {seen.astype(int).tolist()}")


def create(name: str, rounds: int | None) -> None:
    """Make the array; its name goes when the block ends, however it ends."""
    try:
        array = shmpar.zeros(SHAPE, name=name)
    except FileExistsError:
        raise SystemExit(
            f"the name {name!r} is taken: another 'create' is running; choose another name\n"
            "(if it was killed, it could not clean up: the next shmpar.Pool() does that)"
        ) from None
    with array:
        say(f"created {array.name!r}: shape {array.shape}, {array.dtype}. In another terminal:")
        say(f"    python {sys.argv[0]} attach {array.name}")
        with suppress(KeyboardInterrupt):
            talk(array, CREATOR, ATTACHED, rounds)
    say("\nremoved the name; the memory goes with the last process that uses it")


def attach(name: str, rounds: int | None) -> None:
    """Find the array; leaving takes nothing away from the creator."""
    try:
        array = shmpar.attach(name, SHAPE, float)
    except shmpar.SegmentGone:
        raise SystemExit(
            f"there is no array {name!r}; start this first, in another terminal:\n"
            f"    python {sys.argv[0]} create {name}"
        ) from None
    say(f"attached {name!r}: shape {array.shape}, {array.dtype}")
    with suppress(KeyboardInterrupt):
        talk(array, ATTACHED, CREATOR, rounds)
    say("\nleft; the array is still there for its creator")


def smoke() -> None:
    """Play both terminals: attach too early, create, attach, leave first, Ctrl-C."""
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
        said, complaints = creator.communicate(timeout=60)
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
    fine = {
        "attach before create is explained": early.returncode == 1 and "first" in early.stderr,
        "the second saw the first": "the other one wrote" in second.stdout,
        "the first saw the second": "the other one wrote" in said,
        "both ended without a complaint": (second.stderr + complaints).strip() == ""
        and (second.returncode, creator.returncode) == (0, 0),
        "nothing is left": gone,
    }
    for what, held in fine.items():
        print(f"{'ok' if held else 'NOT OK':<8}{what}")
    if not all(fine.values()):
        raise SystemExit(second.stderr + complaints + "two terminals do not agree")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=["create", "attach"])
    parser.add_argument("name", nargs="?", default=NAME)
    parser.add_argument("--rounds", type=int, help="stop by itself after so many writes")
    parser.add_argument("--smoke", action="store_true", help="play both terminals, and check")
    options = parser.parse_args()
    if options.smoke:
        smoke()
    elif options.command is None:
        parser.error("say create or attach")
    else:
        with suppress(KeyboardInterrupt):
            {"create": create, "attach": attach}[options.command](options.name, options.rounds)


if __name__ == "__main__":
    main()
