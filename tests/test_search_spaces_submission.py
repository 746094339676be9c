"""What a job is called, what it runs and what travels with it; following it; the real thing is in test_jobs.py."""

import asyncio
import io
import json
import re
import shlex
import threading
import zipfile
from pathlib import Path

import pytest
from aiohttp import web
from rich.console import Console

import launch
from search_spaces import submission
from search_spaces.compose import compose_choices
from search_spaces.schema import ChoiceError, checked
from search_spaces.submission import JobLog, connect, entrypoint, job_id, working_directory
from trainables.study import StudyError

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # Ray's client, by aiohttp

TYPED = ["search=stmem_ptbxl", "scale=laptop", "data=synthetic"]
JOB = [*TYPED, "cluster=job"]
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """An empty folder to type in, a token, and none of Ray's variables."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 64)
    monkeypatch.delenv("ECG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launch_of(*typed):
    return checked(compose_choices(typed).tree)


# -------- the id


def test_a_studys_job_has_the_same_id_whatever_its_budgets_and_wherever_it_is_typed(somewhere, monkeypatch):
    name = job_id(launch_of(*JOB, f"study_dir={somewhere}/study"))
    assert re.fullmatch(r"heartsweep-stmem_ptbxl-[0-9a-f]{10}", name)
    (somewhere / "elsewhere").mkdir()
    monkeypatch.chdir(somewhere / "elsewhere")
    assert job_id(launch_of(*JOB, "study_dir=../study", "search.num_trials=99", "search.max_hours=1")) != name
    assert job_id(launch_of(*JOB, f"study_dir={somewhere}/study", "search.num_trials=99")) == name


@pytest.mark.parametrize("changed", ["seed=1", "study_dir=other", "model.mask_ratio=0.6", "sampler=random"])
def test_another_study_has_another_id(changed):
    assert job_id(launch_of(*JOB, changed)) != job_id(launch_of(*JOB))


# -------- the command


def test_the_job_runs_what_was_typed_on_the_cluster_that_it_is_on(somewhere):
    typed = [*JOB, "space.model.mask_ratio={uniform: [0.5, 0.8]}", "cluster.address=http://127.0.0.1:9", "seed=3"]
    words = shlex.split(entrypoint(launch_of(*typed), typed))
    assert words[:2] == ["python", "launch.py"]
    assert words[2:7] == [*TYPED, "space.model.mask_ratio={uniform: [0.5, 0.8]}", "seed=3"]
    assert "cluster=job" not in words
    assert not any("127.0.0.1:9" in word for word in words)
    assert words[7:9] == ["cluster=ray", "cluster.address=auto"]


def test_every_path_of_the_job_is_absolute_whether_typed_or_not(somewhere, monkeypatch):
    monkeypatch.setenv("ECG_DATA", "recordings")
    typed = ["search=stmem_ptbxl", "cluster=job", "study_dir=runs/my study"]
    words = shlex.split(entrypoint(launch_of(*typed), typed))
    assert f"study_dir={somewhere}/runs/my study" in words
    assert f"data.root={somewhere}/recordings" in words
    assert f"data.store_dir={somewhere}/runs/stores" in words
    assert sum(word.startswith("study_dir=") for word in words) == 1


def test_the_job_has_the_studys_configuration(somewhere, monkeypatch):
    """Composed again from the job's own line, in another folder, it is the same study at the same place."""
    typed = [*JOB, "model.mask_ratio=0.5,0.7", "study_dir=study", "task.finetune.num_epochs=2"]
    here = launch_of(*typed)
    words = shlex.split(entrypoint(here, typed))[2:]
    (somewhere / "job").mkdir()
    monkeypatch.chdir(somewhere / "job")
    there = launch_of(*words)
    assert there.cluster.address == "auto"
    assert not there.cluster.submit
    assert there.model_copy(update={"cluster": here.cluster}) == here


@pytest.mark.parametrize("flag", [["--config-dir", "mine"], ["--config-dir=mine"]])
def test_options_of_ones_own_travel_along(somewhere, flag):
    option = somewhere / "mine" / "scale" / "tiny.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("# @package _global_\n", encoding="utf-8")
    words = shlex.split(entrypoint(launch_of(*JOB), [*flag, *JOB]))
    assert words[2:4] == ["--config-dir=options", "search=stmem_ptbxl"]
    with working_directory(somewhere / "mine") as folder:
        assert (folder / "options" / "scale" / "tiny.yaml").is_file()


# -------- what is refused


@pytest.mark.parametrize("address", ["10.0.0.7:6379", "auto", "null"])
def test_a_job_is_submitted_to_a_dashboard_alone(address):
    with pytest.raises(ChoiceError, match="must be http://HOST:PORT, the dashboard's, with cluster=job"):
        launch_of(*JOB, f"cluster.address={address}")


def test_a_dashboards_address_is_for_jobs_alone():
    with pytest.raises(ChoiceError, match="or type cluster=job"):
        launch_of(*TYPED, "cluster=ray", "cluster.address=http://127.0.0.1:8265")


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_commands_that_run_here_are_not_submitted(command):
    with pytest.raises(ChoiceError, match=f"cluster=job goes with command=search, got command={command}"):
        launch_of(*JOB, f"command={command}")


# -------- a stand-in for the head of a cluster


class Head:
    """The jobs of a cluster as its dashboard shows them, on a free port of loopback."""

    def __init__(self, token=None):
        self.token = token
        self.jobs, self.packages, self.stopped, self.connections = {}, {}, [], []
        self.log, self.drops_after = ["one\n", "two\n", "three\n"], []
        self.ends = {"status": "SUCCEEDED", "driver_exit_code": 0}
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _serve(self):
        app = web.Application(middlewares=[self._guard], client_max_size=2**28)
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/packages/{protocol}/{name}", self._package),
                web.put("/api/packages/{protocol}/{name}", self._upload),
                web.get("/api/jobs/", self._list),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/{job}", self._details),
                web.post("/api/jobs/{job}/stop", self._stop),
                web.get("/api/jobs/{job}/logs/tail", self._tail),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    @web.middleware
    async def _guard(self, request, handler):
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401 if "Authorization" not in request.headers else 403, text="no")
        return await handler(request)

    async def _version(self, request):
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "0"})

    async def _package(self, request):
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _upload(self, request):
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _list(self, request):
        return web.json_response(list(self.jobs.values()))

    async def _submit(self, request):
        asked = await request.json()
        name = asked["submission_id"]
        if name in self.jobs:
            return web.Response(status=400, text=f"Job with submission_id {name} already exists.")
        self.add(name, entrypoint=asked["entrypoint"], runtime_env=asked["runtime_env"])
        return web.json_response({"submission_id": name, "job_id": name})

    async def _details(self, request):
        name = request.match_info["job"]
        return (
            web.json_response(self.jobs[name]) if name in self.jobs else web.Response(status=404, text="does not exist")
        )

    async def _stop(self, request):
        self.stopped.append(request.match_info["job"])
        return web.json_response({"stopped": True})

    async def _tail(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.connections.append(request.match_info["job"])
        lines = self.drops_after.pop(0) if self.drops_after else len(self.log)
        for line in self.log[:lines]:
            await socket.send_str(line)
        if lines < len(self.log):
            request.transport.abort()
        else:
            self.jobs[request.match_info["job"]] |= self.ends
        return socket

    def add(self, name, status="RUNNING", entrypoint="python launch.py", **more):
        self.jobs[name] = {
            "type": "SUBMISSION",
            "submission_id": name,
            "status": status,
            "entrypoint": entrypoint,
        } | more


@pytest.fixture
def head():
    with Head(token="t" * 64) as head:
        yield head


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), highlight=False, soft_wrap=True)


def typed_for(head, *more):
    return [*JOB, f"cluster.address={head.address}", *more]


def submitted(head, capsys, *more):
    """The exit code of a launch that submits to the head, and what it said."""
    code = launch.main(typed_for(head, *more))
    return code, capsys.readouterr().out


# -------- submitting


def test_a_search_is_submitted_followed_and_its_exit_code_is_ours(head, capsys):
    code, said = submitted(head, capsys)
    (name,) = head.jobs
    assert code == 0
    assert f"job: {name} (submitted at {head.address})" in said
    assert "one\ntwo\nthree\n" in said
    head.ends = {"status": "FAILED", "driver_exit_code": 7, "message": "failed"}
    assert submitted(head, capsys)[0] == 7


def test_code_and_configuration_travel_and_nothing_else(head, capsys, monkeypatch):
    monkeypatch.setattr(submission, "git_revision", lambda: "0123abc")
    submitted(head, capsys)
    (package,) = head.packages.values()
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
        assert archive.read("trainables/revision.txt") == b"0123abc"
    here = {
        path.relative_to(ROOT).as_posix()
        for folder in ("data", "models", "reports", "search_spaces", "trainables")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == here | {"launch.py", "trainables/revision.txt", "trainables/changes.json"}
    assert len(package) < 2 * 2**20


def test_recordings_and_weights_among_the_code_stay_here(somewhere, monkeypatch):
    root = somewhere / "checkout"
    (root / "search_spaces").mkdir(parents=True)
    for name in ("data", "models", "reports", "trainables"):
        (root / name).mkdir()
    (root / "launch.py").touch()
    for name in ("models/vit.py", "models/best.safetensors", "data/x.npy", "data/a.dat", "search_spaces/events.jsonl"):
        (root / name).touch()
    (root / "runs").mkdir()
    monkeypatch.setattr(submission, "git_revision", lambda: None)
    monkeypatch.setattr(submission, "__file__", str(root / "search_spaces" / "submission.py"))
    with working_directory(None) as folder:
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"launch.py", "models/vit.py"}


def test_the_same_line_again_finds_the_running_job(head, capsys):
    name = job_id(launch_of(*typed_for(head)))
    head.add(name, entrypoint="python launch.py of before")
    code, said = submitted(head, capsys)
    assert code == 0
    assert list(head.jobs) == [name]
    assert f"job: {name} (running already" in said
    assert "it was started with another line" in said
    assert "python launch.py of before" in said


@pytest.mark.parametrize("status", ["SUCCEEDED", "STOPPED", "FAILED"])
def test_a_job_that_has_ended_is_followed_by_another_attempt(head, capsys, status):
    name = job_id(launch_of(*typed_for(head)))
    head.add(name, status)
    submitted(head, capsys)
    assert list(head.jobs) == [name, f"{name}-2"]
    head.add(f"{name}-10", status)
    head.add("another-3")
    submitted(head, capsys)
    assert f"{name}-11" in head.jobs


def test_a_job_that_was_stopped_is_said_to_be(head, capsys):
    head.ends = {"status": "STOPPED"}
    code, said = submitted(head, capsys)
    assert code == 130
    assert "was stopped" in said


def test_no_secret_travels(head, capsys, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "SOME_PASSWORD"):
        monkeypatch.setenv(name, f"secret-of-{name}")
    _, said = submitted(head, capsys)
    told = json.dumps(head.jobs)
    assert "secret-of" not in told
    assert "t" * 64 not in told + said


def test_a_mistake_in_the_space_is_answered_here(head, capsys):
    assert launch.main(typed_for(head, "space.model.mask_ratio={uniform: [0.8, 0.9]}")) == 2
    assert head.jobs == {}


# -------- who lets us in


def test_a_wrong_token_is_told_apart_from_no_answer(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(StudyError, match="refuses: the token of RAY_AUTH_TOKEN in the environment was shown"):
        connect(head.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(StudyError, match="no token was shown; .* copy the head's ~/.ray/auth_token"):
        connect(head.address)
    with pytest.raises(StudyError, match="make a tunnel to it"):
        connect("http://127.0.0.1:1")


def test_a_cluster_that_asks_nobody_for_a_token_is_refused_unless_on_loopback(monkeypatch):
    with Head(token=None) as head:
        submission.check_asks_for_a_token(head.address)
        monkeypatch.setattr(submission, "is_loopback", lambda address: False)
        with pytest.raises(StudyError, match="asks for no token: whoever reaches it runs code on it"):
            submission.check_asks_for_a_token(head.address)
    with Head(token="t" * 64) as head:
        submission.check_asks_for_a_token(head.address)


# -------- following


@pytest.fixture
def running(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    head.add("job")
    return connect(head.address)


def test_the_log_goes_on_where_it_was_when_the_connection_drops(head, running, terminal):
    head.drops_after = [1, 0, 2]
    details = JobLog(running, "job", terminal.file).follow()
    assert terminal.file.getvalue() == "one\ntwo\nthree\n"
    assert len(head.connections) == 4
    assert details.status == "SUCCEEDED"


def test_a_connection_that_says_nothing_is_made_anew(head, running, terminal, monkeypatch):
    monkeypatch.setattr(submission, "QUIET_S", 0.2)
    silent = []

    async def tail(job):
        silent.append(job)
        if len(silent) == 1:
            await asyncio.sleep(60)
        head.jobs[job] |= head.ends
        yield "line\n"

    monkeypatch.setattr(running, "tail_job_logs", tail)
    JobLog(running, "job", terminal.file).follow()
    assert terminal.file.getvalue() == "line\n"
    assert len(silent) == 2


def test_a_job_that_the_cluster_has_lost_is_said_to_be(head, running, terminal):
    head.drops_after = [1]
    del head.jobs["job"]
    with pytest.raises(StudyError, match="the cluster knows no job job any more"):
        JobLog(running, "job", terminal.file).follow()


def test_a_cluster_that_does_not_answer_any_more_is_given_up(head, running, terminal):
    running._address = "http://127.0.0.1:1"
    with pytest.raises(StudyError, match="has not answered for 0 s; job job may go on"):
        JobLog(running, "job", terminal.file).follow(patience_s=0)


@pytest.mark.parametrize(
    ("answer", "stopped", "said"),
    [
        ("stop", ["job"], "was stopped"),
        ("", [], "goes on; type the same line"),
        (None, [], "RAY_AUTH_MODE=token ray job stop"),
    ],
)
def test_ctrl_c_asks_whether_to_stop_the_job(head, capsys, monkeypatch, answer, stopped, said):
    """None: there is no terminal to ask in."""
    name = job_id(launch_of(*typed_for(head)))
    follow, presses = JobLog.follow, [KeyboardInterrupt]

    def interrupted(log, **options):
        if presses:
            raise presses.pop()
        return follow(log, **options)

    monkeypatch.setattr(JobLog, "follow", interrupted)
    monkeypatch.setattr(submission.sys.stdin, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr(Console, "input", lambda console, prompt: answer)
    head.ends = {"status": "STOPPED"}
    code, told = submitted(head, capsys)
    assert code == 130
    assert head.stopped == [name for _ in stopped]
    assert said in told
