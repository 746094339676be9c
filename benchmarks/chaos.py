"""What faults cost a search on a cluster; that none loses a trial, counts one twice or leaves anything behind.

Several Ray nodes of one CPU, with token authentication, on this machine; searches of the shipped job on generated
recordings, started as a user starts them; faults at random instants (seeded) while trials compute:

    driver      SIGKILL of launch.py; the same line again
    worker      SIGKILL of a process that computes a trial: its own, or one worker of a gang
    trial       SIGKILL of the process that started a gang
    raylet      SIGKILL of a node's raylet, with which its workers end; another node joins
    drain       a spot machine's notice; the node is killed at its end, another one joins
    head        SIGKILL of the cluster's head service, which comes back from its embedded store

Figures a fault: how often it was injected, trials lost and doubled in the books (target 0), epochs whose result was
recorded and had to be computed again (target 0), the median and longest seconds until every trial that it hit had an
epoch more in the books, and what was still there 30 s after a trial's end (target 0).

    python benchmarks/chaos.py --json FILE [--short]
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import pandas as pd
import psutil
from figures import Figure, parse_arguments, publish
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

ROOT = Path(__file__).resolve().parents[1]
SEARCH = [
    "search=stmem_ptbxl",
    "scale=laptop",
    "data=synthetic",
    "data.reader.num_patients=300",
    "data.max_train_patients=null",
    "data.max_valid_patients=null",
    "data.leads=[I,II,V2]",
    "data.window_s=3.0",
    "scheduler=fifo",
    "evaluate.num_resamples=20",
    "cluster=ray",
]
SLOW_S = 300.0
"""A fault whose trials have no epoch more after this has stopped the search."""


@dataclass
class Injected:
    """One fault and what came of it."""

    fault: str
    seconds: float  # until every trial that was hit had an epoch more in the books
    again: int  # epochs that were in the books and were computed again
    left: list[str] = field(default_factory=list)  # still there when they should have been gone


@dataclass
class Outcome:
    """What came of a search into which faults were injected."""

    injected: list[Injected]
    lost: int
    doubled: int
    left: list[str]


# -------- a cluster on one machine


class Machines:
    """Ray nodes, each with a raylet of its own; a head that runs no trial, and nodes of one CPU."""

    def __init__(self, folder: Path, num_nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self._folder = folder
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": free_port(),
                "temp_dir": str(folder / "ray"),
                "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 3},
            },
        )
        self.nodes = {}
        for _ in range(num_nodes):
            self.join()

    @property
    def address(self) -> str:
        """Where the cluster answers."""
        return str(self.cluster.address)

    def join(self) -> None:
        """Let another node of one CPU join."""
        node = self.cluster.add_node(num_cpus=1)
        self.nodes[node.node_id if hasattr(node, "node_id") else node._node_id] = node

    def raylet(self, node: str) -> psutil.Process:
        """The raylet of a node."""
        return psutil.Process(self.nodes[node].all_processes["raylet"][0].process.pid)

    def kill(self, node: str) -> None:
        """Kill a node's raylet at once, then what is left of the node, and let another one join."""
        self.raylet(node).kill()
        self.cluster.remove_node(self.nodes.pop(node), allow_graceful=False)

    def kill_if_there(self, node: str) -> None:
        """Kill a node unless another fault has."""
        if node in self.nodes:
            self.kill(node)

    def drain(self, node: str, seconds: int) -> None:
        """Tell the cluster that a node will be gone in some seconds."""
        command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", self.address]
        command += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
        subprocess.run([*command, "--deadline-remaining-seconds", str(seconds)], check=True, capture_output=True)

    def restart_head(self) -> None:
        """Kill the head's service and start it again: it has its state from the embedded store."""
        head = self.cluster.head_node
        assert any((self._folder / "store").iterdir()), "the head must keep its state in the embedded store"
        head.kill_gcs_server(check_alive=False)
        head.start_gcs_server()

    def processes(self, *names: str) -> list[psutil.Process]:
        """The cluster's worker processes whose name has one of `names` in it."""
        found = []
        for node in [*self.nodes]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [p for p in self.raylet(node).children(recursive=True) if any(n in title(p) for n in names)]
        return found

    def placement_groups(self) -> list[str]:
        """Those that hold something or wait to."""
        table = self.cluster.global_state.placement_group_table()
        return [name for name, group in table.items() if group["state"] != "REMOVED"]

    def stop(self) -> None:
        """End all nodes."""
        self.cluster.shutdown()


def title(process: psutil.Process) -> str:
    """What a process calls itself; nothing where it has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def free_port() -> int:
    """A port of the loopback address that nobody uses now."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# -------- a search on it


class Search:
    """A search as a user types it, and what its folder says of it."""

    def __init__(self, folder: Path, machines: Machines, *typed: str) -> None:
        self.folder = folder
        self.study = folder / "study"
        self._machines = machines
        self._typed = [*SEARCH, f"cluster.address={machines.address}", f"study_dir={self.study}", *typed]
        self._driver: subprocess.Popen[bytes] | None = None
        self.output = folder / "output.log"

    def start(self) -> None:
        """Type the line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as output:
            self._driver = subprocess.Popen(
                [sys.executable, str(ROOT / "launch.py"), *self._typed],
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill the driver."""
        assert self._driver is not None
        self._driver.kill()
        self._driver.wait()

    def wait(self, seconds: float) -> None:
        """Until the driver ends well.

        Raises:
            RuntimeError: if it does not, with what it said last.
        """
        assert self._driver is not None
        try:
            code = self._driver.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            self.kill()
            raise RuntimeError(f"the search must end with 0, got {code}:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of what the driver said."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-40:])

    @property
    def runs(self) -> bool:
        """Whether the driver runs."""
        return self._driver is not None and self._driver.poll() is None

    def events(self) -> list[dict[str, Any]]:
        """All events so far."""
        path = self.study / "events.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines if line]

    def until(self, holds: Callable[[list[dict[str, Any]]], bool], what: str) -> list[dict[str, Any]]:
        """Wait until something holds of the events.

        Raises:
            RuntimeError: if it does not come, or the driver ends before.
        """
        began = time.monotonic()
        while not holds(events := self.events()):
            if not self.runs or time.monotonic() - began > SLOW_S:
                raise RuntimeError(f"waited in vain for {what}:\n{self.last_words()}")
            time.sleep(0.05)  # the file has no other way to tell
        return events

    def running(self) -> dict[int, dict[str, Any]]:
        """The last epoch of every trial that computes now."""
        last: dict[int, dict[str, Any]] = {}
        for event in self.events():
            if event["event"] == "epoch" and event["epoch"] < self.num_epochs:
                last[event["trial"]] = event
            elif event["event"] in ("trial_ended", "trial_interrupted", "epoch"):
                last.pop(event["trial"], None)
        return last

    num_epochs = 12  # of a whole trial


def wait_for_a_trial(search: Search) -> dict[int, dict[str, Any]]:
    """Until a trial has just reported an epoch and computes the next one; the last epochs of all that compute."""
    seen = len(search.events())
    search.until(
        lambda events: any(event["event"] == "epoch" for event in events[seen:]) and bool(search.running()),
        "an epoch",
    )
    return search.running()


def recovery(search: Search, fault: str, hit: dict[int, dict[str, Any]], began: float, seen: int) -> Injected:
    """Wait until all trials that were hit have gone on, and say how long it took.

    Args:
        search: what was hit.
        fault: its name.
        hit: the last epoch that each trial had reported.
        began: when, by the wall clock.
        seen: how many events there were then.
    """

    def gone_on(events: list[dict[str, Any]]) -> bool:
        return all(
            any(
                (event["event"] == "epoch" and event["epoch"] > last["epoch"]) or event["event"] == "trial_ended"
                for event in events
                if event.get("trial") == number
            )
            for number, last in hit.items()
        )

    events = search.until(gone_on, f"trials {sorted(hit)} to go on after {fault}")
    seconds = time.time() - began
    again = 0
    for number, last in hit.items():
        resumed = [e["epoch"] for e in events[seen:] if e["event"] == "trial_resumed" and e["trial"] == number]
        again += max(0, last["epoch"] - resumed[-1]) if resumed else 0
    return Injected(fault, seconds, again)


# -------- the faults


class Chaos:
    """Injects faults into a search, and keeps what came of them."""

    def __init__(self, machines: Machines, search: Search, seed: int) -> None:
        self.machines = machines
        self.search = search
        self.injected: list[Injected] = []
        self._draw = random.Random(seed)

    def inject(self, fault: str) -> None:
        """Wait for a random instant in an epoch, do it, and wait until what it hit has gone on."""
        hit = None
        while hit is None:  # what it is meant for may have ended just before
            running = wait_for_a_trial(self.search)
            time.sleep(self._draw.uniform(0.0, 1.0))  # the instant, not a wait for anything
            running = self.search.running() or wait_for_a_trial(self.search)
            seen, began = len(self.search.events()), time.time()
            before = self.machines.processes(*OF_TRIALS)
            hit = getattr(self, fault)(running)
        outcome = recovery(self.search, fault, hit, began, seen)
        if fault == "driver":
            outcome.left.extend(still_there(before))
        self.injected.append(outcome)
        print(f"{fault}: {outcome.seconds:.1f} s, trials {sorted(hit)}", flush=True)

    def driver(self, running: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """The driver is killed; the user types the same line again."""
        self.search.kill()
        running = self.search.running()
        self.search.start()
        return running

    def raylet(self, running: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """A machine is gone without a word; another one joins."""
        node = self._node_of_one(running)
        self.machines.kill(node)
        self.machines.join()
        return on_node(running, node)

    def drain(self, running: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """A spot machine's notice; the machine is gone when its time is over, and another one joins."""
        node = self._node_of_one(running)
        self.machines.join()
        self.machines.drain(node, NOTICE_S)
        threading.Timer(NOTICE_S, self.machines.kill_if_there, [node]).start()
        return on_node(running, node)

    def worker(self, running: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]] | None:
        """A process that computes a trial is killed."""
        return self._kill_one(running, OF_WORKERS)

    def trial(self, running: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]] | None:
        """The process that has started a gang is killed."""
        return self._kill_one(running, ("ray::GangTrial.train",))

    def head(self, running: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """The head's service is killed and starts again from its embedded store."""
        self.machines.restart_head()
        return running

    def _node_of_one(self, running: dict[int, dict[str, Any]]) -> str:
        nodes = sorted({node for last in running.values() for node in last["nodes"] if node in self.machines.nodes})
        return self._draw.choice(nodes)

    def _kill_one(self, running: dict[int, dict[str, Any]], names: tuple[str, ...]) -> dict[int, dict[str, Any]] | None:
        processes = self.machines.processes(*names)
        if not processes:
            return None
        killed = self._draw.choice(processes)
        seen = len(self.search.events())
        killed.kill()
        events = self.search.until(
            lambda events: any(event["event"] in ("trial_interrupted", "trial_ended") for event in events[seen:]),
            "an interrupted trial",
        )
        hit = [event["trial"] for event in events[seen:] if event["event"] == "trial_interrupted"]
        return {hit[0]: running.get(hit[0], {"epoch": 0})} if hit else None  # its trial had just ended


OF_WORKERS = ("ray::Trial.train", "ray::RayTrainWorker")
"""What processes call themselves that compute a trial now; one that waits for its next trial is but `ray::Trial`."""
OF_TRIALS = ("ray::Trial", "ray::RayTrainWorker", "ray::GangTrial", "ray::Mailbox")
NOTICE_S = 10


def on_node(running: dict[int, dict[str, Any]], node: str) -> dict[int, dict[str, Any]]:
    """Those of the trials that run on a node."""
    return {number: last for number, last in running.items() if node in last["nodes"]}


def still_there(processes: list[psutil.Process]) -> list[str]:
    """Which of these processes of a killed driver's trials still run 30 s later."""
    return [title(process) for process in psutil.wait_procs(processes, timeout=30)[1]]


# -------- what must hold of the study


def lost_and_doubled(study: Path, num_trials: int) -> tuple[int, int]:
    """Trials that are not in the books exactly once, by events, journal and table."""
    storage = JournalStorage(JournalFileBackend(str(study / "journal.log")))
    in_journal = optuna.load_study(study_name="heartsweep", storage=storage).trials
    events = [json.loads(line) for line in (study / "events.jsonl").read_text().splitlines()]
    table = pd.read_parquet(study / "trials.parquet")
    lost = doubled = 0
    for number in range(num_trials):
        ends = [event for event in events if event["event"] == "trial_ended" and event["trial"] == number]
        epochs = [event["epoch"] for event in events if event["event"] == "epoch" and event["trial"] == number]
        finished = [trial for trial in in_journal if trial.number == number and trial.state.is_finished()]
        rows = sum(table["number"] == number)
        whole = ends and finished and rows and epochs == list(range(1, ends[0]["epochs"] + 1))
        lost += not whole
        doubled += len(ends) > 1 or len(finished) > 1 or len(epochs) != len(set(epochs)) or rows > 1
    doubled += max(0, len(in_journal) - num_trials)
    return lost, doubled


def leaks(study: Path) -> list[str]:
    """What the sentinel found left of stopped trials."""
    events = [json.loads(line) for line in (study / "events.jsonl").read_text().splitlines()]
    return [thing for event in events if event["event"] == "released" for thing in event["left"]]


# -------- the whole


@contextlib.contextmanager
def machines(num_nodes: int) -> Iterator[Machines]:
    """A cluster with a token of its own, and its embedded store for the head's state."""
    # Ray's own processes may write on their way out into what is being deleted
    with tempfile.TemporaryDirectory(prefix="chaos-nodes-", ignore_cleanup_errors=True) as folder:
        os.environ.update(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=secrets.token_hex(32),
            RAY_gcs_storage="rocksdb",
            RAY_gcs_storage_path=str(Path(folder) / "store"),
        )
        cluster = Machines(Path(folder), num_nodes)
        try:
            yield cluster
        finally:
            cluster.stop()


def run(cluster: Machines, folder: Path, faults: Sequence[str], *typed: str, num_trials: int, seed: int) -> Outcome:
    """A search with all `faults` one after another, then to its end, and what came of it."""
    search = Search(folder, cluster, f"search.num_trials={num_trials}", *typed)
    chaos = Chaos(cluster, search, seed)
    search.start()
    try:
        for fault in faults:
            chaos.inject(fault)
        search.wait(1200)
    finally:
        search.kill()  # where a fault was not survived
    lost, doubled = lost_and_doubled(search.study, num_trials)
    return Outcome(chaos.injected, lost, doubled, [*leaks(search.study), *cluster.placement_groups()])


ONE_WORKER = ("task.pretrain.num_epochs=6", "task.finetune.num_epochs=6")
TWO_WORKERS = (*ONE_WORKER, "cluster.workers_per_trial=2")
WHOLE = {
    "drivers": (["driver"] * 10, ONE_WORKER, 12),
    "machines": ([*["raylet"] * 7, *["worker"] * 3, *["drain"] * 2], ONE_WORKER, 24),
    "gangs": ([*["raylet"] * 3, *["worker"] * 3, "drain", *["trial"] * 2], TWO_WORKERS, 12),
    "head": (["head"], ONE_WORKER, 4),
}
SHORT = {
    "machines": (["raylet", "driver", "drain"], ONE_WORKER, 4),
    "gangs": (["worker"], TWO_WORKERS, 2),
}


def figures_of(outcomes: Sequence[Outcome]) -> list[Figure]:
    """The table: a few figures of each fault, then those of all searches together."""
    injected = [fault for outcome in outcomes for fault in outcome.injected]
    figures = []
    for name in dict.fromkeys(fault.fault for fault in injected):
        seconds = [fault.seconds for fault in injected if fault.fault == name]
        again = sum(fault.again for fault in injected if fault.fault == name)
        figures += [
            Figure(f"{name}_injected", len(seconds), "times"),
            Figure(f"{name}_recovery_median", median(seconds), "s"),
            Figure(f"{name}_recovery_longest", max(seconds), "s"),
            Figure(f"{name}_epochs_recorded_and_lost", again, "epochs", target=0, bound="at most"),
        ]
    left = [*(thing for outcome in outcomes for thing in outcome.left), *(t for fault in injected for t in fault.left)]
    for thing in left:
        print(f"left: {thing}")
    return [
        *figures,
        Figure("trials_lost", sum(outcome.lost for outcome in outcomes), "trials", target=0, bound="at most"),
        Figure("trials_doubled", sum(outcome.doubled for outcome in outcomes), "trials", target=0, bound="at most"),
        Figure("left_behind", len(left), "things", target=0, bound="at most"),
    ]


def main() -> int:
    """Run all searches, print the table, and say by the exit code whether a target was missed."""
    assert __doc__ is not None
    arguments = parse_arguments(
        __doc__,
        ("--short", {"action": "store_true", "help": "a few faults, in minutes"}),
        ("--seed", {"type": int, "default": 0, "help": "of the instants"}),
    )
    outcomes = []
    with machines(3) as cluster, tempfile.TemporaryDirectory(prefix="chaos-studies-") as folder:
        for name, (faults, typed, num_trials) in (SHORT if arguments.short else WHOLE).items():
            outcomes.append(
                run(cluster, Path(folder) / name, faults, *typed, num_trials=num_trials, seed=arguments.seed)
            )
    figures = figures_of(outcomes)
    publish(figures, arguments.json)
    return int(any(figure.met is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
