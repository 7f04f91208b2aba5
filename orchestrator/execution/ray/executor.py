"""The executor `ray`: it trains on a Ray cluster, which it starts for the launch or joins."""

from __future__ import annotations

from orchestrator.execution.controller import Workload
from orchestrator.execution.ray._environment import ray_environment
from orchestrator.machine import folders
from orchestrator.monitor.events import Event, EventKind, EventListener


def run(work: Workload, on_event: EventListener, *, address: str | None = None, dashboard: bool = True) -> None:
    """Trains as many trials at a time as fit on the cluster.

    Without an address it uses the cluster that RAY_ADDRESS names, else the one that `kdctl up` started, else a new one,
    which has a dashboard if `dashboard`. Raises ClusterError for an address that cannot be joined, ResourceError if no
    machine has the resources that a trial needs, StorageError if the storage fails, RayLost if Ray's own processes die,
    and Interrupted after a signal.
    """
    is_own = address in (None, "local")
    on_event(Event(EventKind.PREPARING, "starting Ray" if is_own else f"joining the Ray cluster at {address}"))
    folders.lend_home()  # Tune cannot be imported without one
    with ray_environment():  # Ray reads some of its variables when it is imported
        from orchestrator.execution.ray import _tune  # takes seconds

        _tune.run(work, on_event, address=address, dashboard=dashboard)
