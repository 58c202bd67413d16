"""Show a picture while its tiles are computed: the Mandelbrot set.

    python examples/live_view.py                 # four snapshots in live_view.png
    python examples/live_view.py --show          # in a window, live

The call returns at once (``wait=False``).  ``run.live()`` then fills a picture in a window.
Without ``--show``, ``run.completed()`` yields the region of each tile as soon as the tile is in
``run.out``, in the order in which the workers finish.  Tiles inside the set cost far more than
tiles outside.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import shmpar

try:
    import matplotlib as mpl
except ImportError as error:
    raise SystemExit(
        f'{error.name} is missing; this example needs: pip install -e ".[examples]"'
    ) from None

Array = np.ndarray[Any, Any]

CENTRE, WIDTH = -0.743643 + 0.131825j, 0.012
TILE = 64
SNAPSHOTS = (0.1, 0.4, 0.7, 1.0)  # shares of the tiles after which the canvas is copied


# The function that workers call.  The plane is two thin arrays, which broadcast.


def escape(real: Array, imaginary: Array, steps: int) -> Array:
    """Return the smoothed number of steps until a point leaves the circle; 0 if it never does."""
    point = real + 1j * imaginary
    value, count = np.zeros_like(point), np.zeros(point.shape)
    inside = np.ones(point.shape, bool)
    for step in range(1, steps + 1):
        value[inside] = value[inside] ** 2 + point[inside]
        gone = inside & (np.abs(value) > 2)  # noqa: PLR2004 (radius of the circle)
        count[gone] = step + 1 - np.log2(np.log(np.abs(value[gone])))
        inside &= ~gone
        if not inside.any():
            break
    return count


# Code of the calling process


def follow(run: shmpar.Run, shape: tuple[int, int]) -> list[Array]:
    """Copy each completed tile to a canvas; return snapshots of the canvas."""
    canvas = np.full(shape, np.nan)
    shares, total = list(SNAPSHOTS), run.progress[1]
    snapshots: list[Array] = []
    for number, region in enumerate(run.completed(), start=1):
        canvas[region] = run.out[region]
        while shares and number >= shares[0] * total:
            snapshots.append(canvas.copy())
            shares.pop(0)
    return snapshots


def show(axes: Any, canvas: Array, share: float, steps: int) -> None:
    """Draw a canvas; missing tiles are grey, points that never escape are black."""
    colours = mpl.colormaps["inferno"].copy()
    colours.set_bad("0.75")
    with np.errstate(divide="ignore", invalid="ignore"):
        image = np.log1p(np.maximum(canvas, 0))
    axes.imshow(image, cmap=colours, vmin=0, vmax=np.log1p(steps), interpolation="nearest")
    axes.set_title(f"{share:.0%} of the tiles")
    axes.set_axis_off()


def draw(snapshots: list[Array], steps: int, path: Path) -> None:
    """Draw the snapshots side by side into a file."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    size = (4 * len(snapshots), 4.4)
    figure, axes = plt.subplots(1, len(snapshots), figsize=size, layout="constrained")
    for ax, canvas, share in zip(axes, snapshots, SNAPSHOTS, strict=True):
        show(ax, canvas, share, steps)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Read the command line, compute, and show the tiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=1_024, help="pixels along each axis")
    parser.add_argument(
        "--steps", type=int, default=600, help="steps after which a point counts as inside"
    )
    parser.add_argument("--output", type=Path, default=Path("live_view.png"))
    parser.add_argument("--show", action="store_true", help="show a window instead")
    parser.add_argument("--workers", type=int, help="default: one per CPU")
    parser.add_argument("--smoke", action="store_true", help="small, takes a few seconds")
    args = parser.parse_args()
    side, steps = (192, 100) if args.smoke else (args.side, args.steps)

    offsets = np.linspace(-WIDTH / 2, WIDTH / 2, side)
    real, imaginary = (CENTRE.real + offsets)[None, :], (CENTRE.imag - offsets)[:, None]
    with shmpar.Pool(args.workers) as pool:
        began = time.perf_counter()
        run = pool.map_blocks(
            escape, real, imaginary, chunks=(TILE, TILE), kwargs={"steps": steps}, wait=False
        )
        print(f"the call returned after {1e3 * (time.perf_counter() - began):.0f} ms")
        if args.show:
            import matplotlib.pyplot as plt
            from matplotlib.colors import PowerNorm

            run.live(cmap="inferno", norm=PowerNorm(0.4, 0, steps))
        else:
            snapshots = follow(run, (side, side))
        seconds, tiles = run.report.seconds, run.progress[1]
    print(f"{tiles} tiles of {TILE} x {TILE} pixels in {seconds:.2f} s")
    if args.show:
        plt.show()  # until the window is closed
    else:
        draw(snapshots, steps, args.output)
        print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
