"""Searches on real Ray whose trials share pre-trainings: the same figures, at a part of the cost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parent.parent
TINY = [
    "search=stmem_ptbxl",
    "scale=laptop",
    "data=synthetic",
    "data.reader.num_patients=100",
    "data.max_train_patients=null",
    "data.max_valid_patients=null",
    "data.leads=[I,II,V2]",
    "data.window_s=3.0",
    "task.pretrain.num_epochs=2",
    "task.finetune.num_epochs=2",
    "task.finetune.batch_size=16",
    "space.model.mask_ratio={choice: [0.5, 0.75]}",
    "space.task.pretrain.lr=null",
    "sampler=random",
    "scheduler=fifo",
    "search.num_trials=4",
    "cluster.num_cpus=1",
    "evaluate.num_resamples=20",
]


def searched(folder, *typed):
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), *TINY, *typed, f"study_dir={folder}", "data.store_dir=stores"],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return ended.stdout, [event for event in events if event["event"] == "epoch"]


def test_gangs_share_pretrainings_too(tmp_path):
    gang = ("cluster.workers_per_trial=2", "cluster.num_cpus=2", "search.num_trials=2", "space.model.mask_ratio=null")
    shown, epochs = searched(tmp_path / "gangs", *gang)
    assert "reuse: all trials share one pre-training" in shown
    told = {(event["trial"], event["epoch"]): event for event in epochs}
    assert [told[1, epoch].get("reused") for epoch in (1, 2, 3, 4)] == [True, True, None, None]
    assert all(told[1, epoch]["metrics"] == told[0, epoch]["metrics"] for epoch in (1, 2))


def test_trials_that_share_pretrainings_report_what_they_would_have_computed(tmp_path):
    shown, sharing = searched(tmp_path / "sharing")
    alone_shown, alone = searched(tmp_path / "alone", "search.reuse.pretraining=false")
    assert "reuse: 2 different pre-trainings" in shown
    assert "reuse: no two trials share a pre-training: search.reuse.pretraining is false" in alone_shown
    told = [
        {(event["trial"], event["epoch"]): (event["metrics"], event["value"]) for event in events}
        for events in (sharing, alone)
    ]
    assert told[0] == told[1]
    assert len(told[0]) == 4 * 4
    reused = [event for event in sharing if event.get("reused")]
    assert len(reused) == 2 * 2  # of four trials with two pre-trainings, two have nothing to compute of them
    assert {event["seconds"] for event in reused} == {0.0}
    assert not any("reused" in event for event in alone)
    said = "2 of 4 trials went on from a pre-training that another had made; 4 of 8 pre-training epochs"
    assert f"reuse: {said}" in shown
    assert said in (tmp_path / "sharing" / "report" / "index.html").read_text()
    assert len(list((tmp_path / "sharing" / "pretrained").rglob("epoch-0002.safetensors"))) == 2
