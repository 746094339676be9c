"""One trial of a search as Ray Tune runs it: an epoch a step, in this process or in a gang of Ray Train workers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from ray import tune

from trainables.collapse import CollapsedError
from trainables.failures import InterruptedTrial
from trainables.files import StorageError
from trainables.folds import new_state, train_unit
from trainables.node_folder import StateFolder, folder_held, state_folder
from trainables.nodes import draining_nodes, holding
from trainables.pretrained import Shelf, shelf_of
from trainables.recordings import KeptEmbeddings, Recordings, open_recordings
from trainables.settings import Cluster, Run
from trainables.state import LAST, SavedState, TrainState
from trainables.workers import Workers

ASK_EVERY_S = 1.0
"""How old what a trial knows of the nodes that are about to go may be."""


@dataclass(frozen=True)
class Assignment:
    """What a trial's processes are told, wherever they run; plain values only.

    Attributes:
        number: the trial's number in the study.
        run: what to train.
        folder: where its last state and best weights are kept, seen by every worker.
        store: the prepared recordings.
        metric: what the trial is judged by.
        maximize: whether more of it is better.
        num_gpus: of each worker.
        cpus_per_worker: threads of each worker.
        sharding: whether each worker holds the whole model, or a share of it.
        attempt: which of the trial's attempts this is; None outside a search. Only the latest one, which the driver
            writes to `folder`, may save: a process that the cluster has given up may still be computing.
        remote: URL of the trial's folder in an object store, where no folder is shared; `folder` is then not used.
        pretrained: where the study's trials share their pre-trainings (trainables.pretrained); None where they do not.
        embeddings: where they share what a frozen encoder gives (trainables.frozen); None where they do not.
        max_kept_bytes: of what is kept there, each.
    """

    number: int
    run: Run
    folder: Path
    store: Path
    metric: str
    maximize: bool
    num_gpus: float
    cpus_per_worker: int
    sharding: Literal["none", "full"] = "none"
    attempt: int | None = None
    remote: str | None = None
    pretrained: Path | None = None
    embeddings: Path | None = None
    max_kept_bytes: float = 0.0

    def to_config(self) -> dict[str, Any]:
        """As Tune's configuration of the trial."""
        return {
            "number": self.number,
            "run": self.run.model_dump_json(by_alias=True),  # text: Tune copies and flattens every key, often
            "folder": str(self.folder),
            "store": str(self.store),
            "metric": self.metric,
            "maximize": self.maximize,
            "num_gpus": self.num_gpus,
            "cpus_per_worker": self.cpus_per_worker,
            "attempt": self.attempt,
            "sharding": self.sharding,
            "remote": self.remote,
            "pretrained": None if self.pretrained is None else str(self.pretrained),
            "embeddings": None if self.embeddings is None else str(self.embeddings),
            "max_kept_bytes": self.max_kept_bytes,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Assignment:
        """The last place that sees a dict."""
        return cls(
            number=config["number"],
            run=Run.model_validate_json(config["run"]),
            folder=Path(config["folder"]),
            store=Path(config["store"]),
            metric=config["metric"],
            maximize=config["maximize"],
            num_gpus=config["num_gpus"],
            cpus_per_worker=config["cpus_per_worker"],
            attempt=config["attempt"],
            sharding=config["sharding"],
            remote=config["remote"],
            pretrained=None if config["pretrained"] is None else Path(config["pretrained"]),
            embeddings=None if config["embeddings"] is None else Path(config["embeddings"]),
            max_kept_bytes=config["max_kept_bytes"],
        )


def epochs(assignment: Assignment, workers: Workers) -> Iterator[dict[str, Any]]:
    """Train what is assigned, from its last saved state on; every epoch is saved before it is yielded.

    Yields:
        A result: epoch, stage, metrics, seconds, value and best_epoch (the best that counts so far, or None),
        finished (no epoch follows), reason (why it ended early, or None) and reused (whether the epoch was taken over
        from another trial and not computed; None where that is out of the question).

    Raises:
        InterruptedTrial: if another attempt at the trial has begun meanwhile.
        StorageError: if the state cannot be read or saved.
    """
    torch.set_num_threads(assignment.cpus_per_worker)
    with state_folder(assignment.folder, assignment.remote) as folder:
        yield from _epochs_in(folder, assignment, folder.with_encoder(assignment.run), workers)


def _epochs_in(folder: StateFolder, assignment: Assignment, run: Run, workers: Workers) -> Iterator[dict[str, Any]]:
    state = new_state(run, assignment.metric, assignment.maximize, writes=workers.rank == 0)
    started = time.monotonic()
    try:
        recordings = open_recordings(run, assignment.store)
        if assignment.embeddings is not None and run.task.encoder is not None:
            kept = KeptEmbeddings(assignment.embeddings, assignment.max_kept_bytes)
            recordings = replace(recordings, embeddings=kept)
        shelf = _shelf(assignment, run, recordings)
        if shelf is not None:
            for epoch in _taken_over(shelf, folder, assignment, workers):
                yield _result(epoch["epoch"], epoch["stage"], epoch["metrics"], 0.0, reused=True)
            started = time.monotonic()
        for _ in train_unit(run, state, recordings, workers, saved=SavedState.load(folder.path)):
            if workers.rank == 0:
                refuse_superseded(assignment, folder)
            state.save(folder.path)
            if workers.rank == 0:
                folder.saved()
            result = result_of(state, time.monotonic() - started, finished=state.epoch == run.task.num_epochs)
            if shelf is not None and state.stage == "pretrain":
                result["reused"] = False
                if workers.rank == 0:
                    shelf.put(folder.path / LAST, state.epoch)
            yield result
            started = time.monotonic()
    except FloatingPointError as error:
        reason = f"non_finite: {error}"
        yield result_of(state, time.monotonic() - started, finished=True, reason=reason, whole=False)
    except CollapsedError as error:  # of an epoch that was computed, and is not worth going on from
        yield result_of(state, time.monotonic() - started, finished=True, reason=f"collapsed: {error}")


def _shelf(assignment: Assignment, run: Run, recordings: Recordings) -> Shelf | None:
    """Where the trial shares its pre-training with others; None where it does not."""
    if assignment.pretrained is None:
        return None
    return shelf_of(run, recordings, assignment.pretrained, assignment.max_kept_bytes)


def _taken_over(shelf: Shelf, folder: StateFolder, assignment: Assignment, workers: Workers) -> list[dict[str, Any]]:
    """The epochs that the trial need not compute; its saved state is then that of the last of them.

    Of a gang the first worker looks, and the others wait: another trial may put a further state there meanwhile.
    """
    history: list[dict[str, Any]] = []
    if workers.rank == 0:
        refuse_superseded(assignment, folder)
        history = shelf.take_over(folder.path)
    return workers.told_by_first(history)


def refuse_superseded(assignment: Assignment, folder: StateFolder | None = None) -> None:
    """Raise unless this is the trial's latest attempt: a later one saves to the same folder, or the trial has ended.

    Raises:
        InterruptedTrial: if it is not.
    """
    if assignment.attempt is None:
        return
    latest = (folder or StateFolder(assignment.folder)).latest_attempt()
    if latest != assignment.attempt:
        raise InterruptedTrial("process_died", f"attempt {assignment.attempt} was given up, the latest is {latest}")


def result_of(
    state: TrainState, seconds: float, *, finished: bool, reason: str | None = None, whole: bool = True
) -> dict[str, Any]:
    """What a trial tells about its last epoch; without metrics where the epoch under way is not `whole`."""
    last = state.history[-1] if state.history and whole else {"stage": state.stage, "metrics": {}}
    result = _result(state.epoch, last["stage"], last["metrics"], seconds)
    if state.best is not None:
        result |= {"value": state.best.value, "best_epoch": state.best.epoch}
    return result | {"finished": finished, "reason": reason}


def _result(
    epoch: int, stage: str | None, metrics: dict[str, float], seconds: float, *, reused: bool | None = None
) -> dict[str, Any]:
    """The result of an epoch that ends nothing, while no epoch counts for the trial's value."""
    result: dict[str, Any] = {"epoch": epoch, "stage": stage, "metrics": metrics, "seconds": seconds}
    return result | {"value": None, "best_epoch": None, "finished": False, "reason": None, "reused": reused}


class Engine(Protocol):
    """Where a trial's epochs are computed."""

    def next_epoch(self) -> dict[str, Any]:
        """Compute one more epoch and return its result (see `epochs`)."""

    def stop(self) -> None:
        """End the computation and give everything back, if that is still to do; nothing runs when this returns."""


class InProcess:
    """Epochs in this very process: a trial then costs what its epochs cost."""

    def __init__(self, assignment: Assignment) -> None:
        self._epochs = epochs(assignment, Workers.of_this_process(num_gpus=assignment.num_gpus))

    def next_epoch(self) -> dict[str, Any]:
        """Compute one more epoch."""
        return next(self._epochs)

    def stop(self) -> None:
        """Drop the model and the optimiser."""
        self._epochs = iter(())


class Trial(tune.Trainable):
    """A trial on one worker. Its process is used again by the next trial: a third of a second instead of two."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take on a trial."""
        self.assignment = Assignment.from_config(config)
        self.engine: Engine = self.start_engine(self.assignment)
        self._holding = holding()
        self._asked = -math.inf

    def start_engine(self, assignment: Assignment) -> Engine:
        """Begin the trial's computation."""
        return InProcess(assignment)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial in the same process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch, with what the trial holds. Tune is never told that a trial is done: the scheduler stops it.

        Raises:
            InterruptedTrial: if the trial cannot go on here: its node is about to go, or its disk cannot be written.
        """
        self.refuse_draining()
        try:
            result = self.engine.next_epoch()
        except StorageError as error:
            raise InterruptedTrial("storage", str(error), (self._holding["node"],)) from error
        return {**result, "holds": self.holds()}

    def holds(self) -> list[dict[str, Any]]:
        """What all processes of the trial hold (trainables.nodes)."""
        return [self._holding | folder_held(self.assignment.remote)]

    def nodes(self) -> list[str]:
        """Where the trial's processes run."""
        return [held["node"] for held in self.holds()]

    def refuse_draining(self) -> None:
        """Raise if a node of the trial is about to go: between two epochs nothing is lost. Asked once a second at most.

        Raises:
            InterruptedTrial: with the nodes that go.
        """
        if time.monotonic() - self._asked < ASK_EVERY_S:
            return
        self._asked = time.monotonic()
        if leaving := sorted(draining_nodes() & set(self.nodes())):
            raise InterruptedTrial("node_draining", "the machine is about to go (drain notice)", tuple(leaving))

    def release(self) -> None:
        """Give back what the trial holds beside this process, which may go on to the next one; twice is once."""
        self.engine.stop()

    def cleanup(self) -> None:
        """Give back what the trial holds."""
        self.release()


def resources_of(
    cluster: Cluster, num_gpus: float, *, avoid: frozenset[str] = frozenset()
) -> tune.PlacementGroupFactory:
    """What Tune reserves for the process of one trial: the worker's own, or next to nothing beside a gang.

    Args:
        cluster: what a worker needs.
        num_gpus: of each worker.
        avoid: nodes on which it must not lie.
    """
    bundle = {"CPU": float(cluster.cpus_per_worker)}
    if num_gpus > 0:
        bundle["GPU"] = num_gpus
    if cluster.memory_gb_per_worker is not None:
        bundle["memory"] = cluster.memory_gb_per_worker * 1e9
    if cluster.workers_per_trial > 1:
        bundle = {"CPU": 0.001}
    if not avoid:
        return tune.PlacementGroupFactory([bundle])
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[outside(avoid)])


def outside(nodes: frozenset[str]) -> dict[str, str]:
    """Ray's label selector of all nodes but these."""
    return {"ray.io/node-id": f"!in({','.join(sorted(nodes))})"}
