"""Functions and classes of tests that workers import by name.

These modules import neither pytest nor a module of tests: the start of a worker would take several
times as long.
"""
