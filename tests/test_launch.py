"""What a user types and what a mistake answers: one line, exit code 2, nothing started."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import launch

REPOSITORY = Path(__file__).parent.parent
SYNTHETIC = ["search=stmem_ptbxl", "scale=laptop", "data=synthetic"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ECG_DATA", raising=False)


def mistake(capsys, *arguments):
    """The one line that a mistake answers."""
    assert launch.main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search=stmem_ptbx"], "did you mean stmem_ptbxl?"),
        (["search=stmem_ptbxl", "model.mask_rato=0.5"], "did you mean model.mask_ratio?"),
        (["search=stmem_ptbxl", "model.mask_ratio=0.99"], "model"),
        (["search=stmem_ptbxl", "space.model.mask_ratio={uniform: [0.9, 0.3]}"], "LOW below HIGH"),
        (["search=stmem_ptbxl", "space.model.mask_ratio={uniform: [0.8, 0.9]}"], "got 0.75"),
        (["search=stmem_ptbxl", "blr=1e-3"], "base_lr"),
        (["search=stmem_ptbxl", "command=serch"], "command"),
        (["command=report"], "study_dir=DIR"),
        (["command=evaluate"], "checkpoint=DIR"),
        (["command=evaluate", "checkpoint=nowhere"], "holds no checkpoint.json"),
        (["command=report", "study_dir=nowhere"], "holds no study"),
        (["command=train", "study_dir=nowhere", "trial=3"], "holds no study"),
        ([*SYNTHETIC, "resume=must"], "resume=must"),
        ([*SYNTHETIC, "search.metric=val/accuracy"], "must be one of what the task logs, val/auroc"),
        ([*SYNTHETIC, "command=train", "search.metric=val/accuracy"], "must be one of what the task logs, val/auroc"),
        (["search=stmem_ptbxl_finetune"], "(task.encoder=DIR)"),
        ([*SYNTHETIC, "task.finetune.optimizer.betas=[0.9,1.0]"], "betas must both be at least 0 and below 1, got"),
        ([*SYNTHETIC, "sampler=cmaes", "model.num_sep_tokens=1,2"], "sampler=cmaes"),
        (["search=stmem_ptbxl", "data.root=nowhere"], "data.root"),
        (["search=stmem_ptbxl"], "data.root"),
    ],
)
def test_a_mistake_answers_in_one_line_with_what_to_do(capsys, arguments, said):
    assert said in mistake(capsys, *arguments)


def test_a_mistake_answers_within_five_seconds_of_a_cold_start(tmp_path):
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), "search=stmem_ptbxl", "model.mask_rato=0.5"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 2
    assert "did you mean model.mask_ratio?" in ended.stderr
    assert time.monotonic() - started < 5


def test_help_names_every_group(capsys):
    assert launch.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(group in said for group in ("search", "model", "data", "sampler", "scheduler", "scale"))


def test_the_resolved_configuration_can_be_printed(capsys):
    assert launch.main([*SYNTHETIC, "--cfg"]) == 0
    assert "mask_ratio" in capsys.readouterr().out


def test_a_fixed_value_is_said_to_be_taken_out_of_the_space(capsys):
    assert launch.main([*SYNTHETIC, "model.mask_ratio=0.6", "command=show", "data.reader.num_patients=40"]) == 0
    said = capsys.readouterr().out
    assert "model.mask_ratio=0.6: fixed, no longer searched" in said
    assert "trial 0" in said
    assert "device-hours" in said


def test_a_folder_that_is_in_use_is_refused_with_who_holds_it(capsys, tmp_path):
    from trainables.study import StudyFolder

    with StudyFolder(tmp_path / "busy").locked():
        said = mistake(capsys, *SYNTHETIC, "study_dir=busy", "data.reader.num_patients=40")
    assert "is in use by process" in said


def test_a_rate_that_is_not_there_names_the_one_that_is(capsys, tmp_path):
    from data.synthetic import Synthetic

    reader = Synthetic(root=tmp_path, source_rate_hz=100, num_patients=20, seed=0)
    reader.table()  # writes it
    said = mistake(capsys, "command=prepare", f"data.root={reader.folder}", "data.source_rate_hz=500")
    assert "data.source_rate_hz=100 data.sampling_rate_hz=100" in said


def test_an_index_csv_with_a_missing_column_names_it_and_those_there_are(capsys, tmp_path):
    pd.DataFrame({"FILE_NAME": ["a.npy"], "SAMPLE_RATE": [100]}).to_csv(tmp_path / "train.csv", index=False)
    np.save(tmp_path / "a.npy", np.zeros((12, 1000), np.float32))
    said = mistake(
        capsys,
        "command=prepare",
        "data=index_csv",
        f"data.root={tmp_path}",
        "data.reader.train_csv=train.csv",
        "data.reader.label_columns=[LABEL]",
        "task.labels=labels",
    )
    assert "LABEL" in said
    assert "FILE_NAME" in said


def test_recordings_are_said_to_be_limited_or_left_out_only_where_they_are(capsys):
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked

    def said(train, folds, *typed):
        choices = checked(compose_choices([*SYNTHETIC, *typed]).tree)
        recordings = SimpleNamespace(
            split=SimpleNamespace(train=np.arange(train), valid=[8], test=[9]),
            store=SimpleNamespace(index=pd.DataFrame({"fold": folds})),
            labels=SimpleNamespace(labelled=np.ones(len(folds), bool), classes=("MI",)),
            valid_classes=np.array([0]),
        )
        launch.describe_recordings(choices, recordings, launch.Console(soft_wrap=True))
        return capsys.readouterr().out

    assert said(8, range(1, 11)) == "recordings: 8 train, 1 validate, 1 test\n"
    assert "(training limited to 1400 patients; the test fold never is)" in said(7, range(1, 11))
    assert "note: 7 recordings are not used, their folds 2, 3, 4, 5, 6, 7, 8 are" in said(
        1, range(1, 11), "data.train_folds=[1]"
    )


def test_a_folder_where_another_run_was_trained_is_refused(tmp_path):
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked
    from trainables.study import StudyError

    first = checked(compose_choices([*SYNTHETIC]).tree).run
    other = checked(compose_choices([*SYNTHETIC, "task.finetune.lr=2e-3"]).tree).run
    launch.check_same_run(tmp_path, first)
    launch.check_same_run(tmp_path, first)
    with pytest.raises(StudyError, match=r"run\.json"):
        launch.check_same_run(tmp_path, other)


def test_the_download_command_fetches_what_the_module_offers():
    from data import download

    assert download.PTB_XL_URL.startswith("https://")
    assert "PTB_XL_URL" in Path(launch.__file__).read_text()


def test_seeds_are_not_searched_since_they_choose_the_validation_patients(capsys):
    assert "seed" in mistake(capsys, *SYNTHETIC, "seed=0,1,2")


def test_a_study_goes_on_only_with_the_recordings_and_the_encoder_it_began_with(tmp_path, tiny_store):
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked
    from trainables.checkpoint import WEIGHTS
    from trainables.study import StudyError, StudyFolder

    weights = tmp_path / "encoder" / WEIGHTS
    weights.parent.mkdir()
    weights.write_bytes(b"some weights")
    choices = checked(
        compose_choices(["search=stmem_ptbxl_finetune", *SYNTHETIC[1:], f"task.encoder={weights.parent}"]).tree
    )
    space, study = launch.checked_space(choices), StudyFolder(tmp_path / "study")
    for _ in range(2):
        ledger, _ = launch.open_books(choices, space, study, tiny_store)
        assert ledger.num_ended == 0
    assert [event["event"] for event in study.read_events()] == ["study_started", "study_resumed"]
    with pytest.raises(StudyError, match="was begun on other recordings"):
        launch.open_books(choices, space, study, SimpleNamespace(path=tiny_store.path, hash="another"))
    weights.write_bytes(b"other weights")
    with pytest.raises(StudyError, match="was begun with other weights in .*encoder: type study_dir=DIR"):
        launch.open_books(choices, space, study, tiny_store)
