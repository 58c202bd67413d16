"""Compute mean, spread and a percentile of every tile of a large image; draw heat maps.

    python examples/tiled_statistics.py                         # an enlarged photograph
    python examples/tiled_statistics.py slide.tif --tile 128    # your image

The image is a file of yours, or the photograph of a retina that scikit-image ships.  The example
enlarges its green channel to the size of a slide scan, and adds the shot noise of a camera.  The
image lies in shared memory once.  A .npy file, or an uncompressed .tif, is mapped and not copied.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from images import command_line, gray, load, positive

import shmpar

try:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from scipy.ndimage import gaussian_filter
    from skimage import data
except ImportError as error:
    raise SystemExit(
        f'{error.name} is missing; this example needs: pip install -e ".[examples]"'
    ) from None

Array = np.ndarray[Any, Any]

SMOOTHING = 2.0  # standard deviation in tiles of the Gaussian filter of the medians
PREVIEW = 1000  # largest number of pixels of the overview along the longer side
RETINA = "Retina"


# Functions that workers call.  Each receives a block: a read-only view of the shared image.


def statistics(tile: Array, percent: float) -> tuple[int, float, float, float, float]:
    """Return the number of pixels, mean, standard deviation, median and a percentile of a tile."""
    tile = gray(tile)
    median, high = np.percentile(tile, [50, percent])
    return tile.size, tile.mean(), tile.std(), median, high


def shrunk(block: Array, step: int) -> Array:
    """Average each square of step x step pixels."""
    rows, columns = block.shape[0] // step, block.shape[1] // step
    return gray(block).reshape(rows, step, columns, step).mean(axis=(1, 3))


def enlarge(block: Array, block_info: Any, rng: np.random.Generator, picture: Array) -> Array:
    """Compute a block of the enlarged picture from its place, and add shot noise."""
    patch, weights = picture, []
    for axis, place in enumerate(block_info[0]["array-location"]):
        scale = picture.shape[axis] / block_info[0]["shape"][axis]
        wanted = (np.arange(*place, dtype=np.float32) + 0.5) * scale - 0.5
        wanted = wanted.clip(0, picture.shape[axis] - 1)
        known = np.arange(int(wanted[0]), int(wanted[-1]) + 2, dtype=np.float32)
        patch = patch.take(known.astype(int), axis, mode="clip")
        weights.append(np.maximum(0, 1 - abs(wanted[:, None] - known)))  # bilinear
    light = weights[0] @ patch @ weights[1].T
    noisy = light + np.sqrt(light) * rng.standard_normal(light.shape, np.float32)
    return np.rint(noisy).clip(0, 65535).astype(block.dtype)


# The image


def large_retina(pool: shmpar.Pool, megapixels: float) -> Array:
    """Fill a shared array with the picture, in place."""
    green = data.retina()[..., 1]  # Why: vessels have the best contrast here.
    side = max(64, round((megapixels * 1e6) ** 0.5))
    image = pool.empty((side, side), np.uint16)
    picture = green.astype(np.float32) * 16  # counts of a camera with 12 bits
    return pool.map_blocks(
        enlarge,
        image,
        out=image,
        chunks=(512, 512),
        kwargs={"picture": picture},
        seed=0,
        progress="enlarging",
    )


# Output


class Panel(NamedTuple):
    """A picture in which each value stands for step x step pixels, and its colour map."""

    name: str
    values: Array
    step: int
    colours: str


def overview(pool: shmpar.Pool, image: Array, tile: int) -> tuple[Array, int]:
    """Shrink the image to a size for the screen; also return the pixels per step."""
    step = max(1, -(-max(image.shape[:2]) // PREVIEW))
    tile = max(1, tile // step) * step
    rows, columns = (length // step * step for length in image.shape[:2])
    out_chunks = tuple(
        tuple(min(tile, length - start) // step for start in range(0, length, tile))
        for length in (rows, columns)
    )
    small = pool.map_blocks(
        shrunk,
        image[:rows, :columns],
        chunks={0: tile, 1: tile},
        drop_axis=2 if image.ndim == 3 else None,  # noqa: PLR2004 (rows, columns, channels)
        out_chunks=out_chunks,
        kwargs={"step": step},
        progress="shrinking",
    )
    return small, step


def whole(sizes: Array, means: Array, stds: Array) -> tuple[float, float]:
    """Return mean and standard deviation of the image, from the values of its tiles."""
    mean = float(np.average(means, weights=sizes))
    variance = float(np.average(stds**2 + (means - mean) ** 2, weights=sizes))
    return mean, variance**0.5


def number(value: float | None) -> str:
    """Format a number; None is a dash."""
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"  # noqa: PLR2004 (a thousand)


def table(maps: dict[str, Array], totals: list[float | None], tile: int) -> str:
    """Return a table with a row per statistic, and the first pixel of its highest tile."""
    title = f"{'pixel values':<17}{'image':>11}{'lowest':>11}{'median':>11}{'highest':>11}"
    lines = [f"{title}   highest in the tile at", "-" * (len(title) + 25)]
    for (name, values), total in zip(maps.items(), totals, strict=True):
        row, column = np.unravel_index(np.nanargmax(values), values.shape)
        numbers = (total, np.nanmin(values), np.nanmedian(values), np.nanmax(values))
        cells = "".join(f"{number(each):>11}" for each in numbers)
        lines.append(f"{name:<17}{cells}   row {row * tile:,}, column {column * tile:,}")
    return "\n".join(lines)


def draw(output: Path, title: str, panels: list[Panel], shape: tuple[int, ...]) -> None:
    """Save the first panel on the left and the others on the right, in pixels of the image."""
    rows, columns = shape
    height = float(np.clip(6.2 * rows / columns, 3.4, 9))
    figure = plt.figure(figsize=(13, height), layout="constrained", dpi=110)
    left, right = figure.subfigures(1, 2, width_ratios=(1.0, 1.08))
    places = [left.subplots(), *right.subplots(2, 2).flat]
    for axes, panel in zip(places, panels, strict=True):
        low, high = np.nanpercentile(panel.values, [0.5, 99.5])
        down, across = (length * panel.step - 0.5 for length in panel.values.shape)
        shown = axes.imshow(
            panel.values, panel.colours, vmin=low, vmax=high, extent=(-0.5, across, down, -0.5)
        )
        # Why: the last tiles may be smaller, and the overview drops incomplete squares.
        axes.set(xlim=(-0.5, min(across, columns - 0.5)), ylim=(min(down, rows - 0.5), -0.5))
        axes.set_title(panel.name[0].upper() + panel.name[1:], fontsize=11)
        axes.locator_params(nbins=4)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(labelsize=8)
        axes.set_xlabel("column (pixels)", fontsize=8)
        axes.set_ylabel("row (pixels)", fontsize=8)
        axes.label_outer()
        bar_place = axes.inset_axes((1.03, 0, 0.045, 1))
        bar = figure.colorbar(shown, cax=bar_place, extend="both", extendfrac=0.03)
        bar.set_label("pixel value", fontsize=8)
        bar.ax.tick_params(labelsize=8)
        if high >= 1000:  # noqa: PLR2004 (a thousand)
            bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    figure.suptitle(title, fontsize=12)
    figure.savefig(output)
    plt.close(figure)


def run(options: argparse.Namespace) -> None:
    """Measure, print and draw."""
    tile = options.tile
    with shmpar.Pool(options.workers) as pool:
        began = time.perf_counter()
        image = load(pool, options.file) if options.file else large_retina(pool, options.megapixels)
        source = options.file.name if options.file else RETINA
        rows, columns = image.shape[:2]
        megabytes = image.nbytes / 1e6
        print(f"{source}: {rows:,} x {columns:,} pixels, {image.dtype}, {megabytes:,.1f} MB")
        print(f"ready in {time.perf_counter() - began:.1f} s")

        sizes, means, stds, medians, highs = pool.block_reduce(
            statistics,
            image,
            chunks={0: tile, 1: tile},
            kwargs={"percent": options.percentile},
            progress="measuring",
        )
        report = pool.last_run.report
        small, step = overview(pool, image, tile)

    sizes, means, stds, medians, highs = (
        each.reshape(each.shape[:2]) for each in (sizes, means, stds, medians, highs)
    )
    maps = {
        "mean": means,
        "std deviation": stds,
        f"{options.percentile:g}th percentile": highs,
        "smoothed median": gaussian_filter(medians, SMOOTHING, mode="nearest"),
    }
    print()
    print(table(maps, [*whole(sizes, means, stds), None, None], tile))
    print()
    megapixels = rows * columns / 1e6
    print(
        f"{report.chunks:,} tiles of {tile} x {tile} pixels in {report.seconds:.2f} s: "
        f"{megapixels / report.seconds:.1f} megapixels/s"
    )
    print(f"{report.workers} workers ({report.engine}); the image is in: {report.memory[0]}")
    colours = ("viridis", "magma", "inferno", "viridis")
    panels = [Panel(f"means of {step} x {step} pixels", small, step, "gray")]
    panels += [
        Panel(*each, tile, colour) for each, colour in zip(maps.items(), colours, strict=True)
    ]
    size = f"{rows:,} x {columns:,} pixels"
    title = f"{source}, {size}, and statistics of its tiles of {tile} x {tile}"
    draw(options.output, title, panels, (rows, columns))
    print(f"wrote {options.output}")


def main() -> None:
    """Read the command line."""
    parser = command_line(__doc__, "tiled_statistics.png", megapixels=200)
    parser.add_argument("--tile", type=positive(int), default=256, help="pixels along a side")
    parser.add_argument("--percentile", type=float, default=99)
    parser.add_argument("--smoke", action="store_true", help="4 megapixels in small tiles")
    options = parser.parse_args()
    if options.smoke:
        options.megapixels, options.tile = 4, 128
    if not 0 <= options.percentile <= 100:  # noqa: PLR2004 (percent)
        parser.error("--percentile must be from 0 to 100")
    run(options)


if __name__ == "__main__":
    main()
