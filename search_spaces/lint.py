"""What is wrong with a search although each of its values is possible: found in seconds, before the first trial.

A searched key that reaches nothing is the costliest mistake of all: every trial runs, and the report shows the
importance of noise. So each key is tried: a miniature of the very run, on a few made-up recordings and with the real
loops, must end with other numbers when the key changes.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from numpy.typing import NDArray

from data.labels import Kind, Labels
from data.record import DataError, Record
from data.splits import Split
from data.store import prepare_signal
from search_spaces.distributions import Leaf, Space, contexts, extremes, run_with, written
from search_spaces.schema import ChoiceError, Launch
from search_spaces.tracking import check_tracker
from trainables.checkpoint import WEIGHTS, describe
from trainables.components import check_model, nearest
from trainables.files import write_tensors
from trainables.loops import train
from trainables.metrics import metric_key, metric_names
from trainables.pretrain import fresh_encoder
from trainables.recordings import Recordings, preparation_of, reader_of
from trainables.settings import Data, Run
from trainables.state import TrainState
from trainables.workers import Workers

NUM_RECORDS = 6  # of the miniature: as many to train as to validate
BATCH_SIZE = 3
MV_PER_UNIT = 0.001
NOT_TRIED = ("data.max_train_patients", "data.train_folds")
"""Searched keys that choose recordings, which the miniature has none of its own to choose from."""
TELLING: dict[str, tuple[Any, Any]] = {
    "batch_size": (2, 3),
    "accumulation_steps": (1, 2),
    "warmup_share": (0.25, 0.75),
    "clip_norm": (1e-3, 1e-2),
    "max_train_records": (3, 5),
    "precision": ("float32", "bfloat16"),
    "probability": (0.0, 1.0),
}
"""By the last part of a key: values to try in the place of the searched ones, which may be one to so small a run."""


def lint(launch: Launch, space: Space) -> None:
    """Refuse a search that cannot give what it seems to.

    Raises:
        ChoiceError: if no epoch logs the objective, there is no such label protocol, the sampler cannot handle the
            space, nothing is searched, a searched key changes nothing, it changes who validates, or the tracker's
            package is missing.
    """
    check_tracker(launch.tracking)
    check_objective(launch)
    kind = kind_of_labels(launch)
    check_sampler(launch, space)
    check_folds(launch, space)
    for leaf in space.leaves:
        check_reach(launch, space, leaf, kind)


def check_objective(launch: Launch) -> None:
    """Refuse a metric that there is not, and an objective that is not among those logged.

    Raises:
        ChoiceError: naming them.
    """
    for name in launch.task.metrics:
        if name not in metric_names():
            raise ChoiceError(f"task.metrics: there is no metric {name}; {nearest(name, metric_names())}")
    logged = [f"val/{metric_key(name)}" for name in launch.task.metrics]
    if launch.search.metric not in logged:
        raise ChoiceError(
            f"search.metric: must be one of what the task logs, {', '.join(logged)}, got {launch.search.metric}; "
            "task.metrics says what is logged"
        )


def kind_of_labels(launch: Launch) -> Kind:
    """The kind of the task's label protocol; multilabel while the recordings cannot be asked.

    Raises:
        ChoiceError: if the recordings have no such protocol, or it no such class.
    """
    task = launch.task
    try:
        protocols = reader_of(launch.data).protocols()
    except DataError:  # said when they are opened; a search can be looked at without them
        return "multilabel"
    if task.labels not in protocols:
        raise ChoiceError(f"task.labels: there is no label protocol {task.labels}; {nearest(task.labels, protocols)}")
    protocol = protocols[task.labels]
    for name in task.classes or ():
        if name not in protocol.classes:
            raise ChoiceError(
                f"task.classes: there is no class {name} in {task.labels}; {nearest(name, protocol.classes)}"
            )
    return protocol.kind


def check_sampler(launch: Launch, space: Space) -> None:
    """Refuse a space that the sampler or the scheduler cannot do.

    Raises:
        ChoiceError: naming the sampler and the leaf.
    """
    name = launch.sampler.name
    if name == "grid":
        space.grid()  # refuses what cannot be counted
    elif launch.command == "search" and launch.search.num_trials > 1 and not space.leaves:
        raise ChoiceError(
            f"space: nothing is searched, all {launch.search.num_trials} trials would be the same; type "
            "'space.KEY={uniform: [LOW, HIGH]}' or KEY=A,B,C, or command=train for a single run"
        )
    for leaf in space.leaves:
        categorical = isinstance(leaf.distribution, optuna.distributions.CategoricalDistribution)
        if name == "cmaes" and (categorical or leaf.when):
            kind = "a choice" if categorical else "searched only under a condition"
            raise ChoiceError(f"sampler=cmaes: needs numbers without conditions, space.{leaf.key} is {kind}; try tpe")
        if launch.scheduler.name == "pbt" and leaf.key.partition(".")[0] != "task":
            raise ChoiceError(
                f"scheduler=pbt: trials take over each other's weights, so it can only search how they are trained "
                f"(task.*), not space.{leaf.key}; take it out with ~space.{leaf.key}"
            )


def check_folds(launch: Launch, space: Space) -> None:
    """Refuse a search whose trials would be judged on other records.

    Raises:
        ChoiceError: naming the key.
    """
    moving = ["task.folds", *(["data.train_folds", "data.valid_folds"] if launch.task.folds > 1 else [])]
    for leaf in space.leaves:
        if leaf.key in moving:
            raise ChoiceError(
                f"space.{leaf.key}: with it trials would be validated on other records, so that their values could not "
                f"be compared; take it out with ~space.{leaf.key} and type one value"
            )


def check_reach(launch: Launch, space: Space, leaf: Leaf, kind: Kind) -> None:
    """Refuse a searched key that changes nothing.

    Raises:
        ChoiceError: naming the key and two values that give the same run.
    """
    if leaf.key in NOT_TRIED:
        return

    settled = _without_floor(launch, leaf.key)
    ends = extremes(leaf)
    tried = TELLING.get(leaf.key.rpartition(".")[2], ends)
    for context in contexts(leaf, space):
        chosen = [context, *(context | {leaf.key: value} for value in tried)]
        runs = [run_with(launch, {**settled, **values}) for values in chosen]
        # the same for all of them: another number of leads gives other numbers by itself
        leads = launch.data.leads[:2] if all(map(_runs_on_two_leads, runs)) else launch.data.leads
        numbers = (fingerprint(run, leaf.key, leads, metric=launch.search.metric, kind=kind) for run in runs)
        own = next(numbers)
        if len(ends) > 1 and all(number == own for number in numbers):
            raise ChoiceError(
                f"space.{leaf.key}: changes nothing in this run: {written(ends[0])} and {written(ends[-1])} give the "
                f"same numbers; take it out with ~space.{leaf.key}"
            )


def _without_floor(launch: Launch, key: str) -> dict[str, Any]:
    """A stage's min_lr set to 0 where its peak follows from a key that is tried: it would fall below it."""
    stage, _, last = key.rpartition(".")
    settings = {"task.pretrain": launch.task.pretrain, "task.finetune": launch.task.finetune}.get(stage)
    follows = settings is not None and last in ("base_lr", "batch_size", "accumulation_steps")
    return {f"{stage}.min_lr": 0.0} if follows else {}


def _runs_on_two_leads(run: Run) -> bool:
    """Whether a miniature may have two leads: the model can be built for them, and no transform names more."""
    if any("leads" in one.arguments for one in (*run.model.transforms, *run.task.finetune.transforms)):
        return False
    try:
        check_model(miniature(run, "", run.data.leads[:2]))
    except ValueError:  # e.g. it hides whole leads
        return False
    return True


def fingerprint(run: Run, key: str, leads: list[str], *, metric: str, kind: Kind) -> str:
    """A hash of all numbers that a miniature of the run ends with.

    Args:
        run: of any size.
        key: the one whose effect is asked for; it is not scaled down.
        leads: of the miniature.
        metric: what the run is judged by.
        kind: of its labels.
    """
    # the miniature is always the smallest: that another size gives other numbers goes without trying
    size = run.model.encoder.arguments.get("size")
    return f"{size} {_fingerprint(miniature(run, key, leads).model_dump_json(by_alias=True), metric, kind)}"


@functools.lru_cache(maxsize=256)
def _fingerprint(run_json: str, metric: str, kind: Kind) -> str:
    run = Run.model_validate_json(run_json)
    state = TrainState(metric, maximize=True)
    digest = hashlib.sha256()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # it is too small to share out, and its numbers must not depend on the machine
    try:
        with tempfile.TemporaryDirectory() as folder:
            if run.task.encoder is not None:
                run = with_made_up_encoder(run, Path(folder))
            for metrics in train(run, state, made_up_recordings(run, kind), Workers()):
                digest.update(repr(sorted(metrics.items())).encode())
                assert state.model is not None
                for name, tensor in state.model.state_dict().items():
                    digest.update(name.encode() + tensor.numpy().tobytes())
    except FloatingPointError as error:  # an end of a wide range may diverge: that is an effect, too
        digest.update(str(error).encode())
    finally:
        torch.set_num_threads(threads)
    return digest.hexdigest()


def miniature(run: Run, key: str, leads: list[str]) -> Run:
    """The run with the smallest size, these leads, and one epoch of two batches a stage; `key` stays as it is.

    It has one fold: what reaches one of k models reaches each of them.
    """

    def small(stage: Any, name: str) -> Any:
        changed: dict[str, Any] = {"num_epochs": 1}
        if key not in [f"task.{name}.{part}" for part in ("warmup_share", "start_lr")]:
            changed["warmup_share"] = 0.0  # else the first of the two steps has no rate, and nothing follows from it
        if key != f"task.{name}.batch_size":
            changed["batch_size"] = BATCH_SIZE
        if key not in [f"task.{name}.{part}" for part in ("base_lr", "batch_size", "accumulation_steps")]:
            # it would follow the smaller batch, below min_lr
            changed |= {"lr": stage.peak_lr, "base_lr": None, "base_lr_rule": None}
        return stage.model_copy(update=changed)

    task = run.task
    probe = task.probe if key.startswith("task.probe.") else task.probe.model_copy(update={"l2": 1.0})  # solved soon
    encoder = run.model.encoder
    if "size" in encoder.arguments:
        encoder = encoder.model_copy(update={"size": "laptop"})
    # what is left of so few records is no sign of a collapse
    never = task.collapse.model_copy(update={"min_feature_std": None, "min_effective_rank": None})
    stages = {"pretrain": small(task.pretrain, "pretrain"), "finetune": small(task.finetune, "finetune")}
    return run.model_copy(
        update={
            "model": run.model.model_copy(update={"encoder": encoder}),
            "data": run.data.model_copy(update={"leads": leads}),
            "task": task.model_copy(update={**stages, "probe": probe, "collapse": never, "folds": 1}),
        }
    )


def with_made_up_encoder(run: Run, folder: Path) -> Run:
    """The run with a checkpoint of noise in the place of the one that it starts from.

    Like a real one's, its weights depend on nothing but their names and shapes.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in fresh_encoder(run).state_dict().items()}
    weights = {f"encoder.{name}": torch.rand(shapes[name], generator=generator) * 0.1 for name in sorted(shapes)}
    write_tensors(folder / WEIGHTS, weights, {})
    plain = run.task.model_copy(update={"finetune": run.task.finetune.model_copy(update={"pool": "encoder"})})
    of_run = run.model_copy(update={"task": plain}).model_dump(mode="json", by_alias=True)
    describe(folder, {"contract": run.data.model_dump(mode="json"), "run": of_run})
    return run.model_copy(update={"task": run.task.model_copy(update={"encoder": str(folder)})})


class MadeUpStore:
    """A store in memory: noise, prepared as the run prepares its recordings."""

    def __init__(self, data: Data) -> None:
        preparation = preparation_of(data)
        rate = 2 * data.sampling_rate_hz
        num_samples = int(rate * (data.window_s + 1))
        generator = np.random.default_rng(0)
        shape = (2 * NUM_RECORDS, len(data.leads), num_samples)
        raw = generator.standard_normal(shape, np.float32).cumsum(axis=-1) * 0.05
        prepared = [
            prepare_signal(Record(str(n), signal, rate, tuple(data.leads)), preparation) for n, signal in enumerate(raw)
        ]
        units = np.clip(np.stack(prepared) / MV_PER_UNIT, -32768, 32767).round().astype(np.int16)
        self._units: NDArray[np.int16] = units
        self.signals = units.reshape(-1)
        size = units[0].size
        # three records of one patient, one report and one code, and three of another: each batch repeats some
        halves = np.arange(len(units)) // BATCH_SIZE
        self.index = pd.DataFrame(
            {
                "offset": np.arange(len(units)) * size,
                "num_samples": np.full(len(units), units.shape[-1]),
                "patient_id": halves.astype(str),
                "codes": [[str(half)] for half in halves],
            }
        )
        self.mv_per_unit = MV_PER_UNIT

    def reports(self, rows: NDArray[np.int64]) -> list[str | None]:
        """A word or two each."""
        return [f"report of patient {self.index['patient_id'].iloc[row]}" for row in rows]

    def record(self, row: int) -> NDArray[np.int16]:
        """(C, T) view of one record."""
        units: NDArray[np.int16] = self._units[row]
        return units


@functools.lru_cache(maxsize=8)
def _made_up_store(data_json: str) -> MadeUpStore:
    return MadeUpStore(Data.model_validate_json(data_json))


def made_up_recordings(run: Run, kind: Kind) -> Recordings:
    """Noise with three classes, each present and absent in both halves."""
    targets = np.zeros((2 * NUM_RECORDS, 3), np.float32)
    targets[np.arange(2 * NUM_RECORDS), np.arange(2 * NUM_RECORDS) % 3] = 1
    labels = Labels(
        protocol="made_up",
        kind=kind,
        classes=("a", "b", "c"),
        targets=targets,
        labelled=np.ones(2 * NUM_RECORDS, bool),
    )
    rows = np.arange(2 * NUM_RECORDS)
    train, valid = rows[:NUM_RECORDS], rows[NUM_RECORDS:]
    split = Split(pretrain=train, train=train, valid=valid, test=valid)
    store = _made_up_store(run.data.model_dump_json(by_alias=True))
    return Recordings(store, labels, split, np.arange(3))  # type: ignore[arg-type]
