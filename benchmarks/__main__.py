"""Run measurements: ``python -m benchmarks [NAME ...] [--quick]``.

``python -m benchmarks compare PATH``  compare this checkout with another one
``python -m benchmarks peers``         compare with other libraries and with the limits
``python -m benchmarks page FILE``     write the page of benchmarks from the figures of `peers`
``python -m benchmarks cluster``       compare a pool on a Dask cluster with Dask itself

Each of these four has a ``--help`` of its own.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

COMMANDS = ("compare", "peers", "page", "cluster")


def main() -> None:
    """Run a command, the named measurements, or all measurements."""
    # Why: an exception ends all processes and removes all files; the signal's default does not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
        return
    from benchmarks.single import ALL

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ALL))
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    options = parser.parse_args()
    unknown = set(options.names) - set(ALL)
    if unknown:
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    for name in options.names or ALL:
        print(f"== {name}: {ALL[name].__doc__.splitlines()[0]}")
        ALL[name](quick=options.quick)
        print(flush=True)


main()
