"""How an array is cut into chunks, and what a chunk sees beyond its own cell.

Imports the standard library and numpy.  Nothing else of the package.
"""

from shmpar.grid.axis import Axis
from shmpar.grid.grid import BLOCK_BYTES, Chunks, Grid
from shmpar.grid.halo import Boundaries, Boundary, Depth, Halo, Mode

__all__ = [
    "BLOCK_BYTES",
    "Axis",
    "Boundaries",
    "Boundary",
    "Chunks",
    "Depth",
    "Grid",
    "Halo",
    "Mode",
]
