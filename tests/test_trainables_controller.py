"""Gangs whose controller runs in the process that starts them: what is started for them, and that nothing stays."""

import os
import sys
import time

import pytest
import ray
from ray import cloudpickle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.execution.worker_group import state, worker_group

from search_spaces.compose import compose_choices
from search_spaces.connection import ray_instance
from search_spaces.schema import checked
from trainables.controller import TrainerInThisProcess, _no_barrier


def test_trains_barrier_is_back_when_a_gang_has_ended():
    before = worker_group.SynchronizationActor, state._shutdown_sync_actor
    with _no_barrier():
        stand_in = worker_group.SynchronizationActor.options(label_selector={}).remote(timeout_s=None)
        state._shutdown_sync_actor(stand_in)  # Train's would refuse it: no actor
        assert (worker_group.SynchronizationActor, state._shutdown_sync_actor) != before
    assert (worker_group.SynchronizationActor, state._shutdown_sync_actor) == before


@pytest.fixture
def cluster(monkeypatch):
    """Ray with two CPUs, as for a search of gangs."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    typed = ["search=stmem_ptbxl", "cluster.num_cpus=2", "cluster.workers_per_trial=2"]
    with ray_instance(checked(compose_choices(typed).tree).cluster):
        yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@ray.remote(num_cpus=0)
class Door:
    """Where workers say that they are there; those that are to wait do so until it is gone."""

    def __init__(self):
        self.here = 0

    def come(self):
        self.here += 1

    def number(self):
        return self.here


@ray.remote(num_cpus=0)
class Starter:
    def start(self, place, name, door, waits):
        def work(_):
            ray.get(door.come.remote())
            if waits:
                time.sleep(600)  # until it is killed

        TrainerInThisProcess(
            work,
            train_loop_config={},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name=name, storage_path=place, failure_config=FailureConfig(max_failures=0)),
        ).fit()
        return os.getpid()


def until(holds, seconds=60.0):
    """Wait, at most so long, until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.1)


def living():
    actors = ray._private.state.actors().values()
    return sorted(actor["ActorClassName"].rpartition(".")[2] for actor in actors if actor["State"] == "ALIVE")


@pytest.mark.cluster
def test_gangs_of_one_process_share_its_guard_and_free_their_places_also_when_it_is_killed(cluster, tmp_path):
    starter = Starter.remote()
    for name in ("first", "second"):  # the second one has room
        door = Door.remote()
        ray.get(starter.start.remote(str(tmp_path), name, door, waits=False), timeout=120)
        assert ray.get(door.number.remote()) == 2
    door = Door.remote()
    third = starter.start.remote(str(tmp_path), "third", door, waits=True)
    until(lambda: ray.get(door.number.remote()) == 2)
    of_gangs = [name for name in living() if name not in ("Door", "_AutoscalingCoordinatorActor")]
    assert of_gangs == ["PlacementGroupCleaner", "RayTrainWorker", "RayTrainWorker", "Starter"]
    assert ray.available_resources().get("CPU", 0) == 0
    ray.kill(starter)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(third)
    until(lambda: ray.available_resources().get("CPU", 0) == 2)
    until(lambda: set(living()) <= {"Door", "_AutoscalingCoordinatorActor"})
