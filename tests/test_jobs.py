"""A search as a job of a real Ray cluster with authentication on: submitted, found again, stopped, gone on with."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray.job_submission import JobStatus

from search_spaces.submission import connect
from trainables.study import StudyFolder

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),  # Ray's client, by aiohttp
]

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
    "task.pretrain.num_epochs=2",
    "task.finetune.num_epochs=2",
    "scheduler.reduction_factor=2",
    "evaluate.num_resamples=50",
    "study_dir=study",
    "cluster=job",
]
SECRETS = {
    name: f"secret-{secrets.token_hex(8)}"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "HF_TOKEN", "DATABASE_PASSWORD")
}


def free_ports(number):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Cluster:
    """A head on this machine, with a token and a folder of its own; secrets in its environment."""

    def __init__(self, folder):
        self.folder = folder
        self.token = folder / "token" / "auth_token"
        self.token.parent.mkdir(mode=0o700)
        self.token.touch(mode=0o600)
        self.token.write_text(secrets.token_hex(32), encoding="ascii")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **SECRETS,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
        }
        port, dashboard, client, agent = free_ports(4)
        self.address = f"http://127.0.0.1:{dashboard}"
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
        options = [
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--num-cpus=2",
            f"--temp-dir={folder / 'ray'}",
            "--disable-usage-stats",
        ]
        self.process = subprocess.Popen(
            [*ray, *options],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                return
        pytest.fail("the cluster did not start: " + "".join(said))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)

    def submit(self, folder, *typed):
        """A launch.py that submits from `folder` and follows."""
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "launch.py"), *TINY, f"cluster.address={self.address}", *typed],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))  # short: the paths of Ray's sockets lie in it
    cluster = Cluster(folder)
    yield cluster
    cluster.stop()
    shutil.rmtree(folder)


@pytest.fixture
def client(cluster, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token))
    return connect(cluster.address)


def read_until(process, words):
    """What a process says up to a line with these words, that included."""
    said = []
    for line in process.stdout:
        said.append(line)
        if words in line:
            return "".join(said)
    pytest.fail(f"it never said {words!r}: " + "".join(said))


def events_of(study):
    return [json.loads(line) for line in (study / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_job_is_found_again_stopped_in_time_and_gone_on_with(cluster, client, tmp_path):
    study = tmp_path / "study"
    first = cluster.submit(tmp_path, "search.num_trials=40")  # more than it can do before it is stopped
    read_until(first, "trial 0  epoch 1")
    second = cluster.submit(
        tmp_path, "search.num_trials=40"
    )  # the same line while the job runs: followed, from the log's beginning
    said = read_until(second, "trial 0  epoch 1")
    assert "(running already at" in said
    (job,) = [details.submission_id for details in client.list_jobs() if details.submission_id]

    stopped_at = time.time()
    assert client.stop_job(job)
    for process in (first, second):
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert f"job {job} was stopped" in said
    assert client.get_job_status(job) == JobStatus.STOPPED
    events = events_of(study)
    (interrupted,) = [event for event in events if event["event"] == "study_interrupted"]
    assert datetime.fromisoformat(interrupted["time"]).timestamp() - stopped_at < 3  # SIGKILL comes then
    num_trials = len([event for event in events if event["event"] == "trial_started"]) + 1
    with StudyFolder(study).locked():  # no driver holds it any more
        pass

    third = cluster.submit(tmp_path, f"search.num_trials={num_trials}")  # a budget is not part of what a study is
    said, _ = third.communicate(timeout=300)
    assert third.returncode == 0, said
    assert f"job: {job}-2 (submitted at" in said
    assert "report: " in said
    assert (study / "report" / "index.html").is_file()
    journal = optuna.load_study(
        study_name="heartsweep", storage=JournalStorage(JournalFileBackend(str(study / "journal.log")))
    )
    assert [trial.state.is_finished() for trial in journal.trials] == [True] * num_trials
    assert pd.read_parquet(study / "trials.parquet")["number"].tolist() == list(range(num_trials))
    ended = [event["trial"] for event in events_of(study) if event["event"] == "trial_ended"]
    assert sorted(ended) == list(range(num_trials))
    check_no_secret_below(tmp_path, cluster)
    check_no_secret_below(cluster.folder / "ray", cluster)


def check_no_secret_below(folder, cluster):
    """No file of the study, of its log or of Ray's own holds what the environments of driver and cluster held."""
    searched = [*SECRETS.values(), cluster.token.read_text(encoding="ascii")]
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 10
    found = {
        str(path.relative_to(folder)): secret
        for path in files
        for content in [path.read_bytes()]
        for secret in searched
        if secret.encode() in content
    }
    assert found == {}


def test_the_cluster_lets_nobody_in_without_its_token(cluster, tmp_path):
    without = cluster.environment | {"HOME": str(tmp_path)}
    del without["RAY_AUTH_TOKEN_PATH"], without["RAY_AUTH_MODE"]
    command = [sys.executable, str(REPOSITORY / "launch.py"), *TINY, f"cluster.address={cluster.address}"]
    ended = subprocess.run(command, cwd=tmp_path, env=without, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "refuses: no token was shown; if the cluster was started with one, copy the head's" in ended.stderr
    assert ended.stderr.count("\n") == 1
