import json

import pytest

from data.record import DataError
from trainables import data_check
from trainables.checkpoint import description_of
from trainables.data_check import check_data, pretraining_of, warnings_of
from trainables.recordings import open_recordings
from trainables.study import StudyFolder

BEST = {"epoch": 1, "value": 0.5, "metrics": {}}


def checkpoint(folder, description):
    """A checkpoint's JSON; nothing here reads weights."""
    folder.mkdir()
    (folder / "checkpoint.json").write_text(json.dumps({"format": 2, **description}))
    return folder


def starting_from(run, folder):
    task = run.task.model_copy(update={"stages": "finetune", "encoder": str(folder)})
    return run.model_copy(update={"task": task})


def test_the_data_are_checked_once_and_again_only_if_something_changed(tiny_run, tiny_recordings, tmp_path):
    study = StudyFolder(tmp_path)
    first = check_data(study, tiny_run, tiny_recordings)
    assert check_data(study, tiny_run, tiny_recordings) == first
    assert len(list(study.read_events())) == 1
    assert first["store"] == tiny_recordings.store.hash
    assert set(first["split"]) == {"all", "train", "valid", "test"}
    assert first["records"]["test"] == len(tiny_recordings.split.test)
    assert warnings_of(first) == []


def test_of_k_models_each_ones_split_is_checked_and_not_their_union(tiny_run, tiny_recordings, tmp_path):
    run = tiny_run.model_copy(update={"task": tiny_run.task.model_copy(update={"folds": 2})})
    recordings = open_recordings(run, tiny_recordings.store.path)
    checked = check_data(StudyFolder(tmp_path), run, recordings)
    assert set(checked["patients_in_two_parts"].values()) == {0}
    assert len({fold["all"] for fold in checked["folds"]}) == 2
    assert "folds" not in check_data(StudyFolder(tmp_path), tiny_run, tiny_recordings)


def test_the_event_holds_no_patient(tiny_run, tiny_recordings, tmp_path):
    text = json.dumps(check_data(StudyFolder(tmp_path), tiny_run, tiny_recordings))
    assert not any(f'"{patient}"' in text for patient in tiny_recordings.store.index["patient_id"])


def test_a_patient_in_two_parts_ends_the_search_before_it_begins(tiny_run, tiny_recordings, tmp_path, monkeypatch):
    found = {"patients_in_two_parts": {"train+test": 2}, "signals_in_two_parts": {}, "examples": []}
    monkeypatch.setattr(data_check, "check_parts", lambda *_: found)
    with pytest.raises(DataError, match=r"there are 2 in train\+test"):
        check_data(StudyFolder(tmp_path), tiny_run, tiny_recordings)
    assert not list(StudyFolder(tmp_path).read_events())


def test_duplicated_signals_and_unknown_patients_are_told_and_the_search_goes_on():
    pairs = {"patients_in_two_parts": {"train+test": 0}, "signals_in_two_parts": {"train+test": 3}}
    found = {**pairs, "examples": [["r1", "r7"]], "patients_known": False, "pretraining": {"test_patients": 4}}
    copies, patients, seen = warnings_of(found)
    assert (
        "3 recordings have the samples of a recording in another part (3 in train+test; the first: r1 and r7)" in copies
    )
    assert "a patient of its own" in patients
    assert "pre-trained on 4 of the patients" in seen


def test_a_joint_study_is_pre_trained_on_its_own_training_patients(tiny_run, tiny_recordings):
    assert pretraining_of(tiny_run, tiny_recordings) == {"kind": "this study", "test_patients": 0}


def test_a_checkpoint_of_the_same_split_has_seen_no_test_patient(tiny_run, tiny_recordings, tmp_path):
    folder = checkpoint(tmp_path / "c", description_of(tiny_run, tiny_recordings, BEST, "val/auroc"))
    found = pretraining_of(starting_from(tiny_run, folder), tiny_recordings)
    assert (found["kind"], found["test_patients"]) == ("checkpoint", 0)
    assert found["steps"][0]["patients"] > 0


def test_a_checkpoint_of_other_folds_has_seen_test_patients(tiny_run, tiny_recordings, tmp_path):
    data = tiny_run.data
    turned = data.model_copy(
        update={"train_folds": [*data.train_folds[1:], *data.test_folds], "test_folds": [data.train_folds[0]]}
    )
    description = description_of(tiny_run.model_copy(update={"data": turned}), tiny_recordings, BEST, "val/auroc")
    first = checkpoint(tmp_path / "first", description)
    found = pretraining_of(starting_from(tiny_run, first), tiny_recordings)
    index = tiny_recordings.store.index
    everyone = index["patient_id"].iloc[tiny_recordings.split.test].nunique()
    assert found["test_patients"] == everyone > 0
    # one that was begun from it has seen them too, though its own training has not
    began = description_of(starting_from(tiny_run, first), tiny_recordings, BEST, "val/auroc")
    second = checkpoint(tmp_path / "second", began)
    found = pretraining_of(starting_from(tiny_run, second), tiny_recordings)
    assert [step["test_patients"] for step in found["steps"]] == [0, everyone]
    assert found["test_patients"] == everyone


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"store": "0" * 64}, "not prepared here"),
        ({"run": {"data": {"name": "x"}, "task": {}}}, "of another version"),
        ({"run": {}}, "of another version"),
    ],
)
def test_what_a_checkpoint_does_not_tell_is_said_to_be_unknown(tiny_run, tiny_recordings, tmp_path, change, reason):
    described = description_of(tiny_run, tiny_recordings, BEST, "val/auroc") | change
    found = pretraining_of(starting_from(tiny_run, checkpoint(tmp_path / "c", described)), tiny_recordings)
    assert found["test_patients"] is None
    assert reason in found["steps"][-1]["reason"]


def test_imported_weights_say_what_they_declare_and_no_more(tiny_run, tiny_recordings, tmp_path):
    described = description_of(tiny_run, tiny_recordings, BEST, "val/auroc")
    imported = {"imported": {"source": "a paper", "pretraining_data": "Chapman, Ningbo", "kept": [], "unused": []}}
    found = pretraining_of(starting_from(tiny_run, checkpoint(tmp_path / "c", described | imported)), tiny_recordings)
    assert (found["kind"], found["test_patients"]) == ("imported", None)
    assert found["steps"][0]["data"] == "Chapman, Ningbo"
