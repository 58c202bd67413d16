"""Read a folder of images into one stacked array; files that cannot be read become NaN.

    python examples/batch_files.py                        # a generated folder
    python examples/batch_files.py plates/ --output stack.npy

All files (.npy, .png, .tif) must hold images of the same shape.  Pillow reads .png and .tif.  The
workers receive the file names alone, and write each image to its place in the stack.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import shmpar

Array = np.ndarray[Any, Any]

SUFFIXES = {".npy", ".png", ".tif", ".tiff"}


def read(path: Path) -> Array:
    """Read an image as float32."""
    if path.suffix.lower() == ".npy":
        return np.load(path).astype(np.float32)
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image).astype(np.float32)


def make_folder(folder: Path, count: int) -> None:
    """Write images of a spot that moves over a noisy background; a single file is truncated."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:120, :160]
    for number in range(count):
        row, column = 60 + 40 * np.sin(number / 5), 80 + 50 * np.cos(number / 5)
        spot = 180 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 200)
        np.save(folder / f"frame_{number:03}.npy", rng.poisson(20 + spot).astype(np.uint8))
    broken = folder / f"frame_{count // 2:03}.npy"
    broken.write_bytes(broken.read_bytes()[:1000])


def stack(folder: Path, options: argparse.Namespace) -> None:
    """Read the folder and print the result."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"no {', '.join(sorted(SUFFIXES))} files in {folder}")

    with shmpar.Pool(options.workers) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Why: the failed files are listed below.
        try:
            images = pool.parallel_map(
                read, paths, dtype=np.float32, on_error="fill", progress="reading"
            )
        except ExceptionGroup as group:  # Why: without any image the shape is unknown
            raise SystemExit(
                f"no file can be read; the first error: {group.exceptions[0]}"
            ) from None
        run = pool.last_run

    print(f"{len(paths)} files in {run.report.seconds:.2f} s, {run.report.workers} workers")
    print(f"an array of shape {images.shape}, {images.dtype}, {images.nbytes / 1e6:.1f} MB")
    for error in run.failed:
        print(f"{paths[error.chunk].name} is NaN: {error.__cause__ or error}")
    print(f"{'file':<24}{'mean':>10}{'highest':>10}")
    for path, image in list(zip(paths, images, strict=True))[: options.show]:
        print(f"{path.name:<24}{image.mean():>10.2f}{image.max():>10.2f}")
    if options.output:
        np.save(options.output, images)
        print(f"wrote {options.output}")


def main() -> None:
    """Read the command line; make a folder if none is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--output", type=Path, help="save the stack as .npy")
    parser.add_argument("--show", type=int, default=5, help="files to list")
    parser.add_argument("--workers", type=int, help="default: one per CPU")
    parser.add_argument("--smoke", action="store_true", help="few files")
    options = parser.parse_args()
    if options.folder:
        stack(options.folder, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), 12 if options.smoke else 200)
        stack(Path(folder), options)


if __name__ == "__main__":
    main()
