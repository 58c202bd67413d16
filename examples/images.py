"""Open images and parse the command line, for the examples on images.

This file is not an example itself; the examples on images import it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import shmpar

Array = np.ndarray[Any, Any]


# Functions that workers call.  Each receives a block: a read-only view of the shared image.


def gray(block: Array) -> Array:
    """Average the channels, if there are any."""
    return block if block.ndim == 2 else block.mean(axis=-1)  # noqa: PLR2004 (rows, columns)


def mirrored(block: Array, block_info: Any, picture: Array) -> Array:
    """Fill a block from copies of a picture side by side; every second copy is mirrored."""
    places = []
    for length, place in zip(picture.shape, block_info[0]["array-location"], strict=True):
        there_and_back = np.r_[:length, length - 1 : -1 : -1]
        places.append(there_and_back[np.arange(*place) % len(there_and_back)])
    return picture[np.ix_(*places)].astype(block.dtype)


# Images


def mosaic(pool: shmpar.Pool, picture: Array, megapixels: float) -> Array:
    """Fill a shared array with copies of a grey picture, in place."""
    side = max(64, round((megapixels * 1e6) ** 0.5))
    image = pool.empty((side, side), picture.dtype)
    return pool.map_blocks(
        mirrored, image, out=image, kwargs={"picture": picture}, progress="laying out"
    )


def load(pool: shmpar.Pool, file: Path) -> Array:
    """Share the image of a file; a mapped file is not copied."""
    try:
        image = opened(file)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{file}: {error}") from None
    if image.ndim not in {2, 3} or (image.ndim == 3 and image.shape[2] > 4):  # noqa: PLR2004
        raise SystemExit(f"{file}: rows x columns (x channels) expected, not {image.shape}")
    if image.dtype.kind not in "uif":
        raise SystemExit(f"{file}: integers or floats expected, not {image.dtype}")
    return pool.asarray(image)


def opened(file: Path) -> Array:
    """Open the image of a file: map it if possible, else read it."""
    if file.suffix.lower() == ".npy":
        return np.load(file, mmap_mode="r")
    if file.suffix.lower() in {".tif", ".tiff"}:
        import tifffile

        try:
            return tifffile.memmap(file, mode="r")
        except ValueError:  # Why: a compressed file cannot be mapped.
            return tifffile.imread(file)
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # Why: large images are expected.
    with Image.open(file) as image:
        plain = image.mode in {"L", "RGB", "F"} or image.mode.startswith("I")
        return np.asarray(image if plain else image.convert("RGB"))  # Why: no palette or alpha


# Command lines


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return an argument type: a number above 0."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    parse.__name__ = "positive number"
    return parse


def existing(text: str) -> Path:
    """Return the path of an existing file."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def writable(text: str) -> Path:
    """Return the path of a file in an existing folder."""
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    return path


def command_line(doc: str, output: str, megapixels: float) -> argparse.ArgumentParser:
    """Return a parser with the common options; the first line of `doc` describes the example."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("file", type=existing, nargs="?", help="image: .npy, .tif, .png, .jpg, ...")
    parser.add_argument("--output", type=writable, default=Path(output), help="picture to draw")
    parser.add_argument(
        "--megapixels", type=positive(float), default=megapixels, help="size without a file"
    )
    parser.add_argument("--workers", type=positive(int), help="default: one per CPU")
    return parser
