import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from search_spaces import tracking_wandb
from search_spaces.schema import WandbTracking
from search_spaces.tracking import make_tracker
from search_spaces.tracking_wandb import has_key
from trainables.study import StudyFolder

OFFLINE = WandbTracking(name="wandb", project="hearts", entity=None, mode="offline")
ONLINE = WandbTracking(name="wandb", project="hearts", entity="lab", mode="online")
NOBODY = "http://127.0.0.1:9"  # nothing listens there
KEY = "0" * 40


@pytest.fixture(autouse=True)
def _a_home_without_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "NETRC", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")  # so that it is put back even where the test sets it
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)  # whatever goes wrong here, no server hears of it
    monkeypatch.setattr(sys, "exit", sys.exit)  # W&B wraps both and leaves them so
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def study(tmp_path):
    folder = StudyFolder(tmp_path / "a study")
    folder.record("study_started", store="ab12")
    return folder


class Server:
    """Stands for W&B: keeps what its runs are told."""

    def __init__(self, starting_step=0):
        self.starting_step = starting_step
        self.begun, self.steps, self.exit_codes = {}, {}, {}

    def init(self, **keys):
        self.begun[keys["id"]] = keys
        steps = self.steps.setdefault(keys["id"], [])
        return SimpleNamespace(
            starting_step=self.starting_step,
            log=lambda metrics, step, commit: steps.append(step),
            config=keys["config"],
            summary={},
            finish=lambda exit_code: self.exit_codes.update({keys["id"]: exit_code}),
        )


def warnings_of(caplog):
    """Our own lines; in pytest W&B's log, which belongs to its files, is caught as well."""
    ours = [record for record in caplog.records if record.name.startswith("search_spaces.")]
    assert {record.levelno for record in ours} <= {logging.WARNING}
    return [record.getMessage() for record in ours]


def start(study, number, **params):
    study.record("trial_started", trial=number, params=params)


def epoch(study, number, at, value):
    study.record("epoch", trial=number, epoch=at, stage="finetune", metrics={"val/auroc": value}, seconds=1.5)


def end(study, number, state="COMPLETE", value=0.9, reason=None, epochs=1):
    study.record("trial_ended", trial=number, state=state, value=value, reason=reason, epochs=epochs, seconds=3.0)


def files_of_runs(study):
    """W&B's files by the number of their trial, oldest first."""
    files = {}
    for path in sorted((study.path / "wandb").glob("offline-run-*/run-*.wandb")):
        files.setdefault(int(path.stem.rpartition("-")[2]), []).append(path)
    return files


def told(path):
    """What a W&B file holds: its run, its history by step, its summary, its exit code."""
    found = SimpleNamespace(run=None, history={}, summary={}, exit_code=None)
    for record in records(path.read_bytes()):
        if record.HasField("run"):
            found.run = record.run
        elif record.HasField("history"):
            metrics = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            found.history[record.history.step.num] = {k: v for k, v in metrics.items() if not k.startswith("_")}
        elif record.HasField("summary"):
            found.summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
        elif record.HasField("exit"):
            found.exit_code = record.exit.exit_code
    return found


def records(content):
    """The records of a LevelDB log, which W&B's files are: blocks of 32 KiB, records cut into fragments."""
    position, whole = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or a record's last fragment
            yield Record.FromString(whole)
            whole = b""


def config_of(run):
    return {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}


def test_every_trial_is_a_run_with_its_choices_its_epochs_and_its_end(study, capfd):
    with make_tracker(OFFLINE, study) as track:
        start(study, 0, **{"task.pretrain.lr": 1e-3, "model.leads": ["I", "V2"]})
        start(study, 1, **{"task.pretrain.lr": 1e-2})
        track()
        for at in (1, 2):
            epoch(study, 0, at, 0.5 + at / 10)
            epoch(study, 1, at, 0.4)
            track()
        end(study, 1, "PRUNED", 0.4, "scheduler", epochs=2)
        study.record("exploit", trial=0, params={"task.pretrain.lr": 2e-3})
        epoch(study, 0, 3, 0.8)
        end(study, 0, "FAIL", None, "RuntimeError: no", epochs=3)
        track()
    assert capfd.readouterr() == ("", "")
    first, second = (told(path) for [path] in (files_of_runs(study)[number] for number in (0, 1)))
    assert (first.run.project, first.run.run_group, first.run.display_name) == ("hearts", "a study", "trial 0")
    assert config_of(first.run) == {"task.pretrain.lr": 1e-3, "model.leads": ["I", "V2"]}
    assert first.history == {at: {"val/auroc": value} for at, value in ((1, 0.6), (2, 0.7), (3, 0.8))}
    assert second.history == {1: {"val/auroc": 0.4}, 2: {"val/auroc": 0.4}}
    ended = {"state": "PRUNED", "value": 0.4, "reason": "scheduler", "epochs": 2, "seconds": 3.0}
    assert ended.items() <= second.summary.items()
    assert first.summary["reason"] == "RuntimeError: no"
    assert (first.exit_code, second.exit_code) == (1, 0)


def test_a_search_that_goes_on_tells_an_interrupted_trial_whole_and_an_ended_one_no_more(study):
    with make_tracker(OFFLINE, study):
        for number in (0, 1):
            start(study, number, lr=1e-3)
            epoch(study, number, 1, 0.5)
        end(study, 0)
    study.record("study_resumed", store="ab12")
    with make_tracker(OFFLINE, study) as track:
        study.record("trial_resumed", trial=1, epoch=1)
        epoch(study, 1, 2, 0.6)
        end(study, 1, epochs=2)
        track()
    files = files_of_runs(study)
    assert [len(files[number]) for number in (0, 1)] == [1, 1]
    whole = told(files[1][0])
    assert (whole.exit_code, list(whole.history)) == (0, [1, 2])


def test_an_interrupted_trial_is_told_as_interrupted(study):
    with make_tracker(OFFLINE, study):
        start(study, 0)
        epoch(study, 0, 1, 0.5)
    [path] = files_of_runs(study)[0]
    assert (told(path).exit_code, list(told(path).history)) == (255, [1])


KILLED_DRIVER = """
import json, os, pathlib, signal, sys
from search_spaces.schema import WandbTracking
from search_spaces.tracking_wandb import WandbRuns
from trainables.study import StudyFolder
folder = StudyFolder(pathlib.Path(sys.argv[1]))
runs = WandbRuns(WandbTracking(name="wandb", project="hearts", entity=None, mode="offline"), folder)
runs.connect()
for event in folder.read_events():
    runs.take_in(event)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_driver_that_is_killed_and_started_again_goes_on_with_the_same_run_and_doubles_nothing(study):
    start(study, 0, lr=1e-3)
    epoch(study, 0, 1, 0.5)
    epoch(study, 0, 2, 0.6)
    command = [sys.executable, "-c", KILLED_DRIVER, str(study.path)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [(number, [left])] = files_of_runs(study).items()
    study.record("study_resumed", store="ab12")
    with make_tracker(OFFLINE, study):
        epoch(study, 0, 3, 0.7)
        end(study, 0, epochs=3)
    [(again, [whole])] = files_of_runs(study).items()
    assert (again, whole.name) == (number, left.name)  # the run's id is the file's name
    assert told(whole).history == {at: {"val/auroc": value} for at, value in ((1, 0.5), (2, 0.6), (3, 0.7))}
    assert told(whole).exit_code == 0


def test_the_key_is_nowhere_in_the_studys_folder(study, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking_wandb, "INIT_TIMEOUT_S", 1)
    for tracking in (OFFLINE, ONLINE):
        with make_tracker(tracking, study):
            start(study, 0, lr=1e-3)
            epoch(study, 0, 1, 0.5)
    files = [path for path in study.path.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_run_that_the_server_has_a_part_of_is_sent_the_rest(study, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    server = Server(starting_step=3)  # it holds epochs 1 and 2
    monkeypatch.setattr(wandb, "init", server.init)
    start(study, 7, lr=1e-3)
    with make_tracker(ONLINE, study):
        for at in range(1, 5):
            epoch(study, 7, at, 0.5)
    [begun] = server.begun.values()
    assert {"mode": "online", "resume": "allow", "entity": "lab"}.items() <= begun.items()
    assert server.steps[begun["id"]] == [3, 4]


def test_a_run_keeps_its_id_where_its_study_moves_and_shares_it_with_no_other_study(tmp_path, monkeypatch):
    server = Server()
    monkeypatch.setattr(wandb, "init", server.init)
    study, other = (StudyFolder(tmp_path / name) for name in ("one", "other"))
    for folder, store in ((study, "ab"), (other, "cd")):
        folder.record("study_started", store=store)
        start(folder, 0)
        with make_tracker(OFFLINE, folder):
            pass
    before = set(server.begun)
    moved = StudyFolder(study.path.rename(tmp_path / "moved"))
    with make_tracker(OFFLINE, moved):
        pass
    assert len(before) == 2
    assert set(server.begun) == before


def test_without_a_key_nothing_is_sent_and_one_line_says_so(study, caplog):
    with make_tracker(ONLINE, study):
        start(study, 0, lr=1e-3)
        end(study, 0)
    [line] = warnings_of(caplog)
    assert line.startswith(f"tracking offline, no key for {NOBODY} in WANDB_API_KEY or ~/.netrc: log in with ")
    assert list(files_of_runs(study)) == [0]


def test_a_server_that_does_not_answer_ends_the_tracking_with_one_warning(study, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking_wandb, "INIT_TIMEOUT_S", 1)
    with make_tracker(ONLINE, study) as track:
        start(study, 0, lr=1e-3)
        track()
        start(study, 1, lr=1e-3)
        track()
    [line] = warnings_of(caplog)
    assert line.startswith("tracking stopped, the search goes on: ")
    assert "connection refused" in line


def test_the_search_waits_for_nothing_that_wandb_does(study, monkeypatch):
    server, asked, answer = Server(), threading.Event(), threading.Event()

    def init(**keys):
        asked.set()
        assert answer.wait(timeout=30)
        return server.init(**keys)

    monkeypatch.setattr(wandb, "init", init)
    with make_tracker(OFFLINE, study) as track:
        start(study, 0)
        track()
        assert asked.wait(timeout=30)
        for at in (1, 2):
            epoch(study, 0, at, 0.5)
            track()
        assert server.begun == {}
        answer.set()
    assert list(server.steps.values()) == [[1, 2]]


def test_wandb_sends_no_reports_of_its_own_troubles_unless_told_to(study, monkeypatch):
    with make_tracker(OFFLINE, study):
        assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    with make_tracker(OFFLINE, study):
        assert os.environ["WANDB_ERROR_REPORTING"] == "true"


def test_a_list_of_told_trials_that_cannot_be_read_ends_the_tracking_with_one_warning(study, caplog):
    (study.path / "wandb").mkdir()
    (study.path / "wandb" / "told.json").write_text("[0, ")
    with make_tracker(OFFLINE, study) as track:
        start(study, 0)
        track()
    [line] = warnings_of(caplog)
    assert line.startswith("tracking stopped, the search goes on: ")
    assert files_of_runs(study) == {}


@pytest.mark.parametrize(
    ("base_url", "entry", "found"),
    [
        ("https://wandb.lab.example", "machine wandb.lab.example login user password abc", True),
        ("https://wandb.lab.example", "machine api.wandb.ai login user password abc", False),
        ("https://api.forge.coreweave.com", "machine api.wandb.ai login user password abc", True),
        ("https://wandb.lab.example", "machine wandb.lab.example nonsense", False),
        ("https://wandb.lab.example", None, False),
    ],
)
def test_a_key_is_looked_for_where_wandb_looks(tmp_path, monkeypatch, base_url, entry, found):
    if entry is not None:
        (tmp_path / "keys").write_text(entry)
    monkeypatch.setenv("NETRC", str(tmp_path / "keys"))
    assert has_key(base_url) is found
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_key(base_url)
