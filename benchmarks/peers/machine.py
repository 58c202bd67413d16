"""What the figures were measured on, without a name of it."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any


def _meminfo(key: str) -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key + ":"))


def available() -> int:
    """Bytes that new processes may take."""
    return _meminfo("MemAvailable")


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, Any]:
    """CPU, cores, memory, kernel, Python."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": cores(),
        "memory_gb": round(_meminfo("MemTotal") / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "virtual": _virtual(),
    }


def _virtual() -> bool:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return " hypervisor" in file.read()


def load() -> float:
    """Processes that wanted to run in the last minute."""
    return round(os.getloadavg()[0], 2)


def commit() -> str:
    """The commit of this repository that is measured, if git knows."""
    here = os.path.dirname(os.path.abspath(__file__))
    order = ["git", "-C", here, "describe", "--always", "--dirty"]
    try:
        return subprocess.run(order, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
