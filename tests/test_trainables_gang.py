"""Trials of two workers on a Ray cluster of several nodes, as a search is typed, against one process on one machine."""

import json
import re
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainables.failures import InterruptedTrial
from trainables.gang import GangTrial
from trainables.state import read_place

REPOSITORY = Path(__file__).parent.parent
TINY = [
    "search=stmem_ptbxl",
    "scale=laptop",
    "data=synthetic",
    "data.reader.num_patients=150",
    "data.max_train_patients=null",
    "data.max_valid_patients=null",
    "data.leads=[I,II,V2]",
    "data.window_s=3.0",
    "task.pretrain.num_epochs=1",
    "task.finetune.num_epochs=2",
    "scheduler=fifo",
    "evaluate.num_resamples=50",
    "study_dir=study",
]
"""Optimisers, rates and batches are the shipped ones."""


NODES = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, "temp_dir": sys.argv[1]}
cluster = Cluster(initialize_head=True, head_node_args=head)
for _ in range(3):
    cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()  # until the test has ended, however it ends
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def three_nodes():
    """The address of a cluster of three nodes of one CPU, and a head without any; their environment has its token.

    In a process of its own, since Ray reads the environment when it is imported.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True) as folder,
    ):  # Ray may still write its logs
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        command = [sys.executable, "-c", NODES, folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nodes:
            assert nodes.stdout is not None
            try:
                yield nodes.stdout.readline().strip()
            finally:
                nodes.communicate(timeout=60)  # which closes its input


def launched(folder, *typed, code=0):
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), *typed],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout


def events_of(folder, name):
    events = [json.loads(line) for line in (folder / "study" / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == name]


def check_again(folder, number):
    """Train a trial again in one process: its metric is that of the gang in every epoch, to 1e-4."""
    of_gang = [event["metrics"] for event in events_of(folder, "epoch") if event["trial"] == number]
    said = launched(folder, "command=train", "study_dir=study", f"trial={number}")
    place = read_place(folder / "study" / "again" / f"trial_{number:04d}")
    alone = [epoch["metrics"] for epoch in place["history"]]
    assert len(alone) == len(of_gang) == 3
    for ours, theirs in zip(of_gang, alone, strict=True):
        assert ours["val/auroc"] == pytest.approx(theirs["val/auroc"], abs=1e-4)
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-3)
    # gradients were added up in another order: else one process has computed both
    assert [epoch["train/loss"] for epoch in of_gang] != [epoch["train/loss"] for epoch in alone]
    assert f"trial {number} again: epochs [" in said


@pytest.mark.parametrize("ends", [True, False])
def test_a_process_takes_on_another_trial_only_when_its_gang_has_ended(monkeypatch, ends):
    trial, began = GangTrial.__new__(GangTrial), []
    gang = SimpleNamespace(runs=True)
    gang.stop = lambda: setattr(gang, "runs", not ends)
    trial.engine = trial.gang = gang
    monkeypatch.setattr(GangTrial, "setup", lambda _, config: began.append(config))
    if ends:
        assert trial.reset_config({"number": 4})
    else:
        with pytest.raises(InterruptedTrial, match="has not ended in 20 s"):
            trial.reset_config({"number": 4})
    assert began == ([{"number": 4}] if ends else [])


@pytest.mark.cluster
def test_the_best_trial_of_gangs_on_three_nodes_is_that_of_one_process_also_after_a_budget_was_used_up(
    three_nodes, tmp_path
):
    on_cluster = ["cluster=ray", f"cluster.address={three_nodes}", "cluster.workers_per_trial=2"]
    line = [*TINY, *on_cluster, "cluster.placement=strict_spread", "search.num_trials=2"]
    said = launched(tmp_path, *line, "search.max_device_hours=1e-9", code=1)  # no trial is completed
    assert "search.max_device_hours=1e-09 is used up" in said
    assert [event["epoch"] for event in events_of(tmp_path, "epoch")] == [1]  # it ended within an epoch
    said = launched(tmp_path, *line, "search.max_device_hours=1")
    assert len(events_of(tmp_path, "trial_resumed")) == 1
    best = int(re.search(r"best: trial (\d+)", said).group(1))
    check_again(tmp_path, best)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_trial_whose_model_two_nodes_share_out_is_that_of_one_process(three_nodes, tmp_path):
    on_cluster = ["cluster=ray", f"cluster.address={three_nodes}", "cluster.workers_per_trial=2"]
    launched(tmp_path, *TINY, *on_cluster, "cluster.sharding=full", "search.num_trials=1")
    check_again(tmp_path, 0)
