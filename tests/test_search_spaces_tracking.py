import ast
import contextlib
import functools
import importlib.machinery
import json
import logging
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from search_spaces import running
from search_spaces import tracking as tracking_module
from search_spaces.compose import compose_choices
from search_spaces.schema import ChoiceError, MlflowTracking, NoTracking, WandbTracking, checked
from search_spaces.tracking import PACKAGES, NewEvents, ToldTrials, Tracker, check_tracker, make_tracker
from trainables.study import StudyFolder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def study(tmp_path):
    folder = StudyFolder(tmp_path / "a study")
    folder.record("study_started", store="ab12")
    return folder


class Runs:
    """Keeps what it is told, and fails where it is asked to."""

    def __init__(self, fails_at=None):
        self.fails_at = fails_at
        self.told, self.settled, self.closed = [], 0, 0
        self.failed = threading.Event()

    def connect(self):
        pass

    def take_in(self, event):
        if event["event"] == self.fails_at:
            self.failed.set()
            raise OSError("No space left on device")
        self.told.append(event["event"])

    def settle(self):
        self.settled += 1

    def close(self):
        self.closed += 1


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == tracking_module.__name__]


def test_every_event_is_told_once_in_order_and_what_is_open_is_closed(study):
    runs = Runs()
    with Tracker(lambda: runs, study.events) as track:
        for kind in ("trial_started", "epoch", "trial_ended"):
            study.record(kind, trial=0)
            track()
    assert runs.told == ["study_started", "trial_started", "epoch", "trial_ended"]
    assert runs.settled >= 1
    assert runs.closed == 1


def test_a_failure_is_said_once_and_all_is_told_again_before_the_search_ends(study, caplog):
    failing, healthy = Runs(fails_at="epoch"), Runs()
    made = iter((failing, healthy))
    with Tracker(lambda: next(made), study.events) as track:
        study.record("epoch", trial=0)
        track()
        assert failing.failed.wait(timeout=30)
        study.record("trial_ended", trial=0)
        track()
    assert lines_of(caplog) == ["tracking stopped, the search goes on: No space left on device"]
    assert (failing.told, failing.closed) == (["study_started"], 1)
    assert (healthy.told, healthy.closed) == (["study_started", "epoch", "trial_ended"], 1)


def test_a_tracker_that_answers_again_during_the_search_catches_up(study, monkeypatch):
    monkeypatch.setattr(tracking_module, "FIRST_PAUSE_S", 0.01)
    failing, caught_up = Runs(fails_at="epoch"), threading.Event()
    healthy = Runs()
    healthy.settle = caught_up.set
    made = iter((failing, Runs(fails_at="epoch"), healthy))
    with Tracker(lambda: next(made), study.events) as track:
        study.record("epoch", trial=0)
        track()
        assert caught_up.wait(timeout=30)  # while the search goes on
    assert healthy.told == ["study_started", "epoch"]


def test_a_tracker_that_hangs_holds_a_search_up_at_its_end_alone_and_not_for_ever(study, monkeypatch, caplog):
    monkeypatch.setattr(tracking_module, "PATIENCE_S", 0)
    runs, asked, answer = Runs(), threading.Event(), threading.Event()

    def hang(event):
        asked.set()
        assert answer.wait(timeout=60)

    runs.take_in = hang
    monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout=None: None)  # as if the time were over
    with Tracker(lambda: runs, study.events) as track:
        assert asked.wait(timeout=30)
        track()
    answer.set()
    assert lines_of(caplog)[0].startswith("waiting for the tracker to take in the rest")


def test_a_slow_tracker_that_gets_on_is_given_up_after_a_time_too(study, monkeypatch, caplog):
    monkeypatch.setattr(tracking_module, "PATIENCE_S", 0)
    runs, asked, answer, time_is = Runs(), threading.Event(), threading.Event(), [0.0]

    def hang(event):
        asked.set()
        assert answer.wait(timeout=60)

    runs.take_in = hang
    with Tracker(lambda: runs, study.events) as tracker:
        assert asked.wait(timeout=30)

        def gets_on(thread, timeout=None):
            tracker._num_told += 1
            time_is[0] += 100

        monkeypatch.setattr(threading.Thread, "join", gets_on)
        monkeypatch.setattr(tracking_module.time, "monotonic", lambda: time_is[0])
    answer.set()
    assert time_is[0] <= tracking_module.LONGEST_WAIT_S + 100
    assert lines_of(caplog)[-1] == "not all is told to the tracker: the rest is when the same line is typed again"


def test_the_cluster_is_free_before_the_tracker_is_waited_for(study, monkeypatch):
    ended = []

    @contextlib.contextmanager
    def part(name, value):
        yield value
        ended.append(name)

    for module, name, value in (
        ("quiet", "quiet", None),
        ("preflight", "ready_cluster", None),
        ("stopping", "ending_on_sigterm", lambda: False),
        ("logs", "configure", None),
        ("tracking", "make_tracker", None),
    ):
        making = functools.partial(part, name, value)
        monkeypatch.setattr(f"search_spaces.{module}.{name}", lambda *_, making=making, **__: making())
    choices = checked(compose_choices(["search=stmem_ptbxl", "data=synthetic", "scale=laptop"]).tree)
    over = SimpleNamespace(folder=study, is_over=True)
    assert not running.run_search(choices, over, over, SimpleNamespace(path=study.path), Console(quiet=True))
    assert ended.index("ready_cluster") < ended.index("make_tracker")


def test_tracking_off_does_nothing(study):
    with make_tracker(NoTracking(name="none"), study) as track:
        track()
    assert [path.name for path in study.path.iterdir()] == ["events.jsonl"]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_tracker_composes_and_its_package_is_here(name):
    tracking = checked(compose_choices(["command=train", "data=synthetic", f"tracking={name}"]).tree).tracking
    assert tracking.name == name
    check_tracker(tracking)


@pytest.mark.parametrize("found", [None, importlib.machinery.ModuleSpec("mlflow", None)])
def test_a_missing_package_is_refused_before_anything_is_trained(monkeypatch, found):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    with pytest.raises(ChoiceError, match=r"^tracking=mlflow needs the package mlflow-skinny: install it, or type "):
        check_tracker(MlflowTracking(name="mlflow", uri=None))
    check_tracker(NoTracking(name="none"))


def test_a_tracker_is_imported_only_if_it_is_asked_for_and_a_broken_one_does_not_end_the_search(
    study, monkeypatch, caplog
):
    for module, _ in PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails from here on
    with make_tracker(NoTracking(name="none"), study) as track:
        track()
    assert lines_of(caplog) == []
    with make_tracker(WandbTracking(name="wandb", project="hearts", entity=None, mode="offline"), study) as track:
        track()
    [line] = lines_of(caplog)
    assert line.startswith("tracking stopped, the search goes on: import of wandb halted")


def test_trackers_are_spoken_to_by_the_driver_alone():
    names = {module for module, _ in PACKAGES.values()}
    speakers = {
        path.relative_to(ROOT).as_posix()
        for package in ("search_spaces", "trainables", "reports", "models", "data")
        for path in (ROOT / package).rglob("*.py")
        if names & imported(path)
    }
    assert speakers == {f"search_spaces/tracking_{name}.py" for name in PACKAGES}
    told_by = [path for path in (ROOT / "search_spaces").glob("*.py") if "make_tracker" in path.read_text()]
    # launch.py and running.py call it, and no worker imports these
    assert {path.name for path in told_by} == {"tracking.py", "running.py"}
    assert "make_tracker" in (ROOT / "launch.py").read_text()


def imported(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:hunter2@host:5000",
        "https://token-hunter2@host",
        "postgresql://user:hunter2@host/db",
        "http://host?token=hunter2",
        "http://host#hunter2",
        "postgresql:u:hunter2@h/db",
        "http:user:hunter2@host",
        "user:hunter2@host",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(uri):
    with pytest.raises(ChoiceError, match=r"tracking\.uri: must hold no credentials") as refused:
        checked(compose_choices(["command=train", "data=synthetic", "tracking=mlflow", f"tracking.uri={uri}"]).tree)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlruns", "ftp://host", "http:host:5000"])
def test_a_folder_of_plain_files_is_refused_as_mlflow_does(uri):
    with pytest.raises(ChoiceError, match=r"tracking\.uri: must be http://HOST:PORT or the URL of a database"):
        checked(compose_choices(["command=train", "data=synthetic", "tracking=mlflow", f"tracking.uri={uri}"]).tree)


@pytest.mark.parametrize("uri", ["http://host:5000", "https://mlflow.lab.example/a/b", "sqlite:////data/mlflow.db"])
def test_an_address_of_a_server_or_a_database_is_taken_as_typed(uri):
    typed = ["command=train", "data=synthetic", "tracking=mlflow", f"tracking.uri={uri}"]
    assert checked(compose_choices(typed).tree).tracking.uri == uri


def test_the_table_of_epochs_is_read_from_the_events_as_the_docs_say(study):
    study.record("trial_started", trial=0, params={"lr": 1e-3})
    for at in (1, 2):
        metrics = {"train/loss": 1 / at, "val/auroc": 0.5 + at / 10}
        study.record("epoch", trial=0, epoch=at, stage="finetune", metrics=metrics, seconds=1.5)
    text = (ROOT / "docs" / "tracking.md").read_text()
    code = next(block for block in text.split("```python\n")[1:] if "read_json" in block).split("```")[0]
    names = {}
    exec(code.replace("STUDY", study.path.as_posix()), names)
    expected = pd.DataFrame(
        {"trial": [0, 0], "epoch": [1, 2], "stage": ["finetune"] * 2, "train/loss": [1.0, 0.5], "val/auroc": [0.6, 0.7]}
    )
    pd.testing.assert_frame_equal(names["epochs"].reset_index(drop=True), expected, check_dtype=False)


def test_a_list_of_told_trials_grows_and_a_damaged_one_says_what_to_do(tmp_path):
    path = tmp_path / "told.json"
    told = ToldTrials(path)
    for number in (3, 1):
        told.add(number)
    assert [number in ToldTrials(path) for number in (1, 2, 3)] == [True, False, True]
    for content in ("[0, ", "7"):
        path.write_text(content)
        with pytest.raises(ValueError, match="is damaged: remove it, and all trials are told again"):
            ToldTrials(path)


@given(data=st.data(), lines=st.lists(st.integers(), max_size=6))
@settings(max_examples=30, deadline=None)
def test_every_line_is_read_once_however_it_comes_to_the_disk(tmp_path_factory, data, lines):
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    read = NewEvents(path)
    assert list(read()) == []
    content = b"".join(json.dumps({"n": line}).encode() + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    found = []
    for begin, stop in zip([0, *cuts], [*cuts, len(content)], strict=True):
        with path.open("ab") as file:
            file.write(content[begin:stop])
        found += read()
    assert found == [{"n": line} for line in lines]


def test_a_line_that_a_crash_cut_off_or_that_is_no_event_is_left_out(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": \n[2]\n{"n": 3}\n')
    assert [event["n"] for event in NewEvents(path)()] == [1, 3]


def test_the_lines_of_a_tracker_are_warnings(study, caplog):
    with Tracker(lambda: Runs(fails_at="study_started"), study.events):
        pass
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
