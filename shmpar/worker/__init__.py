"""The worker: takes tickets and computes chunks."""
