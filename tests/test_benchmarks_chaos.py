"""benchmarks/chaos.py: it would notice a lost trial, and a search survives a short form of it."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.study import StudyFolder
from trainables.trial import Assignment

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NUM_TRIALS = 3


@pytest.fixture(scope="module")
def modules():
    """The benchmark, and one that runs trials without Ray, imported as they are when they are run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("chaos"), importlib.import_module("search_scale")


@pytest.fixture
def study(modules, tmp_path):
    """A study whose books are in order."""
    _, scale = modules
    launch = scale.our_launch(tmp_path, f"search.num_trials={NUM_TRIALS}", *scale.TYPED)
    ledger = scale.open_ledger(launch)
    while (following := ledger.next_trial()) is not None:
        trial, run = following
        folder = ledger.folder.trial(trial.number)
        engine = scale.Short(Assignment(trial.number, run, folder, tmp_path, launch.search.metric, True, 0, 1))
        while ledger.report(trial.number, engine.next_epoch()):
            pass
    return tmp_path


def change(study, edit):
    """Edit the list of events."""
    path = study / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{json.dumps(event)}\n" for event in edit(events)))


def test_books_in_order_have_lost_and_doubled_nothing(modules, study):
    assert modules[0].lost_and_doubled(study, NUM_TRIALS) == (0, 0)
    assert modules[0].lost_and_doubled(study, NUM_TRIALS + 1)[0] == 1


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda events: [e for e in events if (e["event"], e.get("trial")) != ("trial_ended", 1)], (1, 0)),
        (lambda events: [e for e in events if (e["event"], e.get("epoch")) != ("epoch", 1)], (NUM_TRIALS, 0)),
        (lambda events: [*events, *(e for e in events if (e["event"], e.get("trial")) == ("trial_ended", 2))], (0, 1)),
        (lambda events: [*events, *(e for e in events if (e["event"], e.get("trial")) == ("epoch", 0))], (1, 1)),
    ],
)
def test_a_trial_that_is_lost_or_doubled_is_noticed(modules, study, edit, found):
    change(study, edit)
    assert modules[0].lost_and_doubled(study, NUM_TRIALS) == found


def test_what_the_sentinel_found_is_what_is_left(modules, study):
    StudyFolder(study).record("released", stops=1, gone=2, longest_s=0.1, left=["actor a1 on node n1"])
    assert modules[0].leaks(study) == ["actor a1 on node n1"]


@pytest.mark.cluster
def test_a_search_survives_a_lost_machine_a_killed_driver_a_drained_node_and_a_killed_worker(tmp_path):
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / "chaos.py"), "--short", "--json", str(tmp_path / "chaos.json")],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = {
        figure["name"]: figure["value"] for figure in json.loads((tmp_path / "chaos.json").read_text())["figures"]
    }
    for fault in ("raylet", "driver", "drain", "worker"):
        assert figures[f"{fault}_injected"] >= 1
        assert figures[f"{fault}_epochs_recorded_and_lost"] == 0
    assert (figures["trials_lost"], figures["trials_doubled"], figures["left_behind"]) == (0, 0, 0)
