"""The search itself: Ray Tune runs the trials that the ledger hands out, and does what the ledger says.

Tune places and starts trials and passes results on. Proposals, states, decisions and records are the ledger's, so
Tune's own state is scratch: it is never restored.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import CheckpointConfig, Stopper
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search_spaces.ledger import Ledger, TrialRecord
from search_spaces.schema import Scheduler
from trainables.gang import GangTrial
from trainables.settings import Cluster, Run
from trainables.study import StudyError
from trainables.trial import Assignment, Trial, resources_of

OF_A_WORKER = ("data", "models", "reports", "search_spaces", "trainables")
"""What of the checkout travels to the nodes of a cluster: not the recordings and studies that may lie beside it."""


class Trouble:
    """What went wrong with the books, e.g. a full disk; kept from Tune, which would make text of it, until it stops."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the first error of the block instead of raising it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  raised again, whatever it is, once Tune has stopped
            self.error = self.error or error


class LedgerSearcher(Searcher):
    """Hands Tune the trials that the ledger hands out."""

    def __init__(self, ledger: Ledger, trouble: Trouble, assign: Callable[[TrialRecord, Run], dict[str, Any]]) -> None:
        super().__init__()
        self._ledger = ledger
        self._trouble = trouble
        self._assign = assign

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial's assignment; FINISHED when the study has enough."""
        following = None
        with self._trouble.kept():
            following = self._ledger.next_trial()
        return Searcher.FINISHED if following is None else self._assign(*following)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler sees every result and every error, and the ledger is told there."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the study's folder holds all there is to restore."""

    def get_state(self) -> dict[str, Any]:
        """Nothing, likewise."""
        return {}


class LedgerScheduler(FIFOScheduler):
    """Passes every result to the ledger and stops a trial that has ended in its books.

    Trials never tell Tune that they are done: Tune would then skip the scheduler, and the books their last epoch.
    """

    def __init__(self, ledger: Ledger, trouble: Trouble, on_change: Callable[[], None]) -> None:
        super().__init__()
        self._ledger = ledger
        self._trouble = trouble
        self._on_change = on_change

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Stop or go on."""
        goes_on = False
        with self._trouble.kept():
            goes_on = self._ledger.report(trial.config["number"], unflattened(result))
            self._on_change()
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """A trial whose process failed is told FAIL, with the error's last line."""
        error = trial.get_pickled_error()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        with self._trouble.kept():
            self._ledger.end(trial.config["number"], "FAIL", lines[-1][:500])
            self._on_change()


class PopulationScheduler(LedgerScheduler):
    """Lets all trials advance together and passes weights from the best to the worst of them.

    A paused trial needs no checkpoint of Tune's: its state lies in the study's folder, and so does its donor's.
    """

    def __init__(
        self,
        ledger: Ledger,
        trouble: Trouble,
        on_change: Callable[[], None],
        assign: Callable[[TrialRecord, Run], dict[str, Any]],
    ) -> None:
        super().__init__(ledger, trouble, on_change)
        self._assign = assign

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Stop, go on, or wait for the others at an interval's end."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP or result["epoch"] not in self._ledger.exploit_epochs:
            return decision
        exploit = None
        with self._trouble.kept():
            exploit = self._ledger.exploit(trial.config["number"])
        waiting = any(other.status in (TuneTrial.PENDING, TuneTrial.PAUSED) for other in tune_controller.get_trials())
        if exploit is None and not waiting:
            return decision
        tune_controller.pause_trial(trial, should_checkpoint=False)
        if exploit is not None:
            trial.set_config(self._assign(*exploit))
        return str(TrialScheduler.NOOP)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """The one that is furthest behind, so that the population stays together."""
        waiting = [
            trial for trial in tune_controller.get_trials() if trial.status in (TuneTrial.PENDING, TuneTrial.PAUSED)
        ]
        return min(waiting, key=lambda trial: self._ledger.trials[trial.config["number"]].epoch, default=None)


def unflattened(result: dict[str, Any]) -> dict[str, Any]:
    """Our part of what Tune passes on: it flattens `metrics` to `metrics/val/auroc`."""
    keys = ("epoch", "stage", "seconds", "value", "best_epoch", "finished", "reason")
    metrics = {key.removeprefix("metrics/"): value for key, value in result.items() if key.startswith("metrics/")}
    return {**{key: result[key] for key in keys}, "metrics": metrics}


class StudyStopper(Stopper):
    """Stops all when a budget is used up or the books are in trouble; what runs is interrupted and goes on later."""

    def __init__(self, ledger: Ledger, trouble: Trouble) -> None:
        self._ledger = ledger
        self._trouble = trouble

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped for a budget."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop now."""
        return self._ledger.used_up is not None or self._trouble.error is not None


def concurrency(cluster: Cluster, nodes: Sequence[Mapping[str, float]], num_gpus: float) -> int:
    """How many trials run at a time: what the cluster holds, at most what was typed.

    Args:
        cluster: what a trial needs; a worker lies on one node, the workers of a trial on any.
        nodes: the resources of each.
        num_gpus: of each worker.

    Raises:
        StudyError: if not even one fits, with the demand and what there is.
    """

    def workers_on(node: Mapping[str, float]) -> int:
        room = [node.get("CPU", 0.0) / cluster.cpus_per_worker]
        if num_gpus > 0:
            room.append(node.get("GPU", 0.0) / num_gpus)
        return math.floor(min(room) + 1e-9)

    workers = cluster.workers_per_trial
    fitting = sum(map(workers_on, nodes)) // workers
    if fitting < 1:
        demand = f"{cluster.cpus_per_worker} CPU" + (f" and {num_gpus:g} GPU" if num_gpus else "")
        has = "; ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes)
        raise StudyError(
            f"a trial needs {workers} x ({demand}), each on one node, and the cluster's nodes have {has}: lower "
            "cluster.workers_per_trial, cluster.cpus_per_worker or cluster.gpus_per_worker"
        )
    return fitting if cluster.max_concurrent_trials == "auto" else min(fitting, cluster.max_concurrent_trials)


def run_trials(
    ledger: Ledger,
    cluster: Cluster,
    *,
    store: Path,
    metric: str,
    maximize: bool,
    on_change: Callable[[], None],
    scheduler: Scheduler,
    trainable: type[tune.Trainable] | None = None,
) -> None:
    """Run trials on the connected Ray cluster until the ledger has enough, a budget is used up, or the user stops it.

    Args:
        ledger: hands out trials and takes in their results.
        cluster: how many workers a trial has, and how many trials there may be.
        store: the prepared recordings, seen by every node.
        metric: what trials are judged by.
        maximize: whether more of it is better.
        on_change: called after every result, for a display.
        scheduler: the study's; the ledger holds its policy.
        trainable: what runs a trial; by default one process, or a gang where `workers_per_trial` is above 1.

    Raises:
        StudyError: if the cluster can never hold a trial.
        StorageError: if the study's folder can no longer be written.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = cluster.gpus_of_worker(sum(node.get("GPU", 0.0) for node in nodes))
    at_a_time = concurrency(cluster, nodes, num_gpus)
    if trainable is None:
        trainable = Trial if cluster.workers_per_trial == 1 else GangTrial

    def assign(trial: TrialRecord, run: Run) -> dict[str, Any]:
        assignment = Assignment(
            number=trial.number,
            run=run,
            folder=ledger.folder.trial(trial.number),
            store=store,
            metric=metric,
            maximize=maximize,
            num_gpus=num_gpus,
            cpus_per_worker=cluster.cpus_per_worker,
        )
        return {**assignment.to_config(), "num_workers": cluster.workers_per_trial}

    trouble = Trouble()
    following = LedgerScheduler(ledger, trouble, on_change)
    if scheduler.name == "pbt":  # the whole population is started at once and takes turns on what the cluster has
        following = PopulationScheduler(ledger, trouble, on_change, assign)
        at_a_time = ledger.num_trials
    scratch = ledger.folder.scratch
    shutil.rmtree(scratch, ignore_errors=True)
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the events are our log
    try:
        tune.run(
            trainable,
            name="tune",
            storage_path=str(scratch),
            search_alg=LedgerSearcher(ledger, trouble, assign),
            scheduler=following,
            stop=StudyStopper(ledger, trouble),
            num_samples=-1,
            max_concurrent_trials=at_a_time,
            resources_per_trial=resources_of(cluster, num_gpus),
            reuse_actors=True,
            checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            trial_name_creator=lambda trial: f"trial-{trial.config['number']:04d}",
            trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:04d}-{trial.trial_id}",
            raise_on_failed_trial=False,
            verbose=0,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if trouble.error is not None:
        raise trouble.error


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
