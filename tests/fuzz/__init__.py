"""Fuzz targets for the parsers of addresses and ledgers; :mod:`tests.fuzz.__main__` runs them."""
