"""A picture that fills while it is computed: the Mandelbrot set, tile by tile.

    python examples/live_view.py                 # four moments of it, in live_view.png
    python examples/live_view.py --show          # in a window, as it happens

The call returns at once (``wait=False``); ``run.completed()`` then gives the region of each tile
as soon as it is in ``run.out``, in whatever order the workers finish. Tiles inside the set cost a
hundred times more than those outside, and the order shows it.

Needs matplotlib: ``pip install "shmpar[examples]"``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import shmpar

Array = np.ndarray[Any, Any]

CENTRE, WIDTH = -0.743643 + 0.131825j, 0.012
TILE = 64
MOMENTS = (0.1, 0.4, 0.7, 1.0)  # shares of the tiles after which a snapshot is kept


# What workers call: the plane comes as two thin arrays, which broadcast.


def escape(real: Array, imaginary: Array, steps: int) -> Array:
    """Count the steps until a point leaves the circle of radius 2; smoothed, 0 if it never does."""
    point = real + 1j * imaginary
    value, count = np.zeros_like(point), np.zeros(point.shape)
    inside = np.ones(point.shape, bool)
    for step in range(1, steps + 1):
        value[inside] = value[inside] ** 2 + point[inside]
        gone = inside & (np.abs(value) > 2)  # noqa: PLR2004 (the radius beyond which nothing returns)
        count[gone] = step + 1 - np.log2(np.log(np.abs(value[gone])))
        inside &= ~gone
        if not inside.any():
            break
    return count


# What the parent does


def follow(run: shmpar.Run, shape: tuple[int, int], window: Window | None) -> list[Array]:
    """Fill a canvas as tiles come in; return what it looked like at some moments."""
    canvas = np.full(shape, np.nan)
    moments, total = list(MOMENTS), run.progress[1]
    kept: list[Array] = []
    for number, region in enumerate(run.completed(), start=1):
        canvas[region] = run.out[region]
        if window is not None:
            window.draw(canvas, number / total)
        while moments and number >= moments[0] * total:
            kept.append(canvas.copy())
            moments.pop(0)
    return kept


class Window:
    """A window that is drawn anew some ten times a second."""

    def __init__(self, steps: int) -> None:
        import matplotlib.pyplot as plt

        self._plt, self._steps = plt, steps
        self._figure, self._axes = plt.subplots(figsize=(8, 8), layout="constrained")
        self._drawn = 0.0

    def draw(self, canvas: Array, share: float) -> None:
        """Show the canvas, unless it was shown just now."""
        if time.monotonic() - self._drawn < 0.1 and share < 1:  # noqa: PLR2004 (seconds)
            return
        self._drawn = time.monotonic()
        self._axes.clear()
        show(self._axes, canvas, share, self._steps)
        self._plt.pause(0.001)


def show(axes: Any, canvas: Array, share: float, steps: int) -> None:
    """Draw a canvas; what is not there yet is grey, what never escapes is black."""
    import matplotlib as mpl

    colours = mpl.colormaps["inferno"].copy()
    colours.set_bad("0.75")
    with np.errstate(divide="ignore", invalid="ignore"):
        image = np.log1p(np.maximum(canvas, 0))
    axes.imshow(image, cmap=colours, vmin=0, vmax=np.log1p(steps), interpolation="nearest")
    axes.set_title(f"{share:.0%} of the tiles")
    axes.set_axis_off()


def draw(kept: list[Array], steps: int, path: Path) -> None:
    """Put the moments side by side into a file."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(kept), figsize=(4 * len(kept), 4.4), layout="constrained")
    for ax, canvas, share in zip(axes, kept, MOMENTS, strict=True):
        show(ax, canvas, share, steps)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Compute it, and show how it fills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=1_024, help="pixels along each axis")
    parser.add_argument(
        "--steps", type=int, default=600, help="after which a point counts as inside"
    )
    parser.add_argument("--output", type=Path, default=Path("live_view.png"))
    parser.add_argument("--show", action="store_true", help="show it in a window instead")
    parser.add_argument("--workers", type=int, help="default: one a CPU")
    parser.add_argument("--smoke", action="store_true", help="small, in a few seconds")
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
        window = Window(steps) if args.show else None
        kept = follow(run, (side, side), window)
        seconds, tiles = run.report.seconds, run.progress[1]
    print(f"{tiles} tiles of {TILE} x {TILE} pixels in {seconds:.2f} s")
    if window is None:
        draw(kept, steps, args.output)
        print(f"drawn: {args.output}")
    else:
        input("Enter ends it. ")


if __name__ == "__main__":
    main()
