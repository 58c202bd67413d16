"""Equalise the histogram of a large image in two passes: count the greys, then look up each pixel.

    python examples/histogram_equalise.py                             # copies of a photograph
    python examples/histogram_equalise.py scan.tif --save scan.npy    # your image

The image is a file of yours, of 8 or 16 bits, or copies of the photograph of the moon that
scikit-image ships.  The first pass counts the pixels of each grey.  The new value of a grey is the
share of darker pixels, and the second pass looks it up for each pixel.  The example repeats both
passes with NumPy alone, and every pixel must be equal.  With --save the workers write the result
into the file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from images import command_line, gray, load, mosaic, writable

import shmpar

try:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from skimage import data
except ImportError as error:
    raise SystemExit(
        f'{error.name} is missing; this example needs: pip install -e ".[examples]"'
    ) from None

Array = np.ndarray[Any, Any]

MOON = "Moon"
VIEW = 1000  # largest number of pixels that are shown along the longer side
BARS = 32  # bars of each drawn histogram


# Functions that workers call


def rounded(block: Array) -> Array:
    """Average the channels and keep their dtype."""
    return np.rint(gray(block)).astype(block.dtype)


def looked_up(block: Array, table: Array) -> Array:
    """Replace each grey by its value in the table."""
    return table[block]


# The formula


def equalising(counts: Array, dtype: Any) -> Array:
    """Return the table: for each grey the share of darker pixels, scaled to all greys."""
    below = counts.cumsum()
    darkest = counts[counts.nonzero()[0][0]]
    share = (below - darkest) / max(1, below[-1] - darkest)
    return np.rint(share.clip(0) * (len(counts) - 1)).astype(dtype)


class Side(NamedTuple):
    """The image before or after: its name, the part to show, and the pixels of each grey."""

    name: str
    view: Array
    counts: Array

    def percentile(self, percent: float) -> int:
        """Return a percentile of the greys."""
        below = self.counts.cumsum()
        return int(below.searchsorted(percent / 100 * below[-1]))

    def contrast(self) -> dict[str, float]:
        """Return the statistics that describe the contrast."""
        greys = np.arange(len(self.counts))
        mean = np.average(greys, weights=self.counts)
        spread = np.average((greys - mean) ** 2, weights=self.counts) ** 0.5
        shares = {f"{each}th percentile": self.percentile(each) for each in (5, 50, 95)}
        return {"mean": mean, "std deviation": spread, **shares}


def plain(image: Array) -> tuple[Array, Array, list[float]]:
    """Count and look up with NumPy alone; return counts, result and the seconds of each pass."""
    levels = np.iinfo(image.dtype).max + 1
    image = image.view(np.ndarray)
    times = [time.perf_counter()]
    counts, _ = np.histogram(image, bins=levels, range=(0, levels))
    times.append(time.perf_counter())
    result = equalising(counts, image.dtype)[image]
    times.append(time.perf_counter())
    return counts, result, np.diff(times).tolist()


# Output


def contrasts(before: Side, after: Side) -> str:
    """Return a table of the contrast before and after."""
    lines = [f"{'grey level':<24}{'before':>12}{'after':>12}"]
    for (name, old), new in zip(before.contrast().items(), after.contrast().values(), strict=True):
        lines.append(f"{name:<24}{old:>12,.1f}{new:>12,.1f}")
    return "\n".join(lines)


def seconds(rows: dict[str, list[float]]) -> str:
    """Return a table of the seconds of each pass."""
    lines = [f"{'seconds':<24}{'histogram':>12}{'look-up':>12}{'together':>12}"]
    for name, (first, second) in rows.items():
        lines.append(f"{name:<24}{first:>12.2f}{second:>12.2f}{first + second:>12.2f}")
    return "\n".join(lines)


def draw(output: Path, title: str, sides: tuple[Side, Side]) -> None:
    """Save both images in the same greys, each above its histogram and cumulative curve."""
    shape, levels = sides[0].view.shape, len(sides[0].counts)
    ratio, width = float(np.clip(shape[0] / shape[1], 0.3, 2)), 5.2
    figure, places = plt.subplots(
        2,
        2,
        figsize=(2 * width + 1, ratio * width + 4),
        height_ratios=(ratio * width, 2.6),
        layout="constrained",
        dpi=110,
    )
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
    bars = [side.counts.reshape(min(BARS, levels), -1).sum(1) for side in sides]
    bars = [100 * each / each.sum() for each in bars]
    edges = np.linspace(0, levels, len(bars[0]) + 1)
    for side, shares, (above, below) in zip(sides, bars, places.T, strict=True):
        shown = above.imshow(side.view, "gray", vmin=0, vmax=levels - 1)
        spread = side.contrast()["std deviation"]
        above.set_title(f"{side.name}: standard deviation {spread:,.1f}", fontsize=12)
        above.set_xticks([])
        above.set_yticks([])

        below.stairs(shares, edges, fill=True, color="0.65")
        below.set(xlim=(0, levels), ylim=(0, 1.08 * max(map(max, bars))))
        below.set_xlabel("grey level", fontsize=9)
        curve = below.twinx()
        cumulative = 100 * side.counts.cumsum() / side.counts.sum()
        curve.step(range(1, levels + 1), cumulative, where="pre", color="tab:red", linewidth=1.5)
        curve.set(ylim=(0, 108), yticks=range(0, 101, 25))
        curve.tick_params(labelsize=8, colors="tab:red")
        below.tick_params(labelsize=8)
        below.xaxis.set_major_formatter("{x:,.0f}")
        if side is sides[0]:
            below.set_ylabel("share of pixels per bar (%)", fontsize=9)
            curve.set_yticklabels([])
        else:
            curve.set_ylabel("cumulative share (%)", fontsize=9, color="tab:red")
            below.set_yticklabels([])
    bar = figure.colorbar(shown, cax=places[0, 1].inset_axes((1.03, 0, 0.035, 1)))
    bar.set_label("grey level", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    figure.suptitle(title, fontsize=13)
    figure.savefig(output)
    plt.close(figure)


def run(options: argparse.Namespace) -> None:
    """Equalise, compare, print and draw."""
    with shmpar.Pool(options.workers) as pool:
        if options.file:
            source, image = options.file.name, load(pool, options.file)
            step = max(1, -(-max(image.shape[:2]) // VIEW))
            view: Any = (slice(None, None, step),) * 2
        else:
            picture = data.moon()
            source, image = MOON, mosaic(pool, picture, options.megapixels)
            view = tuple(slice(length) for length in picture.shape)
        if image.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
            raise SystemExit(f"{source}: the dtype must be uint8 or uint16, not {image.dtype}")
        if image.ndim == 3:  # noqa: PLR2004 (rows, columns, channels)
            image = pool.map_blocks(rounded, image, drop_axis=2, progress="averaging channels")
        rows, columns = image.shape
        print(f"{source}: {rows:,} x {columns:,} pixels, {image.dtype}")

        levels = np.iinfo(image.dtype).max + 1
        counts, _ = pool.histogram(image, bins=levels, range=(0, levels), progress="counting")
        report = pool.last_run.report
        ours = [report.seconds]
        table = equalising(counts, image.dtype)
        result = pool.map_blocks(
            looked_up, image, out=options.save, kwargs={"table": table}, progress="looking up"
        )
        ours.append(pool.last_run.report.seconds)

    their_counts, theirs, times = plain(image)
    if not (np.array_equal(counts, their_counts) and np.array_equal(result, theirs)):
        raise SystemExit("the result differs from NumPy's result")
    # Why no third pass: the table maps all pixels of a grey to the same grey.
    moved = np.bincount(table, weights=counts, minlength=levels).astype(counts.dtype)
    before, after = Side("Before", image[view], counts), Side("After", result[view], moved)
    print()
    print(contrasts(before, after))
    print()
    print(seconds({"NumPy": times, f"{report.workers} workers": ours}))
    print("every pixel is equal")
    print()
    of = "" if options.file else f"{view[0].stop} x {view[1].stop} of "
    title = f"Histogram equalisation: {source}, {of}{rows:,} x {columns:,} pixels"
    draw(options.output, title, (before, after))
    for file in filter(None, (options.save, options.output)):
        print(f"wrote {file}")


def main() -> None:
    """Read the command line."""
    parser = command_line(__doc__, "histogram_equalise.png", megapixels=100)
    parser.add_argument("--save", type=writable, help="save the equalised image as .npy")
    parser.add_argument("--smoke", action="store_true", help="one megapixel")
    options = parser.parse_args()
    if options.smoke:
        options.megapixels = 1
    if options.save and options.save.suffix != ".npy":
        parser.error(f"--save must be a .npy, not {str(options.save)!r}")
    run(options)


if __name__ == "__main__":
    main()
