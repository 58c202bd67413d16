"""Draw the guide's picture of a report: ``python docs/report_picture.py [DIRECTORY]``.

A real run, of a function whose cost depends on where it is: the picture is another each time.
"""  # noqa: INP001 - a script

from __future__ import annotations

import os
import sys

import numpy as np

import shmpar


def escape_times(block: np.ndarray) -> np.ndarray:
    """How many steps of z*z + c leave each c within 2, up to 300; stops when all have left."""
    z, steps = np.zeros_like(block), np.zeros(block.shape, np.int32)
    inside = np.ones(block.shape, bool)
    for _ in range(300):
        z[inside] = z[inside] ** 2 + block[inside]
        inside &= np.abs(z) <= 2  # noqa: PLR2004 - what leaves this circle does not return
        if not inside.any():
            break
        steps += inside
    return steps


def main(folder: str) -> None:
    """Make the run, and draw it."""
    with shmpar.Pool(2) as pool:
        re, im = np.linspace(-2.2, 0.8, 1_200), np.linspace(-1.2, 1.2, 960)
        plane = pool.array(re[None, :] + 1j * im[:, None])
        for _ in range(2):  # the first call waits for the workers
            pool.map_blocks(escape_times, plane, chunks=60)
        report = pool.last_run.report
    print(report)  # noqa: T201 - a script
    report.plot().savefig(os.path.join(folder, "report.png"), dpi=110)


main(sys.argv[1] if sys.argv[1:] else os.path.join(os.path.dirname(__file__), "images"))
