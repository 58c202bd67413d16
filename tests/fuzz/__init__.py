"""What parses addresses and ledgers, for whoever makes up bytes: see :mod:`tests.fuzz.__main__`."""
