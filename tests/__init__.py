"""Tests of shmpar; a package, so that they can say ``from tests.naive import ...``."""
