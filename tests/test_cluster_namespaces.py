"""Hosts that share no memory and no network with the client, beyond a cable each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed")
from tests import separate_hosts

ROOT = Path(__file__).parent.parent


def may_unshare() -> bool:
    """Return whether this user can make the namespaces, and has the programs for it."""
    try:
        command = [*separate_hosts.COMMAND, "ip", "link", "set", "lo", "up"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.stress
def test_hosts_in_namespaces_of_their_own(tmp_path: Path, stress_seed: int) -> None:
    """All calls are right, whoever is killed or cut off; nothing is left in any namespace."""
    if not may_unshare():
        pytest.skip("needs root, unshare and ip")
    command = [*separate_hosts.COMMAND, sys.executable, "-m", "tests.separate_hosts"]
    command += [str(tmp_path), str(stress_seed)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=280, check=False
    )
    print(done.stdout)
    assert done.returncode == 0
    parts: dict[str, dict[str, Any]] = {}
    for line in done.stdout.splitlines():
        parts |= json.loads(line)
    assert parts["wire"]["ratio"] <= 1.1
    assert parts["killed client"]["seconds"] <= 5
    # Why: the first result waits until the connection has failed, and the others do not.
    assert parts["behind the scheduler"]["seconds"] < 5
