"""Kept models: weights as safetensors, everything needed to use them as JSON, nothing that executes on loading.

The JSON holds the preprocessing contract: at which rate, in which band, with which leads, units and standardisation the
weights were trained, and what their outputs mean. A model without it is another model (the same public weights score
0.70 to 0.93 AUROC by protocol alone), so `load` needs both files and `predict` applies the contract to raw recordings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from data.labels import Labels
from data.record import DataError, Record, lead_name
from data.store import MV_PER_UNIT, Store, prepare_signal
from data.transforms import n_crop_starts, standardize
from models.classifier import Classifier
from models.ensemble import Ensemble
from trainables.classify import pooled
from trainables.files import StorageError, copy_atomically, read_bytes, read_tensors, write_atomically
from trainables.predict import probabilities_of
from trainables.pretrain import fresh_encoder
from trainables.provenance import git_revision
from trainables.recordings import Recordings, preparation_of
from trainables.settings import Data, Run
from trainables.state import PRETEXT, best_path

FORMAT = 2
WEIGHTS, DESCRIPTION = "model.safetensors", "checkpoint.json"
MAX_ANCESTORS = 8
"""Checkpoints that were begun from one another, looked at at most."""
CURE = (
    "type task=joint, which pre-trains for each fold, or task.folds=1, or an encoder that was pre-trained on other "
    "recordings"
)
"""For an encoder that has seen what k folds hold out, or may have."""


def contract_of(run: Run, recordings: Recordings) -> dict[str, Any]:
    """What recordings must be like before the run's model may see them, and what it answers."""
    data = run.data
    return {
        "sampling_rate_hz": data.sampling_rate_hz,
        "highpass_hz": data.highpass_hz,
        "lowpass_hz": data.lowpass_hz,
        "filter_order": data.filter_order,
        "unit": "mV",
        "standardize": data.standardize,
        "leads": list(data.leads),
        "window_s": data.window_s,
        "eval_crops": data.eval_crops,
        "label_protocol": recordings.labels.protocol,
        "label_kind": recordings.labels.kind,
        "classes": list(recordings.labels.classes),
    }


def describe(folder: Path, description: dict[str, Any]) -> None:
    """Write a checkpoint's JSON."""
    content = json.dumps({"format": FORMAT, **description}, indent=2, ensure_ascii=False)
    write_atomically(folder / DESCRIPTION, content.encode() + b"\n")


def read_description(folder: Path) -> dict[str, Any]:
    """A checkpoint's JSON.

    Raises:
        StorageError: if the folder holds no checkpoint of a format that is known here.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(
            f"{folder} holds no {DESCRIPTION}: name a folder such as STUDY/checkpoints/best_1"
        ) from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder / DESCRIPTION} cannot be read ({error}): restore it") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise StorageError(f"{folder / DESCRIPTION} must be of format {FORMAT}, got {found!r}")
    checked: dict[str, Any] = description
    return checked


def description_of(
    run: Run,
    recordings: Recordings,
    best: Mapping[str, Any],
    metric: str,
    *,
    trial: int | None = None,
    params: Mapping[str, Any] | None = None,
    exploits: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What a checkpoint's JSON says.

    Args:
        run: that trained it.
        recordings: of the run.
        best: "epoch", "value" and "metrics" of the epoch that is kept.
        metric: what it was judged by.
        trial: its number in a study; None for a single run.
        params: the trial's choices by dotted name.
        exploits: when it went on from other trials' weights (population-based training).
    """
    return {
        "trial": trial,
        "epoch": best["epoch"],
        "value": best["value"],
        "metric": metric,
        "metrics": best["metrics"],
        "params": dict(params or {}),
        "exploits": list(exploits),
        "contract": contract_of(run, recordings),
        "run": run.model_dump(mode="json", by_alias=True),
        "store": recordings.store.hash,
        "git_revision": git_revision(),
    }


def keep_run(folder: Path, run: Run, recordings: Recordings, best: dict[str, Any], metric: str) -> Path:
    """Make a checkpoint of a run that was trained in `folder`; return its own folder."""
    kept = folder / "checkpoint"
    copy_weights(best_path(folder, best["epoch"]), kept)
    describe(kept, description_of(run, recordings, best, metric))
    return kept


def copy_weights(weights: Path, kept: Path) -> None:
    """Copy a trial's best weights to a checkpoint's folder, and the pretext task where it lies beside them."""
    copy_atomically(weights, kept / WEIGHTS)
    if (pretext := weights.with_name(PRETEXT)).exists():
        copy_atomically(pretext, kept / PRETEXT)


@dataclass(frozen=True)
class Checkpoint:
    """A trained classifier with its contract.

    Attributes:
        classifier: in evaluation mode.
        run: the run that trained it.
        contract: see `contract_of`.
        description: the whole JSON: trial, parameters, metrics, git revision.
    """

    classifier: Classifier
    run: Run
    contract: dict[str, Any]
    description: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """What the columns of `predict` mean."""
        return list(self.contract["classes"])

    def labels_in(self, store: Store, protocol: str) -> Labels:
        """The labels of a store's records, a column for each of the model's classes.

        Args:
            store: prepared under the contract, not necessarily of the source that the model was trained on.
            protocol: name of the store's label protocol to hold the answers against.

        Raises:
            DataError: if it is of another kind than the model's, or lacks one of its classes.
        """
        labels = store.labels(protocol)
        if labels.kind != self.contract["label_kind"]:
            raise DataError(
                f"the model answers {self.contract['label_kind']}, the labels {protocol} are {labels.kind}: type "
                "task.labels=NAME with another label protocol of these recordings"
            )
        if lacking := [name for name in self.classes if name not in labels.classes]:
            raise DataError(
                f"the labels {protocol} must have the model's classes {', '.join(self.classes)}, they lack "
                f"{', '.join(lacking)} and have {', '.join(labels.classes)}: type task.labels=NAME, or rename them "
                "at the source"
            )
        return store.labels(protocol, self.classes)

    def predict(self, signal_mv: NDArray[Any], sampling_rate_hz: float, leads: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities of one raw recording, prepared under the contract.

        Args:
            signal_mv: (C, T) in mV, at least `window_s` long.
            sampling_rate_hz: its rate; it is resampled to the contract's.
            leads: the standard names of its C leads in their order; it must hold the contract's, in any order.

        Returns:
            (K,) probabilities of `classes`, the mean over the contract's equally spaced crops.

        Raises:
            DataError: if a lead is missing or no standard one, or the recording is too short or not finite.
        """
        if not 0 < sampling_rate_hz < np.inf:
            raise DataError(f"sampling_rate_hz must be positive, got {sampling_rate_hz:g}")
        names = tuple(lead_name(lead) for lead in leads)
        record = Record("recording", np.atleast_1d(np.asarray(signal_mv, np.float32)), sampling_rate_hz, names)
        signal_mv = prepare_signal(record, preparation_of(self.run.data))
        units = np.rint(signal_mv / np.float32(MV_PER_UNIT))  # a store keeps whole units: so did training
        signal = torch.from_numpy(units).mul_(MV_PER_UNIT)
        window = self.run.data.window_samples
        starts = n_crop_starts(np.array([signal.shape[-1]]), window, self.run.data.eval_crops)[0]
        crops = torch.stack([signal[:, start : start + window] for start in starts.tolist()])
        with torch.no_grad():
            logits = self.classifier(standardize(crops, self.run.data.standardize))
        return probabilities_of(logits, self.contract["label_kind"]).mean(dim=0).numpy()


def load(folder: str | Path) -> Checkpoint:
    """Load a checkpoint: `load("runs/.../checkpoints/best_1").predict(signal_mv, 500, leads)`.

    Raises:
        StorageError: if a file is missing or damaged.
        DataError: if the weights do not fit the model that the JSON describes.
    """
    folder = Path(folder)
    description = read_description(folder)
    try:
        run, contract = Run.model_validate(description["run"]), description["contract"]
        if "imported" in description:
            raise StorageError(f"{folder} holds an encoder without a head: fine-tune it first, task.encoder={folder}")
        if "ensemble" in description:
            raise StorageError(f"{folder} holds an ensemble: name one of its members, such as {folder}/member_1")
        num_classes = len(contract["classes"])
    except (KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{folder / DESCRIPTION} describes no run that can be built here: {reason}") from error
    classifier = _unfilled(run, num_classes)
    if run.task.folds > 1:
        members = [classifier, *(_unfilled(run, num_classes) for _ in range(run.task.folds - 1))]
        classifier = Ensemble(members, contract["label_kind"])
    tensors, _ = read_tensors(folder / WEIGHTS)
    if difference := _difference(classifier, tensors):
        raise DataError(f"{folder / WEIGHTS} does not fit the model of its {DESCRIPTION}: {difference}")
    classifier.load_state_dict(tensors)
    return Checkpoint(classifier.eval(), run, contract, description)


def _unfilled(run: Run, num_classes: int) -> Classifier:
    """A run's classifier, for weights to be put into."""
    encoder = fresh_encoder(run)
    if run.task.stages != "pretrain":
        encoder = pooled(encoder, run)
    return Classifier(encoder, num_classes, drop_path=0.0, head_init_std=0.0)


def check_encoder(folder: Path, data: Data) -> dict[str, Any]:
    """Refuse a checkpoint whose encoder was trained on recordings prepared otherwise.

    Leads may be any subset of those that it was trained on, in any order: they are told apart by name.

    Returns:
        The checkpoint's description.

    Raises:
        DataError: with every difference and what to type.
    """
    description = read_description(folder)
    if (num_folds := description["run"]["task"].get("folds", 1)) > 1:
        raise DataError(
            f"{folder} holds the {num_folds} models of a run with task.folds={num_folds}, not one encoder to start "
            "from: name the checkpoint of a run with task.folds=1"
        )
    contract = description["contract"]
    wanted = data.model_dump(mode="json")
    keys = ("sampling_rate_hz", "highpass_hz", "lowpass_hz", "filter_order", "standardize", "window_s")
    differing = [f"data.{key}={json.dumps(contract[key])}" for key in keys if contract[key] != wanted[key]]
    if differing:
        raise DataError(
            f"{folder}: its encoder was trained on recordings prepared otherwise; type {' '.join(differing)}"
        )
    if unseen := [lead for lead in data.leads if lead not in contract["leads"]]:
        raise DataError(
            f"{folder}: its encoder never saw the leads {', '.join(unseen)}; "
            f"type data.leads=[{','.join(contract['leads'])}] or some of these"
        )
    return description


def check_unseen(description: Mapping[str, Any], run: Run, *, whole_history: bool) -> None:
    """Refuse an encoder for a run on k folds that was trained on what these hold out in turn, then or before.

    Recordings count as the same where their `data.name` does: the store is another one with other leads.

    Args:
        description: of the checkpoint.
        run: that is to start from it.
        whole_history: refuse, too, where a checkpoint that it was begun from cannot be read.

    Raises:
        DataError: naming the published folds, or the checkpoint that cannot be read.
    """
    for _ in range(MAX_ANCESTORS):
        if "imported" in description:
            return
        _check_unseen_by(description, run)
        if (parent := description["run"]["task"].get("encoder")) is None:
            return
        try:
            description = read_description(Path(parent))
        except StorageError as error:
            if whole_history:
                raise DataError(f"{_unknown(run)}, {parent} cannot be read: put it back there, {CURE}") from error
            return
    if whole_history:
        raise DataError(f"{_unknown(run)}, more than {MAX_ANCESTORS} were begun from one another: {CURE}")


def _check_unseen_by(description: Mapping[str, Any], run: Run) -> None:
    """`check_unseen` for one checkpoint."""
    before, now = description["run"]["data"], run.data
    seen = sorted({*before["train_folds"], *before["valid_folds"]} & {*now.train_folds, *now.valid_folds})
    if seen and before["name"] == now.name:
        raise DataError(
            f"task.folds={run.task.folds} holds out in turn what task.encoder has seen, the folds "
            f"{', '.join(map(str, seen))} of {now.name}: {CURE}; if these are others, type data.name=NAME"
        )


def _unknown(run: Run) -> str:
    return f"task.folds={run.task.folds} needs to know what the checkpoints were trained on that task.encoder came from"


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint; the target is one only once it is whole.

    Raises:
        StorageError: if `source` is no checkpoint, or on a full or read-only disk.
    """
    description = read_description(source)
    copy_atomically(source / WEIGHTS, target / WEIGHTS)
    describe(target, description)


def weights_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights.

    Raises:
        StorageError: if they cannot be read.
    """
    return hashlib.sha256(read_bytes(folder / WEIGHTS)).hexdigest()


def load_encoder_weights(encoder: torch.nn.Module, folder: Path) -> None:
    """Put a checkpoint's encoder weights into `encoder`.

    Raises:
        DataError: if their names or shapes differ, with the first difference named.
    """
    tensors, _ = read_tensors(folder / WEIGHTS)
    task = read_description(folder)["run"]["task"]
    with_pool = task["stages"] != "pretrain" and task["finetune"]["pool"] == "attention"
    inside = "encoder.encoder." if with_pool else "encoder."
    weights = {name.removeprefix(inside): tensor for name, tensor in tensors.items() if name.startswith(inside)}
    if difference := _difference(encoder, weights):
        raise DataError(
            f"{folder} holds another encoder: {difference}; set model.* as in the checkpoint's {DESCRIPTION}"
        )
    encoder.load_state_dict(weights)


def _difference(module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> str | None:
    """The first tensor that `module` and `weights` do not have in the same shape, or None."""
    expected = module.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        ours, theirs = expected.get(name), weights.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return f"{name} must be {_shape(ours)}, it is {_shape(theirs)}"
    return None


def _shape(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else "x".join(map(str, tensor.shape)) or "a scalar"
