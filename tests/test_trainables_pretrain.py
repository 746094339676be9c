import dataclasses

import pytest
import torch

from models.classifier import Classifier
from trainables.classify import fresh_encoder
from trainables.predict import validate
from trainables.pretrain import build_pretext, enter_pretrain, pretrain, probed
from trainables.state import TrainState
from trainables.workers import Workers

ALONE = Workers()


def entered(run):
    state = TrainState("val/auroc", maximize=True)
    enter_pretrain(run, state, ALONE)
    return state


def test_a_model_follows_from_the_seed_alone(tiny_run):
    first = build_pretext(tiny_run)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second = build_pretext(tiny_run)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    other = build_pretext(tiny_run.model_copy(update={"seed": 1}))
    assert not torch.equal(first.encoder.lead_embeddings, other.encoder.lead_embeddings)


@pytest.fixture(scope="module")
def run(compose_run):
    return compose_run("task.stages=pretrain", "task.pretrain.lr=3e-3", "task.pretrain.num_epochs=3")


@pytest.fixture(scope="module")
def epochs(run, tiny_recordings):
    """The state and the metrics of a whole pre-training."""
    state = entered(run)
    return state, list(pretrain(run, state, tiny_recordings, ALONE))


def test_an_epoch_reports_its_loss_its_rate_and_the_probe(epochs):
    _, metrics = epochs
    assert len(metrics) == 3
    assert all(set(epoch) == {"train/loss", "train/lr", "val/auroc", "val/average_precision"} for epoch in metrics)
    assert metrics[-1]["train/loss"] < metrics[0]["train/loss"]


def test_pre_training_alone_keeps_the_encoder_with_its_probe(run, epochs, tiny_recordings):
    state, metrics = epochs
    assert state.best.value == max(epoch["val/auroc"] for epoch in metrics)
    assert metrics[state.best.epoch - 1] == state.best.metrics
    kept = Classifier(fresh_encoder(run), len(tiny_recordings.labels.classes), drop_path=0.0, head_init_std=0.0)
    kept.load_state_dict(state.best_weights)
    found = validate(kept, tiny_recordings, run.data, run.task, ALONE)
    assert found == {name: state.best.metrics[name] for name in found}


def test_a_joint_run_keeps_nothing_of_its_first_stage(tiny_run, tiny_recordings):
    state = entered(tiny_run)
    next(pretrain(tiny_run, state, tiny_recordings, ALONE))
    assert state.best is None
    assert state.best_weights == {}


def test_the_probe_leaves_what_is_pre_trained_as_it_is(tiny_run, tiny_recordings):
    pretext = build_pretext(tiny_run)
    before = {name: tensor.clone() for name, tensor in pretext.state_dict().items()}
    learning = {name: parameter.requires_grad for name, parameter in pretext.named_parameters()}
    assert not all(learning.values())  # the position table is fixed
    classifier = probed(tiny_run, pretext.encoder, tiny_recordings, ALONE)
    assert classifier.encoder is not pretext.encoder
    assert {name: parameter.requires_grad for name, parameter in pretext.named_parameters()} == learning
    torch.testing.assert_close(dict(pretext.state_dict()), before, rtol=0, atol=0)


def test_every_batch_of_every_epoch_and_seed_hides_other_patches(tiny_run, tiny_recordings):
    drawn = []
    for run in (tiny_run, tiny_run.model_copy(update={"seed": 1})):
        state = entered(run)
        draw = state.model.draw
        state.model.draw = lambda size, generator, draw=draw: drawn.append(draw(size, generator)) or drawn[-1]
        assert len(list(pretrain(run, state, tiny_recordings, ALONE))) == 2
    assert [len(draws) for draws in drawn] == [16] * 12
    assert len({draws[0].sum().item() for draws in drawn}) == 12


def test_a_loss_that_is_not_finite_ends_the_stage_and_keeps_the_epochs_before(run, tiny_recordings):
    state = entered(run)
    epochs = pretrain(run, state, tiny_recordings, ALONE)
    first = next(epochs)
    with torch.no_grad():
        state.model.decoder.head.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="not finite at optimiser step 3"):
        next(epochs)
    assert (state.epoch, state.stage_epoch, len(state.history)) == (1, 1, 1)
    assert state.best.epoch == 1
    assert state.best.metrics == first
    assert all(torch.isfinite(tensor).all() for tensor in state.best_weights.values())


def test_signals_that_are_not_finite_end_the_stage(run, tiny_recordings):
    state = entered(run)
    broken = dataclasses.replace(tiny_recordings, store=_Broken(tiny_recordings.store))
    with pytest.raises(FloatingPointError):
        next(pretrain(run, state, broken, ALONE))
    assert state.epoch == 0


class _Broken:
    """A store whose signals overflow."""

    def __init__(self, store):
        self._store = store
        self.mv_per_unit = float("nan")

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_a_run_repeats_itself_to_the_bit(run, epochs, tiny_recordings):
    _, metrics = epochs
    torch.manual_seed(3)  # the global generator has no part in it
    assert next(pretrain(run, entered(run), tiny_recordings, ALONE)) == metrics[0]
