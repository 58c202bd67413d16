"""Medians, quartiles and ratios of what was kept."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]


def values(record: Record) -> list[float]:
    """What was measured, in seconds or bytes."""
    return record.get("seconds") or record.get("bytes") or []


def median(record: Record) -> float:
    """The middle."""
    return statistics.median(values(record))


def quartiles(record: Record) -> tuple[float, float]:
    """The middle half of all values lies between these."""
    numbers = values(record)
    if len(numbers) < 3:
        return min(numbers), max(numbers)
    low, _, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return low, high


def ratio(one: Record, other: Record) -> float:
    """How many times longer one took than the other a chunk: the median over their rounds.

    Calls of a round are next to each other in time; where only one of the two was called in a
    round, that round does not count.
    """
    scale = other.get("chunks", 1) / one.get("chunks", 1)
    theirs = _by_round(other)
    pairs = [(value, theirs[n]) for n, value in _by_round(one).items() if n in theirs]
    if not pairs:  # one of the two failed at first
        return median(one) / median(other) * scale
    return statistics.median(a / b for a, b in pairs) * scale


def _by_round(record: Record) -> dict[int, float]:
    """What was measured in each round; of a round that comes twice, the later."""
    numbers = values(record)
    return dict(zip(record.get("rounds", range(len(numbers))), numbers, strict=True))


def rounded(record: Record) -> Record:
    """Four digits are more than there is to know; medians and quartiles beside the values."""
    if not values(record):
        return record
    unit = "seconds" if "seconds" in record else "bytes"
    digits = [float(f"{value:.4g}") for value in record[unit]]
    record = {**record, unit: digits}
    low, high = quartiles(record)
    return {**record, "median": median(record), "quartiles": [low, high]}


def show(value: float, unit: str) -> str:
    """A number that is easy to read."""
    if unit == "bytes":
        return f"{value / 1e6:.0f} MB"
    for size, name in ((1, "s"), (1e-3, "ms")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value / 1e-6:.3g} µs"


def table(records: Iterable[Record]) -> str:
    """A line a record, for the terminal."""
    lines, point = [], None
    for record in records:
        if record["point"] != point:
            point = record["point"]
            lines.append("  " + ", ".join(f"{key} {value}" for key, value in point.items()))
        lines.append(f"    {record['system']:26} {record['way']:8}" + _figures(record))
    return "\n".join(lines)


def _figures(record: Record) -> str:
    if "skipped" in record:
        return record["skipped"]
    unit = "bytes" if "bytes" in record else "seconds"
    low, high = quartiles(record)
    text = f"{show(median(record), unit):>9}   {show(low, unit)} to {show(high, unit)}"
    if record.get("chunks", 0) > 1:
        text += f"   {median(record) / record['chunks'] * 1e6:.3g} µs a chunk"
    return text


def find(records: Sequence[Record], **wanted: Any) -> list[Record]:
    """Records that have these values, at the top or in their point."""
    return [
        record
        for record in records
        if all(record.get(k, record["point"].get(k)) == v for k, v in wanted.items())
    ]
