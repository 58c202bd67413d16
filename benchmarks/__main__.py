"""Run measurements: ``python -m benchmarks [NAME ...] [--quick]``; without a name, all of them."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

COMMANDS = ("compare", "peers", "page", "cluster")


def summary(documented: object) -> str:
    """Return the first line of a docstring."""
    return (documented.__doc__ or "").splitlines()[0]


def main() -> None:
    """Run a command, the named measurements, or all measurements."""
    # Why: an exception ends all processes and removes all files; the signal's default does not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
        return
    from benchmarks.single import ALL

    commands = {name: importlib.import_module(f"benchmarks.{name}") for name in COMMANDS}
    lines = ["measurements:", *(f"  {name:14} {summary(one)}" for name, one in ALL.items())]
    lines += ["", "programs with a --help of their own:"]
    lines += [f"  {name:14} {summary(one)}" for name, one in commands.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a measurement of this list")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    options = parser.parse_args()
    unknown = set(options.names) - set(ALL)
    if unknown:
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    for name in options.names or ALL:
        print(f"== {name}: {summary(ALL[name])}")
        ALL[name](quick=options.quick)
        print(flush=True)


main()
