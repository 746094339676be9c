"""Ensembles: who their members are, what they answer, and how often they look at the test fold."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from reports.evaluate import averaged, ensemble_sources, evaluate_checkpoint, evaluate_study
from reports.folder import PREDICTIONS, read_study
from reports.report import build
from tests.test_reports_evaluate import ALONE, opened, put
from trainables.checkpoint import DESCRIPTION, describe, load, read_description
from trainables.ensemble import digest_at, digest_of, is_ensemble, load_as_one, load_ensemble, make_ensemble
from trainables.files import StorageError
from trainables.study import StudyFolder


@pytest.fixture
def study(tmp_path, tiny_run, tiny_recordings):
    """A study that has kept the models of three trials, of which the default configuration's is the second best."""
    study = StudyFolder(tmp_path / "study")
    configure(study)
    study.record("study_started", store=tiny_recordings.store.hash)
    for name, trial in (("default", 0), ("best_1", 3), ("best_2", 0), ("best_3", 5)):
        put(study, name, tiny_run, tiny_recordings, trial)
    return study


def configure(study, **search):
    study.write_configuration({"search": {"name": "s", "metric": "val/auroc", "keep_best": 3, **search}})


def evaluate(study, store):
    return evaluate_study(study, store.path, ALONE)


def members_of(study):
    return [(m["trial"], m["index"]) for m in read_description(study.checkpoints / "ensemble")["ensemble"]]


def predictions_of(study, model):
    return pd.read_parquet(study.report / PREDICTIONS[model])


def test_an_ensemble_answers_with_the_mean_and_each_member_looks_once(study, tiny_store):
    assert evaluate(study, tiny_store) == 4
    assert opened(study) == [("best", 3), ("random_encoder", None), ("ensemble_member", 0), ("ensemble_member", 5)]
    assert members_of(study) == [(3, None), (0, None), (5, None)]
    listed = read_description(study.checkpoints / "ensemble")["ensemble"]
    tables = [pd.read_parquet(study.report / "members" / f"{member['digest'][:16]}.parquet") for member in listed]
    found = predictions_of(study, "ensemble")
    answers = [name for name in found if name.startswith("p_")]
    expected = sum(table[answers].to_numpy() for table in tables) / 3
    np.testing.assert_allclose(found[answers].to_numpy(), expected, rtol=0, atol=1e-12)
    pd.testing.assert_frame_equal(found.drop(columns=answers), predictions_of(study, "best").drop(columns=answers))
    assert evaluate(study, tiny_store) == 0  # the default configuration's predictions are the member's
    assert len(opened(study)) == 4
    assert predictions_of(study, "default_configuration").equals(tables[1])


def test_its_members_are_fixed_before_any_model_has_looked_at_the_test_fold(study, tiny_store, monkeypatch):
    def look(*_, **__):
        raise RuntimeError("the first look")

    monkeypatch.setattr("reports.evaluate._record_opening", look)
    with pytest.raises(RuntimeError, match="the first look"):
        evaluate(study, tiny_store)
    assert members_of(study) == [(3, None), (0, None), (5, None)]
    assert [member["trial"] for member in read_study(study.path).ensemble["members"]] == [3, 0, 5]


def test_its_row_stands_in_the_report_with_a_paired_difference_and_no_more_models_than_looked(study, tiny_store):
    evaluate(study, tiny_store)
    page = build(study.path, num_resamples=20).read_text()
    metrics = json.loads((study.report / "metrics.json").read_text())
    assert "auroc_macro" in metrics["differences"]["ensemble"]["test"]
    assert [member["trial"] for member in metrics["ensemble"]["members"]] == [3, 0, 5]
    assert "<small>trials 3, 0, 5</small>" in page
    assert "The test fold was opened" not in page
    study.record("test_fold_opened", model="best_1", trial=3, records=9, store=tiny_store.hash)
    assert "The test fold was opened 5 times for 4 models" in build(study.path, num_resamples=20).read_text()


def test_an_ensemble_as_one_classifier_answers_alike_and_can_be_exported(study, tiny_store, tiny_recordings):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    from reports.checkpoints.export import export

    evaluate(study, tiny_store)
    folder, rows = study.checkpoints / "ensemble", tiny_recordings.split.valid
    ensemble, one = load_ensemble(folder), load_as_one(folder)
    assert one.description == ensemble.description
    assert load_as_one(study.checkpoints / "best_1").description["trial"] == 3
    signal = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    answers = [model.predict(signal, 100.0, ["II", "V2"]) for model in (ensemble, one)]
    np.testing.assert_allclose(*answers, atol=1e-6)
    predictions = evaluate_checkpoint(ensemble, folder, tiny_store, tiny_recordings.labels, rows, "valid", ALONE)
    described = export(one, folder, folder / "export", tiny_store, predictions, rows)
    assert described["made_of"]["weights_sha256"] == digest_at(folder) == digest_of(ensemble.description["ensemble"])
    assert described["checked"]["max_abs_difference_of_probabilities"] < 1e-4


def test_an_ensemble_can_be_loaded_moved_and_asked_about_a_recording(study, tiny_store, tmp_path):
    evaluate(study, tiny_store)
    moved = shutil.copytree(study.checkpoints / "ensemble", tmp_path / "elsewhere")
    ensemble = load_ensemble(moved)
    signal = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    answer = ensemble.predict(signal, 100.0, ["II", "V2"])
    single = [load(moved / f"member_{n}").predict(signal, 100.0, ["II", "V2"]) for n in (1, 2, 3)]
    np.testing.assert_allclose(answer, np.mean(single, axis=0), atol=1e-6)
    assert (ensemble.classes, ensemble.contract) == (ensemble.members[0].classes, ensemble.members[0].contract)
    assert is_ensemble(moved)
    assert not is_ensemble(moved / "member_1")
    with pytest.raises(StorageError, match="holds an ensemble: name one of its members, such as .*member_1"):
        load(moved)
    with pytest.raises(StorageError, match="holds a single model"):
        load_ensemble(moved / "member_1")


@pytest.mark.parametrize(("search", "trials"), [({"ensemble": 2}, [3, 0]), ({"ensemble": 9}, [3, 0, 5])])
def test_as_many_take_part_as_asked_for_and_are_there(study, tiny_store, search, trials):
    configure(study, **search)
    evaluate(study, tiny_store)
    assert [trial for trial, _ in members_of(study)] == trials


def test_none_is_made_where_none_is_asked_for(study, tiny_store):
    configure(study, ensemble=0)
    assert evaluate(study, tiny_store) == 3
    assert not (study.checkpoints / "ensemble").exists()
    assert read_study(study.path).ensemble == {}


def test_one_that_is_no_longer_asked_for_is_no_longer_shown(study, tiny_store):
    evaluate(study, tiny_store)
    configure(study, ensemble=0)
    assert evaluate(study, tiny_store) == 0
    assert "ensemble" not in read_study(study.path).predictions


def test_one_that_cannot_be_made_is_explained(study, tiny_run, tiny_recordings):
    run = tiny_run.model_copy(update={"data": tiny_run.data.model_copy(update={"eval_crops": 1})})
    put(study, "best_2", run, tiny_recordings, 0)
    assert evaluate(study, tiny_recordings.store) == 3
    reason = "trials 3 and 0 differ in eval_crops: 2 and 1"
    assert read_study(study.path).ensemble == {"members": [], "reason": reason}
    assert f"There is no ensemble: {reason}." in build(study.path, num_resamples=20).read_text()
    with pytest.raises(ValueError, match="must have one contract: trials 3 and 0 differ in eval_crops"):
        make_ensemble(study.path / "made", [study.checkpoints / "best_1", study.checkpoints / "best_2"])


def test_recordings_that_differ_are_no_ground_for_an_ensemble(study, tiny_run, tiny_recordings):
    folder = study.checkpoints / "best_3"
    told = read_description(folder)
    told["run"]["data"]["valid_folds"] = [8]
    describe(folder, told)
    evaluate(study, tiny_recordings.store)
    assert read_study(study.path).ensemble["reason"] == "trials 3 and 5 were held against different recordings"


def test_other_members_make_another_ensemble_and_the_old_figures_are_not_shown_for_it(study, tiny_run, tiny_recordings):
    evaluate(study, tiny_recordings.store)
    put(study, "best_3", tiny_run, tiny_recordings, 7)
    sources = ensemble_sources(study, 3)
    make_ensemble(study.checkpoints / "ensemble", sources)  # as a driver that was killed before the passes
    listed = read_description(study.checkpoints / "ensemble")["ensemble"]
    (study.report / "ensemble.json").write_text(json.dumps({"members": listed, "reason": None}))
    assert "ensemble" not in read_study(study.path).predictions
    assert evaluate(study, tiny_recordings.store) == 1
    assert "ensemble" in read_study(study.path).predictions
    assert opened(study)[-1] == ("ensemble_member", 7)


def test_what_was_made_of_an_ensemble_is_put_aside_under_its_digest_when_its_members_change(study):
    folder, sources = study.checkpoints / "ensemble", [study.checkpoints / f"best_{rank}" for rank in (1, 2, 3)]

    def made(content):
        for name in ("export/model.onnx", "member_1/evaluations/x.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)

    make_ensemble(folder, sources[:2])
    aside = folder / f"of_{digest_at(folder)[:12]}"
    made("first")
    make_ensemble(folder, sources[:2])
    assert (folder / "export" / "model.onnx").read_text() == "first"  # the members are the same
    make_ensemble(folder, sources)
    assert sorted(path.name for path in folder.iterdir() if path != aside) == [
        "checkpoint.json",
        "member_1",
        "member_2",
        "member_3",
    ]
    make_ensemble(folder, sources[:2])
    assert not (folder / "member_3").exists()
    made("second")
    make_ensemble(folder, sources)
    found = {path.relative_to(aside).as_posix(): path.read_text() for path in aside.rglob("*") if path.is_file()}
    assert found == {
        "export/model.onnx": "first",
        "export_2/model.onnx": "second",
        "member_1/evaluations/x.json": "first",
        "member_1/evaluations_2/x.json": "second",
    }


def test_a_half_made_ensemble_is_no_checkpoint_and_is_made_again(study, tiny_store):
    evaluate(study, tiny_store)
    folder = study.checkpoints / "ensemble"
    before = read_description(folder)
    (folder / DESCRIPTION).unlink()
    shutil.rmtree(folder / "member_2")
    assert evaluate(study, tiny_store) == 0
    assert read_description(folder) == before
    assert len(load_ensemble(folder).members) == 3


def test_confirmed_configurations_come_first_each_with_its_median_seed(study, tiny_run, tiny_recordings):
    for trial, index in ((5, 2), (3, 1)):
        folder = put(study, f"confirmed/trial_{trial:04d}_seed_{index}", tiny_run, tiny_recordings, trial)
        describe(folder, read_description(folder) | {"value": 0.1, "confirmed": {"index": index, "seed": 9}})
    ranking = [{"trial": 5, "index": 2}, {"trial": 3, "index": 1}, {"trial": 8, "index": None}]
    study.record("confirmation_chosen", trial=5, index=2, ranking=ranking)
    sources = ensemble_sources(study, 3)
    assert [source.name for source in sources] == ["trial_0005_seed_2", "trial_0003_seed_1", "best_2"]


def test_members_that_predicted_other_records_are_not_averaged():
    table = pd.DataFrame({"record_id": ["a", "b"], "y_MI": [0, 1], "p_MI": [0.1, 0.9]})
    mean = averaged([table, table.assign(p_MI=[0.3, 0.5])])
    assert mean["p_MI"].tolist() == pytest.approx([0.2, 0.7])
    assert averaged([table]).equals(table)
    with pytest.raises(ValueError, match="must have predicted the same records"):
        averaged([table, table.assign(record_id=["a", "c"])])


def test_the_digest_of_an_ensemble_does_not_depend_on_the_order_of_its_members():
    first, second = {"digest": "a"}, {"digest": "b"}
    assert digest_of([first, second]) == digest_of([second, first]) != digest_of([first])
