"""Connecting to a Ray cluster, or starting Ray on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError

from trainables.settings import Cluster
from trainables.study import StudyError

OF_A_WORKER = ("data", "models", "reports", "search_spaces", "trainables")
"""What of the checkout travels to the nodes of a cluster: not the recordings and studies that may lie beside it."""


@contextmanager
def ray_instance(cluster: Cluster, *, log_to_driver: bool = False) -> Iterator[None]:
    """Connect to the cluster at `cluster.address`, or start Ray on this machine; stop or leave it in the end.

    Raises:
        StudyError: if nothing answers at the address.
    """
    gang = cluster.workers_per_trial > 1
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    try:
        if cluster.address is None:
            # without the dashboard ended gangs would keep their CPUs (Train asks it who is alive)
            ray.init(address="local", num_cpus=cluster.num_cpus, include_dashboard=gang, log_to_driver=log_to_driver)
        else:
            # every worker runs this very code, frozen now, on every node
            root = Path(__file__).resolve().parent.parent
            excludes = [f"/{entry.name}" for entry in root.iterdir() if entry.name not in OF_A_WORKER]
            environment = {"working_dir": str(root), "excludes": excludes}
            ray.init(address=cluster.address, runtime_env=environment, log_to_driver=log_to_driver)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())[:300]
        if cluster.address is None:
            raise StudyError(f"Ray could not be started on this machine: {reason}") from error
        raise StudyError(
            f"no Ray cluster could be used at cluster.address={cluster.address}: {reason}; if it was started with a "
            "token, set RAY_AUTH_MODE=token in the environment"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
