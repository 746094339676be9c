"""Trials that wait to be promoted, on real Ray: a paused one's process takes the next, which goes on from its state."""

import functools
import os
import sys

import pytest
import torch
from ray import cloudpickle

from search_spaces.compose import compose_choices
from search_spaces.connection import ray_instance
from search_spaces.distributions import parse, run_with
from search_spaces.ledger import Ledger
from search_spaces.schedulers import make_policy
from search_spaces.schema import checked
from search_spaces.tuning import run_trials
from trainables.state import SavedState, TrainState
from trainables.study import StudyFolder
from trainables.trial import Trial, result_of

VALUES = (0.1, 0.9, 0.8, 0.5)
TYPED = [
    "search=stmem_ptbxl",
    "data=synthetic",
    "scheduler=asha_promotion",
    "scheduler.reduction_factor=2",
    "search.num_trials=4",
    "cluster.num_cpus=1",
    "cluster.cpus_per_worker=1",
    "task.pretrain.num_epochs=1",
    "task.finetune.num_epochs=3",
]


class Steady:
    """Trains nothing, saves its state, and is worth the same in every epoch; says which process and attempt it is."""

    def __init__(self, assignment):
        self.assignment, self.model = assignment, torch.nn.Linear(1, 1)
        self.state = TrainState(assignment.metric, maximize=True)
        self.state.enter("pretrain", self.model, torch.optim.SGD(self.model.parameters()))
        saved = SavedState.load(assignment.folder)
        if saved is not None:
            saved.restore(self.state)

    def next_epoch(self):
        self.state.stage = "pretrain" if self.state.epoch < 1 else "finetune"
        who = {"process": float(os.getpid()), "attempt": float(self.assignment.attempt)}
        metrics = {self.assignment.metric: VALUES[self.assignment.number], **who}
        self.state.finish_epoch(metrics)
        if self.state.stage == "finetune":
            self.state.offer(metrics, self.model)
        self.state.save(self.assignment.folder)
        return result_of(self.state, 0.0, finished=self.state.epoch == 4)

    def stop(self):
        pass


class SteadyTrial(Trial):
    def start_engine(self, assignment):
        return Steady(assignment)


@pytest.mark.cluster
def test_a_promoted_trial_goes_on_from_its_state_in_whatever_process_is_free(tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    folder = StudyFolder(tmp_path / "study")
    launch = checked(compose_choices([*TYPED, f"study_dir={folder.path}"]).tree)
    space, shown = parse(launch.space), []
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
            on_change=lambda: shown.append(ledger.num_ended),
            scheduler=launch.scheduler,
            trainable=SteadyTrial,
        )
    events = list(folder.read_events())
    told = [
        (event["event"].removeprefix("trial_"), event["trial"], event.get("epoch"), event.get("state"))
        for event in events
        if event["event"].startswith("trial_")
    ]
    assert told == [
        ("started", 0, None, None),
        ("ended", 0, None, "COMPLETE"),
        ("started", 1, None, None),
        ("ended", 1, None, "COMPLETE"),
        ("started", 2, None, None),
        ("paused", 2, 1, None),  # one of three may go on, and trial 1 has
        ("started", 3, None, None),
        ("paused", 3, 1, None),
        ("promoted", 2, 1, None),  # the second of four
        ("paused", 2, 3, None),
        ("ended", 2, None, "PRUNED"),
        ("ended", 3, None, "PRUNED"),
    ]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [(event["trial"], event["epoch"]) for event in epochs] == [
        *((number, epoch) for number in (0, 1) for epoch in (1, 2, 3, 4)),
        *((2, 1), (3, 1), (2, 2), (2, 3)),
    ]
    assert [event["metrics"]["attempt"] for event in epochs[8:]] == [1, 1, 2, 2]
    assert len({event["metrics"]["process"] for event in epochs}) == 1
    assert shown[-1] == 4  # those that waited in the end are shown, too
    (released,) = (event for event in events if event["event"] == "released")
    assert (released["stops"], released["left"]) == (5, [])
    assert not any((folder.path / "running").iterdir())
