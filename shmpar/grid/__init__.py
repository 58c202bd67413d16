"""The chunks of an array, and their halos."""

from shmpar.grid.axis import Axis
from shmpar.grid.grid import BLOCK_BYTES, HALO_BLOCK_BYTES, Chunks, Grid
from shmpar.grid.halo import Halo, Mode

__all__ = ["BLOCK_BYTES", "HALO_BLOCK_BYTES", "Axis", "Chunks", "Grid", "Halo", "Mode"]
