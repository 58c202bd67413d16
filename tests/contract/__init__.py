"""The contract of all engines, on every supported Python, with no optional package."""
