"""Connecting to a Ray cluster, or starting Ray on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import ray
from ray.exceptions import RayError

from search_spaces.authentication import MODE, TOKEN, authenticate, token_path
from search_spaces.node_facts import OF_A_WORKER
from trainables.settings import Cluster
from trainables.study import StudyError

logger = logging.getLogger(__name__)

DASHBOARD_HOST = "127.0.0.1"
ANSWER_WITHIN_S = 10


@contextmanager
def ray_instance(cluster: Cluster, *, log_to_driver: bool = False) -> Iterator[None]:
    """Connect to the cluster at `cluster.address`, or start Ray on this machine; stop or leave it in the end.

    Raises:
        StudyError: if nothing answers at the address, or it does not let us in.
        ChoiceError: if there is no token where one is due, or none is asked for where one has to be.
    """
    gang = cluster.workers_per_trial > 1
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for note in authenticate(cluster.address):
        logger.warning(note)
    let_ray_see_the_token()
    keep_keys_out_of_trials()
    if cluster.address not in (None, "auto"):
        check_something_listens(cluster.address)
    try:
        if cluster.address is None:
            # without the dashboard ended gangs would keep their CPUs (Train asks it who is alive)
            ray.init(
                address="local",
                num_cpus=cluster.num_cpus,
                include_dashboard=gang,
                dashboard_host=DASHBOARD_HOST,
                log_to_driver=log_to_driver,
            )
        else:
            # every worker runs this very code, frozen now, on every node; in a job, too, whose own environment is
            # the same code with launch.py beside it
            os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
            root = Path(__file__).resolve().parent.parent
            excludes = [f"/{entry.name}" for entry in root.iterdir() if entry.name not in OF_A_WORKER]
            environment = {"working_dir": str(root), "excludes": excludes}
            ray.init(address=cluster.address, runtime_env=environment, log_to_driver=log_to_driver)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())[:300]
        if cluster.address is None:
            raise StudyError(f"Ray could not be started on this machine: {reason}") from error
        raise StudyError(
            f"no Ray cluster could be used at cluster.address={cluster.address}: {reason}; {what_was_shown()}"
        ) from error
    try:
        check_guarded(cluster)
        yield
    finally:
        ray.shutdown()


def let_ray_see_the_token() -> None:
    """Have the part of Ray in this process read RAY_AUTH_MODE and the token again.

    It read them when it was imported, which may have been before they were set. Private names of Ray 2.60; ray.init()
    does the same, but only for the clusters that it finds by itself.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def keep_keys_out_of_trials() -> None:
    """Have Tune leave the keys of object stores where they are: in the environments of the nodes and of this process.

    It copies them from here into the runtime environment of every trial, which Ray writes to a log of each node and
    shows in its dashboard. A private name of Ray 2.60; there is no public way.
    """
    from ray.tune.execution import class_cache

    kept = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE = kept


def check_something_listens(address: str) -> None:
    """Refuse in seconds an address at which nothing listens; Ray alone would try for more than a minute.

    Raises:
        StudyError: with what the operating system says.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.hostname is None or parts.port is None:
            raise ValueError("it must be HOST:PORT, or auto")
        socket.create_connection((parts.hostname, parts.port), timeout=ANSWER_WITHIN_S).close()
    except (OSError, ValueError) as error:
        raise StudyError(
            f"nothing can be reached at cluster.address={address} ({error}): check the address and that Ray runs there "
            "(`ray start --head` prints its own)"
        ) from error


def what_was_shown() -> str:
    """Which token was shown to a cluster that did not let us in, and what may mend it."""
    if os.environ.get(MODE) != "token":
        return (
            "no token was shown; if the cluster was started with one, copy the head's ~/.ray/auth_token to "
            f"{token_path()} (chmod 600) and type export {MODE}=token"
        )
    source = f"{TOKEN} in the environment" if os.environ.get(TOKEN) else str(token_path())
    return f"the token of {source} was shown; if the cluster's is another, copy the head's ~/.ray/auth_token there"


def check_guarded(cluster: Cluster) -> None:
    """Refuse a cluster that asks for no token and has nodes on other machines, by whatever address it was reached.

    Raises:
        StudyError: that says how to start it.
    """
    if cluster.address is None or os.environ.get(MODE) == "token":
        return
    here = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    elsewhere = sorted({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} - here)
    if elsewhere:
        raise StudyError(
            f"the cluster at cluster.address={cluster.address} has nodes on other machines, {', '.join(elsewhere[:3])}"
            f", and asks for no token: whoever reaches it runs code on it; start it with {MODE}=token"
        )
