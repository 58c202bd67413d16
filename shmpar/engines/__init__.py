"""Engines: serial, threads, processes."""
