"""Shared memory: segments, their names, and copying into them."""
