"""Submitting a search to a Ray cluster as a job, and following what it says.

The job is launch.py itself with what was typed, driving the search from inside the cluster. Its id follows from the
study, so that the same line finds the job that runs instead of starting another.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

from search_spaces.authentication import MODE, is_loopback
from search_spaces.compose import FOLDERS
from search_spaces.connection import let_ray_see_the_token, what_was_shown
from search_spaces.node_facts import OF_A_WORKER
from search_spaces.schema import Launch, dotted
from trainables.changes import LEFT_BEHIND, code_changes
from trainables.provenance import REVISION, git_revision
from trainables.study import StudyError

TRAVELS = (".py", ".yaml", ".html", ".css", ".js", ".md", ".typed")
"""Files of the code and its configuration; recordings, weights and studies that lie among them stay here."""
OPTIONS = "options"  # where the folder of --config-dir lies in the job's working directory
INTERRUPTED = 130
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
"""Loggers of Ray that say on the terminal what is packed and when a connection closes."""
QUIET_S, PATIENCE_S = 30.0, 300.0
"""Seconds without a line after which the connection is made anew; seconds without an answer after which we give up."""


# ---- what is submitted -------------------------------------------------------------------------------------------


def job_id(launch: Launch) -> str:
    """The id of the study's first job: the same for the same study, whatever its budgets and wherever it is typed."""
    tree = launch.model_dump(mode="json", by_alias=True)
    study = {"place": tree.get("storage") or launch.study_dir, "identity": launch.identity()}
    digest = hashlib.sha256(json.dumps(study, sort_keys=True).encode()).hexdigest()[:10]
    return f"heartsweep-{re.sub(r'[^A-Za-z0-9_-]+', '-', launch.search.name)}-{digest}"


def entrypoint(launch: Launch, arguments: Sequence[str]) -> str:
    """The command that the job runs: what was typed, for the cluster that it runs on, with all paths absolute.

    A path that was not typed is written out, too: its default is relative to the folder where launch.py is typed, or
    comes from the environment here.
    """
    paths = {
        key: value
        for key, value in dotted(launch.model_dump(mode="json", by_alias=True)).items()
        if FOLDERS.fullmatch(key) and isinstance(value, str)
    }
    words, waiting = [], iter(arguments)
    for word in waiting:
        name, equals, _ = word.partition("=")
        key = name.replace("/", ".")
        if name == "--config-dir":
            words.append(f"--config-dir={OPTIONS}")
            if not equals:
                next(waiting)
        elif key in paths:
            words.append(f"{key}={paths.pop(key)}")
        elif key not in ("cluster", "cluster.address", "cluster.submit"):
            words.append(word)
    words += ["cluster=ray", "cluster.address=auto", *(f"{key}={value}" for key, value in paths.items())]
    return f"python launch.py {shlex.join(words)}"


@contextmanager
def working_directory(config_dir: Path | None) -> Iterator[Path]:
    """A folder with the code and the configuration, nothing else, for as long as the block lasts.

    Args:
        config_dir: the folder of --config-dir, which goes along as `options`.
    """
    root = Path(__file__).resolve().parent.parent

    def stays(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if not (Path(folder, name).is_dir() or name.endswith(TRAVELS))]

    with tempfile.TemporaryDirectory(prefix="heartsweep-") as folder:
        for package in OF_A_WORKER:
            shutil.copytree(root / package, Path(folder, package), ignore=_both(stays, "__pycache__"))
        shutil.copy(root / "launch.py", folder)
        if (revision := git_revision()) is not None:
            Path(folder, "trainables", REVISION).write_text(revision, encoding="utf-8")
            if (changes := code_changes()) is not None:
                Path(folder, "trainables", LEFT_BEHIND).write_text(json.dumps(asdict(changes)), encoding="utf-8")
        if config_dir is not None:
            shutil.copytree(config_dir, Path(folder, OPTIONS), ignore=_both(stays, "__pycache__"))
        yield Path(folder)


def _both(stays: Callable[[str, list[str]], list[str]], pattern: str) -> Callable[[str, list[str]], set[str]]:
    """What either of the two leaves out."""
    matching = shutil.ignore_patterns(pattern)
    return lambda folder, names: {*stays(folder, names), *matching(folder, names)}


# ---- submitting --------------------------------------------------------------------------------------------------


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster whose dashboard is at `address`.

    Raises:
        StudyError: if nothing answers there, or it does not let us in.
    """
    let_ray_see_the_token()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):  # Ray would follow them instead of what was typed
        os.environ.pop(name, None)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise StudyError(f"the cluster at cluster.address={address} refuses: {what_was_shown()}") from error
    except (ConnectionError, RuntimeError, requests.RequestException) as error:
        reason = " ".join(str(error).split())[:300]
        raise StudyError(
            f"no Ray cluster could be used at cluster.address={address}: {reason}; it must be its "
            "dashboard's, which listens on the head alone: make a tunnel to it (ssh -L 8265:127.0.0.1:8265 HEAD)"
        ) from error


@contextmanager
def answered_by(address: str) -> Iterator[None]:
    """Turn what goes wrong with a request into a StudyError."""
    try:
        yield
    except (ConnectionError, RuntimeError, requests.RequestException) as error:
        reason = " ".join(str(error).split())[:300]
        raise StudyError(f"the cluster at cluster.address={address} did not do as asked: {reason}") from error


def check_asks_for_a_token(address: str) -> None:
    """Refuse a cluster that is not on loopback and lets in whoever comes.

    Raises:
        StudyError: that says how to start it.
    """
    if is_loopback(address):
        return
    answer = requests.get(f"{address.rstrip('/')}/api/version", timeout=10)  # without a token, on purpose
    if answer.status_code not in (401, 403):
        raise StudyError(
            f"the cluster at cluster.address={address} asks for no token: whoever reaches it runs code on it; start it "
            f"with {MODE}=token"
        )


def latest_attempt(client: JobSubmissionClient, name: str) -> tuple[int, Any]:
    """The number of the study's last job on the cluster, from 1, and what is known of it; 0 and None for none."""
    attempts = {}
    for job in client.list_jobs():
        found = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", job.submission_id or "")
        if found is not None:
            attempts[int(found[1] or 1)] = job
    number = max(attempts, default=0)
    return number, attempts.get(number)


def submit(client: JobSubmissionClient, name: str, command: str, config_dir: Path | None) -> tuple[str, bool]:
    """Find the study's running job, or start one.

    Args:
        client: of the cluster.
        name: the id of the study's first job.
        command: what a new job runs.
        config_dir: of --config-dir.

    Returns:
        the job's id, and whether it ran already.
    """
    number, job = latest_attempt(client, name)
    if job is not None and not job.status.is_terminal():
        return str(job.submission_id), True
    attempt = name if number == 0 else f"{name}-{number + 1}"
    try:
        with working_directory(config_dir) as folder:
            client.submit_job(entrypoint=command, submission_id=attempt, runtime_env={"working_dir": str(folder)})
    except RuntimeError as error:
        if "already exists" not in str(error):  # the same line was typed twice at the same time
            raise
        return attempt, True
    return attempt, False


# ---- following ---------------------------------------------------------------------------------------------------


class JobLog:
    """A job's log on its way to the terminal.

    Args:
        client: of the cluster.
        job: its id.
        terminal: is written to as the log grows.
    """

    def __init__(self, client: JobSubmissionClient, job: str, terminal: IO[str]) -> None:
        self.client = client
        self.job = job
        self._terminal = terminal
        self._shown = 0
        self._answered = time.monotonic()

    def follow(self, *, patience_s: float = PATIENCE_S) -> Any:
        """Show what has not been shown yet, until the job ends; connect again whenever the connection drops.

        Returns:
            what the cluster knows of the ended job.

        Raises:
            StudyError: if the cluster has not answered for `patience_s` seconds, or has lost the job.
        """
        while True:
            asyncio.run(self._show())
            details = self._details(patience_s)
            if details is not None and details.status.is_terminal():
                return details
            time.sleep(1)

    async def _show(self) -> None:
        """Show the log until it ends, the connection drops, or nothing has come for long."""
        position = 0  # every connection is given the whole log
        chunks = self.client.tail_job_logs(self.job)
        try:
            while True:
                chunk = await asyncio.wait_for(anext(chunks), timeout=QUIET_S)
                self._terminal.write(chunk[max(0, self._shown - position) :])
                self._terminal.flush()
                position += len(chunk)
                self._shown = max(self._shown, position)
        except (StopAsyncIteration, aiohttp.ClientError, RuntimeError, OSError, TimeoutError):
            return  # the job's state says which of these it was
        finally:
            await chunks.aclose()

    def _details(self, patience_s: float) -> Any:
        """What the cluster knows of the job; None if it does not answer just now."""
        try:
            details = self.client.get_job_info(self.job)
        except (RuntimeError, OSError) as error:  # of requests, too
            if "does not exist" in str(error):
                raise StudyError(
                    f"the cluster knows no job {self.job} any more, as after a restart of its head: type the same line "
                    "again to go on"
                ) from error
            if time.monotonic() - self._answered > patience_s:
                raise StudyError(
                    f"the cluster has not answered for {patience_s:.0f} s; job {self.job} may go on: type the same "
                    "line again to follow it"
                ) from error
            return None
        self._answered = time.monotonic()
        return details


def _exit_code(details: Any, console: Console) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        console.print(f"job {details.submission_id} was stopped", markup=False)
        return INTERRUPTED
    if details.driver_exit_code is not None:  # its log says why
        return int(details.driver_exit_code)
    console.print(f"job {details.submission_id} failed: {details.message}", markup=False)
    return 1


def how_to_stop(address: str, job: str) -> str:
    """What is typed to stop a job."""
    mode = f"{MODE}=token " if os.environ.get(MODE) == "token" else ""
    return f"{mode}ray job stop --address {address} {job}"


def run_as_job(launch: Launch, arguments: Sequence[str], config_dir: Path | None, console: Console) -> int:
    """Submit the search, or find the job that it runs in, and follow it.

    Args:
        launch: with `cluster.submit`.
        arguments: what was typed after launch.py.
        config_dir: of --config-dir.
        console: where the user looks.

    Returns:
        the job's exit code; 130 if it was stopped or left.

    Raises:
        StudyError: if the cluster cannot be used.
    """
    address = launch.cluster.address
    assert address is not None  # the schema sees to it
    client = connect(address)
    check_asks_for_a_token(address)
    command = entrypoint(launch, arguments)
    with answered_by(address):
        job, ran_already = submit(client, job_id(launch), command, config_dir)
    console.print(f"job: {job} ({'running already' if ran_already else 'submitted'} at {address})", markup=False)
    if ran_already and (running := client.get_job_info(job).entrypoint) != command:
        console.print(
            f"note: it was started with another line; stop it first to change that:\n  {running}", markup=False
        )
    console.print(
        f"on the cluster: study_dir={launch.study_dir}, data.root={launch.data.root}, "
        f"data.store_dir={launch.data.store_dir}",
        markup=False,
    )
    stopping = False
    log = JobLog(client, job, console.file)
    while True:
        try:
            return _exit_code(log.follow(), console)
        except KeyboardInterrupt:
            if stopping or not _wants_to_stop(job, console):
                console.print(
                    f"job {job} goes on; type the same line again to follow it, or stop it with:\n"
                    f"  {how_to_stop(address, job)}",
                    markup=False,
                )
                return INTERRUPTED
            with answered_by(address):
                client.stop_job(job)
            stopping = True


def _wants_to_stop(job: str, console: Console) -> bool:
    """Ask whether a job is to be stopped; without a terminal it is not."""
    if not sys.stdin.isatty():
        return False
    try:
        return console.input(f"\nStop job {job}, or leave it running? [stop/LEAVE] ").strip().lower() in ("stop", "s")
    except (KeyboardInterrupt, EOFError):
        return False
