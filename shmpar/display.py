"""Sizes as text, and tables in HTML, for notebooks and reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ONE_DECIMAL = 99.95
"""Numbers from here on have no decimals."""

_SIZES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_SIDES = {"<": "left", ">": "right"}
# Why: Okabe and Ito's colours stay distinct for colour-blind readers, on white and on black.
BLUE, GREEN, ORANGE = "#0072b2", "#009e73", "#d55e00"


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
    style = "padding:0.1em 0.8em 0.1em 0;vertical-align:top;text-align:{1}"
    cell = f"<{{0}} style='{style}'>{{2}}</{{0}}>"
    parts = ["<table style='margin:0.4em 0'>"]
    for tag, row in (*([("th", head)] if head else []), *[("td", row) for row in rows]):
        cells = zip(align, row, strict=True)
        parts += ["<tr>", *[cell.format(tag, _SIDES[side], text) for side, text in cells], "</tr>"]
    return "".join([*parts, "</table>"])


def html_progress(value: int, total: int, style: str, *, bad: bool = False) -> str:
    """Return a bar: blue, green when it is complete, orange if chunks failed or are missing.

    Examples
    --------
    >>> html_progress(2, 3, "width:9em")
    "<progress value='2' max='3' style='width:9em;accent-color:#0072b2'></progress>"
    """
    colour = ORANGE if bad else GREEN if value >= total else BLUE
    value, most = (value, total) if total else (1, 1)
    style = f"{style};accent-color:{colour}"
    return f"<progress value='{value}' max='{most}' style='{style}'></progress>"
