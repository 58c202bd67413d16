"""Normalise, denoise, threshold and measure an image in one pass, and in three calls.

    python examples/pipeline.py
    python examples/pipeline.py --megapixels 100 --workers 4

The steps are local: a pixel of the result depends on pixels up to 22 away, since the depths of the
steps add up, 6 for the denoising and 16 for the background.  So one function can do all of them on
a block with a halo of 22.  The three calls write the normalised and the denoised image into shared
memory, and read them again.  Both give the same numbers.  It needs NumPy and SciPy.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import shmpar

try:
    from scipy.ndimage import gaussian_filter
except ImportError as error:
    raise SystemExit(
        f'{error.name} is missing; this example needs: pip install -e ".[examples]"'
    ) from None

Array = np.ndarray[Any, Any]

TILE = 1024  # pixels along a side of a tile
DARK, GAIN = 100, 0.25  # of the camera: counts without light, and electrons per count
NOISE_DEPTH = 6  # pixels: three standard deviations of the filter
BACKGROUND_DEPTH = 16  # pixels: two standard deviations of a wider filter
ABOVE = 3.0  # electrons above the background


# Steps


def normalised(counts: Array) -> Array:
    """Return electrons."""
    return (counts.astype(np.float32) - DARK) * np.float32(GAIN)


def denoised(electrons: Array) -> Array:
    """Average over the nearest pixels."""
    return gaussian_filter(electrons, 2, truncate=3)


def bright(smooth: Array) -> Array:
    """Return the pixels above their background."""
    return smooth > gaussian_filter(smooth, 8, truncate=2) + np.float32(ABOVE)


def statistics(smooth: Array, mask: Array) -> tuple[int, float]:
    """Return the number of bright pixels, and their light."""
    return int(mask.sum()), float(smooth.sum(dtype=float, where=mask))


def core(block_info: Any) -> tuple[slice, ...]:
    """Return the tile without its halo, as slices of the window."""
    window, tile = block_info[0]["array-location"], block_info[None]["array-location"]
    pairs = zip(window, tile, strict=True)
    return tuple(slice(a - first, b - first) for (first, _), (a, b) in pairs)


# Both ways


def whole_chain(window: Array, block_info: Any) -> tuple[int, float]:
    """Do all steps on a tile with its halo; the halo is removed once, at the end."""
    smooth = denoised(normalised(window))
    mask, inside = bright(smooth), core(block_info)
    return statistics(smooth[inside], mask[inside])


def last_steps(window: Array, block_info: Any) -> tuple[int, float]:
    """Threshold and measure a tile of the denoised image."""
    mask, inside = bright(window), core(block_info)
    return statistics(window[inside], mask[inside])


def one_pass(pool: shmpar.Pool, image: Array) -> tuple[Array, Array]:
    """Make one call; the depths of the steps add up."""
    depth = NOISE_DEPTH + BACKGROUND_DEPTH
    return pool.block_reduce(whole_chain, image, chunks=TILE, depth=depth)


def three_calls(pool: shmpar.Pool, image: Array) -> tuple[Array, Array]:
    """Make a call per step, with an array between each two."""
    electrons = pool.map_blocks(normalised, image, chunks=TILE)
    smooth = pool.map_overlap(denoised, electrons, depth=NOISE_DEPTH, chunks=TILE)
    return pool.block_reduce(last_steps, smooth, chunks=TILE, depth=BACKGROUND_DEPTH)


def photographed(block: Array, rng: np.random.Generator) -> Array:
    """Return counts of spots in the dark."""
    light = np.zeros(block.shape, np.float32)
    count = max(1, block.size // 4000)
    light[tuple(rng.integers(0, n, count) for n in block.shape)] = 4000
    return (DARK + rng.poisson(gaussian_filter(light, 3) + 20) / GAIN).astype(block.dtype)


def main() -> None:
    """Read the command line, compute both ways, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", type=float, default=64)
    parser.add_argument("--repeat", type=int, default=3, help="the fastest counts")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--smoke", action="store_true", help="four megapixels, once")
    options = parser.parse_args()
    if options.smoke:
        options.megapixels, options.repeat = 4, 1
    side = int((options.megapixels * 1e6) ** 0.5)

    with shmpar.Pool(options.workers) as pool:
        image = pool.empty((side, side), np.uint16)
        pool.map_blocks(photographed, image, chunks=TILE, out=image, seed=0)
        seconds, results, between = {}, {}, {"one call": 0, "three calls": 2 * 4 * image.size}
        for _ in range(options.repeat):
            for name, way in {"one call": one_pass, "three calls": three_calls}.items():
                began = time.perf_counter()
                results[name] = way(pool, image)
                seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - began)
        workers = pool.n_workers

    (pixels, light), (same_pixels, same_light) = results.values()
    if not (np.array_equal(pixels, same_pixels) and np.array_equal(light, same_light)):
        raise SystemExit("one call and three calls differ")
    print(f"{side:,} x {side:,} pixels, {pixels.size:,} tiles, {workers} workers")
    print(f"bright: {pixels.sum() / image.size:.2%} of the pixels, the same both ways")
    print(f"\n{'':<14}{'seconds':>9}{'megapixels/s':>14}{'MB between':>12}")
    for name, took in seconds.items():
        print(f"{name:<14}{took:>9.2f}{image.size / 1e6 / took:>14.1f}{between[name] / 1e6:>12.0f}")


if __name__ == "__main__":
    main()
