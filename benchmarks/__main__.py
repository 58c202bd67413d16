"""Run measurements: ``python -m benchmarks [NAME ...] [--quick]``.

``python -m benchmarks peers --help`` compares with other libraries and with the limits;
``python -m benchmarks page FILE`` makes a page of what that kept.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import all_verbs, anatomy, limits, main_job

ALL = {**main_job.ALL, **all_verbs.ALL, **anatomy.ALL, **limits.ALL}


def main() -> None:
    """Run those that are named, or all."""
    if sys.argv[1:2] == ["peers"]:
        from benchmarks.peers import command

        command.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["page"]:
        from benchmarks.peers import page

        page.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
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
