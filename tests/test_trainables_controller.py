"""What of Ray Train is replaced while a gang's controller runs, and for how long."""

import pytest
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group

from trainables import controller
from trainables.controller import TrainerInThisProcess, _no_barrier


def test_trains_barrier_is_back_when_a_gang_has_ended():
    before = worker_group.SynchronizationActor, state._shutdown_sync_actor
    with _no_barrier():
        stand_in = worker_group.SynchronizationActor.options(label_selector={}).remote(timeout_s=None)
        state._shutdown_sync_actor(stand_in)  # Train's would refuse it: no actor
        assert (worker_group.SynchronizationActor, state._shutdown_sync_actor) != before
    assert (worker_group.SynchronizationActor, state._shutdown_sync_actor) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")  # Ray warns of its own code
def test_a_gang_has_one_guard_of_its_place_and_nothing_for_data_sets():
    callbacks = TrainerInThisProcess(print)._create_default_callbacks()
    assert [type(each) for each in callbacks if isinstance(each, PlacementGroupCleanerCallback)] == [
        controller._Cleaner
    ]
    assert not any(isinstance(each, DatasetsCallback) for each in callbacks)


def test_workers_have_the_environment_that_is_asked_for_and_none_of_trains_variables(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    assert WorkerGroup._get_worker_runtime_env({})["env_vars"]  # why Train's own workers find no waiting process
    assert controller._Group._get_worker_runtime_env({}) == {}
    assert controller._Controller.worker_group_cls is controller._Group
