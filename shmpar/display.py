"""Sizes, durations and tables as text, and tables and bars in HTML, for notebooks and reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_ONE_DECIMAL = 99.95  # numbers from here on have no decimals
_MAX_NAME = 40  # characters of a function's name

_SIZES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_DURATIONS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_RATES = ((1.0, "GB/s"), (1e-3, "MB/s"), (1e-6, "kB/s"), (1e-9, "B/s"))
_SIDES = {"<": "left", ">": "right"}
# Why: Okabe and Ito's colours stay distinct for colour-blind readers, on white and on black.
BLUE, GREEN, ORANGE = "#0072b2", "#009e73", "#d55e00"


def _in_units(value: float, units: Sequence[tuple[float, str]]) -> str:
    """Write a number in the largest unit that fits.

    Examples
    --------
    >>> _in_units(0.25, ((1.0, "s"), (1e-3, "ms")))
    '250 ms'
    """
    # Why: 0.9995, so that a value that would be rounded up to 1000 ms is written as 1.0 s.
    unit, name = next((one for one in units if value >= 0.9995 * one[0]), units[-1])
    scaled = value / unit
    digits = 0 if scaled >= _ONE_DECIMAL or scaled == int(scaled) else 1
    return f"{scaled:.{digits}f} {name}"


def format_bytes(nbytes: float) -> str:
    """Write a number of bytes in the largest binary unit that fits.

    Examples
    --------
    >>> [format_bytes(n) for n in (0, 1023, 1536, 64 << 20, 800e6)]
    ['0 B', '1023 B', '1.5 KiB', '64 MiB', '763 MiB']
    """
    return _in_units(nbytes, _SIZES)


def format_seconds(value: float) -> str:
    """Write a duration in the largest unit that fits.

    Examples
    --------
    >>> [format_seconds(s) for s in (0, 1.26e-6, 0.000342, 0.0125, 4, 754, 200_000)]
    ['0 s', '1.3 us', '342 us', '12.5 ms', '4 s', '12.6 min', '2.3 d']
    """
    return _in_units(value, _DURATIONS) if value else "0 s"


def format_rate(gigabytes: float) -> str:
    """Write a rate, which is given in gigabytes (10**9) per second, in the largest unit that fits.

    Examples
    --------
    >>> format_rate(3.12e-6), format_rate(0.0312), format_rate(12.34), format_rate(234.5)
    ('3.1 kB/s', '31.2 MB/s', '12.3 GB/s', '234 GB/s')
    """
    return _in_units(gigabytes, _RATES)


def format_table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Return the lines of a table; `align` has one ``<`` (left) or ``>`` (right) per column.

    Examples
    --------
    >>> format_table([("NAME", "SIZE"), ("a", "1 B")], "<>")
    ['NAME  SIZE', 'a      1 B']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True))
    return [line.format(*row).rstrip() for row in rows]


def format_call(verb: str, function: str) -> str:
    """Write a call with the name of its function, cut if it is long.

    Examples
    --------
    >>> format_call("map_blocks", "sqrt"), format_call("map_blocks", "")
    ('map_blocks(sqrt)', 'map_blocks')
    """
    name = function if len(function) <= _MAX_NAME else f"{function[: _MAX_NAME - 3]}..."
    return f"{verb}({name})" if name else verb


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
