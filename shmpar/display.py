"""Sizes as text, and tables in HTML, for notebooks and reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ONE_DECIMAL = 99.95
"""Numbers from here on have no decimals."""

_SIZES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_SIDES = {"<": "left", ">": "right"}


def in_units(value: float, units: Sequence[tuple[float, str]]) -> str:
    """Write a number in the largest unit that fits.

    Examples
    --------
    >>> in_units(0.25, ((1.0, "s"), (1e-3, "ms")))
    '250 ms'
    """
    # Why: 0.9995, so that a value that would be rounded up to 1000 ms is written as 1.0 s.
    unit, name = next((one for one in units if value >= 0.9995 * one[0]), units[-1])
    scaled = value / unit
    digits = 0 if scaled >= ONE_DECIMAL or scaled == int(scaled) else 1
    return f"{scaled:.{digits}f} {name}"


def format_bytes(nbytes: float) -> str:
    """Write a number of bytes in the largest binary unit that fits.

    Examples
    --------
    >>> [format_bytes(n) for n in (0, 1023, 1536, 64 << 20, 800e6)]
    ['0 B', '1023 B', '1.5 KiB', '64 MiB', '763 MiB']
    """
    return in_units(nbytes, _SIZES)


def html_table(rows: Iterable[Sequence[str]], align: str, head: Sequence[str] = ()) -> str:
    """Return a table of cells that hold HTML; `align` has one ``<`` or ``>`` per column.

    Invariant: the caller has escaped every text that the user's code has named.

    Examples
    --------
    >>> html_table([("shape", "(2, 3)")], "<<").count("<td ")
    2
    """
    cell = "<{0} style='padding:0.1em 0.8em 0.1em 0;text-align:{1}'>{2}</{0}>"
    parts = ["<table style='margin:0.4em 0'>"]
    for tag, row in (*([("th", head)] if head else []), *[("td", row) for row in rows]):
        cells = zip(align, row, strict=True)
        parts += ["<tr>", *[cell.format(tag, _SIDES[side], text) for side, text in cells], "</tr>"]
    return "".join([*parts, "</table>"])
