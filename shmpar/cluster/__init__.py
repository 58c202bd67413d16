"""Many machines: a pool whose workers are the hosts of another engine (docs: More machines)."""
