"""Denoise an image of tens of megapixels by non-local means, in blocks with a halo.

    python examples/denoise.py                            # copies of a photograph
    python examples/denoise.py slide.tif --noise 0.05     # your image

The image is a file of yours, or copies of the photograph of a cameraman that scikit-image ships.
The example adds noise, so that it can compare the result with the original.  The filter averages
pixels with similar surroundings.  Its result at a pixel depends on a few pixels around it.  The
halo is as deep, so block borders are not visible.  The example also filters a crop without shmpar,
and compares both results.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from images import command_line, gray, load, mosaic, positive

import shmpar

try:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from skimage import data
    from skimage.restoration import denoise_nl_means
except ImportError as error:
    raise SystemExit(
        f'{error.name} is missing; this example needs: pip install -e ".[examples]"'
    ) from None

Array = np.ndarray[Any, Any]

PATCH = 5  # pixels along a side of the compared surroundings
DISTANCE = 5  # pixels to the furthest surroundings that are compared
REACH = DISTANCE + PATCH // 2  # the filter depends on pixels up to here: the halo's depth
STRENGTH = 0.7  # times the noise: the decay of a weight with the difference of patches
BLOCK = {0: 512, 1: 512}
CROP = 1200  # largest side in pixels of the crop that is filtered without shmpar
SAME = 1e-6  # of the image's range; Why not 0: rounding depends on the window's beginning
VIEW = 1000  # largest number of pixels that are shown along the longer side
DETAIL = 128  # pixels along a side of the enlarged detail
FRAME = "orange"
CAMERAMAN, CAMERA = "Cameraman", (92, 248)  # row and column of the camera in the picture


# Functions that workers call


def with_noise(
    block: Array, low: float, span: float, noise: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return the block scaled to the range from 0 to 1, without and with noise."""
    clean = ((gray(block) - low) / span).astype(np.float32)
    return clean, clean + np.float32(noise) * rng.standard_normal(clean.shape, np.float32)


def denoised(window: Array, noise: float) -> Array:
    """Filter a block and its halo."""
    return denoise_nl_means(window, PATCH, DISTANCE, h=STRENGTH * noise, sigma=noise)


def squares(clean: Array, before: Array, after: Array) -> tuple[float, float]:
    """Return the sum of the squared errors, before and after."""
    return tuple(np.square(each - clean, dtype=np.float64).sum() for each in (before, after))


# Output


def compare(ours: Array, before: Array, noise: float) -> tuple[float, float]:
    """Filter a crop without shmpar and compare the results; return its megapixels and seconds.

    The crop begins at the image's corner.  At its other sides it has a halo, as a block has.
    """
    rows, columns = (min(CROP, length) for length in before.shape)
    crop = np.array(before[: rows + REACH, : columns + REACH])
    began = time.perf_counter()
    plain = denoised(crop, noise)
    seconds = time.perf_counter() - began
    difference = abs(plain[:rows, :columns] - ours[:rows, :columns]).max()
    if not difference < SAME:
        raise SystemExit(f"the result and the plain call's result differ by {difference:.1g}")
    print(f"the same as the plain call, on a crop: difference at most {difference:.1g}")
    return crop.size / 1e6, seconds


def table(plain: tuple[float, float], megapixels: float, report: Any) -> str:
    """Return a table of both rates."""
    rows = {
        "plain call, a crop": plain,
        f"map_overlap, {report.workers} workers": (megapixels, report.seconds),
    }
    lines = [f"{'':<24}{'megapixels':>12}{'seconds':>10}{'megapixels/s':>14}"]
    lines += [f"{name:<24}{mp:>12.1f}{s:>10.2f}{mp / s:>14.2f}" for name, (mp, s) in rows.items()]
    whole = megapixels / plain[0] * plain[1]
    lines.append(f"at this rate, the plain call would take {whole:.3g} s for the whole image")
    return "\n".join(lines)


def busiest(pool: shmpar.Pool, image: Array) -> tuple[int, int]:
    """Return the first row and column of the detail with the largest standard deviation."""
    spread = pool.block_reduce(np.std, image, chunks=DETAIL)
    row, column = np.unravel_index(spread.argmax(), spread.shape)
    return int(row) * DETAIL, int(column) * DETAIL


def show(axes: Any, values: Array, where: tuple[slice, slice]) -> Any:
    """Show values between 0 and 1 in greys, with their rows and columns on the axes."""
    rows, columns = where
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
        axis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=8)
    edges = (columns.start - 0.5, columns.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
    return axes.imshow(values, "gray", vmin=0, vmax=1, extent=edges)


def draw(output: Path, title: str, panels: dict[str, Array], corner: tuple[int, int]) -> None:
    """Save a picture with a column per panel: the view, and the framed detail below it."""
    shape = next(iter(panels.values())).shape
    step = max(1, -(-max(shape) // VIEW))
    ratio, width = float(np.clip(shape[0] / shape[1], 0.3, 2)), 4.2
    figure, places = plt.subplots(
        2,
        3,
        figsize=(3 * width + 1, (ratio + 1) * width + 1.1),
        height_ratios=(ratio, 1),
        layout="constrained",
        dpi=110,
    )
    figure.get_layout_engine().set(h_pad=0.08)
    rows, columns = (
        slice(at, min(at + DETAIL, end)) for at, end in zip(corner, shape, strict=True)
    )
    for (name, values), (above, below) in zip(panels.items(), places.T, strict=True):
        show(above, values[::step, ::step], (slice(0, shape[0]), slice(0, shape[1])))
        above.set_title(name, fontsize=12)
        last = show(below, values[rows, columns], (rows, columns))
        place = (columns.start - 0.5, rows.start - 0.5)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        above.add_patch(plt.Rectangle(place, *size, fill=False, edgecolor=FRAME, linewidth=1.5))
        for spine in below.spines.values():
            spine.set(edgecolor=FRAME, linewidth=1.5)
    for axes in places[:, 0]:
        axes.set_ylabel("row (pixels)", fontsize=9)
    for axes in places[1]:
        axes.set_xlabel("column (pixels)", fontsize=9)
    bar = figure.colorbar(last, ax=places, aspect=50, pad=0.01, extend="both", extendfrac=0.015)
    bar.set_label("value, as a share of the original's range", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=13)
    figure.savefig(output)
    plt.close(figure)


def run(options: argparse.Namespace) -> None:
    """Add noise, remove it, print and draw the result."""
    noise = options.noise
    with shmpar.Pool(options.workers) as pool:
        if options.file:
            source, image = options.file.name, load(pool, options.file)
            view = (slice(None), slice(None))
        else:
            picture = data.camera()
            source, image = CAMERAMAN, mosaic(pool, picture, options.megapixels)
            view = tuple(slice(length) for length in picture.shape)
        rows, columns = image.shape[:2]
        print(f"{source}: {rows:,} x {columns:,} pixels, {image.dtype}")
        low, high = float(pool.min(image)), float(pool.max(image))
        if not high > low:
            raise SystemExit(f"{source}: the pixels must differ, with none of them NaN")

        clean, before = pool.map_blocks(
            with_noise,
            image,
            chunks=BLOCK,
            drop_axis=2 if image.ndim == 3 else None,  # noqa: PLR2004 (rows, columns, channels)
            kwargs={"low": low, "span": high - low, "noise": noise},
            seed=0,
            progress="adding noise",
        )
        after = pool.map_overlap(
            denoised,
            before,
            depth=REACH,
            chunks=BLOCK,
            kwargs={"noise": noise},
            progress="denoising",
        )
        report = pool.last_run.report
        errors = pool.block_reduce(squares, clean, before, after)
        corner = busiest(pool, clean) if options.file else CAMERA

    ratios = [-10 * np.log10(each.sum() / clean.size) for each in errors]
    print(f"peak signal-to-noise ratio (PSNR): {ratios[0]:.1f} dB before, {ratios[1]:.1f} dB after")
    plain = compare(after, before, noise)
    print()
    print(table(plain, clean.size / 1e6, report))
    print()

    panels = {
        "Original": clean[view],
        f"With noise: PSNR {ratios[0]:.1f} dB": before[view],
        f"Denoised: PSNR {ratios[1]:.1f} dB": after[view],
    }
    of = "" if options.file else f"{view[0].stop} x {view[1].stop} of "
    title = f"Non-local means: {source}, {of}{rows:,} x {columns:,} pixels, and a detail"
    draw(options.output, title, panels, corner)
    print(f"wrote {options.output}")


def main() -> None:
    """Read the command line."""
    parser = command_line(__doc__, "denoise.png", megapixels=25)
    parser.add_argument(
        "--noise", type=positive(float), default=0.1, help="as a share of the image's range"
    )
    parser.add_argument("--smoke", action="store_true", help="half a megapixel")
    options = parser.parse_args()
    if options.smoke:
        options.megapixels = 0.5
    run(options)


if __name__ == "__main__":
    main()
