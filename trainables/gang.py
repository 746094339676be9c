"""One trial on several workers: the same epochs in a Ray Train gang, each gated by what the scheduler decides.

The workers report to a mailbox and wait there for leave to go on, so not one step is computed after a stop, and no
report waits for Train's polling (2 s a report). When a trial ends its gang has ended too: Tune would otherwise start
the next one on CPUs that are not free yet and wait for ever.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from trainables.trial import Assignment, Engine, Trial, epochs
from trainables.workers import Workers

FAILED = "failed"
DRIVERS_ROOM = 0.01
"""CPU that each worker leaves for the drivers of trials: a gang of two then fits on two CPUs. Threads stay whole."""


@ray.remote(num_cpus=0)
class Mailbox:
    """Where a gang leaves its results and waits for leave to go on."""

    def __init__(self) -> None:
        self._results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._leave: asyncio.Queue[bool] = asyncio.Queue()

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
    workers = Workers.of_this_process(num_gpus=assignment.num_gpus)
    results = epochs(assignment, workers)
    while _may_go_on(mailbox, workers):
        result = next(results, None)
        if result is None:
            return
        if workers.rank == 0:
            ray.get(mailbox.put.remote(result))


def _may_go_on(mailbox: Any, workers: Workers) -> bool:
    return workers.told_by_first(ray.get(mailbox.may_go_on.remote()) if workers.rank == 0 else False)


class Gang:
    """Epochs in a `TorchTrainer` whose `fit` runs in a thread of this process."""

    def __init__(self, assignment: Assignment, num_workers: int) -> None:
        self._mailbox = Mailbox.remote()  # type: ignore[attr-defined]
        scratch = assignment.folder / "train"
        shutil.rmtree(scratch, ignore_errors=True)  # Train would go on from what it finds under the same name
        resources = {"CPU": assignment.cpus_per_worker - DRIVERS_ROOM}
        if assignment.num_gpus > 0:
            resources["GPU"] = assignment.num_gpus
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # 2 s: how late an end is noticed
        trainer = TorchTrainer(
            work,
            train_loop_config={"assignment": assignment.to_config(), "mailbox": self._mailbox},
            scaling_config=ScalingConfig(
                num_workers=num_workers, use_gpu=assignment.num_gpus > 0, resources_per_worker=resources
            ),
            torch_config=TorchConfig(backend="nccl" if assignment.num_gpus > 0 else "gloo"),
            run_config=RunConfig(name=f"gang-{assignment.number:04d}", storage_path=str(scratch)),
        )
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name=f"gang-{assignment.number}")
        self._thread.start()

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
            ray.get(self._mailbox.put.remote({FAILED: "they ended before their last epoch"}))  # if one still waits
        except Exception as error:  # noqa: BLE001  whatever ended the gang must reach the trial that waits for it
            ray.get(self._mailbox.put.remote({FAILED: " ".join(str(error).split())}))

    def next_epoch(self) -> dict[str, Any]:
        """Let the gang compute one more epoch.

        Raises:
            RuntimeError: if the gang failed.
        """
        ray.get(self._mailbox.grant.remote(True))
        result: dict[str, Any] = ray.get(self._mailbox.take.remote())
        if FAILED in result:
            raise RuntimeError(f"the trial's workers failed: {result[FAILED]}")
        return result

    def stop(self) -> None:
        """End the gang between two epochs and wait until its workers are gone."""
        if self._thread.is_alive():
            ray.get(self._mailbox.grant.remote(False))
        self._thread.join()
        ray.kill(self._mailbox)


class GangTrial(Trial):
    """A trial on several workers; this process only starts them and passes their results on."""

    def start_engine(self, assignment: Assignment) -> Engine:
        """Start the trial's gang."""
        return Gang(assignment, num_workers=self.config["num_workers"])
