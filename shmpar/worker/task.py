"""The progress of a submitted call, and the wish to cancel it, in a few bytes of shared memory.

Guarantees
----------
- A reader gets all parts of one update. There are two records, and a counter of updates: a writer
  fills the record that the counter does not name, then counts. So a process that is killed in
  between leaves the earlier update.
- An update sends no message, so a function may report as often as it likes.
"""

from __future__ import annotations

import threading
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

NBYTES = 4096
"""Bytes of memory that a task needs."""

_CANCELLED = 8  # The counter, an int64, lies before it.
_RECORDS = 16
_RECORD = (NBYTES - _RECORDS) // 2
_LENGTH = 4  # bytes of the length in front of a text
_MESSAGE = 300  # characters of a message, of which each takes 6 bytes at most
_ERRORS = "surrogatepass"  # Why: a message may hold the name of a file.
_MOST = 2**63  # Why: a larger int becomes a float, so that its digits fit into a record.
_LOOKS = 100  # Why a bound: a function that always reports must not keep its reader.


class Progress(NamedTuple):
    """The latest report of a call that was submitted.

    Attributes
    ----------
    current : int or float
        How far the function is.
    total : int or float or None
        The value of `current` at the end, if the function has told it.
    message : str
        The text of the function.
    """

    current: float = 0
    total: float | None = None
    message: str = ""


class Task:
    """The argument ``task`` of a function that was submitted.

    A function gets it that has a parameter named ``task``, unless the caller passes one.

    Parameters
    ----------
    memory : ndarray
        Zeros of the dtype uint8, ``NBYTES`` of them, that all processes concerned can write.

    Examples
    --------
    >>> task = Task(np.zeros(NBYTES, "u1"))
    >>> task.update(3, 10, "denoise")
    >>> task.update(4)
    >>> task.read()
    Progress(current=4, total=10, message='denoise')
    >>> task.cancelled
    False
    """

    def __init__(self, memory: Array) -> None:
        self._memory = memory
        # Why a plain view: it stays valid when the pool, and with it the shared array, is closed.
        self._bytes = memory.view(np.ndarray)
        self._count = self._bytes[:_CANCELLED].view(np.int64)
        self._latest = Progress()
        # Lock: held while a record is written. The threads of a function may report at once.
        self._writing = threading.Lock()

    @property
    def cancelled(self) -> bool:
        """True after ``future.cancel()``: the function should clean up, and return or raise."""
        return bool(self._bytes[_CANCELLED])

    def update(
        self,
        current: float | None = None,
        total: float | None = None,
        message: str | None = None,
    ) -> None:
        """Report the progress, which the caller reads as ``future.progress``.

        Parameters
        ----------
        current, total : int or float, optional
            How far the function is, and the value of `current` at the end.
        message : str, optional
            A text for people. Its first 300 characters are kept.

        Raises
        ------
        TypeError
            If a part has another type.

        Notes
        -----
        A part that is None stays as it is. Cost: some microseconds; nothing is sent.
        """
        if message is not None and not isinstance(message, str):
            raise TypeError(f"the message of a task is a str, not {message!r}")
        new = Progress(
            _number("current", current, 0), _number("total", total), (message or "")[:_MESSAGE]
        )
        import json  # Why here: few functions report.

        given = [part is not None for part in (current, total, message)]
        with self._writing:
            parts = zip(given, new, self._latest, strict=True)
            latest = Progress._make(part if is_new else old for is_new, part, old in parts)
            self._write(json.dumps(latest, ensure_ascii=False).encode(errors=_ERRORS))
            self._latest = latest

    def _write(self, text: bytes) -> None:
        count = int(self._count[0]) + 1
        record = self._record(count)
        record[_LENGTH : _LENGTH + len(text)] = np.frombuffer(text, np.uint8)
        record[:_LENGTH].view(np.int32)[0] = len(text)
        # Invariant: the record is whole before the counter names it.
        self._count[0] = count

    def _record(self, count: int) -> Array:
        start = _RECORDS + count % 2 * _RECORD
        return self._bytes[start : start + _RECORD]

    def read(self) -> Progress:
        """Return the latest report; call it in the process that submitted the function."""
        import json

        for _ in range(_LOOKS):
            count = int(self._count[0])
            if count == 0:
                break
            record = self._record(count)
            length = int(record[:_LENGTH].view(np.int32)[0])
            text = record[_LENGTH : _LENGTH + length].tobytes()
            # Invariant: the record of this count is written again only after the next count.
            if int(self._count[0]) == count:
                return Progress._make(json.loads(text.decode(errors=_ERRORS)))
        return Progress()

    def cancel(self) -> None:
        """Ask the function to stop."""
        self._bytes[_CANCELLED] = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Task, (self._memory,)


def _number(name: str, value: Any, default: Any = None) -> Any:
    """Return a number of Python, which JSON can hold."""
    if value is None:
        return default
    if isinstance(value, Integral) and abs(int(value)) < _MOST:
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{name} of a task is a number, not {value!r}")
