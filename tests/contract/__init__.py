"""What every engine must do, on every supported Python, with no optional package."""
