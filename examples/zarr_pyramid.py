"""Denoise an image that is larger than memory, and make its pyramid, from zarr to zarr.

    python examples/zarr_pyramid.py                      # 600 megapixels with 1 GiB of memory
    python examples/zarr_pyramid.py --folder slide.ome.zarr --megapixels 100

The example limits the address space of each process, as `ulimit -v` does, to less than the image
takes.  It fills a zarr array with noisy copies of a micrograph that scikit-image ships, and writes
a denoised copy and its pyramid as OME-Zarr 0.5, which viewers such as napari open.  Each worker
reads a block, computes, and writes: no array is ever in memory as a whole.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Why first: the threads of OpenBLAS would take address space that is limited below.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from images import positive, writable

import shmpar

try:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import zarr
    from scipy.signal import wiener
    from skimage import data
    from skimage.color import rgb2gray
except ImportError as error:
    raise SystemExit(
        f'{error.name} is missing; this example needs: pip install -e ".[examples,zarr]"'
    ) from None

Array = np.ndarray[Any, Any]

UNIT = 512  # pixels along a side of a unit of each store
BLOCK = 2 * UNIT  # along a side of a block: a multiple, so that each unit has one writer
PHOTONS = 400  # expected in a white pixel
SIZE = 5  # pixels along a side of the window of the filter
SMALLEST = 2 * UNIT  # a level of the pyramid that is not larger is the last
MICROMETRES = 0.5  # along a side of a pixel
DETAIL = 160  # pixels along a side of the enlarged detail
CORNER = (250, 40)  # its first row and column


# Functions that workers call


def expected(rows: tuple[int, int], columns: tuple[int, int], picture: Array) -> Array:
    """Return a part of a plane of copies of a picture, of which every second is mirrored."""
    places = []
    for length, place in zip(picture.shape, (rows, columns), strict=True):
        there_and_back = np.r_[:length, length - 1 : -1 : -1]
        places.append(there_and_back[np.arange(*place) % len(there_and_back)])
    return PHOTONS * picture[np.ix_(*places)]


def photographed(block_info: Any, rng: np.random.Generator, picture: Array) -> Array:
    """Count the photons of each pixel of a block: their number varies by its square root."""
    mean = expected(*block_info[None]["array-location"], picture)
    counts = mean + np.sqrt(mean) * rng.standard_normal(mean.shape, np.float32)
    return np.clip(np.rint(counts), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def denoised(window: Array, noise: float) -> Array:
    """Filter a block and its halo: average where the values differ no more than by noise."""
    found = wiener(window.astype(np.float32), SIZE, noise)
    return np.clip(np.rint(found), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def halved(block: Array) -> Array:
    """Average 2 x 2 pixels."""
    rows, columns = (length // 2 for length in block.shape)
    return block.reshape(rows, 2, columns, 2).mean(axis=(1, 3)).round().astype(block.dtype)


# Output


def create(group: Any, name: str, side: int) -> Any:
    """Create an array of a group."""
    return group.create_array(
        name,
        shape=(side, side),
        chunks=(UNIT, UNIT),
        dtype="u2",
        dimension_names=("y", "x"),
        overwrite=True,
    )


def describe(group: Any, levels: int) -> None:
    """Write the metadata of OME-Zarr 0.5."""
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [{"type": "scale", "scale": [MICROMETRES * 2**level] * 2}],
        }
        for level in range(levels)
    ]
    multiscales = [{"name": "denoised", "axes": axes, "datasets": datasets}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}


def draw(output: Path, title: str, copy: Array, panels: dict[str, Array]) -> None:
    """Save a picture: a copy of the micrograph, and the framed detail at several stages."""
    figure, places = plt.subplots(1, 1 + len(panels), figsize=(17, 4.7), layout="constrained")
    first, *others = places
    side = 2 * len(copy)
    first.imshow(copy, "gray", extent=(0, side, side, 0), vmin=0, vmax=PHOTONS)
    first.set_title(f"Level 1 of a copy, {len(copy)} x {len(copy)} pixels")
    frame = plt.Rectangle(CORNER[::-1], DETAIL, DETAIL, fill=False, edgecolor="orange", linewidth=2)
    first.add_patch(frame)
    for (name, values), axes in zip(panels.items(), others, strict=True):
        (top, left), (bottom, right) = CORNER, (start + DETAIL for start in CORNER)
        edges = (left, right, bottom, top)
        last = axes.imshow(values, "gray", extent=edges, vmin=0, vmax=PHOTONS)
        axes.set_title(f"{name}, {len(values)} x {len(values)} pixels")
        for spine in axes.spines.values():
            spine.set(edgecolor="orange", linewidth=2)
    for axes in places:
        axes.set_xlabel("column (pixels of level 0)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
    first.set_ylabel("row (pixels of level 0)")
    bar = figure.colorbar(last, ax=places, shrink=0.9, extend="max")
    bar.set_label("photons per pixel")
    figure.suptitle(title, fontsize=13)
    figure.savefig(output, dpi=100)
    plt.close(figure)


def limit_memory(mebibytes: int) -> None:
    """Limit the address space of this process and of its workers."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, hard))


def peak(_: int) -> int:
    """Return the bytes of address space that this process has had."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmPeak"))


def run(options: argparse.Namespace, folder: Path) -> None:
    """Make the image, the denoised copy and the pyramid; print and draw them."""
    side = max(4, round((options.megapixels * 1e6) ** 0.5 / UNIT)) * UNIT
    limit, size = options.memory << 20, 2 * side**2
    print(f"image: {side:,} x {side:,} pixels, {size / 1e6:,.0f} MB")
    print(f"limit of each process (ulimit -v): {limit / 1e6:,.0f} MB")
    limit_memory(options.memory)

    picture = rgb2gray(data.immunohistochemistry()).astype(np.float32)
    group = zarr.open_group(folder, mode="a", zarr_format=3)
    raw = create(zarr.open_group(folder.with_name("raw.zarr"), mode="a"), "0", side)
    levels = [create(group, "0", side)]
    seconds = {}
    with shmpar.Pool(options.workers) as pool:
        began = time.perf_counter()
        pool.map_blocks(
            photographed,
            chunks=(block_lengths(side),) * 2,
            out=raw,
            kwargs={"picture": picture},
            seed=0,
            progress="photographing",
        )
        seconds["photographed"] = time.perf_counter() - began
        began = time.perf_counter()
        pool.map_overlap(
            denoised,
            raw,
            depth=SIZE // 2,
            chunks=BLOCK,
            out=levels[0],
            kwargs={"noise": float(PHOTONS * picture.mean())},
            progress="denoising",
        )
        seconds["denoised"] = time.perf_counter() - began
        report = pool.last_run.report
        began = time.perf_counter()
        while (length := levels[-1].shape[0]) > SMALLEST and length % 2 == 0:
            levels.append(create(group, str(len(levels)), length // 2))
            lengths = tuple(one // 2 for one in block_lengths(length))
            pool.map_blocks(
                halved,
                levels[-2],
                chunks=BLOCK,
                out_chunks={0: lengths, 1: lengths},
                out=levels[-1],
            )
        seconds["pyramid"] = time.perf_counter() - began
        used = max(peak(0), *pool.parallel_map(peak, range(8)))
    describe(group, len(levels))

    for name, spent in seconds.items():
        print(f"{name:<14}{spent:8.1f} s{size / 1e6 / spent:8.0f} MB/s")
    print(
        f"denoised copy: {report.store_read / 1e6:,.0f} MB read with halos, "
        f"{report.store_written / 1e6:,.0f} MB written"
    )
    print(f"most address space of a process: {used / 1e6:,.0f} MB")
    shapes = ", ".join(f"{level.shape[0]:,}" for level in levels)
    print(f"levels of the pyramid, pixels along a side: {shapes}")
    show(options.output, picture, raw, levels)
    print(f"wrote {options.output}" + f" and {folder}" * bool(options.folder))


def block_lengths(side: int) -> tuple[int, ...]:
    """Return the lengths of blocks along an axis."""
    return tuple(min(BLOCK, side - start) for start in range(0, side, BLOCK))


def show(output: Path, picture: Array, raw: Any, levels: list[Any]) -> None:
    """Compare a detail with the expected values, and draw it."""
    rows, columns = (slice(start, start + DETAIL) for start in CORNER)
    due = expected((rows.start, rows.stop), (columns.start, columns.stop), picture)
    before, after = raw[rows, columns], levels[0][rows, columns]
    errors = [float(np.sqrt(np.mean((one - due) ** 2))) for one in (before, after)]
    print(f"error in the detail: {errors[0]:.1f} photons before, {errors[1]:.1f} after")
    half = levels[1][tuple(slice(one.start // 2, one.stop // 2) for one in (rows, columns))]
    panels = {
        f"Noisy: error {errors[0]:.1f}": before,
        f"Denoised: error {errors[1]:.1f}": after,
        "Level 1": half,
    }
    side = levels[0].shape[0]
    title = (
        f"{side:,} x {side:,} pixels of micrographs, denoised, in {len(levels)} levels of OME-Zarr"
    )
    draw(output, title, levels[1][: len(picture) // 2, : len(picture) // 2], panels)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder",
        type=Path,
        help="OME-Zarr to write, with raw.zarr beside it; default: none is kept",
    )
    parser.add_argument("--output", type=writable, default=Path("zarr_pyramid.png"), help="picture")
    parser.add_argument("--megapixels", type=positive(float), default=600)
    parser.add_argument(
        "--memory", type=positive(int), default=1024, help="MiB of address space of a process"
    )
    parser.add_argument("--workers", type=positive(int), help="default: one per CPU")
    parser.add_argument("--smoke", action="store_true", help="four megapixels")
    options = parser.parse_args()
    if options.smoke:
        options.megapixels = 4
    with ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "slide.ome.zarr"
        run(options, folder)


if __name__ == "__main__":
    main()
