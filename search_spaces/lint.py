"""What is wrong with a search although each of its values is possible: found in seconds, before the first trial.

A searched key that reaches nothing is the costliest mistake of all: every trial runs, and the report shows the
importance of noise. So each key is tried: a miniature of the very run, on a few made-up recordings and with the real
loops, must end with other numbers when the key changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from numpy.typing import NDArray

from data.labels import Labels
from data.record import Record
from data.splits import Split
from data.store import prepare_signal
from search_spaces.distributions import Leaf, Space, apply, contexts, extremes, written
from search_spaces.schema import ChoiceError, Launch
from trainables.loops import train
from trainables.metrics import metric_key
from trainables.recordings import Recordings, preparation_of
from trainables.settings import Run
from trainables.state import TrainState
from trainables.workers import Workers

NUM_RECORDS = 12  # of the miniature: as many to train as to validate
MV_PER_UNIT = 0.001
TO_SCALE = ("num_epochs", "batch_size", "max_train_patients", "max_valid_patients", "folds", "max_train_records")
"""Keys that the miniature replaces; the loops read them, and their schema has checked them."""


def lint(launch: Launch, space: Space) -> None:
    """Refuse a search that cannot give what it seems to.

    Raises:
        ChoiceError: if no epoch logs the objective, the sampler cannot handle the space, or a searched key changes
            nothing.
    """
    logged = [f"val/{metric_key(name)}" for name in launch.task.metrics]
    if launch.search.metric not in logged:
        raise ChoiceError(
            f"search.metric: must be one of what the task logs, {', '.join(logged)}, got {launch.search.metric}; "
            "task.metrics says what is logged"
        )
    check_sampler(launch, space)
    for leaf in space.leaves:
        check_reach(launch, space, leaf)


def check_sampler(launch: Launch, space: Space) -> None:
    """Refuse a space that the sampler or the scheduler cannot do.

    Raises:
        ChoiceError: naming the sampler and the leaf.
    """
    name = launch.sampler.name
    if name == "grid":
        space.grid()  # refuses what cannot be counted
    for leaf in space.leaves:
        categorical = isinstance(leaf.distribution, optuna.distributions.CategoricalDistribution)
        if name == "cmaes" and (categorical or leaf.when):
            kind = "a choice" if categorical else "searched only under a condition"
            raise ChoiceError(f"sampler=cmaes: needs numbers without conditions, space.{leaf.key} is {kind}; try tpe")
        if name == "gp" and leaf.when:
            raise ChoiceError(f"sampler=gp: needs a space without conditions, space.{leaf.key} has one; try tpe")
        if launch.scheduler.name == "pbt" and leaf.key.partition(".")[0] != "task":
            raise ChoiceError(
                f"scheduler=pbt: trials take over each other's weights, so it can only search how they are trained "
                f"(task.*), not space.{leaf.key}; take it out with ~space.{leaf.key}"
            )


def check_reach(launch: Launch, space: Space, leaf: Leaf) -> None:
    """Refuse a searched key that changes nothing.

    Raises:
        ChoiceError: naming the key and two values that give the same run.
    """
    tree = launch.model_dump(mode="json", by_alias=True)
    if leaf.key.rpartition(".")[2].endswith(TO_SCALE):
        return
    for context in contexts(leaf, space):
        values = extremes(leaf)
        prints = [fingerprint(apply(tree, context | {leaf.key: value}, launch.options), leaf.key) for value in values]
        if len(values) > 1 and len(set(prints)) == 1:
            raise ChoiceError(
                f"space.{leaf.key}: changes nothing in this run: {written(values[0])} and {written(values[-1])} give "
                f"the same numbers; take it out with ~space.{leaf.key}"
            )


def fingerprint(tree: Mapping[str, Any], key: str) -> str:
    """A hash of all numbers that a miniature of the run ends with.

    Args:
        tree: a whole configuration.
        key: the one whose effect is asked for; it is not scaled down.
    """
    run = miniature(Run.model_validate({name: tree[name] for name in Run.model_fields}), key)
    state = TrainState("val/auroc", maximize=True)
    digest = hashlib.sha256()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # it is too small to share out, and its numbers must not depend on the machine
    try:
        for metrics in train(run, state, made_up_recordings(run), Workers()):
            digest.update(repr(sorted(metrics.items())).encode())
            assert state.model is not None
            for name, tensor in state.model.state_dict().items():
                digest.update(name.encode() + tensor.numpy().tobytes())
    except FloatingPointError as error:  # an end of a wide range may diverge: that is an effect, too
        digest.update(str(error).encode())
    finally:
        torch.set_num_threads(threads)
    return digest.hexdigest()


def miniature(run: Run, key: str) -> Run:
    """The run with two leads, the smallest size and two epochs of two batches a stage."""
    stages = {
        name: getattr(run.task, name).model_copy(update={"num_epochs": 2, "batch_size": NUM_RECORDS // 2})
        for name in ("pretrain", "finetune")
    }
    # from scratch in the place of a checkpoint: the same loop, whatever the weights
    finetune = stages["finetune"]
    if run.task.encoder is not None and finetune.mode == "finetune":
        stages["finetune"] = finetune.model_copy(update={"mode": "scratch"})
    model = run.model
    if "size" in model.arguments and key != "model.size":
        model = model.model_copy(update={"size": "tiny"})
    leads = run.data.leads if key == "data.leads" else run.data.leads[:2]
    return run.model_copy(
        update={
            "model": model,
            "data": run.data.model_copy(update={"leads": leads}),
            "task": run.task.model_copy(update=stages),
        }
    )


class MadeUpStore:
    """A store in memory: noise, prepared as the run prepares its recordings."""

    def __init__(self, run: Run) -> None:
        preparation = preparation_of(run.data)
        rate = 2 * run.data.sampling_rate_hz
        num_samples = int(rate * (run.data.window_s + 1))
        generator = np.random.default_rng(0)
        shape = (2 * NUM_RECORDS, len(run.data.leads), num_samples)
        raw = generator.standard_normal(shape, np.float32).cumsum(axis=-1) * 0.05
        prepared = [
            prepare_signal(Record(str(n), signal, rate, tuple(run.data.leads)), preparation)
            for n, signal in enumerate(raw)
        ]
        units = np.clip(np.stack(prepared) / MV_PER_UNIT, -32768, 32767).round().astype(np.int16)
        self._units: NDArray[np.int16] = units
        self.signals = units.reshape(-1)
        size = units[0].size
        self.index = pd.DataFrame(
            {"offset": np.arange(len(units)) * size, "num_samples": np.full(len(units), units.shape[-1])}
        )
        self.mv_per_unit = MV_PER_UNIT

    def record(self, row: int) -> NDArray[np.int16]:
        """(C, T) view of one record."""
        units: NDArray[np.int16] = self._units[row]
        return units


def made_up_recordings(run: Run) -> Recordings:
    """Noise with three classes, each present and absent in both halves."""
    targets = np.zeros((2 * NUM_RECORDS, 3), np.float32)
    targets[np.arange(2 * NUM_RECORDS), np.arange(2 * NUM_RECORDS) % 3] = 1
    labels = Labels(
        protocol="made_up",
        kind="multilabel",
        classes=("a", "b", "c"),
        targets=targets,
        labelled=np.ones(2 * NUM_RECORDS, bool),
    )
    rows = np.arange(2 * NUM_RECORDS)
    split = Split(train=rows[:NUM_RECORDS], valid=rows[NUM_RECORDS:], test=rows[NUM_RECORDS:])
    return Recordings(MadeUpStore(run), labels, split, np.arange(3))  # type: ignore[arg-type]
