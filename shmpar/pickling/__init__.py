"""Pickling functions and arguments for workers."""
