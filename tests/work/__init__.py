"""Functions and classes of tests that workers import by name.

These modules import neither pytest nor a module of tests, which takes as long as the whole start of
a worker.
"""
