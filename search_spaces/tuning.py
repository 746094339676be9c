"""The search itself: Ray Tune runs the trials that the ledger hands out, and does what the ledger says.

Tune places and starts trials and passes results on. Proposals, states, decisions and records are the ledger's, so
Tune's own state is scratch: it is never restored.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune import CheckpointConfig, Stopper
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from search_spaces.books import Books
from search_spaces.connection import environment
from search_spaces.ledger import Ledger, TrialRecord
from search_spaces.reuse import NOTHING_SHARED, Shared
from search_spaces.schema import Scheduler
from search_spaces.sentinel import Sentinel
from trainables.diagnosis import interruption_of, reason_of
from trainables.failures import InterruptedTrial
from trainables.files import writing_to
from trainables.gang import GangTrial
from trainables.nodes import is_alive, usable_nodes
from trainables.settings import Cluster, Run
from trainables.study import StudyError, StudyFolder
from trainables.trial import Assignment, Trial, resources_of

logger = logging.getLogger(__name__)

ASK_EVERY_S = 1.0
"""How old what is known of the cluster's nodes may be."""


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
    """Hands Tune the trials that the ledger hands out, as many at a time as there is room for."""

    def __init__(
        self,
        ledger: Books,
        trouble: Trouble,
        assign: Callable[[TrialRecord, Run], dict[str, Any]],
        room: Callable[[], int],
    ) -> None:
        super().__init__()
        self._ledger = ledger
        self._trouble = trouble
        self._assign = assign
        self._room = room

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's assignment; None for now; FINISHED when nothing will follow, whatever fails."""
        following, finished = None, True
        with self._trouble.kept():
            finished = self._ledger.is_over
            if not finished and self._ledger.num_running < self._room():
                following = self._ledger.next_trial()
                finished = following is None and self._ledger.is_over
        if following is not None:
            return self._assign(*following)
        # what runs may yet be interrupted and come back, and Tune asks a finished searcher no more
        return Searcher.FINISHED if finished else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler sees every result and every error, and the ledger is told there."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the study's folder holds all there is to restore."""

    def get_state(self) -> dict[str, Any]:
        """Nothing, likewise."""
        return {}


class LedgerScheduler(FIFOScheduler):
    """Passes every result to the ledger and stops a trial that has ended in its books, or is paused.

    A paused trial is over for Tune; promoted, it is another of Tune's trials, which begins from the saved state.
    Trials never tell Tune that they are done: Tune would then skip the scheduler, and the books their last epoch.
    """

    def __init__(
        self,
        ledger: Books,
        trouble: Trouble,
        on_change: Callable[[], None],
        places: Places,
        sentinel: Sentinel,
    ) -> None:
        super().__init__()
        self._ledger = ledger
        self._trouble = trouble
        self._on_change = on_change
        self._places = places
        self._sentinel = sentinel
        self._new: list[TuneTrial] = []

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Keep the trial off nodes that have proved unfit."""
        trial.update_resources(self._places.resources())
        self._new.append(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """A trial that has just been added, once; Tune starts the others in their order.

        The chosen one gets the process that has become free, if there is one. Were it a trial whose own process is
        being started, Tune would end that one, and the next trial would start another.
        """
        while self._new:
            trial = self._new.pop()
            if trial.status == TuneTrial.PENDING:
                return trial
        return None

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Stop or go on."""
        goes_on, number = False, trial.config["number"]
        with self._trouble.kept():
            self._sentinel.holds(number, result["holds"])
            goes_on = self._ledger.report(number, unflattened(result))
            if not goes_on:
                paused = self._ledger.trials[number].state == "RUNNING"
                self._sentinel.stopped(number, kept=True, paused=paused)
                release(trial)
            self._on_change()
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """A trial that failed for its own reason is told FAIL; one whose machine or process failed is interrupted."""
        number = trial.config["number"]
        with self._trouble.kept():
            error = error_of(trial)
            interruption = interruption_of(error, alive=is_alive, nodes=self._sentinel.nodes_of(number))
            self._sentinel.stopped(number)
            if interruption is None:
                self._ledger.end(number, "FAIL", reason_of(error))
            else:
                logger.warning("trial %d is interrupted: %s", number, interruption)
                self._places.avoid(interruption)
                self._ledger.interrupt(number, interruption)
            self._on_change()


def release(trial: TuneTrial) -> None:
    """Have a stopped trial's process give back what it holds now: Tune tells it nothing until another trial comes.

    What is asked of it later waits until this is done.
    """
    trial.temporary_state.ray_actor.release.remote()


def error_of(trial: TuneTrial) -> BaseException:
    """What ended a trial. Tune hands it to nobody, but has just written it to a file of this driver's session.

    `Trial.get_pickled_error` looks for it where the file is copied to later. What is neither raised by the trial nor
    the end of its actor is written as text alone, e.g. that memory ran out.
    """
    if trial.pickled_error_file is None:
        lines = Path(trial.error_file).read_text(errors="replace").strip().splitlines()
        return InterruptedTrial("process_died", lines[-1] if lines else "Ray does not say why")
    with open(trial.pickled_error_file, "rb") as file:
        error: BaseException = cloudpickle.load(file)
    return error


class PopulationScheduler(LedgerScheduler):
    """Lets all trials advance together and passes weights from the best to the worst of them.

    A paused trial needs no checkpoint of Tune's: its state lies in the study's folder, and so does its donor's.
    """

    def __init__(
        self,
        ledger: Ledger,
        trouble: Trouble,
        on_change: Callable[[], None],
        places: Places,
        sentinel: Sentinel,
        assign: Callable[[TrialRecord, Run], dict[str, Any]],
    ) -> None:
        super().__init__(ledger, trouble, on_change, places, sentinel)
        self._population = ledger
        self._assign = assign

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Stop, go on, or wait for the others at an interval's end."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP or result["epoch"] not in self._population.exploit_epochs:
            return decision
        exploit = None
        with self._trouble.kept():
            exploit = self._population.exploit(trial.config["number"])
        waiting = any(other.status in (TuneTrial.PENDING, TuneTrial.PAUSED) for other in tune_controller.get_trials())
        if exploit is None and not waiting:
            return decision
        release(trial)
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
    """What the books take of a result, as Tune passes it on: it flattens `metrics` to `metrics/val/auroc`."""
    keys = ("epoch", "stage", "seconds", "value", "best_epoch", "finished", "reason", "holds")
    metrics = {key.removeprefix("metrics/"): value for key, value in result.items() if key.startswith("metrics/")}
    return {**{key: result[key] for key in keys}, "reused": result.get("reused"), "metrics": metrics}


class StudyStopper(Stopper):
    """Stops all when a budget is used up, the books are in trouble or the search is to end; what runs goes on later."""

    def __init__(self, ledger: Books, trouble: Trouble, to_end: Callable[[], bool]) -> None:
        self._ledger = ledger
        self._trouble = trouble
        self._to_end = to_end

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its stopper into its own state, which is never restored."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped for a budget."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop now."""
        with self._trouble.kept():
            if self._to_end():
                return True
        return self._ledger.used_up is not None or self._trouble.error is not None


def concurrency(cluster: Cluster, nodes: Sequence[Mapping[str, float]], num_gpus: float) -> int:
    """How many trials run at a time: what the cluster holds, at most what was typed.

    Args:
        cluster: what a trial needs; a worker lies on one node, the workers of a trial where its placement allows.
        nodes: the resources of each.
        num_gpus: of each worker.

    Raises:
        StudyError: if not even one fits, with the demand and what there is.
    """

    def workers_on(node: Mapping[str, float]) -> int:
        room = [node.get("CPU", 0.0) / cluster.cpus_per_worker]
        if num_gpus > 0:
            room.append(node.get("GPU", 0.0) / num_gpus)
        if cluster.memory_gb_per_worker is not None:
            room.append(node.get("memory", 0.0) / (1e9 * cluster.memory_gb_per_worker))
        return math.floor(min(room) + 1e-9)

    workers = cluster.workers_per_trial
    fitting = gangs_on([workers_on(node) for node in nodes], workers, cluster.placement)
    if fitting < 1:
        demand = f"{cluster.cpus_per_worker} CPU" + (f" and {num_gpus:g} GPU" if num_gpus else "")
        memory = cluster.memory_gb_per_worker
        demand += "" if memory is None else f" and {memory:.3g} GB"
        has = "; ".join(
            f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU"
            + ("" if memory is None else f" and {node.get('memory', 0) / 1e9:.3g} GB")
            for node in nodes
        )
        where = {"strict_pack": "all on one node", "strict_spread": "each on a node of its own"}
        strict = cluster.placement in where
        raise StudyError(
            f"a trial needs {workers} x ({demand}), {where.get(cluster.placement, 'each on one node')}, and the "
            f"cluster's nodes have {has}: lower cluster.workers_per_trial, cluster.cpus_per_worker or "
            "cluster.gpus_per_worker"
            + ("" if memory is None else ", or what makes the model and its batches large")
            + (f", or type cluster.placement={cluster.placement[7:]}" if strict else "")
        )
    return fitting if cluster.max_concurrent_trials == "auto" else min(fitting, cluster.max_concurrent_trials)


def gangs_on(rooms: Sequence[int], workers: int, placement: str) -> int:
    """How many gangs of so many workers fit on nodes with room for so many workers each.

    With strict_spread, where many gangs fit only in one way, Ray may place the first ones otherwise; the last then
    waits for one of them to end.
    """
    if placement == "strict_pack":
        return sum(room // workers for room in rooms)
    most = sum(rooms) // workers
    if placement != "strict_spread":
        return most
    # a node takes one worker of each gang: n gangs fit where the nodes hold n each at most, and n * workers together
    return next(n for n in range(most, -1, -1) if sum(min(room, n) for room in rooms) >= n * workers)


class Places:
    """Where trials may run, as the cluster is now: nodes come and go while a search runs.

    Args:
        cluster: what a trial needs.

    Raises:
        StudyError: if the cluster holds not even one trial now.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.avoided: set[str] = set()
        nodes = list(usable_nodes().values())
        self.num_gpus = cluster.gpus_of_worker(sum(node.get("GPU", 0.0) for node in nodes))
        self._known = concurrency(cluster, nodes, self.num_gpus)
        self._asked = time.monotonic()

    def room(self) -> int:
        """How many trials may run at a time now."""
        if time.monotonic() - self._asked > ASK_EVERY_S:
            self._asked = time.monotonic()
            known, self._known = self._known, self._count()
            if known != self._known:
                level = logging.WARNING if self._known < known else logging.INFO
                logger.log(level, "the cluster now has room for %d trials at a time, before %d", self._known, known)
        return self._known

    def _count(self) -> int:
        nodes = [resources for node, resources in usable_nodes().items() if node not in self.avoided]
        try:
            return concurrency(self._cluster, nodes, self.num_gpus)
        except StudyError:  # until another one joins
            return 0

    def avoid(self, interruption: InterruptedTrial) -> None:
        """Keep what follows off a node whose disk cannot be written, unless it is the only one.

        It is avoided until the search ends; the same line again tries it anew.
        """
        if interruption.cause != "storage":
            return
        staying = usable_nodes().keys() - self.avoided - set(interruption.nodes)
        if staying:
            self.avoided |= set(interruption.nodes)
            self._asked = -math.inf

    def resources(self) -> tune.PlacementGroupFactory:
        """What Tune reserves for the process of a trial that starts now."""
        return resources_of(self._cluster, self.num_gpus, avoid=frozenset(self.avoided))


def run_trials(
    ledger: Books,
    cluster: Cluster,
    *,
    store: Path,
    metric: str,
    maximize: bool,
    on_change: Callable[[], None],
    scheduler: Scheduler,
    trainable: type[tune.Trainable] | None = None,
    to_end: Callable[[], bool] = lambda: False,
    shared: Shared = NOTHING_SHARED,
) -> None:
    """Run trials on the connected Ray cluster until the ledger has enough, a budget is used up, or the user stops it.

    Args:
        ledger: hands out trials and takes in their results; or a confirmation, which does so with its runs.
        cluster: how many workers a trial has, and how many trials there may be.
        store: the prepared recordings, seen by every node.
        metric: what trials are judged by.
        maximize: whether more of it is better.
        on_change: called after every result, for a display.
        scheduler: the study's; the ledger holds its policy.
        trainable: what runs a trial; by default one process, or a gang where `workers_per_trial` is above 1.
        to_end: asked between two steps whether the search is to end now.
        shared: what trials compute once for all of them.

    Raises:
        StudyError: if the cluster can never hold a trial.
        StorageError: if the study's folder can no longer be written.
    """
    places = Places(cluster)
    if trainable is None:
        trainable = Trial if cluster.workers_per_trial == 1 else GangTrial

    def assign(trial: TrialRecord, run: Run) -> dict[str, Any]:
        assignment = Assignment(
            number=trial.number,
            run=ledger.states.run_of(run),
            folder=ledger.folder.trial(trial.number),
            store=store,
            metric=metric,
            maximize=maximize,
            num_gpus=places.num_gpus,
            cpus_per_worker=cluster.cpus_per_worker,
            attempt=trial.attempt,
            sharding=cluster.sharding,
            remote=ledger.states.remote_of(trial.key),
            pretrained=ledger.folder.pretrained if shared.pretraining else None,
            embeddings=ledger.folder.embeddings if shared.embeddings else None,
            max_kept_bytes=shared.max_bytes,
        )
        gang = {"num_workers": cluster.workers_per_trial, "placement": cluster.placement}
        return {**assignment.to_config(), **gang, "avoid_nodes": sorted(places.avoided)}

    trouble, sentinel = Trouble(), Sentinel(ledger.folder, gangs=cluster.workers_per_trial > 1)
    following, room = LedgerScheduler(ledger, trouble, on_change, places, sentinel), places.room
    if scheduler.name == "pbt" and isinstance(ledger, Ledger):
        # the whole population is started at once and takes turns on what the cluster has
        following = PopulationScheduler(ledger, trouble, on_change, places, sentinel, assign)

        def room() -> int:
            return ledger.num_trials

    with scratch_folder(ledger.folder) as scratch, environment(ENVIRONMENT_OF_TUNE), sentinel.watching():
        tune.run(
            trainable,
            name="tune",
            storage_path=str(scratch),
            search_alg=LedgerSearcher(ledger, trouble, assign, room),
            scheduler=following,
            stop=StudyStopper(ledger, trouble, to_end),
            num_samples=-1,
            resources_per_trial=places.resources(),
            reuse_actors=True,
            checkpoint_config=CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            trial_name_creator=lambda trial: f"trial-{trial.config['number']:04d}",
            trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:04d}-{trial.trial_id}",
            max_failures=0,
            raise_on_failed_trial=False,
            verbose=0,
        )
    if trouble.error is not None:
        raise trouble.error
    ledger.write_table()
    on_change()  # those that were paused end after the last result


@contextmanager
def scratch_folder(study: StudyFolder) -> Iterator[Path]:
    """A folder for Tune's own state, which is never restored: it holds pickles, so it is nobody else's to write to.

    Its name follows from the study's, whose lock is held: what a killed driver left there is deleted.

    Raises:
        StorageError: if it cannot be made.
    """
    name = hashlib.sha256(str(study.path.resolve()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"heartsweep-{os.getuid()}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    with writing_to(folder):
        folder.mkdir(mode=0o700)  # refuses what somebody else has put there
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


ENVIRONMENT_OF_TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the events are our log
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # how many there are is the searcher's to say
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # its own state is never restored, so it need not be written
    "TUNE_FORCE_TRIAL_CLEANUP_S": "30",  # else a trial that hangs holds its place for ten minutes
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # else Tune starts a trial again itself, and nobody writes it down
}
"""The variables by which alone Tune can be told some things."""
