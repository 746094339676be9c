"""Several checkpoints that answer as one: the mean of their probabilities, under one contract.

An ensemble's folder holds copies of its members, so that it can be moved and its members be used alone; its own
checkpoint.json lists them and has no weights beside it.

Source: averaging independently trained networks, Lakshminarayanan et al. 2017, arXiv:1612.01474; over configurations as
well as seeds, Wenzel et al. 2020, arXiv:2006.13570.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.labels import Labels
from data.store import Store
from models.ensemble import Ensemble
from trainables.checkpoint import (
    DESCRIPTION,
    Checkpoint,
    copy_checkpoint,
    describe,
    load,
    read_description,
    weights_digest,
)
from trainables.files import StorageError, writing_to
from trainables.retention import CONFIRMED
from trainables.settings import Run

MEMBERS = "ensemble"
"""Key of an ensemble's description: its members."""
OURS = ("member_", "of_")
"""What the names of the folders in an ensemble's folder begin with that nobody else has made."""


@dataclass(frozen=True)
class EnsembleCheckpoint:
    """Trained classifiers with one contract.

    Attributes:
        members: in the order of their folders.
        description: the whole JSON.
    """

    members: tuple[Checkpoint, ...]
    description: dict[str, Any]

    @property
    def run(self) -> Run:
        """The first member's run: the recordings, the window and the crops are those of all."""
        return self.members[0].run

    @property
    def contract(self) -> dict[str, Any]:
        """What all members ask of a recording."""
        return self.members[0].contract

    @property
    def classes(self) -> list[str]:
        """What the columns of `predict` mean."""
        return self.members[0].classes

    def labels_in(self, store: Store, protocol: str) -> Labels:
        """The labels of a store's records; see `Checkpoint.labels_in`."""
        return self.members[0].labels_in(store, protocol)

    def predict(self, signal_mv: NDArray[Any], sampling_rate_hz: float, leads: Sequence[str]) -> NDArray[np.float32]:
        """(K,) probabilities of one raw recording, the mean over the members; see `Checkpoint.predict`."""
        answers = [member.predict(signal_mv, sampling_rate_hz, leads) for member in self.members]
        return np.asarray(np.mean(answers, axis=0, dtype=np.float64), dtype=np.float32)


def load_as_one(folder: Path) -> Checkpoint:
    """Load a checkpoint whose classifier answers alone, whether the folder holds one model or an ensemble.

    Raises:
        StorageError, DataError: as `trainables.checkpoint.load`.
    """
    if not is_ensemble(folder):
        return load(folder)
    ensemble = load_ensemble(folder)
    classifiers = [member.classifier for member in ensemble.members]
    alone = [
        part
        for classifier in classifiers
        for part in (classifier.alone() if isinstance(classifier, Ensemble) else [classifier])
    ]
    classifier = Ensemble(alone, ensemble.contract["label_kind"]).eval()
    return Checkpoint(classifier, ensemble.run, ensemble.contract, ensemble.description)


def digest_at(folder: Path) -> str:
    """SHA-256 of what a checkpoint's folder answers from, one model or an ensemble.

    Raises:
        StorageError: if it holds no checkpoint.
    """
    members = read_description(folder).get(MEMBERS)
    return weights_digest(folder) if members is None else digest_of(members)


def is_ensemble(folder: Path) -> bool:
    """Whether a checkpoint's folder holds an ensemble.

    Raises:
        StorageError: if it holds no checkpoint.
    """
    return MEMBERS in read_description(folder)


def load_ensemble(folder: Path) -> EnsembleCheckpoint:
    """Load an ensemble: `load_ensemble("runs/.../checkpoints/ensemble").predict(signal_mv, 500, leads)`.

    Raises:
        StorageError: if a file is missing or damaged, or the folder holds a single model.
        DataError: if the weights of a member do not fit its description.
    """
    folder = Path(folder)
    description = read_description(folder)
    if MEMBERS not in description:
        raise StorageError(f"{folder} holds a single model: load it with trainables.checkpoint.load")
    members = tuple(load(folder / member["folder"]) for member in description[MEMBERS])
    return EnsembleCheckpoint(members, description)


def difference_between(descriptions: Sequence[Mapping[str, Any]]) -> str | None:
    """Why some checkpoints cannot answer as one: the first that they do not share; None where they can.

    Args:
        descriptions: their checkpoint.json.
    """
    first = descriptions[0]
    for other in descriptions[1:]:
        names = f"trials {first.get('trial')} and {other.get('trial')}"
        for key, value in first["contract"].items():
            if (found := other["contract"].get(key)) != value:
                return f"{names} differ in {key}: {json.dumps(value)} and {json.dumps(found)}"
        if other.get("store") != first.get("store") or _held_out(other) != _held_out(first):
            return f"{names} were held against different recordings"
    return None


def _held_out(description: Mapping[str, Any]) -> list[Any]:
    """What says which recordings a model is validated and tested on."""
    data, task = description["run"]["data"], description["run"]["task"]
    return [*(data.get(key) for key in ("valid_folds", "test_folds", "max_valid_patients")), task.get("folds", 1)]


def make_ensemble(folder: Path, sources: Sequence[Path]) -> dict[str, Any]:
    """Make an ensemble's folder of copies of some checkpoints, unless it holds just these.

    Args:
        folder: of the ensemble. Where it held another one, what was made of that and of its members (an export,
            evaluations) is moved to a folder in it, of_DIGEST.
        sources: the members' folders, the best first.

    Returns:
        Its description.

    Raises:
        ValueError: if they do not share one contract.
        StorageError: if a member cannot be read, or on a full or read-only disk.
    """
    descriptions = [read_description(source) for source in sources]
    if (reason := difference_between(descriptions)) is not None:
        raise ValueError(f"the members of an ensemble must have one contract: {reason}")
    members = [
        _member(number, source, described)
        for number, (source, described) in enumerate(zip(sources, descriptions, strict=True), start=1)
    ]
    if (folder / DESCRIPTION).exists() and (held := read_description(folder)).get(MEMBERS) == members:
        return held
    with writing_to(folder):
        _put_aside(folder)
        (folder / DESCRIPTION).unlink(missing_ok=True)  # first: what a crash leaves is then no checkpoint
        for old in folder.glob("member_*"):
            shutil.rmtree(old)
    for member, source in zip(members, sources, strict=True):
        copy_checkpoint(source, folder / member["folder"])
    shared = {key: descriptions[0].get(key) for key in ("metric", "contract", "run", "store", "git_revision")}
    describe(folder, {"trial": None, MEMBERS: members, **shared})
    return read_description(folder)


def _put_aside(folder: Path) -> None:
    """Move what was made of the ensemble in `folder` to a folder named for it; its description says which it is."""
    if not (folder / DESCRIPTION).exists():  # a crash came after this
        return
    name = f"of_{digest_of(read_description(folder).get(MEMBERS, []))[:12]}"
    for place in (folder, *sorted(folder.glob("member_*"))):
        inside = folder / name if place == folder else folder / name / place.name
        for made in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(OURS)):
            inside.mkdir(parents=True, exist_ok=True)
            made.rename(_free(inside / made.name))


def _free(path: Path) -> Path:
    """The path, or the first of path_2, path_3, ... that is not there."""
    names = (path if number == 1 else path.with_name(f"{path.name}_{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _member(number: int, source: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    confirmed = described.get(CONFIRMED) or {}
    return {
        "folder": f"member_{number}",
        "trial": described.get("trial"),
        "index": confirmed.get("index"),
        "value": described.get("value"),
        "digest": weights_digest(source),
    }


def digest_of(members: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of what an ensemble answers from: the digests of its members' weights, in any order."""
    return hashlib.sha256("".join(sorted(member["digest"] for member in members)).encode()).hexdigest()
