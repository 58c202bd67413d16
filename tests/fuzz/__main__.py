"""Run a target on random bytes: ``python -m tests.fuzz {address,ledger} --seconds N [--seed N]``.

With atheris the coverage guides the search. With ``--blind``, or without atheris, bytes are changed
at random. The output counts the calls and the accepted inputs; a finding is a traceback, or a
signal that ends the process.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=["address", "ledger"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blind", action="store_true")
    options = parser.parse_args()
    guide = None if options.blind else _atheris()
    if guide is None:
        from tests.fuzz import targets
    else:
        with guide.instrument_imports(include=["shmpar", "tests.fuzz"]):
            from tests.fuzz import targets
    made = targets.AddressTarget() if options.target == "address" else targets.LedgerTarget()
    findings = tempfile.gettempdir()
    with targets.watched_opens() as wrong:
        target = _Counted(made, wrong, options.seconds, "blind" if guide is None else "guided")
        if guide is None:
            _blind(target, options.seed)
        else:
            flags = [f"-seed={options.seed}", "-verbosity=0", "-max_len=512"]
            guide.Setup([sys.argv[0], *flags, f"-artifact_prefix={findings}/"], target)
            guide.Fuzz()


def _atheris() -> Any:
    try:
        import atheris
    except ImportError:
        return None
    return atheris


class _Counted:
    """A target that counts its calls, and exits the process at the deadline."""

    def __init__(self, target: Any, wrong: list[str], seconds: float, how: str) -> None:
        self._target, self._wrong, self._how = target, wrong, how
        self._until = time.monotonic() + seconds
        self._home = getattr(target, "path", "\0")  # path that the target itself opens
        self._calls = 0

    def __call__(self, data: bytes) -> None:
        if time.monotonic() > self._until:
            self._end()
        self._calls += 1
        try:
            self._target(data)
        except BaseException:
            print(f"finding: {data!r}", file=sys.stderr)
            raise
        strays = [one for one in self._wrong if not one.startswith(self._home)]
        assert not strays, f"opened {strays} for {data!r}"
        self._wrong.clear()

    def _end(self) -> None:
        self._target.close()
        name, accepted = type(self._target).__name__, self._target.accepted
        print(f"{name}, {self._how}: {self._calls} calls, {accepted} accepted, no finding")
        sys.stdout.flush()
        os._exit(0)  # Why: libFuzzer reports any other exit as a finding


def _blind(target: _Counted, seed: int) -> None:
    rng = random.Random(seed)
    kept = [bytes(8), b"\1{}"]
    while True:
        data = bytearray(rng.choice(kept))
        for _ in range(rng.randrange(1, 8)):
            place = rng.randrange(len(data) + 1)
            data[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(5))
        target(bytes(data[:512]))
        if rng.random() < 0.01:
            kept = [*kept[-200:], bytes(data)]


if __name__ == "__main__":
    main()
