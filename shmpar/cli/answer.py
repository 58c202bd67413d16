"""What a command found out.

Imports nothing of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "Fact", "Problem", "Section"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command says.

    Attributes
    ----------
    text : str
        For people; no newline at the end.
    data : dict
        The same as JSON; sizes in bytes, times in seconds.
    code : int
        Exit code.
    """

    text: str
    data: dict[str, Any]
    code: int = 0


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that is so.

    Attributes
    ----------
    key : str
        Its name in JSON.
    label : str
        Its name for people; empty for what another fact's text says.
    value : object
        As JSON.
    text : str
        For people.
    """

    key: str
    label: str
    value: Any
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    what : str
        What is wrong.
    advice : str
        What to do.
    """

    what: str
    advice: str


@dataclass(frozen=True, slots=True)
class Section:
    """What belongs together.

    Attributes
    ----------
    key : str
        Its name in JSON.
    title : str
        Its name for people.
    facts : tuple of Fact
        What is so.
    problems : tuple of Problem
        What of it is wrong.
    """

    key: str
    title: str
    facts: tuple[Fact, ...]
    problems: tuple[Problem, ...] = ()
