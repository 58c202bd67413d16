"""Runs: the thread that owns an engine, scheduling, outcomes."""
