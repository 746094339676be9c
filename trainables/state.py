"""All that training changes, saved so that a resumed run ends bit for bit where an unbroken one does (on a CPU).

A trial's folder holds `last.safetensors` (weights, optimiser, where the run stands; one file, replaced whole) and, once
an epoch counted for the trial's value, `best-<epoch>.safetensors` (a classifier's weights). No generator is saved:
draws follow from the seed and the epoch (trainables.seeds).
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainables.files import (
    StorageError,
    read_metadata,
    read_tensors,
    write_atomically,
    write_tensors,
    writing_to,
)
from trainables.sharding import as_sharded, whole, whole_tensor

StageName = Literal["pretrain", "finetune"]
LAST = "last.safetensors"
PRETEXT = "pretext.safetensors"
"""Beside a trial's best weights: those of a masked method's whole pretext task, for its reconstructions to be seen."""
ATTEMPT = "attempt"


@dataclass
class Best:
    """The epoch that a trial is judged by, so far."""

    epoch: int
    value: float
    metrics: dict[str, float]


@dataclass
class TrainState:
    """Where a run stands at the end of an epoch.

    Attributes:
        metric: the metric that `best` follows, e.g. val/auroc.
        maximize: whether more of it is better.
        epoch: epochs done, over all stages.
        stage: the stage under way.
        stage_epoch: epochs done of that stage.
        writes: whether this worker keeps the best weights and writes files; of a gang the first alone does.
        model: the stage's module, without any wrapper; where weights are sharded, this worker's share of it.
        form: what the whole module is made from where it is sharded (trainables.sharding.shard).
        optimizer: the stage's optimiser.
        best: the best epoch of the stage that counts; None before its first.
        best_weights: that epoch's classifier, on the CPU.
        pretext_weights: of the pretext task, on the CPU, to be written with the next save; empty where nothing is.
        history: what every epoch reported, so that a driver that died before it wrote an epoch down finds it here.
    """

    metric: str
    maximize: bool
    writes: bool = True
    epoch: int = 0
    stage: StageName | None = None
    stage_epoch: int = 0
    model: nn.Module | None = None
    form: nn.Module | None = field(default=None, repr=False)
    optimizer: torch.optim.Optimizer | None = None
    best: Best | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict, repr=False)
    pretext_weights: dict[str, Tensor] = field(default_factory=dict, repr=False)
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def enter(
        self, stage: StageName, model: nn.Module, optimizer: torch.optim.Optimizer, form: nn.Module | None = None
    ) -> None:
        """Begin `stage` with a fresh model and optimiser, and the model's form where it is sharded."""
        self.stage, self.stage_epoch, self.model, self.optimizer, self.form = stage, 0, model, optimizer, form

    def whole(self, part: str = "") -> nn.Module:
        """`model`, or a part of it by its dotted name, with all weights: itself, or a copy where it is sharded.

        A gang's workers must all call: evaluation passes, of which each has its own number, need a whole model.
        """
        assert self.model is not None
        return self.model.get_submodule(part) if self.form is None else whole(self.model, self.form, part)

    def copied(self, part: str = "") -> nn.Module:
        """A copy of what `whole` gives, to be changed at will; all of a gang's workers must call."""
        return copy.deepcopy(self.whole(part)) if self.form is None else self.whole(part)

    def finish_epoch(self, metrics: Mapping[str, float]) -> None:
        """Count an epoch as done, with what it reports."""
        self.epoch += 1
        self.stage_epoch += 1
        self.history.append({"epoch": self.epoch, "stage": self.stage, "metrics": dict(metrics)})

    def offer(self, metrics: Mapping[str, float], classifier: nn.Module) -> None:
        """Keep a whole `classifier` if this epoch's metric beats all before it; the earlier of two equals stays."""
        if self.is_better(metrics[self.metric]):
            self.best = Best(self.epoch, metrics[self.metric], dict(metrics))
            self.best_weights = self.kept_weights(classifier)

    def is_better(self, value: float) -> bool:
        """Whether a finite `value` beats that of all epochs before."""
        if not math.isfinite(value):
            return False
        return self.best is None or (value > self.best.value if self.maximize else value < self.best.value)

    def kept_weights(self, classifier: nn.Module) -> dict[str, Tensor]:
        """A copy of a classifier's weights on the CPU, for the worker that writes."""
        weights = classifier.state_dict() if self.writes else {}
        return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def keep_pretext(self) -> None:
        """Keep the pretext task as it is now, where it reconstructs; all of a gang's workers must call."""
        task = self.whole()
        if self.writes and hasattr(task, "reconstruct"):
            self.pretext_weights = {name: tensor.detach().cpu().clone() for name, tensor in task.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write the state to `folder`; a crash at any instant leaves the one before or this one.

        All workers of a gang must call, as they bring together what is sharded; the one that `writes` does.

        Raises:
            StorageError: on a full or read-only disk; the state before is still whole.
        """
        tensors = self.tensors()
        if not self.writes:
            return
        if self.best is not None:
            best = best_path(folder, self.best.epoch)
            if not best.exists() or self.best.epoch == self.epoch:
                write_tensors(best, self.best_weights, {"best": json.dumps(asdict(self.best))})
        if self.pretext_weights:
            write_tensors(folder / PRETEXT, self.pretext_weights, {})
            self.pretext_weights = {}
        write_tensors(folder / LAST, tensors, {"state": json.dumps(self.place())})
        for stale in folder.glob("best-*.safetensors"):
            if self.best is None or stale != best_path(folder, self.best.epoch):
                with writing_to(stale):
                    stale.unlink()

    def place(self) -> dict[str, Any]:
        """Where the run stands, as JSON."""
        place: dict[str, Any] = {"epoch": self.epoch, "stage": self.stage, "stage_epoch": self.stage_epoch}
        return place | {"best": None if self.best is None else asdict(self.best), "history": self.history}

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimiser by name, whole, for the worker that writes; all of a gang's workers must call."""
        assert self.model is not None
        assert self.optimizer is not None
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return self._brought_together(tensors | optimizer_tensors(self.optimizer, self.model))

    def _brought_together(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors, for the worker that writes; the others keep none of what passes through them."""
        if self.form is None:
            return dict(tensors)
        kept = {}
        for name, tensor in tensors.items():
            together = whole_tensor(tensor.detach())
            if self.writes:
                kept[name] = together.cpu()
        return kept


def best_path(folder: Path, epoch: int) -> Path:
    """Where the weights of the best epoch lie in a trial's folder."""
    return folder / f"best-{epoch:04d}.safetensors"


def read_place(folder: Path) -> dict[str, Any] | None:
    """Where the state in `folder` stands, without its tensors: epoch, stage, best, history; None without a state.

    Raises:
        StorageError: if the file is damaged.
    """
    if not (folder / LAST).exists():
        return None
    return _place_in(read_metadata(folder / LAST), folder / LAST)


def read_attempt(folder: Path) -> int | None:
    """Which attempt at a trial may save to its folder; None where the trial has ended.

    Raises:
        StorageError: if the file is there and cannot be read.
    """
    path = folder / ATTEMPT
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read ({error}): delete it and type the same line again") from error


def write_attempt(folder: Path, attempt: int) -> None:
    """Let this attempt at a trial save to its folder, and no earlier one.

    Raises:
        StorageError: on a full or read-only disk.
    """
    write_atomically(folder / ATTEMPT, str(attempt).encode(), flush=False)  # after a crash another one is written


def drop_state(folder: Path) -> None:
    """Delete a trial's folder, the state first: what a crash leaves of it is then no state that lacks its weights.

    The attempt goes before it, so that a process that was given up saves nothing any more.

    Raises:
        StorageError: if the state cannot be deleted; the rest is left behind where it cannot.
    """
    with writing_to(folder / LAST):
        (folder / ATTEMPT).unlink(missing_ok=True)
        (folder / LAST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _place_in(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        place: dict[str, Any] = json.loads(metadata["state"])
    except (KeyError, ValueError) as error:
        raise StorageError(f"{path} holds no state of a run ({error!r}): restore it or delete it") from error
    return place


@dataclass(frozen=True)
class SavedState:
    """A state read back; the loop that owns the stage puts it into its model and optimiser."""

    epoch: int
    stage: StageName
    stage_epoch: int
    best: Best | None
    history: list[dict[str, Any]] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    best_weights: dict[str, Tensor] = field(repr=False)
    fold_histories: list[list[dict[str, Any]]] = field(default_factory=list, repr=False)
    """Of each fold, where a run has several (trainables.folds)."""

    @classmethod
    def load(cls, folder: Path) -> SavedState | None:
        """The state in `folder`, or None where none was saved.

        Raises:
            StorageError: if the files are damaged.
        """
        if not (folder / LAST).exists():
            return None
        tensors, metadata = read_tensors(folder / LAST)
        place = _place_in(metadata, folder / LAST)
        best = None if place["best"] is None else Best(**place["best"])
        weights = {} if best is None else read_tensors(best_path(folder, best.epoch))[0]
        return cls(
            place["epoch"],
            place["stage"],
            place["stage_epoch"],
            best,
            place["history"],
            tensors,
            weights,
            place.get("fold_histories", []),
        )

    def restore(self, state: TrainState) -> None:
        """Put this into `state`, whose model and optimiser are those of the same stage."""
        assert state.model is not None
        assert state.optimizer is not None
        state.epoch, state.stage, state.stage_epoch = self.epoch, self.stage, self.stage_epoch
        state.best, state.history = self.best, self.history
        state.best_weights = self.best_weights if state.writes else {}
        weights = {name.removeprefix("model."): t for name, t in self.tensors.items() if name.startswith("model.")}
        state.model.load_state_dict(as_sharded(weights, state.model.state_dict()))
        load_optimizer_tensors(state.optimizer, state.model, self.tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """An optimiser's state as named tensors, `<its class>.<key>.<parameter>`; its rates follow from the step.

    Not by torch's parameter numbers: these follow from the groups, which change with the layer decay where a trial
    goes on with other choices (population-based training).
    """
    name_of: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):  # SGD keeps None before its first momentum
                tensors[f"{type(optimizer).__name__}.{key}.{name_of[parameter]}"] = value
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put what `optimizer_tensors` named back into `optimizer`; another class's state is left out."""
    like = dict(model.named_parameters())
    name_of: dict[Tensor, str] = {parameter: name for name, parameter in like.items()}
    stepped = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    number_of = {name: number for number, name in enumerate(stepped)}
    state: dict[int, dict[str, Tensor]] = {}
    for tensor_name, tensor in tensors.items():
        owner, _, rest = tensor_name.partition(".")
        key, _, name = rest.partition(".")
        if owner == type(optimizer).__name__ and name in number_of:
            state.setdefault(number_of[name], {}).update(as_sharded({key: tensor}, {key: like[name]}))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def copy_state(source: Path, target: Path) -> int:
    """Put a copy of the state in `source` into `target`, in the place of what is there, without its best epoch.

    What goes on from the copy has other settings, and its best is to be one that these have made. `source` may be
    saved while this runs.

    Returns:
        The epoch at which the copy stands.

    Raises:
        StorageError: if `source` holds no whole state, or on a full or read-only disk.
    """
    tensors, metadata = read_tensors(source / LAST)
    place = _place_in(metadata, source / LAST) | {"best": None}
    with writing_to(target / PRETEXT):
        (target / PRETEXT).unlink(missing_ok=True)  # of what it had learnt before
    write_tensors(target / LAST, tensors, {"state": json.dumps(place)})
    epoch: int = place["epoch"]
    return epoch
