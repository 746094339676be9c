"""One trial on several workers: the same epochs in a Ray Train gang, each gated by what the scheduler decides.

The workers report to a mailbox and wait there for leave to go on, so not one step is computed after a stop, and no
report waits for Train's polling (2 s a report). When a trial ends its gang has ended too: Tune would otherwise start
the next one on CPUs that are not free yet and wait for ever.

Train tries nothing again by itself: a gang that has lost a worker ends, and the study's books decide whether the trial
goes on in a new one. So a failure is counted, and written down, in one place.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig

from trainables.controller import TrainerInThisProcess
from trainables.diagnosis import Note, interruption_of_gang, said
from trainables.failures import InterruptedTrial
from trainables.files import StorageError
from trainables.mailbox import Mailbox
from trainables.node_folder import Scratch, folder_held
from trainables.nodes import holding, is_alive
from trainables.settings import backend_of
from trainables.trial import Assignment, Engine, Trial, epochs, outside
from trainables.workers import Workers

Loop = Callable[[Assignment, Workers], Iterator[dict[str, Any]]]
FAILED = "failed"
DRIVERS_ROOM = 0.01
"""CPU that each worker leaves for the drivers of trials: a gang of two then fits on two CPUs. Threads stay whole."""
PATIENCE_S = 20.0
"""How long a gang may take to end by itself before its processes are killed with their parent."""


def work(config: dict[str, Any]) -> None:
    """What every worker of a gang runs."""
    assignment = Assignment.from_config(config["assignment"])
    mailbox = config["mailbox"]
    workers = Workers.of_this_process(num_gpus=assignment.num_gpus, sharding=assignment.sharding)
    held = holding()
    ray.get(mailbox.enrol.remote(workers.rank, held))
    try:
        results = config["loop"](assignment, workers)
        while _may_go_on(mailbox, workers):
            result = next(results, None)
            if result is None:
                return
            if held["folder"] is None and (own := folder_held(assignment.remote)):  # it is made with the first epoch
                held |= own
                ray.get(mailbox.enrol.remote(workers.rank, held))
            if workers.rank == 0:
                ray.get(mailbox.put.remote(result))
    except Exception as error:
        ray.get(mailbox.note.remote(asdict(Note.of(error, held["node"]))))
        raise


def _may_go_on(mailbox: Any, workers: Workers) -> bool:
    return workers.told_by_first(ray.get(mailbox.may_go_on.remote()) if workers.rank == 0 else False)


class Gang:
    """Epochs in a `TorchTrainer` whose `fit` runs in a thread of this process."""

    def __init__(
        self, assignment: Assignment, num_workers: int, placement: str, avoid: frozenset[str], loop: Loop = epochs
    ) -> None:
        self._mailbox = Mailbox.remote()  # type: ignore[attr-defined]
        self._error: Exception | None = None
        self._scratch = Scratch.of(assignment.folder, assignment.remote, assignment.attempt)
        self._scratch.clear()  # Train would go on from what it finds under the same name
        resources = {"CPU": assignment.cpus_per_worker - DRIVERS_ROOM}
        if assignment.num_gpus > 0:
            resources["GPU"] = assignment.num_gpus
        trainer = TrainerInThisProcess(
            work,
            train_loop_config={"assignment": assignment.to_config(), "mailbox": self._mailbox, "loop": loop},
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                use_gpu=assignment.num_gpus > 0,
                resources_per_worker=resources,
                placement_strategy=placement.upper(),
                label_selector=outside(avoid) if avoid else None,
            ),
            torch_config=TorchConfig(backend=backend_of(assignment.num_gpus)),
            run_config=RunConfig(
                name=f"gang-{assignment.number:04d}",
                storage_path=self._scratch.place,
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        # a daemon: a gang that does not end must not keep this process, with which it ends
        self._thread = threading.Thread(
            target=self._fit, args=(trainer,), name=f"gang-{assignment.number}", daemon=True
        )
        self._thread.start()

    def _fit(self, trainer: TrainerInThisProcess) -> None:
        try:
            trainer.fit()
            self._error = RuntimeError("the trial's workers ended before its last epoch")  # if one still waits
        except Exception as error:  # noqa: BLE001  whatever ended the gang must reach the trial that waits for it
            self._error = error
        with contextlib.suppress(RayError):  # nobody waits any more
            ray.get(self._mailbox.put.remote({FAILED: True}))

    def next_epoch(self) -> dict[str, Any]:
        """Let the gang compute one more epoch.

        Raises:
            InterruptedTrial: if what the workers run on failed.
            RuntimeError: if they failed for a reason of the trial's own.
        """
        ray.get(self._mailbox.grant.remote(True))
        result: dict[str, Any] = ray.get(self._mailbox.take.remote())
        if FAILED in result:
            raise self._failure()
        return result

    def _failure(self) -> Exception:
        """What ended the gang."""
        notes = [Note(**note) for note in ray.get(self._mailbox.notes.remote())]
        failures: Mapping[int, BaseException] = {}
        if isinstance(self._error, WorkerGroupError):
            failures = self._error.worker_failures
        elif isinstance(self._error, TrainingFailedError):  # of Train's own processes
            return InterruptedTrial("process_died", said(self._error))
        interruption = interruption_of_gang(
            failures, notes, alive=is_alive, nodes=[held["node"] for held in self.holdings()]
        )
        if interruption is not None:
            return interruption
        own = [note.reason for note in notes if note.kind == "own"]
        return RuntimeError(own[0] if own else said(self._error or RuntimeError("the trial's workers ended")))

    def holdings(self) -> list[dict[str, Any]]:
        """What the workers hold that have begun."""
        found: list[dict[str, Any]] = ray.get(self._mailbox.holdings.remote())
        return found

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the gang between two epochs and wait until its workers are gone.

        One that does not end, e.g. since it still waits for a place, ends with this process, to which its workers
        belong.
        """
        if self.runs:
            ray.get(self._mailbox.grant.remote(False))
        self._thread.join(PATIENCE_S)
        ray.kill(self._mailbox)
        with contextlib.suppress(StorageError):  # a store that is away: the end of the trial deletes it, too
            self._scratch.clear()


class GangTrial(Trial):
    """A trial on several workers; this process only starts them and passes their results on.

    It is used again by the next trial, but its gang is not: it ends with its own trial, at whose stop the scheduler
    has `release` called. Its workers' places are free then, whether another trial comes or not.

    Attributes:
        loop: what every worker runs.
    """

    loop: Loop = staticmethod(epochs)

    def start_engine(self, assignment: Assignment) -> Engine:
        """Start the trial's gang."""
        self.gang = Gang(
            assignment,
            self.config["num_workers"],
            self.config["placement"],
            frozenset(self.config["avoid_nodes"]),
            loop=self.loop,
        )
        return self.gang

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial in the same process.

        Raises:
            InterruptedTrial: if the gang of the one before has not ended: it does so with this process.
        """
        self.release()
        if self.gang.runs:
            raise InterruptedTrial("process_died", f"the gang of the trial before has not ended in {PATIENCE_S:g} s")
        return super().reset_config(new_config)

    def holds(self) -> list[dict[str, Any]]:
        """What this process and the workers hold."""
        return [self._holding, *self.gang.holdings()]
