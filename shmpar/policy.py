"""What the user wants of a run besides its result.

Imports nothing of the package.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

__all__ = ["Observer", "Policy"]


class Policy(NamedTuple):
    """What becomes of a run when something goes wrong.

    Attributes
    ----------
    on_error : {"raise", "collect", "fill"}
        Stop at the first failure; compute the rest and raise all; or fill their windows.
    fill_value : object
        For ``"fill"``; None is NaN or NaT.
    retries : int
        How often a chunk whose worker died is computed again.
    task_timeout : float or None
        Seconds that a chunk may take.
    in_place : bool
        The output is the input: a chunk that was begun cannot be computed again.
    check : bool
        Verify at the end that every window was written once, and nothing else.
    """

    on_error: str = "raise"
    fill_value: Any = None
    retries: int = 1
    task_timeout: float | None = None
    in_place: bool = False
    check: bool = False


class Observer(Protocol):
    """Is told how far a run is."""

    def update(self, done: int, total: int) -> None:
        """Take the chunks that are settled, and all of them."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...
