"""Ray Train's controller of a gang in the trial's own process, without the actors that a gang of ours has no use for.

As Train comes, each gang starts a process each, beside its workers, for its controller, for a barrier of reports (ours
go to the mailbox), for data sets (we give it none), for a watch over drain notices (trainables.trial keeps it) and for
one that frees the gang's place should the controller be killed: all on the way to the first epoch, at a second of
imports each. Of these the last one is left, one a trial's process however many gangs it starts. Private names of Ray
2.60; there is no public way.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from ray import get_runtime_context
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # 2 s: how late an end is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # it would take over this process's loggers
}
"""The variables by which alone Train's controller can be told some things, unless the user has set them."""


class TrainerInThisProcess(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` whose controller runs where `fit` is called: the gang then belongs to this process."""

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        with _no_barrier():
            controller = _Controller(**settings)
            asyncio.run(controller.run())
        return controller.get_result()

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        callbacks = [each for each in super()._create_default_callbacks() if not isinstance(each, needless)]
        return [*callbacks, _Cleaner()]


class _Group(WorkerGroup):  # type: ignore[misc]
    """Workers in the environment of the process that asks for them."""

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: dict[str, Any]) -> dict[str, Any]:
        """Without Train's variables, which workers inherit where the trial's process has them."""
        return dict(custom_runtime_env)


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _Group


class _Cleaner(PlacementGroupCleanerCallback):  # type: ignore[misc]
    """Starts the actor that frees the place of a gang whose controller is gone: once, for all gangs of this process.

    It ends a second after this process has, in which all their controllers run.
    """

    _of_this_process: ClassVar[Any] = None

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        if _Cleaner._of_this_process is None:
            super().after_controller_start(train_run_context)
            _Cleaner._of_this_process = self._cleaner  # type: ignore[has-type]
        self._cleaner = _Cleaner._of_this_process
        self._controller_actor_id = get_runtime_context().get_actor_id()

    def _stop_cleaner(self) -> None:
        """It goes on: another gang may follow."""


class _NoBarrier:
    """In place of the actor at which workers meet that call ray.train.report; ours call it never."""

    @classmethod
    def options(cls, **_: Any) -> type[_NoBarrier]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> _NoBarrier:
        return cls()


@contextmanager
def _no_barrier() -> Iterator[None]:
    before = worker_group.SynchronizationActor, state._shutdown_sync_actor
    worker_group.SynchronizationActor, state._shutdown_sync_actor = _NoBarrier, lambda _: None
    try:
        yield
    finally:
        worker_group.SynchronizationActor, state._shutdown_sync_actor = before
