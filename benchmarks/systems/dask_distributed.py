"""dask.array on a local cluster of processes (distributed), chunks from a mapped file."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.systems import Call, dask_processes


class Implementation(dask_processes.Implementation):
    """A cluster with a process per worker, a thread in each, and no dashboard."""

    title = "dask distributed"
    about = "dask.array on a LocalCluster of processes, chunks read from a mapped .npy file"
    needs = ("dask", "distributed")
    fewer = 20
    cold = (
        "import dask.array as da\nfrom distributed import Client",
        """
if __name__ == "__main__":
    with Client(n_workers={workers}, threads_per_worker=1, dashboard_address=None) as client:
        result = da.from_array(rows, chunks=(4, -1)).sum(axis=1).compute()
        done(result)
""",
    )

    def open(self) -> None:
        """Start the cluster."""
        import logging

        from distributed import Client, LocalCluster

        logging.getLogger("distributed").setLevel(logging.ERROR)
        self.cluster = LocalCluster(
            n_workers=self.workers,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=self.directory,
        )
        self.client = Client(self.cluster)

    def close(self) -> None:
        """Shut down the cluster."""
        self.client.close()
        self.cluster.close()

    def compute(self, lazy: Any) -> np.ndarray:
        """Run the graph on the cluster."""
        return self.client.compute(lazy).result()

    def copy(self, _: str) -> Call:
        """Scatter a plain array to the cluster."""
        source = np.array(self.input)
        return lambda: self.client.scatter(source, hash=False)
