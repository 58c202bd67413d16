"""The arguments of ``python -m shmpar``, and what its answers are printed as.

Imports the commands beside it.

Guarantees
----------
An answer is printed whole, in one piece; with ``--json`` it is one JSON object and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from shmpar.cli.answer import Answer
from shmpar.cli.doctor import examine
from shmpar.cli.segments import clean, listing
from shmpar.version import __version__

__all__ = ["main"]

Command = Callable[[argparse.Namespace], Answer]

_INTERRUPTED = 130  # what a shell says of Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of this process.

    Returns
    -------
    int
        The exit code: 0 if all is well, 1 if a problem was found.

    Raises
    ------
    SystemExit
        With code 2 for arguments that cannot be, with 0 after ``--help`` and ``--version``.
    """
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        answer = command(options)
        text = json.dumps(answer.data, indent=2) if options.json else answer.text
        _print(text)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return answer.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shmpar", description="Look after shmpar on this machine."
    )
    parser.add_argument("--version", action="version", version=f"shmpar {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", title="commands")
    _add(
        commands,
        "doctor",
        lambda _: examine(),
        "say what this machine gives to shmpar, and what is wrong; exit code 1 if anything is",
    )
    _add(
        commands,
        "ls",
        lambda _: listing(),
        "list your named segments, with who made them and whether that process is alive",
    )
    cleaning = _add(
        commands,
        "clean",
        lambda options: clean(dry_run=options.dry_run),
        "remove the named segments of your processes that died; what is alive stays",
    )
    cleaning.add_argument(
        "-n", "--dry-run", action="store_true", help="only say what would be removed"
    )
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Command,
    about: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=about.capitalize() + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=command)
    return parser


def _print(text: str) -> None:
    """Print on whatever standard output is: a terminal of another encoding, a pipe that closed."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough; what is left must not be flushed at exit
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
