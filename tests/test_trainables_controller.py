"""What of Ray Train is replaced while a gang's controller runs, what is started for a gang, and that nothing stays."""

import asyncio
import sys

import pytest
import ray
from ray import cloudpickle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group

from search_spaces.compose import compose_choices
from search_spaces.connection import ray_instance
from search_spaces.schema import checked
from tests.test_trainables_nodes import until
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


@ray.remote(num_cpus=0)
class Door:
    """Where the two workers of a gang say that they are there; some wait for it to open, which it never does."""

    def __init__(self):
        self.number, self.both = 0, asyncio.Event()

    async def come(self):
        self.number += 1
        if self.number == 2:
            self.both.set()

    async def has_both(self):
        await self.both.wait()

    async def opens(self):
        await asyncio.Event().wait()


@ray.remote(num_cpus=0)
class Starter:
    """The process of a trial."""

    def start(self, place, name, door, waits):
        def work(_):
            ray.get(door.come.remote())
            if waits:
                ray.get(door.opens.remote())

        TrainerInThisProcess(
            work,
            train_loop_config={},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name=name, storage_path=place, failure_config=FailureConfig(max_failures=0)),
        ).fit()


@pytest.fixture
def two_cpus(monkeypatch):
    """Ray with two CPUs, as for a search of gangs."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    typed = ["search=stmem_ptbxl", "cluster.num_cpus=2", "cluster.workers_per_trial=2"]
    with ray_instance(checked(compose_choices(typed).tree).cluster):
        yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def living():
    """Classes of the actors that live, but for the door and what the cluster has of its own."""
    actors = ray._private.state.actors().values()
    names = [actor["ActorClassName"].rpartition(".")[2] for actor in actors if actor["State"] == "ALIVE"]
    return sorted(name for name in names if name not in ("Door", "_AutoscalingCoordinatorActor"))


@pytest.mark.cluster
def test_gangs_of_one_process_share_its_guard_and_free_their_places_also_when_it_is_killed(two_cpus, tmp_path):
    starter = Starter.remote()
    for name in ("first", "second"):  # the second one has room
        door = Door.remote()
        ray.get(starter.start.remote(str(tmp_path), name, door, waits=False), timeout=120)
        ray.get(door.has_both.remote(), timeout=120)
    door = Door.remote()
    third = starter.start.remote(str(tmp_path), "third", door, waits=True)
    ray.get(door.has_both.remote(), timeout=120)
    assert living() == ["PlacementGroupCleaner", "RayTrainWorker", "RayTrainWorker", "Starter"]
    assert ray.available_resources().get("CPU", 0) == 0
    ray.kill(starter)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(third)
    assert until(lambda: ray.available_resources().get("CPU", 0) == 2, tries=3000)
    assert until(lambda: not living(), tries=3000)
