"""Connecting to a Ray cluster, or starting Ray on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
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
OF_A_TRIAL = ("torch", "ray.tune", "pandas", "pydantic", "safetensors.torch")
"""Modules that take long to import, of what trainables.trial imports; those of others, which every process finds."""
MEMORY_OF_A_PROCESS = 300 * 2**20
"""Bytes of its own that a process takes which has imported them, and a margin."""


@contextmanager
def ray_instance(cluster: Cluster, *, log_to_driver: bool = False) -> Iterator[None]:
    """Connect to the cluster at `cluster.address`, or start Ray on this machine; stop or leave it in the end.

    Raises:
        StudyError: if nothing answers at the address, or it does not let us in.
        ChoiceError: if there is no token where one is due, or none is asked for where one has to be.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for note in authenticate(cluster.address):
        logger.warning(note)
    let_ray_see_the_token()
    if cluster.address not in (None, "auto"):
        check_something_listens(cluster.address)
    gangs = cluster.workers_per_trial > 1
    try:
        if cluster.address is None:
            # without the dashboard ended gangs would keep their CPUs (Train asks it who is alive)
            start_ray(cluster.num_cpus, include_dashboard=gangs, preload=not gangs, log_to_driver=log_to_driver)
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
        with environment_of_trials(gangs=gangs):
            yield
    finally:
        ray.shutdown()


def start_ray(
    num_cpus: int | None, *, include_dashboard: bool, preload: bool = True, log_to_driver: bool = False
) -> None:
    """Start Ray on this machine, with processes that are ready to take a trial.

    Ray starts one a core at once; those import meanwhile what a trial needs two seconds for. Not where all of them
    together would take more than a quarter of the memory that is free: most wait in vain where trials have many cores.

    Args:
        num_cpus: that Ray may give to trials; all there are by default.
        include_dashboard: whether it has one.
        preload: whether processes import ahead. All would that Ray ever starts, also those of a gang that import next
            to nothing else, and what a gang's workers import takes as long ahead as when it is due.
        log_to_driver: whether what workers print is printed here.
    """
    processes, free = os.cpu_count() or 1, psutil.virtual_memory().available
    preloads = preload and processes * MEMORY_OF_A_PROCESS < free / 4
    with environment({"RAY_preload_python_modules": ",".join(OF_A_TRIAL) if preloads else None}):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=include_dashboard,
            dashboard_host=DASHBOARD_HOST,
            log_to_driver=log_to_driver,
        )


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Variables of the environment for the length of the block, None for unset; as before afterwards."""
    before = {name: os.environ.get(name) for name in values}
    put_in_environment(values)
    try:
        yield
    finally:
        put_in_environment(before)


def put_in_environment(values: Mapping[str, str | None]) -> None:
    """Set variables of the environment; unset those that are None."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def let_ray_see_the_token() -> None:
    """Have the part of Ray in this process read RAY_AUTH_MODE and the token again.

    It read them when it was imported, which may have been before they were set. Private names of Ray 2.60; ray.init()
    does the same, but only for the clusters that it finds by itself.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def environment_of_trials(*, gangs: bool) -> Iterator[None]:
    """For the length of the block have Tune copy no variable of this process into the environment of a trial.

    It would copy the keys of object stores, too, and Ray writes that environment to a log of each node and shows it in
    its dashboard. And a process with an environment of its own is started when its trial is: with that of the job, one
    that waits is taken. Private names of Ray 2.60; there is no public way.

    Args:
        gangs: whether trials are gangs, to which Train's own settings must still get.
    """
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
    from ray.tune.execution import class_cache

    before = class_cache.ENV_VARS_TO_PROPAGATE, class_cache.DEFAULT_ENV_VARS
    class_cache.ENV_VARS_TO_PROPAGATE = set(ENV_VARS_TO_PROPAGATE) if gangs else set()
    class_cache.DEFAULT_ENV_VARS = {}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE, class_cache.DEFAULT_ENV_VARS = before


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
