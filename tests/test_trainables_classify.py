import dataclasses

import numpy as np
import pytest
import torch

from models.classifier import Classifier
from trainables.classify import classify, enter_finetune
from trainables.predict import validate
from trainables.pretrain import build_pretext, fresh_encoder
from trainables.probe import embed, fit
from trainables.state import TrainState
from trainables.workers import Workers

ALONE = Workers()


@pytest.fixture(scope="module")
def run(compose_run):
    return compose_run("task.stages=finetune", "task.finetune.mode=scratch", "task.finetune.head_init=normal")


@pytest.fixture(scope="module")
def encoder(tiny_run):
    return fresh_encoder(tiny_run)


def changed(run, **changes):
    stage = run.task.finetune.model_copy(update=changes)
    return run.model_copy(update={"task": run.task.model_copy(update={"finetune": stage})})


def entered(run, encoder, recordings, workers=ALONE):
    state = TrainState("val/auroc", maximize=True)
    enter_finetune(run, state, encoder, recordings, workers)
    return state


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_equal(first, second):
    torch.testing.assert_close(dict(first), dict(second), rtol=0, atol=0)


def test_fine_tuning_trains_every_layer_of_a_copy(run, encoder, tiny_recordings):
    before = copied(encoder)
    state = entered(run, encoder, tiny_recordings)
    metrics = list(classify(run, state, tiny_recordings, ALONE))
    assert_equal(encoder.state_dict(), before)
    assert not encoder.positions.requires_grad
    after = state.model.encoder.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert moved == set(before)
    assert [set(epoch) for epoch in metrics] == [
        {"train/loss", "train/lr", "val/auroc", "val/average_precision"}
    ] * run.task.finetune.num_epochs


def test_the_best_epoch_is_kept(run, encoder, tiny_recordings):
    state = entered(run, encoder, tiny_recordings)
    values = []
    for metrics in classify(run, state, tiny_recordings, ALONE):
        values.append(metrics["val/auroc"])
        if metrics["val/auroc"] == max(values) and values.count(max(values)) == 1:
            best = copied(state.model)
    assert state.best.value == max(values)
    assert_equal(state.best_weights, best)


def test_a_linear_probe_trains_the_head_alone(run, encoder, tiny_recordings):
    run = changed(run, mode="linprobe", num_epochs=3)
    state = entered(run, encoder, tiny_recordings)
    stepped = {id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]}
    assert stepped == {id(parameter) for parameter in state.model.head.parameters()}
    head = copied(state.model.head)
    before = copied(state.model.encoder)
    losses = [metrics["train/loss"] for metrics in classify(run, state, tiny_recordings, ALONE)]
    assert_equal(state.model.encoder.state_dict(), before)
    assert all(parameter.grad is None for parameter in state.model.encoder.parameters())
    assert not torch.equal(state.model.head.weight, head["weight"])
    assert losses[-1] < losses[0]


def test_a_linear_probe_computes_its_features_once_and_in_evaluation_mode(run, encoder, tiny_recordings):
    run = changed(run, mode="linprobe", num_epochs=3)
    state = entered(run, encoder, tiny_recordings)
    seen = []
    state.model.encoder.register_forward_hook(lambda module, inputs, _: seen.append((len(inputs[0]), module.training)))
    assert len(list(classify(run, state, tiny_recordings, ALONE))) == 3
    train, valid = len(tiny_recordings.split.train), len(tiny_recordings.split.valid)
    assert seen == [(train, False), (valid * run.data.eval_crops, False)]


def test_a_linear_probes_metrics_are_those_of_the_whole_classifier(run, encoder, tiny_recordings):
    run = changed(run, mode="linprobe")
    state = entered(run, encoder, tiny_recordings)
    for metrics in classify(run, state, tiny_recordings, ALONE):
        found = validate(state.model, tiny_recordings, run.data, run.task, ALONE)
        assert found == {name: metrics[name] for name in found}


def test_a_head_begins_as_the_probe_or_as_drawn(run, encoder, tiny_recordings):
    rows = tiny_recordings.split.train
    features = embed(encoder, tiny_recordings.store, rows, run.data, ALONE)
    targets = torch.from_numpy(tiny_recordings.targets(rows))
    weight, _ = fit(features, targets, kind="multilabel", l2=run.task.probe.l2)
    assert torch.equal(entered(changed(run, head_init="probe"), encoder, tiny_recordings).model.head.weight, weight)
    drawn = entered(changed(run, head_init_std=0.5), encoder, tiny_recordings).model.head
    assert drawn.weight.std().item() == pytest.approx(0.5, rel=0.2)
    assert torch.count_nonzero(drawn.bias) == 0
    torch.manual_seed(5)
    assert torch.equal(
        entered(changed(run, head_init_std=0.5), encoder, tiny_recordings).model.head.weight, drawn.weight
    )


def test_a_fresh_encoder_is_the_one_that_pre_training_begins_with(tiny_run):
    assert_equal(fresh_encoder(tiny_run).state_dict(), build_pretext(tiny_run).encoder.state_dict())


@pytest.mark.parametrize(
    "changes", [{"label_smoothing": 0.3}, {"drop_path": 0.9}, {"transforms": []}, {"layer_decay": 0.1}, {"lr": 1e-2}]
)
def test_every_choice_of_the_stage_reaches_the_weights(run, encoder, tiny_recordings, changes):
    weights = []
    for one in (run, changed(run, **changes)):
        one = changed(one, num_epochs=1)
        state = entered(one, encoder, tiny_recordings)
        next(classify(one, state, tiny_recordings, ALONE))
        weights.append(state.model.encoder.blocks[0].mlp[0].weight.detach())
    assert not torch.equal(*weights)


def test_single_labels_are_learnt_by_cross_entropy(run, encoder, tiny_recordings):
    targets = np.eye(5, dtype=np.float32)[np.arange(len(tiny_recordings.store.index)) % 5]
    labels = dataclasses.replace(tiny_recordings.labels, kind="single_label", targets=targets)
    single = dataclasses.replace(tiny_recordings, labels=labels, valid_classes=np.arange(5))
    run = changed(run, head_init_std=0.0, lr=1e-30, warmup_share=1.0)
    state = entered(run, encoder, single)
    metrics = next(classify(run, state, single, ALONE))
    assert metrics["train/loss"] == pytest.approx(np.log(5), abs=1e-5)  # a head of zeros knows nothing of five classes


def test_a_batch_without_a_record_for_each_worker_is_refused(run, encoder, tiny_recordings):
    for mode in ("linprobe", "scratch"):
        one = changed(run, mode=mode, batch_size=1)
        state = entered(one, encoder, tiny_recordings)
        with pytest.raises(ValueError, match="each of 2 workers needs a record of every batch") as caught:
            next(classify(one, state, tiny_recordings, Workers(rank=0, world_size=2)))
        assert "lower cluster.workers_per_trial or raise" in str(caught.value)


def test_what_is_not_finite_ends_the_stage_and_keeps_the_best_epoch(run, encoder, tiny_recordings):
    state = entered(run, encoder, tiny_recordings)
    epochs = classify(run, state, tiny_recordings, ALONE)
    first = next(epochs)
    with torch.no_grad():
        state.model.head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite at optimiser step"):
        next(epochs)
    assert (state.epoch, len(state.history), state.best.epoch) == (1, 1, 1)
    assert state.best.metrics == first
    kept = Classifier(fresh_encoder(run), 5, drop_path=0.0, head_init_std=0.0)
    kept.load_state_dict(state.best_weights)
    assert all(torch.isfinite(parameter).all() for parameter in kept.parameters())
