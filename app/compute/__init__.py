"""Where heavy work runs: child processes here (processes), or those of a Dask cluster's nodes (cluster).

`cluster` is not imported from here: Dask is loaded only where `COMPUTE_URL` asks for it.
"""

from app.compute._contract import ChildDied, Compute, Nodes, TooSlow
from app.compute.processes import Processes

__all__ = ["ChildDied", "Compute", "Nodes", "Processes", "TooSlow"]
