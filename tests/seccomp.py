"""Filters of the kernel that refuse system calls of this process and of those that it starts."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from typing import NamedTuple

_X86 = platform.machine() == "x86_64"
SUPPORTED = os.uname().sysname == "Linux" and platform.machine() in {"x86_64", "aarch64"}

_ARCH = 0xC000003E if _X86 else 0xC00000B7
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_FCNTL = 72 if _X86 else 25


class Rule(NamedTuple):
    """A system call, perhaps only with some bits in one of its arguments."""

    number: int
    argument: int = -1
    mask: int = 0
    value: int = 0


def _fcntl(*commands: int) -> list[Rule]:
    return [Rule(_FCNTL, 1, 0xFFFFFFFF, command) for command in commands]


# Each optional call; the numbers are those of x86-64 and of aarch64.
RULES: dict[str, list[Rule]] = {
    "pidfd_open": [Rule(434)],
    "pidfd_send_signal": [Rule(424)],
    "eventfd": [Rule(290 if _X86 else 19)],
    "fallocate": [Rule(285 if _X86 else 47)],
    "setpgid": [Rule(109 if _X86 else 154)],
    "prlimit": [Rule(302 if _X86 else 261)],
    "sched_getaffinity": [Rule(204 if _X86 else 123)],
    "memfd_create": [Rule(319 if _X86 else 279)],
    "O_TMPFILE": [Rule(257 if _X86 else 56, 2, 0o20000000, 0o20000000)],
    "F_ADD_SEALS": _fcntl(1033),
    "F_GET_SEALS": _fcntl(1034),
    "F_OFD_SETLK": _fcntl(37, 38),
    "F_SETSIG": _fcntl(10),
    "F_SETOWN": _fcntl(8),
    "F_SETLK": _fcntl(6, 7),
    "flock": [Rule(73 if _X86 else 32)],
    "link": [Rule(265 if _X86 else 37), *([Rule(86)] if _X86 else [])],
    "SOCK_SEQPACKET": [Rule(53 if _X86 else 199, 1, 0xF, 5)],
    "epoll_create1": [Rule(291 if _X86 else 20)],
    "close_range": [Rule(436)],
    "copy_file_range": [Rule(326 if _X86 else 285)],
    "process_madvise": [Rule(440)],
    "madvise": [Rule(28 if _X86 else 233)],
    "getrandom": [Rule(318 if _X86 else 278)],
    "fstatfs": [Rule(138 if _X86 else 44)],
    "fchmod": [Rule(91 if _X86 else 52)],
    "clone3": [Rule(435)],
    **({"vfork": [Rule(58)]} if _X86 else {}),
}


def refusable(error: int) -> list[str]:
    """Return the calls that may be refused with this error; Python and libc fail at others."""
    kernel = {errno.ENOSYS, errno.EPERM}
    answers = {"clone3": {errno.ENOSYS}, "sched_getaffinity": kernel, "getrandom": kernel}
    return sorted(name for name in RULES if error in answers.get(name, {error}))


def refuse(names: Iterable[str], error: int) -> None:
    """Answer these calls with an error from now on; the process cannot undo it.

    Call this before the first thread starts: other threads would keep the calls.
    """
    rules = [rule for name in names for rule in RULES[name]]
    libc = ctypes.CDLL(None, use_errno=True)
    code = _program(rules, error)
    memory = ctypes.create_string_buffer(code)
    pointer = ctypes.addressof(memory)
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, pointer))
    zero = ctypes.c_ulong(0)
    if libc.prctl(_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero):
        raise OSError(ctypes.get_errno(), "no new privileges")
    if libc.prctl(_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), program):
        raise OSError(ctypes.get_errno(), "the filter was not installed")
    for rule in rules:
        arguments = [ctypes.c_long(-1 if at != rule.argument else rule.value) for at in range(4)]
        if libc.syscall(ctypes.c_long(rule.number), *arguments) != -1:
            raise AssertionError(f"{rule} is not refused")
        if ctypes.get_errno() != error:
            raise AssertionError(f"{rule} is answered with {os.strerror(ctypes.get_errno())}")


def _program(rules: list[Rule], error: int) -> bytes:
    """Return the filter: a list of instructions of 8 bytes."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("@HBBI", code, yes, no, value)

    # Why the architecture: another one has other numbers, and nothing is refused there.
    steps = [step(_LOAD, 4), step(_EQUAL, _ARCH, 1, 0), step(_RETURN, _ALLOW)]
    for rule in rules:
        steps.append(step(_LOAD, 0))
        if rule.argument < 0:
            steps.append(step(_EQUAL, rule.number, 0, 1))
        else:
            steps.append(step(_EQUAL, rule.number, 0, 4))
            steps.append(step(_LOAD, 16 + 8 * rule.argument))  # its lower half
            steps.append(step(_AND, rule.mask))
            steps.append(step(_EQUAL, rule.value, 0, 1))
        steps.append(step(_RETURN, _ERRNO | error))
    return b"".join([*steps, step(_RETURN, _ALLOW)])
