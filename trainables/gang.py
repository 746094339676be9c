"""One trial on several workers: the same epochs in a Ray Train gang, each gated by what the scheduler decides.

The workers report to a mailbox and wait there for leave to go on, so not one step is computed after a stop, and no
report waits for Train's polling (2 s a report). When a trial ends its gang has ended too: Tune would otherwise start
the next one on CPUs that are not free yet and wait for ever.

Train tries nothing again by itself: a gang that has lost a worker ends, and the study's books decide whether the trial
goes on in a new one. So a failure is counted, and written down, in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from trainables.diagnosis import Note, interruption_of_gang, said
from trainables.failures import InterruptedTrial
from trainables.files import StorageError
from trainables.node_folder import Scratch, folder_held
from trainables.nodes import holding, is_alive
from trainables.settings import backend_of
from trainables.trial import Assignment, Engine, Trial, epochs, outside
from trainables.workers import Workers

FAILED = "failed"
DRIVERS_ROOM = 0.01
"""CPU that each worker leaves for the drivers of trials: a gang of two then fits on two CPUs. Threads stay whole."""
PATIENCE_S = 20.0
"""How long a gang may take to end by itself before its processes are killed with their parent."""


@ray.remote(num_cpus=0)
class Mailbox:
    """Where a gang leaves its results and waits for leave to go on."""

    def __init__(self) -> None:
        self._results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._leave: asyncio.Queue[bool] = asyncio.Queue()
        self._holdings: dict[int, dict[str, Any]] = {}
        self._notes: list[dict[str, str]] = []

    async def enrol(self, rank: int, held: dict[str, Any]) -> None:
        """Say what a worker holds."""
        self._holdings[rank] = held

    async def holdings(self) -> list[dict[str, Any]]:
        """What all workers hold, by rank."""
        return [self._holdings[rank] for rank in sorted(self._holdings)]

    async def note(self, note: dict[str, str]) -> None:
        """Say why a worker ends."""
        self._notes.append(note)

    async def notes(self) -> list[dict[str, str]]:
        """Why workers have ended."""
        return self._notes

    async def put(self, result: dict[str, Any]) -> None:
        """Leave a result."""
        await self._results.put(result)

    async def take(self) -> dict[str, Any]:
        """Wait for the next result."""
        return await self._results.get()

    async def grant(self, leave: bool) -> None:
        """Say whether the gang goes on."""
        await self._leave.put(leave)

    async def may_go_on(self) -> bool:
        """Wait for leave to compute one more epoch; False ends the gang."""
        return await self._leave.get()


def work(config: dict[str, Any]) -> None:
    """What every worker of a gang runs."""
    assignment = Assignment.from_config(config["assignment"])
    mailbox = config["mailbox"]
    workers = Workers.of_this_process(num_gpus=assignment.num_gpus, sharding=assignment.sharding)
    held = holding()
    ray.get(mailbox.enrol.remote(workers.rank, held))
    try:
        results = epochs(assignment, workers)
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

    def __init__(self, assignment: Assignment, num_workers: int, placement: str, avoid: frozenset[str]) -> None:
        self._mailbox = Mailbox.remote()  # type: ignore[attr-defined]
        self._error: Exception | None = None
        self._scratch = Scratch.of(assignment.folder, assignment.remote, assignment.attempt)
        self._scratch.clear()  # Train would go on from what it finds under the same name
        resources = {"CPU": assignment.cpus_per_worker - DRIVERS_ROOM}
        if assignment.num_gpus > 0:
            resources["GPU"] = assignment.num_gpus
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # 2 s: how late an end is noticed
        trainer = TorchTrainer(
            work,
            train_loop_config={"assignment": assignment.to_config(), "mailbox": self._mailbox},
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
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        # a daemon: a gang that does not end must not keep this process, with which it ends
        self._thread = threading.Thread(
            target=self._fit, args=(trainer,), name=f"gang-{assignment.number}", daemon=True
        )
        self._thread.start()

    def _fit(self, trainer: TorchTrainer) -> None:
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

    def stop(self) -> None:
        """End the gang between two epochs and wait until its workers are gone.

        One that does not end, e.g. since it still waits for a place, ends with this process: what Train has started
        belongs to it.
        """
        if self._thread.is_alive():
            ray.get(self._mailbox.grant.remote(False))
        self._thread.join(PATIENCE_S)
        ray.kill(self._mailbox)
        with contextlib.suppress(StorageError):  # a store that is away: the end of the trial deletes it, too
            self._scratch.clear()


class GangTrial(Trial):
    """A trial on several workers; this process only starts them and passes their results on.

    It is not used again by another trial: a stopped gang would keep its workers' places until one comes.
    """

    def start_engine(self, assignment: Assignment) -> Engine:
        """Start the trial's gang."""
        self.gang = Gang(
            assignment, self.config["num_workers"], self.config["placement"], frozenset(self.config["avoid_nodes"])
        )
        return self.gang

    def holds(self) -> list[dict[str, Any]]:
        """What this process and the workers hold."""
        return [self._holding, *self.gang.holdings()]
