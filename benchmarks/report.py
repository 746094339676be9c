"""How long the report of a large study takes, how much memory, and how large its page becomes.

A study of 500 trials is written as a search would leave it: eight searched parameters, one of them for one method only;
two nodes of two trials each; every event, Optuna's journal with each epoch's value, the predictions of three models on
2,200 validation and 2,200 test records. Values follow from the choices, with noise; some trials diverge, fail, or are
interrupted and go on. The report is then built in a fresh Python process, which is what is measured. Two studies:

    whole     no scheduler: every trial that can runs its 30 epochs, the most that 500 trials can hold
    stopped   asha with rungs at 3, 9 and 27 epochs

Figures of each: seconds, those of them in which a processor worked for it, peak resident memory, size of index.html.
Targets: 60 s, 2 GiB and 3 MB.

    python benchmarks/report.py --json FILE [--trials 500] [--classes 5]
"""

from __future__ import annotations

import heapq
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import yaml
from figures import Bound, Figure, parse_arguments, publish
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState

from search_spaces.schedulers import NoStopping, Policy, SuccessiveHalving

NUM_EPOCHS = 30
NUM_PRETRAIN = 15
RUNGS = (3, 9, 27)
NUM_RECORDS = 2200  # of validation, and of test: a fold of PTB-XL
SLOTS = ("node-a", "node-a", "node-b", "node-b")
TARGETS = {"seconds": 60.0, "peak_gib": 2.0, "page_mb": 3.0}
SPACE: dict[str, BaseDistribution] = {
    "model": CategoricalDistribution(["st_mem", "simclr"]),
    "model.mask_ratio": FloatDistribution(0.3, 0.9),  # of st_mem alone
    "model.encoder.depth": IntDistribution(4, 12),
    "task.pretrain.lr": FloatDistribution(1e-5, 3e-3, log=True),
    "task.pretrain.batch_size": CategoricalDistribution([64, 128, 256]),
    "task.finetune.lr": FloatDistribution(1e-5, 3e-3, log=True),
    "task.finetune.layer_decay": FloatDistribution(0.5, 1.0),
    "task.finetune.weight_decay": FloatDistribution(1e-4, 0.3, log=True),
}
BUILD = """
import resource, sys, time
from pathlib import Path
began = time.perf_counter()
from reports.report import build
build(Path(sys.argv[1]))
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


# -------- a search that computes nothing


@dataclass
class Trial:
    """One trial as it is made up."""

    number: int
    params: dict[str, Any]
    slot: int
    epoch: int = 0
    seconds: float = 0.0
    values: dict[int, float] = field(default_factory=dict)
    state: str = ""
    reason: str | None = None


def value(params: Mapping[str, Any], epoch: int, noise: float) -> float:
    """A smooth function of the choices that rises with the epochs, as a validation AUROC does."""
    distance = 0.5 * abs(math.log10(params["task.finetune.lr"]) + 3.2) + abs(params.get("model.mask_ratio", 0.6) - 0.7)
    distance += 0.2 * abs(math.log10(params["task.pretrain.lr"]) + 3.5) + 0.02 * abs(params["model.encoder.depth"] - 9)
    return 0.5 + 0.43 / (1 + math.exp(distance - 1.5)) * (1 - 0.5 / (1 + 0.4 * epoch)) + noise


def draw_params(draw: np.random.Generator) -> dict[str, Any]:
    """Choices of one trial, each distribution drawn from as it says."""
    params: dict[str, Any] = {}
    for name, of in SPACE.items():
        if name == "model.mask_ratio" and params["model"] != "st_mem":
            continue
        if isinstance(of, CategoricalDistribution):
            params[name] = of.choices[int(draw.integers(len(of.choices)))]
        elif isinstance(of, IntDistribution):
            params[name] = int(draw.integers(of.low, of.high + 1))
        elif isinstance(of, FloatDistribution):
            ends = (math.log(of.low), math.log(of.high)) if of.log else (of.low, of.high)
            params[name] = math.exp(draw.uniform(*ends)) if of.log else float(draw.uniform(*ends))
    return params


class Search:
    """Makes up the trials of a study and the events that a driver would have written.

    Args:
        num_trials: how many.
        policy: who is stopped early.
        seed: of all draws.
    """

    def __init__(self, num_trials: int, policy: Policy, *, seed: int = 0) -> None:
        self.trials: list[Trial] = []
        self.events: list[dict[str, Any]] = []
        self._num_trials, self._policy = num_trials, policy
        self._draw = np.random.default_rng(seed)
        self._now = 0.0

    def run(self) -> None:
        """From the first event to the last."""
        self._record("study_started", store="s" * 64, versions={"optuna": optuna.__version__}, hardware={"cores": 2})
        waiting = [(0.0, slot, self._start(slot)) for slot in range(len(SLOTS))]
        heapq.heapify(waiting)
        while waiting:
            self._now, slot, trial = heapq.heappop(waiting)
            following: Trial | None = trial
            if self._epoch(trial):
                following = self._start(slot) if len(self.trials) < self._num_trials else None
            if following is not None:
                heapq.heappush(waiting, (self._now + float(self._draw.uniform(50, 70)), slot, following))
        self._record("study_finished", trials=len(self.trials))

    def _start(self, slot: int) -> Trial:
        trial = Trial(len(self.trials), draw_params(self._draw), slot)
        self.trials.append(trial)
        self._record("trial_started", trial=trial.number, params=trial.params)
        return trial

    def _epoch(self, trial: Trial) -> bool:
        """One epoch of a trial, or what befell it; returns whether it has ended."""
        chance = self._draw.random()
        if chance < 0.001:
            self._record(
                "trial_interrupted",
                trial=trial.number,
                epoch=trial.epoch,
                cause="node_lost",
                reason="the node died",
                nodes=[SLOTS[trial.slot]],
                counts=False,
            )
            self._record("trial_resumed", trial=trial.number, epoch=trial.epoch)
            return False
        if trial.number and chance < 0.003:
            return self._end(trial, "PRUNED", "non_finite: train/loss was nan")
        if trial.number and chance < 0.004:
            return self._end(trial, "FAIL", "RuntimeError: the loader found no record")
        return self._whole_epoch(trial)

    def _whole_epoch(self, trial: Trial) -> bool:
        trial.epoch += 1
        trial.seconds += 55.0
        found = value(trial.params, trial.epoch, float(self._draw.normal(0, 0.004)))
        trial.values[trial.epoch] = found
        finetunes = trial.epoch > NUM_PRETRAIN
        metrics = {"train/loss": 1 - found / 2, "train/lr": 1e-3, "val/auroc": found, "val/average_precision": found**2}
        self._record(
            "epoch",
            trial=trial.number,
            epoch=trial.epoch,
            stage="finetune" if finetunes else "pretrain",
            metrics=metrics | ({} if finetunes else {"val/feature_std": 0.7, "val/effective_rank": 18.2}),
            seconds=55.0,
            value=found if finetunes else None,
            best_epoch=trial.epoch if finetunes else None,
            nodes=[SLOTS[trial.slot]],
        )
        if trial.epoch == NUM_EPOCHS:
            return self._end(trial, "COMPLETE", None)
        stops = self._policy.report(trial.number, trial.epoch, found) == "stop"
        return stops and self._end(trial, "PRUNED", "scheduler")

    def _end(self, trial: Trial, state: str, reason: str | None) -> bool:
        trial.state, trial.reason = state, reason
        self._record(
            "trial_ended",
            trial=trial.number,
            state=state,
            value=told(trial),
            reason=reason,
            epochs=trial.epoch,
            seconds=trial.seconds,
        )
        return True

    def _record(self, name: str, **said: Any) -> None:
        time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._now)
        self.events.append({"time": time.isoformat(timespec="milliseconds"), "event": name} | said)


def told(trial: Trial) -> float | None:
    """The value under which the books keep a trial."""
    if trial.state == "FAIL" or not trial.values:
        return None
    return trial.values[trial.epoch]


# -------- its folder


class InMemory(BaseJournalBackend):
    """A journal that is written to a file once it is whole: Optuna's own writes and locks for every line."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """What came after a line."""
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines."""
        self.logs += [json.loads(json.dumps(log)) for log in logs]


def write_journal(path: Path, trials: Iterable[Trial]) -> None:
    """Optuna's journal: each trial's choices, its value after each epoch, its end."""
    backend = InMemory()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=JournalStorage(backend), study_name="search", direction="maximize")
    for trial in trials:
        study.enqueue_trial(trial.params)
        asked = study.ask({name: SPACE[name] for name in trial.params})
        for epoch, found in trial.values.items():
            asked.report(found, epoch)
        study.tell(asked, told(trial) if trial.state == "COMPLETE" else None, state=TrialState[trial.state])
    path.write_text("".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in backend.logs))


def predictions(num_classes: int, gap: float) -> pd.DataFrame:
    """Two folds of records, two in a patient at times; labels as frequent as those of PTB-XL are, scores by `gap`."""
    draw = np.random.default_rng(0)
    num = 2 * NUM_RECORDS
    names = [f"C{index:02d}" for index in range(num_classes)]
    prevalence = np.geomspace(0.44, 0.12 if num_classes < 10 else 0.004, num_classes)
    targets = (draw.random((num, num_classes)) < prevalence).astype(np.float32)
    scores = 1 / (1 + np.exp(-(draw.normal(size=targets.shape) + gap * targets)))
    return pd.DataFrame(
        {"record_id": [f"{row:05d}" for row in range(num)]}
        | {"patient_id": [f"p{int(row * 0.87)}" for row in range(num)]}
        | {"fold": np.repeat([9, 10], NUM_RECORDS), "split": np.repeat(["valid", "test"], NUM_RECORDS)}
        | {f"y_{name}": targets[:, column] for column, name in enumerate(names)}
        | {f"p_{name}": scores[:, column].astype(np.float32) for column, name in enumerate(names)}
    )


def leaf(of: BaseDistribution) -> dict[str, Any]:
    """A distribution as a configuration writes it."""
    if isinstance(of, CategoricalDistribution):
        return {"choice": list(of.choices)}
    if isinstance(of, IntDistribution):
        return {"int_uniform": [of.low, of.high]}
    assert isinstance(of, FloatDistribution)
    return {"log_uniform" if of.log else "uniform": [of.low, of.high]}


def write_study(folder: Path, *, num_trials: int, num_classes: int, stopped: bool) -> Search:
    """A finished study's folder, but for the weights."""
    search = Search(num_trials, SuccessiveHalving(RUNGS, 3) if stopped else NoStopping())
    search.run()
    asha = {"name": "asha", "grace_epochs": RUNGS[0], "reduction_factor": 3}
    task = {"labels": "superdiagnostic", "stages": "joint"}
    config = {
        "study_dir": "runs/large",
        "search": {"name": "large", "metric": "val/auroc", "direction": "maximize", "num_trials": num_trials},
        "data": {"name": "ptb_xl", "train_folds": [*range(1, 9)], "valid_folds": [9], "test_folds": [10]},
        "task": task
        | {"pretrain": {"num_epochs": NUM_PRETRAIN}, "finetune": {"num_epochs": NUM_EPOCHS - NUM_PRETRAIN}},
        "sampler": {"name": "random"},
        "scheduler": asha if stopped else {"name": "fifo"},
        "cluster": {"workers_per_trial": 1},
        "space": {name: leaf(of) for name, of in SPACE.items()},
    }
    (folder / "report").mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in search.events))
    rows = [
        {"number": trial.number, "state": trial.state, "value": told(trial), "epochs": trial.epoch}
        | {"seconds": trial.seconds, "reason": trial.reason, **trial.params}
        for trial in search.trials
    ]
    pd.DataFrame(rows).to_parquet(folder / "trials.parquet")
    write_journal(folder / "journal.log", search.trials)
    complete = [trial for trial in search.trials if trial.state == "COMPLETE"]
    best = max(complete, key=lambda trial: trial.values[NUM_EPOCHS])
    for place, trial in (("best_1", best), ("default", search.trials[0])):
        (folder / "checkpoints" / place).mkdir(parents=True)
        content = {"trial": trial.number, "params": trial.params, "value": told(trial), "run": config}
        (folder / "checkpoints" / place / "checkpoint.json").write_text(json.dumps(content))
    for file, gap in (("", 1.8), ("_random_encoder", 0.6), ("_default_configuration", 1.7)):
        predictions(num_classes, gap).to_parquet(folder / "report" / f"predictions{file}.parquet")
    return search


# -------- what is measured


def measure(folder: Path) -> dict[str, float]:
    """Build the report of a folder in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, processor, peak_kib = (float(word) for word in ended.stdout.split())
    page = (folder / "report" / "index.html").stat().st_size
    return {"seconds": seconds, "processor_seconds": processor, "peak_gib": peak_kib / 2**20, "page_mb": page / 1e6}


def main() -> None:
    """Measure both studies and publish the figures."""
    assert __doc__ is not None
    arguments = parse_arguments(
        __doc__,
        ("--trials", {"type": int, "default": 500, "help": "of each study"}),
        ("--classes", {"type": int, "default": 5, "help": "of the predictions; PTB-XL has 5 to 71"}),
        ("--keep", {"type": Path, "help": "leave the studies in this folder"}),
    )
    units = {"seconds": "s", "processor_seconds": "s", "peak_gib": "GiB", "page_mb": "MB"}
    figures = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("whole", "stopped"):
            folder = (arguments.keep or Path(temporary)) / name
            write_study(folder, num_trials=arguments.trials, num_classes=arguments.classes, stopped=name == "stopped")
            for quantity, found in measure(folder).items():
                target = TARGETS.get(quantity)
                bound: Bound | None = None if target is None else "at most"
                figures.append(Figure(f"{name}_{quantity}", found, units[quantity], target=target, bound=bound))
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
