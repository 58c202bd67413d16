"""Text for people: sizes, ages, and columns that are aligned.

Imports nothing of the package.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["age", "columns", "count", "printable", "size"]

_STEP = 1024
_MINUTE, _HOUR, _DAY = 60, 3600, 86400  # seconds


def size(nbytes: int) -> str:
    """Bytes as people read them.

    Examples
    --------
    >>> [size(n) for n in (0, 1023, 1024, 1536, 64 << 20, 1 << 40)]
    ['0 B', '1023 B', '1.0 KiB', '1.5 KiB', '64.0 MiB', '1.0 TiB']
    """
    if nbytes < _STEP:
        return f"{nbytes} B"
    value, units = float(nbytes), iter(("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    while value >= _STEP:
        value, unit = value / _STEP, next(units)
    return f"{value:.1f} {unit}"


def age(seconds: float | None) -> str:
    """Time as people say it, in its largest unit; ``-`` if it is not known.

    Examples
    --------
    >>> [age(t) for t in (None, 0.4, 59, 60, 7300, 200_000)]
    ['-', '0 s', '59 s', '1 min', '2 h', '2 d']
    """
    if seconds is None:
        return "-"
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return f"{max(0, int(seconds))} s"


def count(number: int, noun: str) -> str:
    """How many, with the noun's plural.

    Examples
    --------
    >>> count(1, "segment"), count(2, "segment")
    ('1 segment', '2 segments')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(name: str) -> str:
    r"""A file name with what a terminal would obey or not show escaped.

    Examples
    --------
    >>> printable("temperatures"), printable("a\tb")
    ('temperatures', 'a\\tb')
    """
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def columns(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """Rows of text in aligned columns, two spaces between them.

    Parameters
    ----------
    rows : sequence of sequence of str
        Of one length.
    right : collection of int
        Columns that end, rather than begin, at one place.

    Examples
    --------
    >>> columns([("NAME", "SIZE"), ("a", "1 B")], right={1})
    ['NAME  SIZE', 'a      1 B']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if number in right else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
