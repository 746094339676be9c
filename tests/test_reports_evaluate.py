"""The one place that opens the test fold: what is predicted once is not predicted again, and nothing is mixed up."""

import dataclasses
import json
import os

import numpy as np
import pandas as pd
import pytest

from data.record import DataError
from models.ensemble import name_of_member
from reports.evaluate import (
    _digest_of_probe,
    evaluate_checkpoint,
    evaluate_study,
    probe_untrained,
    write_predictions,
)
from reports.folder import ATTRIBUTES, PREDICTIONS, UNTRAINED, read_predictions, read_study
from reports.report import build
from trainables.checkpoint import WEIGHTS, describe, description_of, load, read_description
from trainables.classify import enter_finetune
from trainables.files import read_tensors, write_tensors
from trainables.predict import predict, validate
from trainables.pretrain import fresh_encoder, probed
from trainables.recordings import open_recordings
from trainables.state import TrainState
from trainables.study import StudyFolder
from trainables.workers import Workers

ALONE = Workers()


def put(study, name, run, recordings, trial):
    """A checkpoint whose weights depend on the trial."""
    state = TrainState("val/auroc", maximize=True)
    enter_finetune(run, state, fresh_encoder(run), recordings, ALONE, resumed=True)
    weights = {name: tensor + trial / 100 for name, tensor in state.model.state_dict().items()}
    folder = study.checkpoints / name
    write_tensors(folder / WEIGHTS, weights, {})
    best = {"epoch": 1, "value": 0.5, "metrics": {}}
    describe(folder, description_of(run, recordings, best, "val/auroc", trial=trial))
    return folder


def opened(study):
    return [(e["model"], e["trial"]) for e in study.read_events() if e["event"] == "test_fold_opened"]


@pytest.fixture
def study(tmp_path, tiny_run, tiny_recordings):
    study = StudyFolder(tmp_path / "study")
    study.write_configuration({"search": {"name": "s", "metric": "val/auroc"}})
    study.record("study_started", store=tiny_recordings.store.hash)
    put(study, "default", tiny_run, tiny_recordings, 0)
    put(study, "best_1", tiny_run, tiny_recordings, 3)
    return study


def evaluate(study, store):
    return evaluate_study(study, store.path, ALONE)


def test_each_model_is_passed_over_the_test_fold_once(study, tiny_store):
    assert evaluate(study, tiny_store) == 3
    assert opened(study) == [("best", 3), ("random_encoder", None), ("default_configuration", 0)]
    assert evaluate(study, tiny_store) == 0
    assert len(opened(study)) == 3
    predictions = read_study(study.path).predictions
    assert {name: of.made_by["trial"] for name, of in predictions.items()} == {
        "best": 3,
        "random_encoder": None,
        "default_configuration": 0,
    }


def test_predictions_say_whose_recordings_they_are_of(study, tiny_recordings):
    evaluate(study, tiny_recordings.store)
    found = read_study(study.path).predictions["best"]
    index = tiny_recordings.store.index.assign(row=range(len(tiny_recordings.store.index))).set_index("record_id")
    index = index.loc[found.record_ids]
    assert found.attributes["age"].tolist() == index["age"].tolist()
    for name in ("sex", "device", "site"):
        assert found.attributes[name].tolist() == index[name].astype(object).tolist()
    flags = tiny_recordings.store.quality(index["row"].to_numpy())
    assert found.attributes["quality"].tolist() == [tuple(names) for names in flags]
    assert any(flags)


def test_predictions_of_an_older_version_learn_whose_recordings_they_are_without_a_look(study, tiny_recordings):
    evaluate(study, tiny_recordings.store)
    path = study.report / PREDICTIONS["best"]
    after, made_by = pd.read_parquet(path), read_predictions(path, []).made_by
    write_predictions(path, after.drop(columns=list(ATTRIBUTES)), made_by)
    assert "without opening the test fold" in build(study.path, num_resamples=5).read_text()
    assert evaluate(study, tiny_recordings.store) == 0
    assert len(opened(study)) == 3
    again = read_predictions(path, [])
    assert again.made_by == made_by
    pd.testing.assert_frame_equal(pd.read_parquet(path)[after.columns], after)
    assert "Subgroups are not shown" not in build(study.path, num_resamples=5).read_text()


def test_predictions_of_other_recordings_are_left_as_they_are(study, tiny_recordings):
    evaluate(study, tiny_recordings.store)
    path = study.report / PREDICTIONS["best"]
    made_by = read_predictions(path, []).made_by
    other = pd.read_parquet(path).drop(columns=list(ATTRIBUTES))
    write_predictions(path, other.assign(record_id="of another store " + other["record_id"]), made_by)
    before = path.read_bytes()
    assert evaluate(study, tiny_recordings.store) == 0
    assert path.read_bytes() == before


def test_the_default_configuration_as_the_best_trial_is_passed_over_it_once(study, tiny_run, tiny_recordings):
    put(study, "best_1", tiny_run, tiny_recordings, 0)
    assert evaluate(study, tiny_recordings.store) == 2
    files = [(study.report / PREDICTIONS[name]).read_bytes() for name in ("best", "default_configuration")]
    assert files[0] == files[1]
    put(study, "best_1", tiny_run, tiny_recordings, 3)  # the study was extended
    assert evaluate(study, tiny_recordings.store) == 1
    assert opened(study) == [("best", 0), ("random_encoder", None), ("best", 3)]


def test_a_look_beside_the_study_is_pointed_out_and_one_at_other_recordings_is_not(study, tiny_run, tiny_recordings):
    put(study, "best_1", tiny_run, tiny_recordings, 0)
    evaluate(study, tiny_recordings.store)
    study.record("test_fold_opened", model="best_1", trial=0, records=9, store="a store of other recordings")
    assert "The test fold was opened" not in build(study.path, num_resamples=20).read_text()
    study.record("test_fold_opened", model="best_1", trial=0, records=9, store=tiny_recordings.store.hash)
    page = build(study.path, num_resamples=20).read_text()
    assert "The test fold was opened 3 times for 2 models" in page


def test_a_report_never_shows_another_trials_figures_as_the_best_ones(study, tiny_run, tiny_recordings):
    evaluate(study, tiny_recordings.store)
    put(study, "best_1", tiny_run, tiny_recordings, 7)
    read = read_study(study.path)
    assert read.outdated == 3
    assert "best" not in read.predictions
    page = build(study.path, num_resamples=20).read_text()
    assert "Trial 7 has become the best since trial 3 was evaluated on the test fold" in page
    evaluate(study, tiny_recordings.store)
    read = read_study(study.path)
    assert read.outdated is None
    assert read.predictions["best"].made_by["trial"] == 7


def test_a_pass_that_was_interrupted_is_made_again_and_counted_again(study, tiny_run, tiny_recordings, monkeypatch):
    evaluate(study, tiny_recordings.store)
    put(study, "best_1", tiny_run, tiny_recordings, 7)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)  # of the driver, when the predictions are to be kept
        patch.setattr("pathlib.Path.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(study, tiny_recordings.store)
    assert read_study(study.path).outdated == 3
    assert evaluate(study, tiny_recordings.store) == 1
    assert [trial for model, trial in opened(study) if model == "best"] == [3, 7, 7]
    assert read_study(study.path).predictions["best"].made_by["trial"] == 7


def test_the_random_encoder_has_the_best_trials_architecture(study, tiny_run, tiny_recordings):
    evaluate(study, tiny_recordings.store)
    masked = tiny_run.model.model_copy(update={"mask_ratio": 0.5})  # of no account to an encoder
    put(study, "best_1", tiny_run.model_copy(update={"model": masked}), tiny_recordings, 4)
    evaluate(study, tiny_recordings.store)
    assert [model for model, _ in opened(study)].count("random_encoder") == 1
    encoder = tiny_run.model.encoder.model_copy(update={"num_sep_tokens": 2})
    other = tiny_run.model.model_copy(update={"encoder": encoder})
    put(study, "best_1", tiny_run.model_copy(update={"model": other}), tiny_recordings, 5)
    evaluate(study, tiny_recordings.store)
    assert [model for model, _ in opened(study)].count("random_encoder") == 2


def test_a_confirmed_seed_is_evaluated_as_a_model_of_its_own_and_held_against_the_same_random_encoder(
    study, tiny_run, tiny_recordings
):
    configuration = {"search": {"name": "s", "metric": "val/auroc"}, "seed": tiny_run.seed, "data": {}}
    study.write_configuration(configuration)
    evaluate(study, tiny_recordings.store)
    data = tiny_run.data.model_copy(update={"subsample_seed": tiny_run.seed})
    folder = put(study, "best_1", tiny_run.model_copy(update={"seed": 77, "data": data}), tiny_recordings, 3)
    with_seed(folder, 2, shift=0.5)
    assert evaluate(study, tiny_recordings.store) == 1
    assert opened(study)[-1] == ("best", 3)
    assert [model for model, _ in opened(study)].count("random_encoder") == 1
    assert read_study(study.path).predictions["best"].made_by["index"] == 2
    with_seed(folder, 3, shift=0.5)
    read = read_study(study.path)
    assert (read.outdated, "best" in read.predictions) == (3, False)
    assert "Another seed of trial 3 has been chosen since" in build(study.path, num_resamples=20).read_text()


def with_seed(folder, index, *, shift):
    """Make a checkpoint one of a confirmation run, with weights of its own."""
    tensors, _ = read_tensors(folder / WEIGHTS)
    write_tensors(folder / WEIGHTS, {name: tensor + shift for name, tensor in tensors.items()}, {})
    describe(folder, read_description(folder) | {"confirmed": {"index": index, "seed": 77}})


@pytest.mark.parametrize("place", ["checkpoints/best_1", "again/trial_0003/checkpoint"])
def test_a_checkpoint_of_a_study_is_counted_in_the_study(study, tiny_run, tiny_recordings, place):
    folder = put(study, f"../{place}", tiny_run, tiny_recordings, 3).resolve()
    checkpoint, store = load(folder), tiny_recordings.store
    labels = checkpoint.labels_in(store, tiny_run.task.labels)
    for split, times in (("valid", 0), ("test", 1)):
        rows = getattr(tiny_recordings.split, split)
        table = evaluate_checkpoint(checkpoint, folder, store, labels, rows, split, ALONE)
        assert table["split"].unique().tolist() == [split]
        assert len(opened(study)) == times


def test_answers_are_held_against_the_classes_that_they_are_about(study, tiny_run, tiny_recordings):
    task = tiny_run.task.model_copy(update={"classes": ["MI", "NORM"]})
    run = tiny_run.model_copy(update={"task": task})
    folder = put(study, "best_1", run, open_recordings(run, tiny_recordings.store.path), 3)
    checkpoint, store = load(folder), tiny_recordings.store
    labels = checkpoint.labels_in(store, "superdiagnostic")  # which has five, in another order
    rows = tiny_recordings.split.test
    table = evaluate_checkpoint(checkpoint, folder, store, labels, rows, "test", ALONE)
    assert [name for name in table if name.startswith(("y_", "p_"))] == ["y_MI", "y_NORM", "p_MI", "p_NORM"]
    whole = dict(zip(tiny_recordings.labels.classes, tiny_recordings.targets(rows).T, strict=True))
    pd.testing.assert_series_equal(table["y_MI"], pd.Series(whole["MI"]), check_dtype=False, check_names=False)
    with pytest.raises(DataError, match="they lack MI, NORM and have .*: type task.labels=NAME"):
        checkpoint.labels_in(store, "rhythm")
    with pytest.raises(DataError, match="answers multilabel, the labels superdiagnostic_single are single_label"):
        checkpoint.labels_in(store, "superdiagnostic_single")


@pytest.fixture
def searched(study):
    """A study that searched among two methods, whose trials 3 and 4 have the best probes."""
    methods = {"model": {"choice": ["one", "other", "never"]}}
    study.write_configuration({"search": {"name": "s", "metric": "val/auroc"}, "space": methods})
    for trial, (method, value) in enumerate([("one", 0.5), ("other", 0.6), ("one", 0.6), ("one", 0.7), ("other", 0.8)]):
        study.record("trial_started", trial=trial, params={"model": method})
        study.record("epoch", trial=trial, epoch=1, stage="pretrain", metrics={"val/auroc": value})
    return study


def run_of(tiny_run, asked=None):
    """Makes the trials' runs; those of even numbers have another encoder than those of odd ones."""

    def run(trial):
        if asked is not None:
            asked.append(trial)
        return tiny_run.model_copy(update={"seed": trial % 2})

    return run


def untrained_of(study):
    return json.loads((study.report / UNTRAINED).read_text())


def test_the_untrained_encoder_of_each_methods_best_trial_is_probed_on_validation(searched, tiny_run, tiny_recordings):
    asked = []
    assert probe_untrained(searched, tiny_recordings.store.path, run_of(tiny_run, asked), ALONE) == 2
    assert sorted(asked) == [3, 4]
    found = untrained_of(searched)["model"]
    assert {method: entry["trial"] for method, entry in found.items()} == {"one": 3, "other": 4}
    for entry in found.values():
        run = run_of(tiny_run)(entry["trial"])
        recordings = open_recordings(run, tiny_recordings.store.path)
        probe = probed(run, fresh_encoder(run), recordings, ALONE)
        assert entry["metrics"] == validate(probe, recordings, run.data, run.task, ALONE)
    assert opened(searched) == []
    page = build(searched.path, num_resamples=5).read_text()
    assert f"{0.8 - found['other']['metrics']['val/auroc']:+.3f}".replace("-", "\N{MINUS SIGN}") in page


def test_an_untrained_encoder_is_probed_again_only_where_it_has_changed(searched, tiny_run, tiny_recordings):
    place = tiny_recordings.store.path
    probe_untrained(searched, place, run_of(tiny_run), ALONE)
    before = (searched.report / UNTRAINED).read_bytes()
    assert probe_untrained(searched, place, run_of(tiny_run), ALONE) == 0
    assert (searched.report / UNTRAINED).read_bytes() == before
    searched.record("epoch", trial=1, epoch=1, stage="pretrain", metrics={"val/auroc": 0.9})  # of the other's encoder
    assert probe_untrained(searched, place, run_of(tiny_run), ALONE) == 0
    found = untrained_of(searched)["model"]
    assert found["other"]["trial"] == 1
    assert found["other"]["metrics"] == found["one"]["metrics"]


def test_untrained_encoders_are_probed_without_a_look_at_the_test_fold(
    searched, tiny_run, tiny_recordings, monkeypatch
):
    def without_test(run, store):
        recordings = open_recordings(run, store)
        return dataclasses.replace(recordings, split=dataclasses.replace(recordings.split, test=None))

    monkeypatch.setattr("reports.evaluate.open_recordings", without_test)
    assert probe_untrained(searched, tiny_recordings.store.path, run_of(tiny_run), ALONE) == 2


def test_what_was_probed_before_an_interruption_is_kept(searched, tiny_run, tiny_recordings, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    def second_is_interrupted(trial):
        if asked:
            monkeypatch.setattr("reports.evaluate.probed_unit", interrupted)
        return run_of(tiny_run, asked)(trial)

    asked, place = [], tiny_recordings.store.path
    with pytest.raises(KeyboardInterrupt):
        probe_untrained(searched, place, second_is_interrupted, ALONE)
    monkeypatch.undo()
    assert len(untrained_of(searched)["model"]) == 1
    assert probe_untrained(searched, place, run_of(tiny_run), ALONE) == 1


def test_a_search_of_one_method_probes_no_untrained_encoder(study, tiny_run, tiny_recordings):
    assert probe_untrained(study, tiny_recordings.store.path, run_of(tiny_run), ALONE) == 0
    assert not (study.report / UNTRAINED).exists()


# -------- k folds


@pytest.fixture(scope="module")
def folded(compose_run, tiny_store):
    run = compose_run("task.folds=3")
    return run, open_recordings(run, tiny_store.path)


def put_folded(study, name, run, recordings, trial):
    weights = {}
    for number in range(run.task.folds):
        state = TrainState("val/auroc", maximize=True)
        enter_finetune(run, state, fresh_encoder(run), recordings.of_fold(number), ALONE, resumed=True)
        weights |= {
            name_of_member(number, key): tensor + (trial + number) / 100
            for key, tensor in state.model.state_dict().items()
        }
    write_tensors(study.checkpoints / name / WEIGHTS, weights, {})
    best = {"epoch": 1, "value": 0.5, "metrics": {}}
    describe(study.checkpoints / name, description_of(run, recordings, best, "val/auroc", trial=trial))


def test_of_k_folds_validation_is_out_of_fold_and_test_is_of_all_models(tmp_path, folded):
    run, recordings = folded
    store, study = recordings.store, StudyFolder(tmp_path / "study")
    study.write_configuration({"search": {"name": "s", "metric": "val/auroc"}})
    put_folded(study, "best_1", run, recordings, 3)
    assert evaluate(study, store) == 2
    assert opened(study) == [("best", 3), ("random_encoder", None)]
    found = pd.read_parquet(study.report / PREDICTIONS["best"]).set_index("record_id")
    tested = found["fold"] == 10
    assert (found["split"] == tested.map({True: "test", False: "valid"})).all()
    assert len(found) == recordings.labels.labelled.sum()  # each record once
    ensemble, ids = load(study.checkpoints / "best_1").classifier, store.index["record_id"].astype(str)
    for models, rows in (
        *(([number], part.valid) for number, part in enumerate(recordings.splits)),
        ([0, 1, 2], recordings.split.test),
    ):
        answers = [
            predict(ensemble.member(number), store, rows, run.data, ALONE, kind="multilabel") for number in models
        ]
        saved = found.loc[ids.iloc[rows], [f"p_{name}" for name in recordings.labels.classes]].to_numpy()
        np.testing.assert_allclose(saved, np.mean(answers, axis=0), rtol=0, atol=1e-6)
    assert build(study.path, num_resamples=20).exists()


def test_a_checkpoint_of_folds_answers_what_it_was_trained_on_out_of_fold(tmp_path, folded):
    run, recordings = folded
    study = StudyFolder(tmp_path / "study")
    put_folded(study, "best_1", run, recordings, 3)
    folder, store, labels = study.checkpoints / "best_1", recordings.store, recordings.labels
    checkpoint, rows = load(folder), recordings.splits[1].valid

    def answered(checkpoint):
        return evaluate_checkpoint(checkpoint, folder, store, labels, rows, "valid", ALONE).filter(like="p_").to_numpy()

    own = predict(checkpoint.classifier.member(1), store, rows, run.data, ALONE, kind="multilabel")
    np.testing.assert_allclose(answered(checkpoint), own, rtol=0, atol=1e-6)
    elsewhere = dataclasses.replace(checkpoint, description=checkpoint.description | {"store": "another"})
    together = predict(checkpoint.classifier, store, rows, run.data, ALONE, kind="multilabel")
    np.testing.assert_allclose(answered(elsewhere), together, rtol=0, atol=1e-6)


def test_untrained_encoders_of_k_folds_are_not_taken_for_those_of_one_split(folded, tiny_run):
    encoder = fresh_encoder(tiny_run)
    assert _digest_of_probe(folded[0], encoder) != _digest_of_probe(tiny_run, encoder)
