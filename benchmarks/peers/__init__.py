"""shmpar beside its peers and the limits: ``python -m benchmarks peers``.

``workloads/`` says what is computed, ``systems/`` by whom: plain files that know nothing of each
other.  ``conduct.py`` starts a process for each system (``serve.py``) and lets them take turns.
"""
