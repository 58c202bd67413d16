"""The chunks of an array, and their halos."""

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
