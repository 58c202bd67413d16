"""The command doctor: all checks, one after the other, and what they say together.

Imports the checks, answer, segments and tables beside it.

Guarantees
----------
A check that fails is a problem that was found, and does not end the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

from shmpar.cli import checks
from shmpar.cli.answer import Answer, Problem, Section
from shmpar.cli.segments import found
from shmpar.cli.tables import columns, count

__all__ = ["examine"]


def examine() -> Answer:
    """Look at everything.  Cost: a worker is started, a few tenths of a second."""
    before = found()  # whatever makes a name or a pool removes those of the dead
    sections = [
        _checked(check)
        for check in (
            checks.versions,
            checks.workers,
            checks.descriptors,  # before a pool raises the limit
            checks.trial,
            checks.tickets,
            checks.memory,
            checks.shared_memory,
            checks.places,
            partial(checks.segments, before),
        )
    ]
    problems = [problem for section in sections for problem in section.problems]
    return Answer(_text(sections, problems), _data(sections, problems), 1 if problems else 0)


def _checked(check: Callable[[], Section]) -> Section:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a doctor that fails says where
        name = getattr(check, "__name__", "segments")
        what = f"looking at {name} failed: {type(error).__name__}: {error}"
        return Section(name, name.capitalize(), (), (Problem(what, "report it, with all of this"),))


def _data(sections: list[Section], problems: list[Problem]) -> dict[str, Any]:
    found_wrong = [{"what": one.what, "advice": one.advice} for one in problems]
    facts = {section.key: {one.key: one.value for one in section.facts} for section in sections}
    return {"ok": not problems, "problems": found_wrong, **facts}


def _text(sections: list[Section], problems: list[Problem]) -> str:
    facts = [(section.title, fact) for section in sections for fact in section.facts if fact.label]
    aligned = columns([(f"  {fact.label}", fact.text) for _, fact in facts])
    titled = zip((title for title, _ in facts), aligned, strict=True)
    lines: list[str] = []
    for title, group in groupby(titled, key=itemgetter(0)):
        lines += [title, *(line for _, line in group), ""]
    return "\n".join([*lines, *_wrong(problems)])


def _wrong(problems: list[Problem]) -> list[str]:
    if not problems:
        return ["Nothing is wrong."]
    lines = [f"{count(len(problems), 'problem')}:"]
    for number, one in enumerate(problems, 1):
        lines += [f"  {number}. {one.what}", f"     What to do: {one.advice}."]
    return lines
