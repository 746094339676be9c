import json
import shutil

import numpy as np
import pytest
import torch

from data.record import DataError
from models.ensemble import Ensemble, name_of_member
from tests.gang_of_two import run_by_two
from trainables import folds as folds_module
from trainables.checkpoint import DESCRIPTION, check_encoder, check_unseen, describe, keep_run, load, read_description
from trainables.collapse import CollapsedError
from trainables.folds import UnitState, new_state, over_folds, predict_unseen, probed_unit, train_unit, validate_unit
from trainables.loops import first_encoder, train
from trainables.metrics import compute
from trainables.predict import predict
from trainables.pretrain import fresh_encoder
from trainables.recordings import open_recordings
from trainables.state import LAST, SavedState, TrainState, copy_state, read_place
from trainables.trial import Assignment, epochs
from trainables.workers import Workers

ALONE = Workers()
SCRATCH = ("task.stages=finetune", "task.finetune.mode=scratch", "task.finetune.head_init=normal")
EXACTLY = {"rtol": 0, "atol": 0}


def state_of(run):
    return new_state(run, "val/auroc", True)


@pytest.fixture(scope="module")
def two_folds(compose_run):
    return compose_run("task.folds=2")


@pytest.fixture(scope="module")
def recordings(two_folds, tiny_store):
    return open_recordings(two_folds, tiny_store.path)


@pytest.fixture(scope="module")
def unbroken(two_folds, recordings, tmp_path_factory):
    """A joint run on two folds: its state, what it reported, and a copy of what was saved after each epoch."""
    torch.set_num_threads(1)  # as each test has it, or the last digits differ
    folder, copies = tmp_path_factory.mktemp("unit"), tmp_path_factory.mktemp("copies")
    state, told = state_of(two_folds), []
    for result in train_unit(two_folds, state, recordings, ALONE):
        state.save(folder)
        shutil.copytree(folder, copies / str(result["epoch"]))
        told.append(result)
    return state, told, copies


def single(compose_run, group):
    others = [fold for fold in range(1, 10) if fold not in group]
    return compose_run(f"data.train_folds={others}", f"data.valid_folds={list(group)}")


# -------- the loop


def test_each_fold_is_the_run_with_its_split_bit_for_bit(compose_run, recordings, tiny_store, unbroken):
    state, told, _ = unbroken
    assert recordings.folds.published == ((1, 2, 3, 4, 5), (6, 7, 8, 9))
    alone = []
    for number, group in enumerate(recordings.folds.published):
        run, one = single(compose_run, group), TrainState("val/auroc", maximize=True)
        list(train(run, one, open_recordings(run, tiny_store.path), ALONE))
        assert state.folds[number].history == one.history
        torch.testing.assert_close(state.folds[number].model.state_dict(), one.model.state_dict(), **EXACTLY)
        alone.append([epoch["metrics"] for epoch in one.history])
    for epoch, result in enumerate(told):
        first, second = alone[0][epoch], alone[1][epoch]
        for name in first:
            assert result[name] == pytest.approx((first[name] + second[name]) / 2, rel=1e-12)
            if name.startswith("val/"):
                spread = abs(first[name] - second[name]) / 2**0.5
                assert result[f"{name}_sd"] == pytest.approx(spread, rel=1e-9, abs=1e-15)
        assert "train/loss_sd" not in result


def test_no_fold_keeps_a_pretext_task_that_nobody_would_write(unbroken):
    state, _, copies = unbroken
    assert [fold.pretext_weights for fold in state.folds] == [{}, {}]
    assert not list(copies.rglob("pretext.safetensors"))


def test_both_stages_of_all_folds_lie_on_one_axis(unbroken):
    state, told, _ = unbroken
    assert [(result["epoch"], result["stage"]) for result in told] == [
        (1, "pretrain"),
        (2, "pretrain"),
        (3, "finetune"),
        (4, "finetune"),
    ]
    assert [{"epoch": e["epoch"], "stage": e["stage"], **e["metrics"]} for e in state.history] == told


def test_the_models_that_are_kept_are_those_of_the_epoch_with_the_best_mean(unbroken):
    state, told, copies = unbroken
    values = {result["epoch"]: result["val/auroc"] for result in told if result["stage"] == "finetune"}
    assert state.best.epoch == max(values, key=values.get)
    assert state.best.value == values[state.best.epoch]
    saved = SavedState.load(copies / str(state.best.epoch))
    assert set(state.best_weights) == {
        name_of_member(number, name) for number in range(2) for name in state.folds[0].model.state_dict()
    }
    for number in range(2):
        for name in state.folds[0].model.state_dict():
            kept = state.best_weights[name_of_member(number, name)]
            assert torch.equal(kept, saved.tensors[f"fold.{number}.model.{name}"])


def test_a_unit_that_was_killed_goes_on_as_an_unbroken_one(two_folds, recordings, unbroken):
    state, told, copies = unbroken
    for epoch in (1, 2, 3):  # within each stage, and between them
        torch.manual_seed(epoch)
        resumed = state_of(two_folds)
        saved = SavedState.load(copies / str(epoch))
        assert list(train_unit(two_folds, resumed, recordings, ALONE, saved=saved)) == told[epoch:]
        assert (resumed.history, resumed.best) == (state.history, state.best)
        torch.testing.assert_close(resumed.best_weights, state.best_weights, **EXACTLY)
        torch.testing.assert_close(resumed.tensors(), state.tensors(), **EXACTLY)
    resumed = state_of(two_folds)
    done = SavedState.load(copies / "4")
    assert list(train_unit(two_folds, resumed, recordings, ALONE, saved=done)) == []


def test_a_unit_that_is_cut_between_two_folds_repeats_the_epoch_in_both(
    two_folds, recordings, unbroken, tmp_path, monkeypatch
):
    state, told, copies = unbroken
    really = folds_module.train

    class Killed(BaseException):
        pass

    def killed_in_the_second(run, fold, recordings, workers, saved=None):
        for number, result in enumerate(really(run, fold, recordings, workers, saved=saved)):
            if number == 1 and fold is cut.folds[1]:
                raise Killed
            yield result

    monkeypatch.setattr(folds_module, "train", killed_in_the_second)
    shutil.copytree(copies / "1", tmp_path, dirs_exist_ok=True)
    cut = state_of(two_folds)
    results = train_unit(two_folds, cut, recordings, ALONE, saved=SavedState.load(tmp_path))
    next(results)
    cut.save(tmp_path)
    with pytest.raises(Killed):
        next(results)
    assert [fold.epoch for fold in cut.folds] == [3, 3]  # neither of them was saved
    assert read_place(tmp_path)["epoch"] == 2
    monkeypatch.undo()
    resumed = state_of(two_folds)
    assert list(train_unit(two_folds, resumed, recordings, ALONE, saved=SavedState.load(tmp_path))) == told[2:]
    torch.testing.assert_close(resumed.tensors(), state.tensors(), **EXACTLY)


def test_a_unit_is_saved_in_one_file(unbroken):
    _, _, copies = unbroken
    assert [path.name for path in (copies / "1").iterdir()] == [LAST]
    assert len(list((copies / "4").iterdir())) == 2


def test_a_copied_unit_goes_on_in_every_fold(two_folds, recordings, unbroken, tmp_path):
    _, told, copies = unbroken
    assert copy_state(copies / "3", tmp_path) == 3
    (last,) = train_unit(two_folds, state_of(two_folds), recordings, ALONE, saved=SavedState.load(tmp_path))
    assert last == told[3]


def test_a_state_of_another_number_of_folds_is_refused(compose_run, recordings, unbroken):
    state = state_of(compose_run("task.folds=3"))
    with pytest.raises(ValueError, match="must be of 3 folds, got 2"):
        state.take_up(SavedState.load(unbroken[2] / "1"))


def test_a_stopped_unit_computes_no_further_epoch_of_any_fold(two_folds, tiny_store, tmp_path, monkeypatch):
    begun = []
    really = folds_module._advance
    monkeypatch.setattr(folds_module, "_advance", lambda loops: begun.append(len(loops)) or really(loops))
    assignment = Assignment(
        number=0,
        run=two_folds,
        folder=tmp_path,
        store=tiny_store.path,
        metric="val/auroc",
        maximize=True,
        num_gpus=0,
        cpus_per_worker=1,
    )
    results = epochs(assignment, ALONE)
    first = next(results)
    results.close()
    assert begun == [2]
    assert (first["epoch"], first["finished"]) == (1, False)
    assert read_place(tmp_path)["epoch"] == 1
    assert next(epochs(assignment, ALONE))["epoch"] == 2  # the same line goes on


@pytest.mark.parametrize("failing", [1, 2])
def test_a_fold_that_diverges_ends_the_unit_with_its_number(compose_run, recordings, monkeypatch, failing):
    run = compose_run("task.folds=2", *SCRATCH)
    really, begun = folds_module.train, []

    def diverging(run, state, recordings, workers, saved=None):
        begun.append(state)
        loop = really(run, state, recordings, workers, saved=saved)
        yield next(loop)
        if len(begun) >= failing and state is begun[failing - 1]:
            raise FloatingPointError("the gradient is not finite at optimiser step 3")
        yield next(loop)

    monkeypatch.setattr(folds_module, "train", diverging)
    state = state_of(run)
    results = train_unit(run, state, recordings, ALONE)
    next(results)
    with pytest.raises(FloatingPointError, match=rf"^fold {failing} of 2: the gradient is not finite"):
        next(results)
    assert (state.epoch, len(state.history)) == (1, 1)


def test_a_fold_that_collapses_ends_the_unit_after_all_have_computed_the_epoch(compose_run, recordings):
    run = compose_run("task.folds=2", "task.collapse.min_feature_std=1e9")
    state = state_of(run)
    with pytest.raises(CollapsedError, match=r"^fold 1 of 2: val/feature_std is "):
        next(train_unit(run, state, recordings, ALONE))
    assert state.epoch == 1
    assert [len(fold.history) for fold in state.folds] == [1, 1]
    assert np.isfinite(state.history[0]["metrics"]["val/auroc"])


def test_the_spread_of_one_value_is_zero_and_a_missing_one_is_told():
    assert over_folds([{"val/a": 0.5}, {"val/a": 0.5}]) == {"val/a": 0.5, "val/a_sd": 0.0}
    assert np.isnan(over_folds([{"val/a": 0.5}, {"val/a": float("nan")}])["val/a"])


def test_one_fold_is_the_state_and_the_loop_of_before(tiny_run, tiny_recordings):
    state = new_state(tiny_run, "val/auroc", True)
    assert type(state) is TrainState
    assert tiny_recordings.folds is None
    before = TrainState("val/auroc", maximize=True)
    told = list(train_unit(tiny_run, state, tiny_recordings, ALONE))
    assert told == list(train(tiny_run, before, tiny_recordings, ALONE))
    assert not any(name.endswith("_sd") for name in told[0])
    assert "fold_histories" not in state.place()


# -------- many workers

PLAIN = ["task.pretrain.optimizer.name=sgd", "task.finetune.optimizer.name=sgd", "task.finetune.head_init=normal"]
PLAIN += ["task.pretrain.lr=0.1", "task.finetune.lr=0.1", "task.pretrain.num_epochs=1", "task.finetune.num_epochs=1"]


def work(rank, run, store, folder):
    """What each of two processes runs: the folds with whole models, then with shares of them."""
    for sharding in ("none", "full"):
        state = new_state(run, "val/auroc", True, writes=rank == 0)
        workers = Workers(rank, 2, torch.device("cpu"), sharding)
        for _ in train_unit(run, state, open_recordings(run, store), workers):
            state.save(folder / sharding)


@pytest.fixture(scope="module")
def shared_out(compose_run, tiny_store, tmp_path_factory):
    """A run on two folds, and where two workers have saved what they made of it."""
    run, folder = compose_run("task.folds=2", *PLAIN), tmp_path_factory.mktemp("gang")
    run_by_two(work, run, tiny_store.path, folder)
    return run, folder


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_gang_computes_what_one_worker_does_in_every_fold(shared_out, recordings, sharding):
    run, folder = shared_out
    alone, saved = state_of(run), SavedState.load(folder / sharding)
    told = list(train_unit(run, alone, recordings, ALONE))
    for epoch, result in zip(saved.history, told, strict=True):
        for name, value in epoch["metrics"].items():
            assert value == pytest.approx(result[name], rel=1e-3, abs=1e-4), name
    torch.testing.assert_close(saved.tensors, alone.tensors(), rtol=1e-4, atol=1e-5)
    assert saved.best.epoch == alone.best.epoch
    torch.testing.assert_close(saved.best_weights, alone.best_weights, rtol=1e-4, atol=1e-5)


# -------- what is kept


@pytest.fixture(scope="module")
def checkpoint(two_folds, recordings, unbroken, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(unbroken[2] / "4", folder, dirs_exist_ok=True)
    return keep_run(folder, two_folds, recordings, read_place(folder)["best"], "val/auroc")


def test_a_checkpoint_of_folds_is_their_ensemble(checkpoint, two_folds, recordings, unbroken):
    loaded = load(checkpoint)
    assert isinstance(loaded.classifier, Ensemble)
    store, rows, kind = recordings.store, recordings.split.test, recordings.labels.kind
    answers = [
        predict(loaded.classifier.member(number), store, rows, two_folds.data, ALONE, kind=kind) for number in range(2)
    ]
    mean = np.mean(answers, axis=0)
    together = predict(loaded.classifier, store, rows, two_folds.data, ALONE, kind=kind)
    np.testing.assert_allclose(together, mean, rtol=0, atol=1e-6)
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


def test_a_saved_validation_prediction_comes_from_the_model_that_has_not_seen_the_patient(
    checkpoint, two_folds, recordings
):
    classifier, kind = load(checkpoint).classifier, recordings.labels.kind
    rows = np.concatenate([recordings.split.test[:5], recordings.split.valid])
    store, data = recordings.store, two_folds.data
    answers = predict_unseen(classifier, store, rows, data, ALONE, kind=kind, held_out=recordings.folds.held_out)
    models = [classifier, classifier.member(0), classifier.member(1)]
    whole = [predict(model, store, rows, data, ALONE, kind=kind) for model in models]
    for place, row in enumerate(rows):
        fold = next((number for number, held in enumerate(recordings.folds.held_out, start=1) if row in held), 0)
        np.testing.assert_allclose(answers[place], whole[fold][place], rtol=0, atol=1e-6)
    # and so the figures that the search has seen follow from what is saved
    metrics = read_description(checkpoint)["metrics"]
    scores, targets = dict(zip(rows, answers, strict=True)), recordings.labels.targets
    classes = recordings.valid_classes
    values = []
    for part in recordings.splits:
        found = np.array([scores[row] for row in part.valid])[:, classes]
        truth = np.ascontiguousarray(targets[part.valid][:, classes])
        values.append(compute(["AUROC"], kind, np.ascontiguousarray(found), truth, split="val")["val/auroc"])
    assert np.mean(values) == pytest.approx(metrics["val/auroc"], abs=1e-6)
    assert np.std(values, ddof=1) == pytest.approx(metrics["val/auroc_sd"], abs=1e-6)


def test_the_untrained_baseline_has_a_probe_for_each_fold(two_folds, recordings):
    encoder = fresh_encoder(two_folds)
    probes = probed_unit(two_folds, encoder, recordings, ALONE)
    told = validate_unit(probes, recordings, two_folds, ALONE)
    assert told["val/auroc"] == pytest.approx(
        np.mean(
            [
                validate_unit(probed_unit(two_folds, encoder, one, ALONE), one, two_folds, ALONE)["val/auroc"]
                for one in (recordings.of_fold(0), recordings.of_fold(1))
            ]
        )
    )
    assert "val/auroc_sd" in told


# -------- what goes together with what


def test_a_checkpoint_of_folds_is_no_encoder_to_start_from(checkpoint, two_folds):
    with pytest.raises(DataError, match=r"holds the 2 models of a run with task\.folds=2, not one encoder") as told:
        check_encoder(checkpoint, two_folds.data)
    assert "\n" not in str(told.value)


def test_an_encoder_that_has_seen_what_folds_hold_out_is_refused(compose_run, tiny_recordings, tmp_path):
    run = compose_run("task.stages=pretrain", "task.pretrain.num_epochs=1")
    state = TrainState("val/auroc", maximize=True)
    for _ in train(run, state, tiny_recordings, ALONE):
        state.save(tmp_path)
    kept = keep_run(tmp_path, run, tiny_recordings, read_place(tmp_path)["best"], "val/auroc")
    start = ("task.stages=finetune", f"task.encoder={kept}")
    first_encoder(compose_run(*start))
    with pytest.raises(DataError, match=r"has seen, the folds 1, 2, 3, 4, 5, 6, 7, 8, 9 of .*: type task=joint"):
        first_encoder(compose_run(*start, "task.folds=3"))
    described = json.loads((kept / DESCRIPTION).read_text())
    unlike = compose_run(*start, "task.folds=3")
    check_unseen({**described, "imported": {}}, unlike, whole_history=True)
    elsewhere = {**described, "run": {**described["run"], "data": {**described["run"]["data"], "name": "another"}}}
    check_unseen(elsewhere, unlike, whole_history=True)
    # what it was begun from counts as well, however far back, and must be known
    child, grandchild = (json.loads(json.dumps(elsewhere)) for _ in range(2))
    child["run"]["task"]["encoder"] = str(kept)
    describe(tmp_path / "child", {key: value for key, value in child.items() if key != "format"})
    grandchild["run"]["task"]["encoder"] = str(tmp_path / "child")
    for whole_history in (False, True):
        with pytest.raises(DataError, match=r"has seen, the folds 1, 2, 3, 4, 5, 6, 7, 8, 9 of .*: type task=joint"):
            check_unseen(grandchild, unlike, whole_history=whole_history)
    grandchild["run"]["task"]["encoder"] = str(tmp_path / "removed")
    with pytest.raises(DataError, match=r"removed cannot be read: put it back there, type task=joint"):
        check_unseen(grandchild, unlike, whole_history=True)
    check_unseen(grandchild, unlike, whole_history=False)


def test_pre_training_alone_keeps_the_probes_of_all_folds(compose_run, recordings):
    run = compose_run("task.folds=2", "task.stages=pretrain", "task.pretrain.num_epochs=1")
    state = state_of(run)
    (told,) = train_unit(run, state, recordings, ALONE)
    assert isinstance(state, UnitState)
    assert state.best.value == told["val/auroc"]
    assert {name.split(".")[2] for name in state.best_weights} == {"0", "1"}
