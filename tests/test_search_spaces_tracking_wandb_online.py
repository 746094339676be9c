"""W&B's own client against a server of this process, which keeps what it is sent as W&B's does."""

import gzip
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from search_spaces.schema import WandbTracking
from search_spaces.tracking import make_tracker
from trainables.study import StudyFolder

ONLINE = WandbTracking(name="wandb", project="hearts", entity="lab", mode="online")
KEY = "0" * 40
PROJECT = {"id": "p", "name": "hearts", "entity": {"id": "e", "name": "lab"}}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the queries that a run makes; `server.runs` is what it was told."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        if self.path.endswith("file_stream"):
            answer = self.take_in(self.path.split("/")[-2], asked)
        else:
            answer = {"data": self.answer(asked["query"], asked.get("variables") or {})}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def take_in(self, name, asked):
        run = self.server.runs[name]
        if (part := asked.get("files", {}).get("wandb-history.jsonl")) is not None:
            lines = map(json.loads, part["content"])
            run["history"][part["offset"] :] = [(line["_step"], line["val/auroc"]) for line in lines]
            self.server.has_history.set()
        run["exit"] = asked.get("exitcode", run["exit"])
        return {"exitcode": None, "limits": {}}

    def answer(self, query, asked):
        name, runs = asked.get("name"), self.server.runs
        if "upsertBucket" in query:
            runs.setdefault(name, {"history": [], "exit": None})
            bucket = {"id": f"id-{name}", "name": name, "config": asked.get("config"), "project": PROJECT}
            return {"upsertBucket": {"bucket": bucket, "inserted": not runs[name]["history"]}}
        if "RunResumeStatus" in query:
            return {"model": PROJECT | {"bucket": self.resumed(name) if name in runs else None}}
        return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}}

    def resumed(self, name):
        lines = [json.dumps({"_step": step, "val/auroc": value}) for step, value in self.server.runs[name]["history"]]
        counts = {"historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps(lines[-1:]), "eventsTail": "[]", "summaryMetrics": (lines or ["{}"])[-1]}
        return {"id": f"id-{name}", "name": name, "config": "{}", "wandbConfig": '{"t": 1}'} | counts | tails


@pytest.fixture
def server(tmp_path, monkeypatch):
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.runs, running.has_history = {}, threading.Event()
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{running.server_address[1]}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "exit", sys.exit)  # W&B wraps both and leaves them so
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def study(tmp_path):
    folder = StudyFolder(tmp_path / "a study")
    folder.record("study_started", store="ab12")
    folder.record("trial_started", trial=0, params={"lr": 1e-3})
    epochs(folder, 1, 2)
    return folder


def epochs(study, *numbers):
    for at in numbers:
        study.record("epoch", trial=0, epoch=at, stage="finetune", metrics={"val/auroc": 0.5 + at / 10}, seconds=1.5)


def end(study):
    study.record("trial_ended", trial=0, state="COMPLETE", value=0.8, reason=None, epochs=3, seconds=3.0)


def test_an_interrupted_run_goes_on_at_the_server_under_its_id_and_nothing_is_there_twice(study, server):
    with make_tracker(ONLINE, study):
        pass
    [(name, run)] = server.runs.items()
    assert (run["history"], run["exit"]) == ([(1, 0.6), (2, 0.7)], 255)
    epochs(study, 3)
    end(study)
    with make_tracker(ONLINE, study):
        pass
    assert server.runs == {name: {"history": [(1, 0.6), (2, 0.7), (3, 0.8)], "exit": 0}}
    files = [path for path in study.path.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


DRIVER = """
import pathlib, sys
from search_spaces.schema import WandbTracking
from search_spaces.tracking import make_tracker
from trainables.study import StudyFolder
tracking = WandbTracking(name="wandb", project="hearts", entity="lab", mode="online")
with make_tracker(tracking, StudyFolder(pathlib.Path(sys.argv[1]))):
    sys.stdin.read()
"""


@pytest.mark.slow  # W&B keeps what it has to send for 15 s
def test_a_driver_that_is_killed_while_online_is_followed_by_one_that_sends_the_rest(study, server):
    command = [sys.executable, "-c", DRIVER, str(study.path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE) as driver:
        assert server.has_history.wait(timeout=120)
        os.kill(driver.pid, signal.SIGKILL)
    [name] = server.runs
    epochs(study, 3)
    end(study)
    with make_tracker(ONLINE, study):
        pass
    assert list(server.runs) == [name]
    assert server.runs[name] == {"history": [(1, 0.6), (2, 0.7), (3, 0.8)], "exit": 0}
