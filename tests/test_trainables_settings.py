import pytest
from pydantic import ValidationError

import data.record
import models.encoder
from trainables.settings import STANDARD_LEADS, Cluster, Run, backend_of


def changed(run, path, value):
    """The run's plain values with one of them replaced, validated anew."""
    tree = run.model_dump(mode="json", by_alias=True)
    node = tree
    *parents, last = path.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    return Run.model_validate(tree)


def refused(run, path, value):
    with pytest.raises(ValidationError) as caught:
        changed(run, path, value)
    return str(caught.value)


def test_the_standard_leads_are_named_alike_everywhere():
    assert tuple(STANDARD_LEADS) == data.record.LEADS == models.encoder.LEADS


def test_a_run_comes_back_from_json_as_it_was(tiny_run):
    assert Run.model_validate_json(tiny_run.model_dump_json(by_alias=True)) == tiny_run
    assert Run.model_validate(tiny_run.model_dump(mode="json", by_alias=True)) == tiny_run


def test_a_run_cannot_be_changed(tiny_run):
    with pytest.raises(ValidationError, match="frozen"):
        tiny_run.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        tiny_run.task.pretrain.lr = 0.1


@pytest.mark.parametrize("path", ["sed", "task.pretrain.learning_rate", "data.lead", "task.finetune.optimizer.beta"])
def test_an_unknown_key_is_refused_by_name(tiny_run, path):
    assert path in refused(tiny_run, path, 1)


def test_an_absolute_rate_is_taken_as_it_is(tiny_run):
    assert changed(tiny_run, "task.pretrain.lr", 0.02).task.pretrain.peak_lr == 0.02


def test_a_base_rate_grows_with_the_effective_batch(tiny_run):
    stage = tiny_run.task.pretrain.model_dump() | {"lr": None, "base_lr": 1e-3}
    stage |= {"batch_size": 128, "accumulation_steps": 4}
    for rule, expected in (("batch_over_256", 2e-3), ("batch_over_4", 0.128)):
        told = changed(tiny_run, "task.pretrain", stage | {"base_lr_rule": rule})
        assert told.task.pretrain.effective_batch_size == 512
        assert told.task.pretrain.peak_lr == pytest.approx(expected)
    for changes in ({"base_lr_rule": None}, {"lr": 1e-3, "base_lr": None, "base_lr_rule": "batch_over_4"}):
        assert "base_lr_rule must say what base_lr is multiplied with" in refused(
            tiny_run, "task.pretrain", stage | changes
        )


@pytest.mark.parametrize(("lr", "base_lr"), [(None, None), (1e-3, 1e-3)])
def test_one_of_the_two_rates_must_be_given(tiny_run, lr, base_lr):
    stage = tiny_run.task.pretrain.model_dump() | {"lr": lr, "base_lr": base_lr}
    assert "exactly one of lr and base_lr must be set" in refused(tiny_run, "task.pretrain", stage)


def test_the_minimum_may_not_exceed_the_peak(tiny_run):
    assert "min_lr must not exceed the peak rate" in refused(tiny_run, "task.finetune.min_lr", 0.5)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data.leads", ["II", "II"], "leads must not repeat"),
        ("data.highpass_hz", 60, "highpass_hz must lie below half of sampling_rate_hz (50)"),
        ("data.highpass_hz", 45, "highpass_hz must lie below lowpass_hz"),
        ("data.window_s", 1.2345, "window_s times sampling_rate_hz must be whole"),
        ("data.test_folds", [9, 10], "valid_folds and test_folds must not share a fold, both hold [9]"),
        ("data.train_folds", [10], "train_folds and test_folds must not share a fold"),
        (
            "task.stages",
            "finetune",
            "encoder must name a checkpoint's folder (task.encoder=DIR) where finetune.mode is finetune",
        ),
        ("task.finetune.mode", "scratch", "finetune.mode must be finetune or linprobe where stages is joint"),
    ],
)
def test_what_cannot_go_together_is_refused(tiny_run, path, value, message):
    assert message in refused(tiny_run, path, value)


def test_epochs_are_counted_over_the_stages_that_run(tiny_run):
    joint = changed(tiny_run, "task.pretrain.num_epochs", 5).task
    assert (joint.num_pretrain_epochs, joint.num_epochs) == (5, 7)
    alone = changed(tiny_run, "task.stages", "pretrain").task
    assert (alone.num_pretrain_epochs, alone.num_epochs) == (2, 2)
    task = tiny_run.task.model_dump(mode="json", by_alias=True)
    task |= {"stages": "finetune", "finetune": task["finetune"] | {"mode": "scratch"}}
    scratch = changed(tiny_run, "task", task).task
    assert (scratch.num_pretrain_epochs, scratch.num_epochs) == (0, 2)


def test_a_window_is_counted_in_samples(tiny_run):
    assert tiny_run.data.window_samples == 120


@pytest.mark.parametrize(
    ("key", "value"), [("gpus_per_worker", -1), ("gpus_per_worker", float("nan")), ("max_concurrent_trials", 0)]
)
def test_a_cluster_that_cannot_be_is_refused(key, value):
    told = {
        "address": None,
        "num_cpus": None,
        "workers_per_trial": 1,
        "sharding": "none",
        "placement": "pack",
        "cpus_per_worker": 1,
        "gpus_per_worker": "auto",
        "max_concurrent_trials": "auto",
        "max_failures": 3,
    }
    Cluster.model_validate(told)
    with pytest.raises(ValidationError, match=f"{key} must be auto"):
        Cluster.model_validate(told | {key: value})


@pytest.mark.parametrize(
    ("num_gpus", "backend"), [(0, "gloo"), (0.25, "gloo"), (0.999, "gloo"), (1, "nccl"), (1.0, "nccl"), (2, "nccl")]
)
def test_workers_that_may_share_a_gpu_do_not_talk_through_nccl(num_gpus, backend):
    assert backend_of(num_gpus) == backend
