"""Draw the pictures of the guide: ``python docs/drawings.py [DIRECTORY]``.

The script uses plain Python and writes the same bytes each time.  Each picture follows a chunk from
the array to the function, and on to the result.  Its numbers are those of the code beside it.
"""  # noqa: INP001 - a script

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from html import escape

Rows = Sequence[Sequence[object]]
Region = tuple[range, range]

CELL = 26
GAP = 14
ARROW = 62
TOP = 46  # height of the titles above the grids
FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"
INK, FAINT = "#1b2733", "#8a97a5"
CHUNK, HALO, BEYOND = "#ffc95c", "#b9dcff", "#e3d3f5"
OTHERS = ("#f1f4f7", "#dde4eb")  # the other chunks, alternating


def tints(rows: int, columns: int, chunk: tuple[int, int]) -> list[list[str]]:
    """Return the colours of an array's cells before a chunk is marked."""
    high, wide = chunk
    return [
        [OTHERS[(row // high + column // wide) % 2] for column in range(columns)]
        for row in range(rows)
    ]


def paint(colours: list[list[str]], region: Region, colour: str) -> list[list[str]]:
    """Return the colours with a region in another colour."""
    rows, columns = region
    return [
        [colour if row in rows and column in columns else old for column, old in enumerate(line)]
        for row, line in enumerate(colours)
    ]


class Strip:
    """Grids side by side on one centre line, with arrows between them."""

    def __init__(self, height: int) -> None:
        self._height = height * CELL
        self._x = GAP
        self._parts: list[str] = []

    def grid(
        self,
        title: str,
        values: Rows,
        colours: list[list[str]],
        outlines: Sequence[tuple[Region, str]] = (),
        clear: Region | None = None,
    ) -> None:
        """Draw an array; values outside of `clear`, if given, are faint."""
        width = max(len(values[0]) * CELL, 6 * max(map(len, title.split("\n"))))
        left = self._x + (width - len(values[0]) * CELL) // 2
        top = TOP + (self._height - len(values) * CELL) // 2
        for number, line in enumerate(reversed(title.split("\n"))):
            self._text(self._x + width / 2, top - 9 - 15 * number, line)
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                x, y, colour = left + column * CELL, top + row * CELL, colours[row][column]
                inside = clear is None or (row in clear[0] and column in clear[1])
                self._cell((x, y), value, colour, INK if inside else FAINT)
        for (rows, columns), dashes in outlines:
            self._outline(left, top, rows, columns, dashes)
        self._x += width + GAP

    def arrow(self, label: str) -> None:
        """Draw an arrow to the next grid."""
        middle, end = TOP + self._height / 2, self._x + ARROW
        self._text(self._x + ARROW / 2, middle - 8, label, slant="italic")
        self._parts.append(
            f"<path d='M{self._x} {middle:g}H{end - 2} m-7 -5 l7 5 l-7 5' fill='none' "
            f"stroke='{INK}' stroke-width='1.5'/>"
        )
        self._x = end + GAP

    def labels(self, lines: Sequence[str]) -> None:
        """Write a line beside each row of the next grid."""
        self._x += 7 * max(map(len, lines))
        for row, line in enumerate(lines):
            self._text(self._x, TOP + row * CELL + CELL / 2 + 4, line, anchor="end")
        self._x += GAP

    def svg(self, title: str) -> str:
        """Return the picture."""
        size = f"width='{self._x}' height='{TOP + self._height + GAP}'"
        box = f"viewBox='0 0 {self._x} {TOP + self._height + GAP}'"
        head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} {box} role='img'>"
        ground = "<rect width='100%' height='100%' fill='white'/>"
        return "\n".join(
            [head, f"<title>{escape(title)}</title>", ground, *self._parts, "</svg>\n"]
        )

    def _cell(self, at: tuple[float, float], value: object, colour: str, ink: str) -> None:
        x, y = at
        self._parts.append(
            f"<rect x='{x}' y='{y}' width='{CELL}' height='{CELL}' fill='{colour}' stroke='white'/>"
        )
        self._text(x + CELL / 2, y + CELL / 2 + 4, str(value), ink)

    def _outline(self, left: float, top: float, rows: range, columns: range, dashes: str) -> None:
        x, y = left + columns.start * CELL, top + rows.start * CELL
        self._parts.append(
            f"<rect x='{x}' y='{y}' width='{len(columns) * CELL}' height='{len(rows) * CELL}' "
            f"fill='none' stroke='{INK}' stroke-width='2' stroke-dasharray='{dashes}'/>"
        )

    def _text(self, x: float, y: float, text: str, ink: str = INK, **style: str) -> None:
        style = {"anchor": "middle", "slant": "normal", **style}
        self._parts.append(
            f"<text x='{x:g}' y='{y:g}' {FONT} font-size='11' font-style='{style['slant']}' "
            f"text-anchor='{style['anchor']}' fill='{ink}'>{escape(text)}</text>"
        )


def count(rows: int, columns: int) -> list[list[int]]:
    """Return ``np.arange(rows * columns).reshape(rows, columns)`` as lists."""
    return [list(range(row * columns, (row + 1) * columns)) for row in range(rows)]


def part(values: Rows, region: Region) -> list[list[object]]:
    """Return a window of an array."""
    return [[values[row][column] for column in region[1]] for row in region[0]]


def plain(colour: str, values: Rows) -> list[list[str]]:
    """Return the same colour for all cells."""
    return [[colour] * len(values[0]) for _ in values]


# The array of most pictures: 4 x 6 elements in chunks of 2 x 3; chunk 1 is marked.
IMAGE = count(4, 6)
CHUNKS = (2, 3)
MARKED = (range(2), range(3, 6))
CELLS = [(range(row, row + 2), range(column, column + 3)) for row in (0, 2) for column in (0, 3)]
BLOCK = part(IMAGE, MARKED)


def begin(strip: Strip, block: str = "the function receives\na block") -> None:
    """Draw the array in chunks, and the marked block."""
    cut = paint(tints(4, 6, CHUNKS), MARKED, CHUNK)
    strip.grid("the array, in chunks of 2 x 3", IMAGE, cut, [(MARKED, "")])
    strip.arrow("cut")
    strip.grid(block, BLOCK, plain(CHUNK, BLOCK))


def map_blocks() -> str:
    """Draw a function that subtracts the smallest element of a block."""
    result = [list(line) for line in IMAGE]
    for rows, columns in CELLS:
        low = IMAGE[rows.start][columns.start]
        for row in rows:
            for column in columns:
                result[row][column] -= low
    strip = Strip(4)
    begin(strip)
    strip.arrow("func")
    back = part(result, MARKED)
    strip.grid("and returns\na block", back, plain(CHUNK, back))
    strip.arrow("write back")
    cut = paint(tints(4, 6, CHUNKS), MARKED, CHUNK)
    strip.grid("the result", result, cut, [(MARKED, "")])
    return strip.svg(
        "map_blocks: the function receives a block and returns a block for the same place"
    )


def map_overlap() -> str:
    """Draw the maximum of each element and its neighbours."""
    image, last = count(6, 6), 5
    largest = [
        [image[min(row + 1, last)][min(column + 1, last)] for column in range(6)]
        for row in range(6)
    ]
    core, window = (range(2, 4), range(2, 4)), (range(1, 5), range(1, 5))
    inside = (range(1, 3), range(1, 3))  # of the core, in the window
    got = part(image, window)
    gave = [[got[min(row + 1, 3)][min(column + 1, 3)] for column in range(4)] for row in range(4)]
    around = paint(plain(HALO, got), inside, CHUNK)
    strip = Strip(6)
    cut = paint(paint(tints(6, 6, (2, 2)), window, HALO), core, CHUNK)
    strip.grid("the array, in chunks of 2 x 2", image, cut, [(core, ""), (window, "4 3")])
    strip.arrow("cut")
    strip.grid("the function receives the\nblock with a halo of 1", got, around, [(inside, "")])
    strip.arrow("func")
    title = "and returns the same shape;\nthe halo is trimmed"
    strip.grid(title, gave, around, [(inside, "")], clear=inside)
    strip.arrow("write back")
    cut = paint(tints(6, 6, (2, 2)), core, CHUNK)
    strip.grid("the result", largest, cut, [(core, "")])
    return strip.svg(
        "map_overlap: the function receives a block with its halo; the halo is trimmed"
    )


def boundaries() -> str:
    """Draw the window of the first chunk, with a line per boundary."""
    array, no = list(range(6)), [""]
    beyond: dict[str, list[object]] = {
        "none": no * 2,
        "reflect": [1, 0],
        "mirror": [2, 1],
        "nearest": [0, 0],
        "periodic": [4, 5],
        "9": [9, 9],
    }
    window = [CHUNK] * 3 + [HALO] * 2
    values = [no * 2 + array, no * 8, *(outside + array[:5] + no for outside in beyond.values())]
    colours = [["white"] * 2 + window + [OTHERS[0]], ["white"] * 8]
    sides = ["white" if name == "none" else BEYOND for name in beyond]
    colours += [[side] * 2 + window + ["white"] for side in sides]
    said = [f'boundary="{name}"' for name in beyond]
    said[-1] = "boundary=9"
    strip = Strip(len(values))
    strip.labels(["the array", "", *said])
    cores = [(range(row, row + 1), range(2, 5)) for row in range(len(values)) if row != 1]
    strip.grid("chunk 0, of 3 elements, depth 2", values, colours, [(core, "") for core in cores])
    return strip.svg("map_overlap: values of the first chunk's window beyond the border")


def block_reduce() -> str:
    """Draw the largest element of each block."""
    strip = Strip(4)
    begin(strip)
    strip.arrow("func")
    peaks = [[8, 11], [20, 23]]
    strip.grid("and returns\na value", [[11]], [[CHUNK]])
    strip.arrow("collect")
    at = (range(1), range(1, 2))
    strip.grid("the result:\na value per block", peaks, paint(_four(), at, CHUNK), [(at, "")])
    return strip.svg("block_reduce: the function receives a block and returns a value")


def _four() -> list[list[str]]:
    return tints(2, 2, (1, 1))


def parallel_map() -> str:
    """Draw the largest element of each row."""
    strip = Strip(4)
    row = (range(1, 2), range(6))
    cut = paint(tints(4, 6, (1, 6)), row, CHUNK)
    strip.grid("the array", IMAGE, cut, [(row, "")])
    strip.arrow("cut")
    strip.grid("the function receives\na row", part(IMAGE, row), [[CHUNK] * 6])
    strip.arrow("func")
    strip.grid("and returns\na value", [[11]], [[CHUNK]])
    strip.arrow("stack")
    at = (range(1), range(1, 2))
    peaks = [[5, 11, 17, 23]]
    strip.grid(
        "the result:\na value per row", peaks, paint(tints(1, 4, (1, 1)), at, CHUNK), [(at, "")]
    )
    return strip.svg(
        "parallel_map: the function receives a row and returns a value; values are stacked"
    )


def apply_along_axis() -> str:
    """Draw the smallest and the largest element of each column."""
    strip = Strip(4)
    column = (range(4), range(2, 3))
    cut = paint(tints(4, 6, (4, 1)), column, CHUNK)
    strip.grid("the array, along axis 0", IMAGE, cut, [(column, "")])
    strip.arrow("cut")
    strip.grid("the function receives a\nline of shape (4,)", [[2, 8, 14, 20]], [[CHUNK] * 4])
    strip.arrow("func")
    strip.grid("and returns\nshape (2,)", [[2, 20]], [[CHUNK] * 2])
    strip.arrow("write back")
    at = (range(2), range(2, 3))
    ends = [IMAGE[0], IMAGE[-1]]
    cut = paint(tints(2, 6, (2, 1)), at, CHUNK)
    strip.grid("the result: length 2\nalong axis 0", ends, cut, [(at, "")])
    return strip.svg(
        "apply_along_axis: the function receives a line and returns a line along the same axis"
    )


def reductions() -> str:
    """Draw the sums of the columns."""
    sums = [[sum(line) for line in zip(*rows, strict=True)] for rows in (IMAGE[:2], IMAGE[2:])]
    strip = Strip(4)
    begin(strip, "NumPy sums\neach block")
    strip.arrow("sum")
    at = (range(1), range(3, 6))
    cut = paint(tints(2, 6, (1, 3)), at, CHUNK)
    strip.grid("partial sums", sums, cut, [(at, "")])
    strip.arrow("add")
    total = [[sum(line) for line in zip(*IMAGE, strict=True)]]
    strip.grid("the result", total, plain(OTHERS[0], total))
    return strip.svg("sum along axis 0: partial sums of the blocks are added in order")


def histogram() -> str:
    """Draw a histogram with three bins from 0 to 24."""
    counts = [
        [
            sum(value // 8 == bin_ for line in part(IMAGE, cell) for value in line)
            for bin_ in range(3)
        ]
        for cell in CELLS
    ]
    strip = Strip(4)
    begin(strip, "NumPy counts\neach block")
    strip.arrow("count")
    at = (range(1, 2), range(3))
    cut = paint(tints(4, 3, (1, 3)), at, CHUNK)
    strip.grid("counts in 3 bins,\na line per block", counts, cut, [(at, "")])
    strip.arrow("add")
    total = [[sum(line) for line in zip(*counts, strict=True)]]
    strip.grid("the result:\ncounts", total, plain(OTHERS[0], total))
    return strip.svg("histogram: the counts of the blocks are added")


DRAWINGS: dict[str, Callable[[], str]] = {
    "map_blocks": map_blocks,
    "map_overlap": map_overlap,
    "boundaries": boundaries,
    "block_reduce": block_reduce,
    "parallel_map": parallel_map,
    "apply_along_axis": apply_along_axis,
    "reductions": reductions,
    "histogram": histogram,
}


def main(directory: str) -> None:
    """Write all pictures."""
    for name, draw in DRAWINGS.items():
        with open(os.path.join(directory, f"{name}.svg"), "w", encoding="utf-8") as file:
            file.write(draw())


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "images"))
