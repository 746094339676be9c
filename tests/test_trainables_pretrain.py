import dataclasses

import pytest
import torch

from data.record import DataError
from data.transforms import standardize
from models.classifier import Classifier
from trainables.predict import validate
from trainables.pretrain import (
    build_pretext,
    enter_pretrain,
    facts_of,
    fresh_encoder,
    pretrain,
    probed,
    rows_of,
)
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
    spread = {"val/feature_std", "val/effective_rank", "val/mean_cosine"}
    told = {"train/loss", "train/lr", "val/auroc", "val/average_precision"} | spread
    assert all(set(epoch) == told for epoch in metrics)
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
    state = entered(tiny_run)
    pretext = state.model
    before = {name: tensor.clone() for name, tensor in pretext.state_dict().items()}
    learning = {name: parameter.requires_grad for name, parameter in pretext.named_parameters()}
    assert not all(learning.values())  # the position table is fixed
    assert state.whole("encoder") is pretext.encoder
    classifier = probed(tiny_run, state.copied("encoder"), tiny_recordings, ALONE)
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    assert {name: parameter.requires_grad for name, parameter in pretext.named_parameters()} == learning
    torch.testing.assert_close(dict(pretext.state_dict()), before, rtol=0, atol=0)


def test_every_batch_of_every_epoch_and_seed_hides_other_patches(tiny_run, tiny_recordings):
    drawn = []
    for run in (tiny_run, tiny_run.model_copy(update={"seed": 1})):
        state = entered(run)
        draw = state.model.draw
        state.model.draw = lambda size, generator, draw=draw: drawn.append(draw(size, generator)) or drawn[-1]
        assert len(list(pretrain(run, state, tiny_recordings, ALONE))) == 2
    assert [len(draws["noise"]) for draws in drawn] == [16] * 12
    assert len({draws["noise"][0].sum().item() for draws in drawn}) == 12


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


# -------- what a task reads beside the signal


def facts(compose_run, recordings, *typed):
    pretext = build_pretext(compose_run("task=pretrain", *typed))
    rows = rows_of(pretext, recordings)
    return pretext, rows, facts_of(pretext, recordings, rows)


def equal_pairs(values):
    return [[first == second for second in values] for first in values]


def test_records_of_one_patient_share_a_number(compose_run, tiny_recordings):
    _, rows, found = facts(compose_run, tiny_recordings, "model=clocs")
    patients = tiny_recordings.store.index["patient_id"].iloc[rows].tolist()
    assert equal_pairs(found["patients"].tolist()) == equal_pairs(patients)
    assert len(set(patients)) < len(patients)
    assert facts(compose_run, tiny_recordings, "model=clocs", "model.same_patient=ignore")[2] == {}


def test_records_of_one_report_or_of_the_same_codes_share_a_number(compose_run, tiny_recordings):
    _, rows, found = facts(compose_run, tiny_recordings, "model=meclip", "model.duplicates_share=report")
    reports = tiny_recordings.store.reports(rows)
    assert found.keys() == {"reports", "same_report"}
    assert equal_pairs(found["same_report"].tolist()) == equal_pairs(reports)
    tokens = {report: row for report, row in zip(reports, found["reports"].tolist(), strict=True)}
    assert found["reports"].tolist() == [tokens[report] for report in reports]
    assert len(set(reports)) < len(reports)
    _, _, found = facts(compose_run, tiny_recordings, "model=meclip")
    codes = [sorted(codes) for codes in tiny_recordings.store.index["codes"].iloc[rows]]
    assert equal_pairs(found["same_codes"].tolist()) == equal_pairs(codes)


class WithCodes:
    """A store whose records have other codes."""

    def __init__(self, store, codes):
        self._store, self.index = store, store.index.assign(codes=codes)

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_codes_have_no_order_and_records_without_any_share_nothing(compose_run, tiny_recordings):
    rows = tiny_recordings.split.pretrain
    codes = [["A", "B"], ["B", "A"], [], []] * len(tiny_recordings.store.index)
    some = WithCodes(tiny_recordings.store, codes[: len(tiny_recordings.store.index)])
    pretext = build_pretext(compose_run("model=meclip"))
    found = facts_of(pretext, dataclasses.replace(tiny_recordings, store=some), rows)["same_codes"].tolist()
    numbers = [number for row, number in zip(rows, found, strict=True) if row % 4 < 2]
    assert len(set(numbers)) == 1
    others = [number for row, number in zip(rows, found, strict=True) if row % 4 >= 2]
    assert len(set(others)) == len(others)


def test_each_record_is_told_its_own_report_and_codes(compose_run, tiny_recordings):
    """Whatever the order of an epoch: facts are matched with the signal that they came with."""
    run = compose_run("model=meclip", "task=pretrain", "model.transforms=[]", "task.pretrain.num_epochs=1")
    state, seen = entered(run), []
    forward = state.model.forward
    state.model.forward = lambda signal, draws, **told: seen.append((signal, told)) or forward(signal, draws, **told)
    list(pretrain(run, state, tiny_recordings, ALONE))
    store, rows = tiny_recordings.store, tiny_recordings.split.pretrain
    facts = facts_of(state.model, tiny_recordings, rows)
    for signal, told in seen:
        for place, crop in enumerate(signal):
            position = position_of(crop, store, rows, run)
            for name, fact in facts.items():
                assert torch.equal(told[name][place], fact[position]), name


def position_of(crop, store, rows, run):
    """Which of `rows` a crop was cut out of."""
    length = crop.shape[-1]
    for position, row in enumerate(rows):
        record = torch.from_numpy(store.record(row).astype("float32") * store.mv_per_unit)
        windows = record.unfold(1, length, 1).transpose(0, 1)  # (starts, C, length)
        windows = standardize(windows, run.data.standardize)
        if (windows - crop).abs().amax(dim=(1, 2)).min() < 1e-4:
            return position
    raise AssertionError("the crop is of none of the records")


class WithReports:
    """A store some of whose records have a report."""

    def __init__(self, store, told):
        self._store, self._told = store, told

    def __getattr__(self, name):
        return getattr(self._store, name)

    def reports(self, rows):
        return [f"report {row}" if row in self._told else None for row in rows]


def test_records_without_a_report_are_left_out_where_reports_are_read_alone(compose_run, tiny_recordings):
    rows = tiny_recordings.split.pretrain
    some = dataclasses.replace(tiny_recordings, store=WithReports(tiny_recordings.store, set(rows[:20].tolist())))
    assert rows_of(build_pretext(compose_run("model=meclip")), some).tolist() == rows[:20].tolist()
    assert rows_of(build_pretext(compose_run("model=simclr")), some).tolist() == rows.tolist()
    none = dataclasses.replace(tiny_recordings, store=WithReports(tiny_recordings.store, set()))
    with pytest.raises(DataError, match="CLIP reads reports, and none of the .* has one"):
        rows_of(build_pretext(compose_run("model=meclip")), none)


def views_of(run, recordings):
    """All views that an epoch of SimCLR sees, (n, 2, C, T)."""
    state, seen = entered(run), []
    forward = state.model.forward
    state.model.forward = lambda signal, draws, **told: seen.append(signal) or forward(signal, draws, **told)
    list(pretrain(run, state, recordings, ALONE))
    return torch.cat(seen)


@pytest.mark.parametrize(
    "typed",
    [
        ["model.transforms=[]"],  # other crops
        ["data.window_s=10.0", "model.transforms=[{_target_: data.transforms.Jitter, mode: additive, std: 0.1}]"],
    ],
    ids=["crops", "augmentations"],
)
def test_views_are_crops_and_augmentations_of_their_own(compose_run, tiny_recordings, typed):
    run = compose_run("model=simclr", "task=pretrain", "task.pretrain.num_epochs=1", *typed)
    views = views_of(run, tiny_recordings)
    assert views.shape[1:] == (2, 2, run.data.window_samples)
    assert (views[:, 0] != views[:, 1]).any(dim=(1, 2)).float().mean() > 0.9


def test_whole_records_without_augmentation_have_equal_views(compose_run, tiny_recordings):
    typed = ["model.transforms=[]", "data.window_s=10.0", "task.pretrain.num_epochs=1"]
    views = views_of(compose_run("model=simclr", "task=pretrain", *typed), tiny_recordings)
    assert torch.equal(views[:, 0], views[:, 1])
