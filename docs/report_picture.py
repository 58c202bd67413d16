"""Draw the guide's picture of a report: ``python docs/report_picture.py [DIRECTORY]``.

The picture shows a real run, so it differs each time.  The cost of the function depends on the
place in the array.
"""  # noqa: INP001 - a script

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import shmpar


def escape_times(block: np.ndarray) -> np.ndarray:
    """Count the steps of ``z*z + c`` until ``abs(z)`` exceeds 2, at most 300."""
    z, steps = np.zeros_like(block), np.zeros(block.shape, np.int32)
    inside = np.ones(block.shape, bool)
    for _ in range(300):
        z[inside] = z[inside] ** 2 + block[inside]
        inside &= np.abs(z) <= 2  # noqa: PLR2004 - a point outside this circle does not return
        if not inside.any():
            break
        steps += inside
    return steps


def main(folder: Path) -> None:
    """Run the function and draw the report."""
    with shmpar.Pool(2) as pool:
        re, im = np.linspace(-2.2, 0.8, 1_200), np.linspace(-1.2, 1.2, 960)
        plane = pool.array(re[None, :] + 1j * im[:, None])
        for _ in range(2):  # Why: the first call waits for the workers.
            pool.map_blocks(escape_times, plane, chunks=60)
        report = pool.last_run.report
    print(report)  # noqa: T201 - a script
    report.plot().savefig(folder / "report.png", dpi=110)


main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images")
