"""Trials that fail on real Ray, each in its own way, beside others that do not: what the books say of each."""

import functools
import os
import signal
import sys

import psutil
import pytest
import ray
import torch
from ray import cloudpickle

from search_spaces.compose import compose_choices
from search_spaces.connection import ray_instance
from search_spaces.distributions import parse, run_with
from search_spaces.ledger import Ledger
from search_spaces.schedulers import make_policy
from search_spaces.schema import checked
from search_spaces.tuning import run_trials
from trainables.files import StorageError, write_tensors
from trainables.study import StudyFolder
from trainables.trial import Trial

NUM_EPOCHS = 2
TYPED = [
    "search=stmem_ptbxl",
    "data=synthetic",
    "scheduler=fifo",
    "search.num_trials=5",
    "cluster.num_cpus=2",
    "cluster.max_failures=1",
    "task.pretrain.num_epochs=1",
    "task.finetune.num_epochs=1",
]


class Failing:
    """Computes nothing; the trials from 1 on fail in their second epoch, each in its own way, the last one once."""

    def __init__(self, assignment):
        self.number, self.attempt, self.folder = assignment.number, assignment.attempt, assignment.folder
        self.metric, self.epoch = assignment.metric, 0

    def next_epoch(self):
        self.epoch += 1
        if self.epoch == NUM_EPOCHS:
            self.fail()
            write_tensors(self.folder / f"best-{self.epoch:04d}.safetensors", {"weight": torch.zeros(1)}, {})
        last = self.epoch == NUM_EPOCHS
        return {
            "epoch": self.epoch,
            "stage": "finetune" if last else "pretrain",
            "metrics": {self.metric: 0.5},
            "seconds": 0.0,
            "value": 0.5 if last else None,
            "best_epoch": self.epoch if last else None,
            "finished": last,
            "reason": None,
        }

    def fail(self):
        if self.number == 1:
            raise ValueError("no such\nlead")
        if self.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.number == 3:
            raise StorageError("running/0003 cannot be written: the disk is full")
        if self.number == 4 and self.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def stop(self):
        pass


class FailingTrial(Trial):
    def start_engine(self, assignment):
        return Failing(assignment)


def title(process):
    """What a process calls itself; nothing where it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # or is a zombie
        return ""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a search whose trials failed, and what of it was still running when it had ended."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    folder = StudyFolder(tmp_path_factory.mktemp("failing") / "study")
    launch = checked(compose_choices([*TYPED, f"study_dir={folder.path}"]).tree)
    space = parse(launch.space)
    with ray_instance(launch.cluster):
        ledger = Ledger(
            folder,
            launch,
            space,
            make_run=functools.partial(run_with, launch),
            first_points=space.first_points(launch.model_dump(mode="json", by_alias=True), {}),
            policy=make_policy(launch.scheduler, launch.task),
            describe=lambda trial, run: {"trial": trial.number, "value": trial.value},
        )
        run_trials(
            ledger,
            launch.cluster,
            store=folder.path / "store",
            metric=launch.search.metric,
            maximize=True,
            on_change=lambda: None,
            scheduler=launch.scheduler,
            trainable=FailingTrial,
        )
        raylets = [p for p in psutil.Process().children(recursive=True) if "raylet" in p.name()]
        workers = [process for raylet in raylets for process in raylet.children(recursive=True)]
        left = [process for process in workers if "FailingTrial" in title(process)]
        groups = [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
    return folder, ledger, left, groups


@pytest.mark.cluster
def test_each_trial_ends_for_its_reason_and_none_stops_the_others(study):
    _, ledger, _, _ = study
    found = {number: (trial.state, trial.reason) for number, trial in ledger.trials.items()}
    assert found[0] == found[4] == ("COMPLETE", None)
    assert found[1] == ("FAIL", "ValueError: no such lead")
    assert found[2][0] == found[3][0] == "FAIL"
    assert found[2][1].startswith("process_died, 2 times: ")
    assert found[3][1] == "storage, 2 times: running/0003 cannot be written: the disk is full"


@pytest.mark.cluster
def test_every_interruption_is_written_down_once_and_an_own_failure_is_none(study):
    folder, _, _, _ = study
    interrupted = [event for event in folder.read_events() if event["event"] == "trial_interrupted"]
    assert sorted((event["trial"], event["cause"]) for event in interrupted) == [
        (2, "process_died"),
        (2, "process_died"),
        (3, "storage"),
        (3, "storage"),
        (4, "process_died"),
    ]
    assert all(event["epoch"] == 1 and event["counts"] for event in interrupted)


@pytest.mark.cluster
def test_nothing_is_left_of_them(study):
    folder, _, left, groups = study
    assert left == []
    assert groups == []
    (released,) = (event for event in folder.read_events() if event["event"] == "released")
    assert released["left"] == []
    assert released["stops"] == 8  # 2 completed, 1 failed, 5 interrupted
    assert not any((folder.path / "running").iterdir())
