"""A search whose study lives in an object store, on real Ray: its machine is lost, the same line goes on elsewhere."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import launch
from tests.test_search import REPOSITORY, TINY, check_books, events_of
from tests.test_search_spaces_preflight import TOKEN, free_port, ray_node
from trainables.remote import RemoteFolder

pytestmark = pytest.mark.cluster


class Planted:
    """What executes when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def started(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "launch.py"), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(folder, *arguments):
    with started(folder, *arguments) as running:
        try:
            said, _ = running.communicate(timeout=300)
        finally:
            running.kill()
    assert running.returncode == 0, said


def texts_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_search_whose_machine_is_lost_goes_on_from_the_store(tmp_path, bucket, monkeypatch, capsys):
    url = f"{bucket}/runs/tiny"
    line = [*TINY, f"storage={url}"]
    running = started(tmp_path, *line)
    assert running.stdout is not None
    said = []
    for text in running.stdout:  # until something has ended and something else runs
        said.append(text)
        if "trial 2  epoch 1" in text or "trial 3  epoch 1" in text:
            break
    else:
        pytest.fail("the search ended before it could be killed: " + "".join(said))
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    running.stdout.close()
    study = tmp_path / "study"
    assert sum(event["event"] == "trial_ended" for event in events_of(study)) < 5
    shutil.rmtree(study)
    planted = pickle.dumps(Planted(tmp_path / "executed"))
    for name in ("tuner.pkl", "running/0001-0/last.pkl", "models/0001-0/model.pkl"):
        RemoteFolder(url).put(name, planted)
    (study / ".scratch" / "tune").mkdir(parents=True)
    (study / ".scratch" / "tune" / "tuner.pkl").write_bytes(planted)

    ended(tmp_path, *line)
    check_books(study, 5)
    assert (study / "report" / "index.html").exists()
    names = RemoteFolder(url).names()
    assert not [name for name in names if name.startswith("running/") or name == "holder.json"]
    assert {"study.yaml", "trials.parquet", "report/index.html", "report/metrics.json"} <= set(names)
    assert not (tmp_path / "executed").exists()

    monkeypatch.chdir(tmp_path)  # a fresh machine reads it
    assert launch.main(["command=report", f"storage={url}"]) == 0
    copy = tmp_path / "runs" / "tiny"
    assert f"report: {copy / 'report' / 'index.html'}" in capsys.readouterr().out
    assert (copy / "report" / "metrics.json").read_bytes() == (study / "report" / "metrics.json").read_bytes()
    assert pd.read_parquet(copy / "trials.parquet").equals(pd.read_parquet(study / "trials.parquet"))
    assert not list(copy.rglob("*.safetensors"))

    stored = b"".join(RemoteFolder(url).get(name) or b"" for name in names)
    for place in (texts_below(study), stored, "".join(said).encode()):
        assert b"a-secret-of-tests" not in place
        assert b"a-key-of-tests" not in place
    assert planted in stored  # the search above would have found it
    assert json.loads((copy / "checkpoints" / "best_1" / "checkpoint.json").read_text())["value"] > 0


@pytest.fixture
def full_disk(tmp_path):
    """A folder for temporary files on a disk that holds no trial's state."""
    disk = tmp_path / "full"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_of_one_node_interrupts_its_trials_which_go_on_elsewhere(tmp_path, bucket, full_disk, monkeypatch):
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    address = f"{socket.gethostbyname(socket.gethostname())}:{(port := free_port())}"
    ports = [f"--port={port}", f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    with (
        ray_node("--head", *ports),
        ray_node(f"--address={address}", before=("env", f"TMPDIR={full_disk}")),
    ):
        ended(
            tmp_path,
            *TINY,
            f"storage={bucket}/full",
            "cluster=ray",
            f"cluster.address={address}",
            "search.num_trials=3",
            "task.pretrain.num_epochs=1",
            "task.finetune.num_epochs=1",
        )
    check_books(tmp_path / "study", 3)
    events = events_of(tmp_path / "study")
    interrupted = [event for event in events if event["event"] == "trial_interrupted"]
    assert {event["cause"] for event in interrupted} == {"storage"}
    assert len({node for event in interrupted for node in event["nodes"]}) == 1
    assert all("the disk is full" in event["reason"] for event in interrupted)
    assert len({node for event in events if event["event"] == "epoch" for node in event["nodes"]}) == 1
    (released,) = (event for event in events if event["event"] == "released")
    assert released["left"] == []


@pytest.mark.slow
def test_a_gang_needs_no_shared_folder_and_leaves_nothing_in_the_store(tmp_path, bucket):
    url = f"{bucket}/gang"
    ended(
        tmp_path,
        *TINY,
        f"storage={url}",
        "cluster.num_cpus=2",
        "cluster.workers_per_trial=2",
        "search.num_trials=2",
        "task.pretrain.num_epochs=1",
        "task.finetune.num_epochs=1",
    )
    check_books(tmp_path / "study", 2)
    assert not RemoteFolder(url).names("running/")
    assert not any(Path(tmp_path / "study" / "running").glob("*/train"))
