"""What a user types and what a mistake answers: one line, exit code 2, nothing started."""

import json
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
        (["command=report", "storage=s3://key:secret@bucket/x"], "storage: must hold no credentials"),
        (["command=dashboard", "study_dir=nowhere"], "holds no study"),
        (["command=compare"], "needs study_dirs=[DIR1,DIR2]"),
        (["command=compare", "study_dirs=[one]"], "study_dirs"),
        (["command=compare", "study_dirs=[one,two]"], "one is no study's folder, it lacks study.yaml"),
        (["command=compare", "study_dirs=[one,two]", "data=synthetic"], "data: not read by command=compare"),
        (["command=report", "study_dirs=[one,two]", "study_dir=nowhere"], "holds no study"),
        (["command=index", "study_dir=nowhere"], "is no folder"),
        (["command=index", "port=80"], "port goes with command=dashboard"),
        (["command=index", "modle.mask_ratio=1"], "no such key"),
        (["command=train", "study_dir=nowhere", "trial=3"], "holds no study"),
        ([*SYNTHETIC, "resume=must"], "resume=must"),
        ([*SYNTHETIC, "search.metric=val/accuracy"], "must be one of what the task logs, val/auroc"),
        ([*SYNTHETIC, "command=train", "search.metric=val/accuracy"], "must be one of what the task logs, val/auroc"),
        (["search=stmem_ptbxl_finetune"], "(task.encoder=DIR)"),
        ([*SYNTHETIC, "task.finetune.optimizer.betas=[0.9,1.0]"], "betas must both be at least 0 and below 1, got"),
        ([*SYNTHETIC, "command=train", "model.encoder.patch_duration_s=0.31"], "patch_duration_s must divide"),
        ([*SYNTHETIC, "trial=3"], "trial goes with command=train, got command=search"),
        ([*SYNTHETIC, "sampler=cmaes", "model.encoder.num_sep_tokens=1,2"], "sampler=cmaes"),
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

    def said(train, *typed, folds=None):
        choices = checked(compose_choices([*SYNTHETIC, *typed]).tree)
        recordings = SimpleNamespace(
            split=SimpleNamespace(pretrain=np.arange(train), train=np.arange(train - 1), valid=[8], test=[9]),
            store=SimpleNamespace(index=pd.DataFrame({"fold": range(1, 11)})),
            labels=SimpleNamespace(labelled=np.ones(10, bool), classes=("MI",)),
            valid_classes=np.array([0]),
            folds=None if folds is None else SimpleNamespace(described=lambda: folds),
        )
        launch.describe_recordings(choices, recordings, launch.Console(soft_wrap=True))
        return capsys.readouterr().out

    assert said(8) == "recordings: 8 pre-train, 7 train, 1 validate, 1 test\n"
    assert said(8, "task=finetune", "task.encoder=x") == "recordings: 7 train, 1 validate, 1 test\n"
    assert said(8, folds="3 folds") == "recordings: 3 folds\n"
    assert "(training limited to 1400 patients; the test fold never is)" in said(7)
    assert "note: 7 recordings are not used, their folds 2, 3, 4, 5, 6, 7, 8 are" in said(1, "data.train_folds=[1]")


def test_a_folder_where_another_run_was_trained_is_refused(tmp_path):
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked
    from search_spaces.training import check_same_run
    from trainables.study import StudyError

    def check(*typed, store="ab12"):
        choices = checked(compose_choices([*SYNTHETIC, *typed]).tree)
        check_same_run(tmp_path, choices, choices.run, store)

    check()
    check("data.root=moved", "data.store_dir=elsewhere")
    written = json.loads((tmp_path / "run.json").read_bytes())
    assert "subsample_seed" not in written["data"]  # as the version before had it, whose run goes on
    with pytest.raises(StudyError, match=r"run\.json: data\.subsample_seed"):
        check("data.subsample_seed=1")
    for typed, store, named in (
        (["task.finetune.lr=2e-3"], "ab12", "task.finetune.lr"),
        (["search.metric=val/average_precision"], "ab12", "search.metric"),
        ([], "cd34", "store"),
    ):
        with pytest.raises(StudyError, match=rf"run\.json: .*{named}"):
            check(*typed, store=store)


def test_the_download_command_fetches_what_the_module_offers():
    from data import download

    assert download.PTB_XL_URL.startswith("https://")
    assert "PTB_XL_URL" in Path(launch.__file__).read_text()


def test_seeds_are_not_searched_since_they_choose_the_validation_patients(capsys):
    assert "seed" in mistake(capsys, *SYNTHETIC, "seed=0,1,2")


def test_a_study_goes_on_only_with_the_recordings_it_began_with(tmp_path, tiny_store):
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked
    from trainables.study import StudyError, StudyFolder

    choices = checked(compose_choices([*SYNTHETIC]).tree)
    space, study = launch.checked_space(choices), StudyFolder(tmp_path / "study")
    for _ in range(2):
        ledger, _ = launch.open_books(choices, space, study, tiny_store)
        assert ledger.num_ended == 0
    assert [event["event"] for event in study.read_events()] == ["study_started", "study_resumed"]
    with pytest.raises(StudyError, match="was begun on other recordings"):
        launch.open_books(choices, space, study, SimpleNamespace(path=tiny_store.path, hash="another"))


def test_a_study_keeps_the_encoder_that_its_trials_start_from(tmp_path, tiny_run, tiny_recordings):
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked
    from trainables.checkpoint import WEIGHTS, check_encoder, describe, description_of
    from trainables.files import write_tensors
    from trainables.pretrain import fresh_encoder
    from trainables.study import StudyError, StudyFolder

    given, study = tmp_path / "given", StudyFolder(tmp_path / "study")
    weights = {f"encoder.{name}": tensor for name, tensor in fresh_encoder(tiny_run).state_dict().items()}
    write_tensors(given / WEIGHTS, weights, {})
    best = {"epoch": 1, "value": 0.5, "metrics": {}}
    describe(given, description_of(tiny_run, tiny_recordings, best, "val/auroc"))
    typed = ["search=stmem_ptbxl_finetune", *SYNTHETIC[1:], "data.leads=[II,V2]", "data.window_s=1.2"]
    choices = checked(compose_choices([*typed, f"task.encoder={given}"]).tree)
    first, again = launch.with_own_encoder(choices, study), launch.with_own_encoder(choices, study)
    assert first.task.encoder == again.task.encoder == str(study.encoder)
    assert first.identity() == choices.identity()
    check_encoder(study.encoder, first.data)
    small = checked(compose_choices([*typed, f"task.encoder={given}", "model.encoder.size=small"]).tree)
    with pytest.raises(ValueError, match="holds another encoder: .* set model"):
        launch.with_own_encoder(small, StudyFolder(tmp_path / "other study"))
    write_tensors(given / WEIGHTS, weights | {"encoder.norm.bias": weights["encoder.norm.bias"] + 1}, {})
    with pytest.raises(StudyError, match=f"begun with other weights .* task.encoder={study.encoder} for those"):
        launch.with_own_encoder(choices, study)
    (given / WEIGHTS).unlink()
    given.joinpath("checkpoint.json").unlink()
    given.rmdir()
    assert launch.with_own_encoder(choices, study).task.encoder == str(study.encoder)


def test_a_store_without_a_study_is_named_by_the_commands_that_read_one(bucket, capsys):
    for command in (["command=report"], ["command=train", "trial=1"], [*SYNTHETIC, "resume=must"]):
        assert f"{bucket}/x holds no study" in mistake(capsys, *command, f"storage={bucket}/x")


def test_another_study_in_the_store_is_refused_before_anything_is_written(bucket, capsys):
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked
    from trainables.remote import RemoteFolder

    choices = checked(compose_choices([*SYNTHETIC, "seed=3"]).tree)
    content = launch.as_yaml(choices).encode()
    RemoteFolder(f"{bucket}/x").put("study.yaml", content)
    said = mistake(capsys, *SYNTHETIC, f"storage={bucket}/x", "study_dir=new")
    assert f"{bucket}/x holds another study: seed was 3, now 0" in said
    assert "type storage=URL for a new one" in said
    assert "resume=never" in mistake(capsys, *SYNTHETIC, "seed=3", "resume=never", f"storage={bucket}/x")
    assert RemoteFolder(f"{bucket}/x").names() == ["study.yaml"]
    assert not Path("new").exists()


def test_with_a_store_the_nodes_try_that_instead_of_the_studys_folder(bucket):
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked

    assert launch.seen_by_nodes(checked(compose_choices(SYNTHETIC).tree)) == {}
    tries = launch.seen_by_nodes(checked(compose_choices([*SYNTHETIC, f"storage={bucket}/x"]).tree))
    assert tries["shared"] is False
    assert tries["probes"]["storage"]() is None


def test_a_study_of_another_version_is_reported_with_a_note(capsys, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "study.yaml").write_text("{seed: 3, search: {name: s}, evaluate: {num_resamples: 7, fold_: x}}")
    assert launch.main(["command=report", "study_dir=old"]) == 0
    said = capsys.readouterr().out
    assert "note: the study's configuration is of another version" in said
    metrics = json.loads((tmp_path / "old" / "report" / "metrics.json").read_text())
    assert metrics["protocol"]["bootstrap"]["num_resamples"] == 7
    assert metrics["protocol"]["bootstrap"]["seed"] == 3
    assert "seed" in mistake(capsys, "command=report", "study_dir=old", "seed=4")


def test_studies_are_indexed_and_compared_as_typed(capsys, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "study.yaml").write_text(f"search: {{name: {name}}}")
    assert launch.main(["command=index"]) == 0
    assert "index of 2 studies: " in capsys.readouterr().out
    assert launch.main(["command=compare", "study_dirs=[runs/one,runs/two]", "study_dir=there"]) == 0
    assert str(tmp_path / "there" / "compare.html") in capsys.readouterr().out
    assert "has no predictions of its best trial" in (tmp_path / "there" / "compare.html").read_text()


def test_artifacts_and_an_export_are_made_of_a_trained_run(capsys, tmp_path):
    run = ["command=train", "search=stmem_ptbxl", "scale=laptop", "data=synthetic", "data.reader.num_patients=60"]
    small = ["data.leads=[II,V2]", "data.window_s=4.8", "task.pretrain.num_epochs=1", "task.finetune.num_epochs=1"]
    assert launch.main([*run, *small, "study_dir=one"]) == 0
    checkpoint = "one/train/checkpoint"
    capsys.readouterr()
    typed = [f"checkpoint=[{checkpoint},{checkpoint}]", "artifacts.num_records=1"]
    assert launch.main(["command=artifacts", *typed]) == 0
    assert "artifacts: " in capsys.readouterr().out
    page = tmp_path / checkpoint / "artifacts" / "synthetic_valid" / "index.html"
    assert page.read_text().count("<h2>one/train/checkpoint</h2>") == 2
    assert page.read_text().count("Reconstruction") >= 2
    (tmp_path / "other").mkdir()
    description = json.loads((tmp_path / checkpoint / "checkpoint.json").read_bytes())
    folds = description["run"]["data"]
    folds["valid_folds"], folds["test_folds"] = folds["test_folds"], folds["valid_folds"]
    (tmp_path / "other" / "checkpoint.json").write_text(json.dumps(description))
    (tmp_path / "other" / "model.safetensors").symlink_to(tmp_path / checkpoint / "model.safetensors")
    said = mistake(capsys, "command=artifacts", f"checkpoint=[{checkpoint},other]")
    assert "other was trained with data.valid_folds=[10], the records here are chosen with [9]" in said
    assert not (tmp_path / "other" / "artifacts").exists()
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    assert launch.main(["command=export", f"checkpoint={checkpoint}"]) == 0
    said = capsys.readouterr().out
    assert "probabilities differ by" in said
    assert (tmp_path / checkpoint / "export" / "model.onnx").exists()


@pytest.mark.parametrize("command", ["evaluate", "artifacts", "export"])
def test_what_looks_at_a_checkpoint_says_which_it_needs(capsys, command):
    assert f"command={command} needs checkpoint=DIR" in mistake(capsys, f"command={command}")
    assert "holds no checkpoint.json" in mistake(capsys, f"command={command}", "checkpoint=nowhere")
