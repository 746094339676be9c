"""Before the first trial: whether this cluster can carry the search, asked of every node at once, in seconds.

What is found wrong at six in the evening costs a minute; found by the first trial on the third node it costs a night.
One task on each node looks around there (node_facts.py), one takes the place of a trial's worker and times a few steps,
and preflight_checks.py says what follows.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from data.fingerprint import fingerprint
from models.classifier import Classifier
from search_spaces import node_facts
from search_spaces import preflight_checks as checks
from search_spaces.connection import ray_instance
from search_spaces.distributions import parse, run_with
from search_spaces.estimate import cost_of
from search_spaces.node_facts import NodeFacts, Request, answer_to, facts_of_this_node, listed, timed_on_this_node
from search_spaces.preflight_checks import Check, Node, Result
from search_spaces.reuse import num_pretrainings, shared_by
from search_spaces.schema import Launch, dotted
from search_spaces.tuning import concurrency
from trainables.classify import pooled
from trainables.files import write_atomically
from trainables.nodes import draining_nodes
from trainables.pretrain import build_pretext, fresh_encoder
from trainables.recordings import open_recordings
from trainables.settings import Cluster, Run
from trainables.study import StudyError, StudyFolder

ANSWER_S = 90.0
"""How long a node may take to answer. It takes one or two seconds, a cold one ten; one whose disk hangs, for ever.

A node of few processors starts few processes at a time, and Ray waits 60 s for one that never comes up, such as that
of a driver that was killed a moment ago: only then does it start ours."""
ESTIMATE_S = 9.0
"""How long after its beginning a pre-flight still waits for the estimate, which is a comfort and no condition."""
PATIENT_ESTIMATE_S = 60.0
"""The same where nothing but the pre-flight was asked for."""
TIMED_S = 1.0  # of each stage
DASHBOARD_S = 3.0
ADAMW_STATE = 3  # tensors of a model's size in a trial's state: the weights and two moments


@dataclass(frozen=True)
class Preflight:
    """What was found before the first trial."""

    checks: tuple[Check, ...]
    seconds: float

    def of_result(self, result: Result) -> list[Check]:
        """The checks that ended so."""
        return [check for check in self.checks if check.result == result]

    def refuse(self) -> None:
        """Raise if the search must not begin.

        Raises:
            StudyError: with everything that has to be mended.
        """
        if refused := self.of_result("refused"):
            reasons = "; ".join(f"{check.name}: {check.detail}" for check in refused)
            raise StudyError(f"the pre-flight refuses this cluster: {reasons}")


@contextmanager
def ready_cluster(
    launch: Launch,
    study: StudyFolder,
    store: Path,
    console: Console,
    *,
    say_all: bool = False,
    shared: bool = True,
    probes: Mapping[str, Callable[[], str | None]] | None = None,
) -> Iterator[None]:
    """Connect to the launch's cluster, or start Ray here, and go on only if the search can run there.

    Args:
        launch: what was typed.
        study: takes the results into its events.
        store: the prepared recordings.
        console: where the results are said.
        say_all: say every check, and look at a Ray that is started here as at any cluster.
        shared: whether every node has to read and write the study's folder.
        probes: see `look_around`.

    Raises:
        StudyError: if nothing answers at the address, or the search cannot run there.
    """
    with ray_instance(launch.cluster, log_to_driver=launch.debug.enabled):
        whole = say_all or launch.cluster.address is not None
        patience_s = PATIENT_ESTIMATE_S if say_all else ESTIMATE_S
        if whole:
            found = look_around(launch, study.path, store, estimate_s=patience_s, shared=shared, probes=probes)
        else:
            found = look_at_this_machine(launch, study.path)
        if study.configuration.exists():  # else there is no study yet to write it down for
            study.record(
                "preflight",
                seconds=round(found.seconds, 2),
                checks=[{**asdict(check), "seconds": round(check.seconds, 2)} for check in found.checks],
            )
        say(found, console, say_all=say_all)
        found.refuse()
        yield


def say(found: Preflight, console: Console, *, say_all: bool = False) -> None:
    """One line when all is well; a line more for each check that somebody should read."""
    worst = max((check.result for check in found.checks), key=checks.SEVERITY.index)
    verdict = {"ok": "all is well", "note": "all is well", "warning": "it can run", "refused": "it must not run"}[worst]
    told = ["capacity", "estimate"] if not say_all and worst != "refused" else []
    plan = "".join(f"; {check.detail}" for check in found.checks if check.name in told and check.result == "ok")
    console.print(f"pre-flight: {len(found.checks)} checks, {found.seconds:.1f} s: {verdict}{plan}", markup=False)
    for check in found.checks:
        if say_all:
            console.print(f"  {check.result:<8} {check.name} ({check.seconds:.1f} s): {check.detail}", markup=False)
        elif check.result in ("note", "warning"):
            console.print(f"{check.result}: {check.name}: {check.detail}", markup=False)


# -------- what is looked at


def look_at_this_machine(launch: Launch, study_dir: Path) -> Preflight:
    """What makes sense on the Ray that was started here, and costs nothing."""
    clock = Stopwatch()
    nodes = nodes_of_cluster()
    found = [clock.timed(checks.check_capacity(nodes, launch.cluster))]
    disks = {nodes[0]: node_facts.disks_here(study_dir)}
    found.append(clock.timed(checks.check_space(disks, needed_bytes(launch, nodes))))
    return Preflight(tuple(found), clock.total)


class Stopwatch:
    """Seconds of one check after the other."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()

    def timed(self, check: Check) -> Check:
        """The check with the seconds since the one before it."""
        now = time.perf_counter()
        check, self._last = replace(check, seconds=now - self._last), now
        return check

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began


def look_around(
    launch: Launch,
    study_dir: Path,
    store: Path,
    *,
    estimate_s: float = ESTIMATE_S,
    shared: bool = True,
    probes: Mapping[str, Callable[[], str | None]] | None = None,
) -> Preflight:
    """Look at every node of the connected cluster.

    Args:
        launch: what is to run there.
        study_dir: the study's folder.
        store: the prepared recordings.
        estimate_s: how long to wait for the estimate, from now.
        shared: whether every node has to read and write the study's folder.
        probes: further checks to call on every node, by name: None where all is well, else one line on what is wrong.
            What has to be reached from everywhere, such as a store of objects, is checked so.
    """
    clock = Stopwatch()
    probes = {**probes_of_folders(launch), **(probes or {})}
    nodes = nodes_of_cluster()
    found = [clock.timed(checks.check_capacity(nodes, launch.cluster, ray.available_resources()))]
    timing = None if found[0].result == "refused" else start_timing(launch, store, nodes)
    with meeting_folder(study_dir) as meeting:
        seed = secrets.randbits(32)
        request = Request(meeting if shared else None, study_dir, secrets.token_hex(16), store, seed, probes)
        write_atomically(meeting / node_facts.DRIVERS_FILE, request.content.encode())
        asked = time.time()
        tasks = ask([node for node in nodes if node.usable], request)
        found += [clock.timed(check) for check in meanwhile(launch.cluster, nodes)]
        ours, versions = fingerprint(store, seed=seed), node_facts.versions_here()
        answers, answered, failures = gather(tasks)
        seen = {node: read_back(meeting, request, node) for node in answers if shared}
    if failures:  # who has died or been told to go since is left out, as if it had been so from the beginning
        nodes = nodes_of_cluster()
        usable = {node.id for node in nodes if node.usable}
        failures = {node: problem for node, problem in failures.items() if node.id in usable}
        found[0] = replace(checks.check_capacity(nodes, launch.cluster), seconds=found[0].seconds)
    found.append(clock.timed(checks.check_nodes(nodes, failures)))
    of_nodes = {"storage": checks.check_storage(answers, str(study_dir), seen)} if shared else {}
    of_nodes |= {
        "free space": checks.check_space(
            {node: facts.disks for node, facts in answers.items()}, needed_bytes(launch, nodes)
        ),
        "data": checks.check_data(answers, str(store), ours),
        "versions": checks.check_versions(answers, versions),
        "devices": checks.check_devices(answers),
        "clocks": checks.check_clocks(answers, asked, answered),
    } | {name: checks.check_probe(name, answers) for name in probes}
    for part, check in of_nodes.items():
        slowest = max((facts.seconds.get(part, 0.0) for facts in answers.values()), default=0.0)
        found.append(replace(check, seconds=slowest))
    if timing is not None:
        found.append(clock.timed(finish_timing(launch, store, nodes, timing, max(1.0, estimate_s - clock.total))))
    return Preflight(tuple(found), clock.total)


def probes_of_folders(launch: Launch) -> dict[str, Callable[[], str | None]]:
    """A check of each folder that every trial reads beside the recordings: a text encoder's."""
    tree = launch.model_dump(mode="json", by_alias=True)
    found = {
        Path(value)
        for key, value in dotted({"model": tree["model"], "options": tree["options"]}).items()
        if key.endswith(".folder") and value
    }
    return {
        folder.name: functools.partial(node_facts.other_listing, folder, node_facts.listing(folder))
        for folder in sorted(found)
    }


def nodes_of_cluster() -> list[Node]:
    """All nodes that the connected cluster knows of, the dead ones too."""
    leaving = draining_nodes()
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            resources=node.get("Resources", {}),
            alive=node["Alive"],
            draining=node["NodeID"] in leaving,
        )
        for node in ray.nodes()
    ]


# -------- one task on each node


@contextmanager
def meeting_folder(study_dir: Path) -> Iterator[Path]:
    """A new folder in the study's, where the driver and the nodes leave files for one another."""
    folder = study_dir / f".preflight-{secrets.token_hex(4)}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ask(nodes: Sequence[Node], request: Request) -> dict[Node, Any]:
    """Have every node look around, all at once."""
    look = ray.remote(num_cpus=0, max_retries=0)(facts_of_this_node)
    return {
        node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            request, node.id
        )
        for node in nodes
    }


def gather(tasks: Mapping[Node, Any]) -> tuple[dict[Node, NodeFacts], dict[Node, float], dict[Node, str]]:
    """What the nodes answer, when each answer was there, and what is wrong with those that have none."""
    give_up = time.monotonic() + ANSWER_S
    answers: dict[Node, NodeFacts] = {}
    answered: dict[Node, float] = {}
    failures: dict[Node, str] = {}
    waiting = {task: node for node, task in tasks.items()}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=max(0.0, give_up - time.monotonic()))
        if not ready:
            break
        node = waiting.pop(ready[0])
        try:
            answers[node], answered[node] = ray.get(ready[0]), time.time()
        except RayError as error:
            failures[node] = f"its task failed ({last_line(error)})"
    for task, node in waiting.items():
        ray.cancel(task, force=True)
        failures[node] = (
            f"it has said nothing for {ANSWER_S:.0f} s although Ray hears of it (a disk that hangs, or no Python that "
            "starts)"
        )
    return answers, answered, failures


def last_line(error: Exception) -> str:
    """The last line of what Ray says of an error, which names it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]


def read_back(meeting: Path, request: Request, node: Node) -> bool:
    """Whether the driver sees what a node has written, for which a network file system may need a moment."""
    give_up = time.monotonic() + node_facts.VISIBLE_AFTER_S
    while True:
        try:
            if (meeting / node.id).read_text() == answer_to(request.content, node.id):
                return True
        except (OSError, ValueError):
            pass
        if time.monotonic() > give_up:
            return False
        time.sleep(0.1)
        listed(meeting)


# -------- while they do


def meanwhile(cluster: Cluster, nodes: Sequence[Node]) -> Iterator[Check]:
    """What the driver finds out itself."""
    yield checks.check_authentication(machines_beyond(nodes), token_here=token_is_shown(), open_to_all=open_to_all())
    if cluster.workers_per_trial > 1:
        yield checks.check_dashboard(dashboard_problem())


def machines_beyond(nodes: Sequence[Node]) -> list[str]:
    """The addresses of a cluster's nodes that are not this machine's own."""
    here = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return sorted({node.address for node in nodes if node.alive} - here)


def token_is_shown() -> bool:
    """Whether this process shows a token to the clusters that it talks to."""
    return os.environ.get("RAY_AUTH_MODE", "disabled") == "token"


def open_to_all() -> bool | None:
    """Whether the dashboard answers to who shows no token; None where it cannot be reached."""
    url = ray.init(ignore_reinit_error=True).dashboard_url  # the public way to ask a connected driver for it
    if not url:
        return None
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a cluster lies behind no proxy
    try:
        with direct.open(f"http://{url}/api/version", timeout=DASHBOARD_S):
            return True
    except urllib.error.HTTPError as error:
        return False if error.code in (401, 403) else None
    except OSError:
        return None


def dashboard_problem() -> str | None:
    """Why the dashboard cannot be asked as Train asks it; None where it can."""
    from ray.util.state import list_nodes

    try:
        # of our own cluster: without an address it finds whichever runs on this machine
        list_nodes(address=ray.get_runtime_context().gcs_address, timeout=DASHBOARD_S)
    except Exception as error:  # noqa: BLE001  without a dashboard it is a ValueError, else one of several
        return last_line(error)
    return None


# -------- what it will cost


def start_timing(launch: Launch, store: Path, nodes: Sequence[Node]) -> Any:
    """Have one worker of the cluster time a few steps, with what a trial's worker would have."""
    splits = open_recordings(launch.run, store).splits
    cluster = launch.cluster
    num_gpus = _gpus_of_worker(cluster, nodes)
    timed = ray.remote(num_cpus=cluster.cpus_per_worker, num_gpus=num_gpus, max_retries=0)(timed_on_this_node)
    return timed.remote(
        launch.run.model_dump(mode="json", by_alias=True),
        max(len(split.pretrain) for split in splits),
        max(len(split.train) for split in splits),
        num_gpus,
        cluster.cpus_per_worker,
        TIMED_S,
    )


def finish_timing(launch: Launch, store: Path, nodes: Sequence[Node], timing: Any, timeout_s: float) -> Check:
    """The estimate, if it comes in time."""
    try:
        alone, where = ray.get(timing, timeout=timeout_s)
    except GetTimeoutError:
        ray.cancel(timing, force=True)
        return Check(
            "estimate",
            "note",
            "none: no worker has timed a step yet, so the cluster is busy or slow to start Python; `ray status` shows "
            "who holds what, and command=preflight waits longer",
        )
    except RayError as error:
        return Check("estimate", "warning", f"the steps could not be timed on the cluster: {last_line(error)}")
    cost = cost_of(
        launch,
        alone,
        num_records=max(len(split.pretrain) for split in open_recordings(launch.run, store).splits),
        at_a_time=_at_a_time(launch.cluster, nodes),
    )
    name = next((node.name for node in nodes if node.id == where), where)
    return checks.check_estimate(cost, launch.search, name)


def _gpus_of_worker(cluster: Cluster, nodes: Sequence[Node]) -> float:
    return cluster.gpus_of_worker(sum(node.resources.get("GPU", 0.0) for node in nodes if node.usable))


def _at_a_time(cluster: Cluster, nodes: Sequence[Node]) -> int:
    """Trials at a time; none where not one fits."""
    resources = [node.resources for node in nodes if node.usable]
    try:
        return concurrency(cluster, resources, _gpus_of_worker(cluster, nodes))
    except StudyError:
        return 0


def needed_bytes(launch: Launch, nodes: Sequence[Node]) -> float:
    """About what the search keeps in the study's folder at once: states of trials under way, and the best models.

    A state holds the weights, the optimiser's two moments and the best weights so far, and is written beside the one
    that it replaces. A pre-training that trials share keeps one more.
    """
    model = launch.task.folds * max(map(model_bytes, default_runs(launch)))
    # a trial that takes turns or waits to be promoted keeps its state while another runs
    waits = launch.scheduler.name in ("pbt", "asha_promotion")
    states = launch.search.num_trials if waits else _at_a_time(launch.cluster, nodes)
    shared, kept = shared_by(launch), 0.0
    if shared.pretraining:
        kept = min(shared.max_bytes, model * ADAMW_STATE * num_pretrainings(parse(launch.space)))
    return model * (states * (2 * ADAMW_STATE + 1) + launch.search.keep_best + 1) + kept


def default_runs(launch: Launch) -> list[Run]:
    """A run of each option of the groups that are searched."""
    space = parse(launch.space)
    tree = launch.model_dump(mode="json", by_alias=True)
    return [run_with(launch, space.values(point)) for point in space.first_points(tree, launch.options)]


def model_bytes(run: Run) -> int:
    """Of the larger of a run's two models."""
    try:
        with torch.device("meta"):
            models = _models_of(run)
    except ValueError:  # a text encoder that is loaded from a folder cannot be made without its values
        models = _models_of(run)
    return max(sum(int(tensor.nbytes) for tensor in model.state_dict().values()) for model in models)


def _models_of(run: Run) -> list[torch.nn.Module]:
    encoder = pooled(fresh_encoder(run), run)
    classifier = Classifier(encoder, 1, drop_path=0.0, head_init_std=0.0)
    return [classifier] if run.task.stages == "finetune" else [classifier, build_pretext(run)]
