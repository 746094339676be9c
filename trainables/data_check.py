"""What a study rests on, looked at before its first trial: who is in which part, and what its weights have seen before.

Two things make a test figure too good without anybody noticing: the same patient or signal on both sides of the split,
and an encoder that has been pre-trained on the test patients. The first is looked for; the second is told as far as the
checkpoint that the encoder comes from tells it, and said to be unknown where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.duplicates import check_parts, content_digests, leaks, parts_of, split_digests
from data.record import DataError
from data.splits import Split
from data.store import Store
from trainables.checkpoint import MAX_ANCESTORS, read_description
from trainables.files import StorageError
from trainables.recordings import Recordings, open_recordings
from trainables.settings import Run
from trainables.study import StudyFolder


def check_data(study: StudyFolder, run: Run, recordings: Recordings) -> dict[str, Any]:
    """Look at the recordings of a study, and write it into the events unless the same is there.

    Args:
        study: the folder; `run.task.encoder`, where there is one, is the study's own copy.
        run: of the configuration.
        recordings: of the run.

    Returns:
        The event `data_checked`.

    Raises:
        DataError: if a patient is in two parts, or the signals cannot be read.
        StorageError: on a full or read-only disk.
    """
    index = recordings.store.index
    found = {
        "store": recordings.store.hash,
        "split": split_digests(index, recordings.split),
        **({} if recordings.folds is None else {"folds": [split_digests(index, fold) for fold in _splits(recordings)]}),
        **_checked_parts(recordings),
        "pretraining": pretraining_of(run, recordings),
    }
    for event in study.read_events():
        if event["event"] == "data_checked" and {key: event.get(key) for key in found} == found:
            return event
    return study.record("data_checked", **found)


def _checked_parts(recordings: Recordings) -> dict[str, Any]:
    try:
        found = _most([check_parts(recordings.store, split) for split in _splits(recordings)])
        found |= {"content": content_digests(recordings.store)}
    except OSError as error:
        raise DataError(f"{recordings.store.path} cannot be read: {error.strerror or error}") from error
    if leaks(found)[0]:
        pairs = ", ".join(f"{number} in {pair}" for pair, number in found["patients_in_two_parts"].items() if number)
        raise DataError(
            f"no patient may be in two parts of a split, there are {pairs}: give each patient one fold in the source's "
            "table"
        )
    return found


def _splits(recordings: Recordings) -> tuple[Split, ...]:
    """The split, or that of each of k models: what trains one of them validates another."""
    return (recordings.split,) if recordings.folds is None else recordings.folds.splits


def _most(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was found in several splits as if in one: of each count the largest, and the first examples."""
    counts = {
        key: {name: max(one[key][name] for one in found) for name in value}
        for key, value in found[0].items()
        if isinstance(value, dict)
    }
    return found[0] | counts | {"examples": next((one["examples"] for one in found if one["examples"]), [])}


def warnings_of(checked: Mapping[str, Any]) -> list[str]:
    """What a user must be told before the search, one line each."""
    lines = []
    if (num := leaks(checked)[1]) > 0:
        pairs = ", ".join(f"{number} in {pair}" for pair, number in checked["signals_in_two_parts"].items() if number)
        lines.append(
            f"{num} recordings have the samples of a recording in another part ({pairs}; the first: "
            f"{' and '.join(checked['examples'][0])}): leave them out at the source, else figures are too good by them"
        )
    if not checked["patients_known"]:
        lines.append(
            "every recording has a patient of its own: where the source does not tell patients apart, the same one may "
            "be in two parts"
        )
    seen = checked["pretraining"]
    if seen.get("test_patients"):
        lines.append(f"the encoder was pre-trained on {seen['test_patients']} of the patients of the test folds")
    return lines


def pretraining_of(run: Run, recordings: Recordings) -> dict[str, Any]:
    """What the encoder was pre-trained on before its trials fine-tune it, as far as that is known.

    Returns:
        kind: "none", "this study", "checkpoint" or "imported"; of a checkpoint `steps`, the last one first, each with
        its data, store, number of patients and of test patients of this study among them (None where that cannot be
        told, with a reason); test_patients: over all steps, None as soon as one is unknown.
    """
    task = run.task
    if task.encoder is not None:
        steps = _steps(Path(task.encoder), recordings)
        numbers = [step["test_patients"] for step in steps]
        seen = None if None in numbers else max(numbers)
        return {"kind": "imported" if "source" in steps[0] else "checkpoint", "steps": steps, "test_patients": seen}
    if task.stages == "finetune":  # from scratch
        return {"kind": "none", "test_patients": 0}
    return {"kind": "this study", "test_patients": 0}  # the training patients alone, and no patient is in two parts


def _steps(folder: Path, recordings: Recordings) -> list[dict[str, Any]]:
    """A checkpoint and those that it was begun from, the last one first."""
    steps: list[dict[str, Any]] = []
    while True:
        try:
            description = read_description(folder)
            step, parent = _step(description, recordings), description["run"]["task"].get("encoder")
        except (StorageError, KeyError, TypeError) as error:
            unread = isinstance(error, StorageError)
            reason = "its checkpoint cannot be read" if unread else "its checkpoint is of another version"
            return [*steps, {"data": None, "test_patients": None, "reason": reason}]
        steps.append(step)
        if parent is None or "imported" in description or len(steps) == MAX_ANCESTORS:
            return steps
        folder = Path(parent)


def _step(description: Mapping[str, Any], recordings: Recordings) -> dict[str, Any]:
    """What one checkpoint's weights have learnt from."""
    if "imported" in description:
        imported = description["imported"]
        declared = imported.get("pretraining_data")
        return {
            "source": imported["source"],
            "data": declared,
            "test_patients": None,
            "reason": "imported weights do not tell which records they have seen",
        }
    step = {"data": description["run"]["data"]["name"], "store": description.get("store")}
    trained_on = _patients_trained_on(description, recordings.store)
    if isinstance(trained_on, str):
        return step | {"test_patients": None, "reason": trained_on}
    test = set(recordings.store.index["patient_id"].iloc[recordings.split.test])
    return step | {"patients": len(trained_on), "test_patients": len(trained_on & test)}


def _patients_trained_on(description: Mapping[str, Any], store: Store) -> set[str] | str:
    """The training and validation patients of a checkpoint's run, or why they cannot be told.

    Validation patients count: they chose the epoch and, in a search, the trial.
    """
    try:
        run = Run.model_validate(description["run"])
    except ValueError:
        return "its checkpoint is of another version"
    folder = store.path
    if description.get("store") != store.hash:
        folder = store.path.parent / f"{run.data.name}-{str(description.get('store'))[:12]}"
    try:
        trained = open_recordings(run, folder)
    except (DataError, OSError):
        return "the recordings that it was trained on are not prepared here"
    if trained.store.hash != description.get("store"):
        return "the recordings that it was trained on are not prepared here"
    if trained.store.hash != store.hash and trained.store.source != store.source:
        return "it was trained on recordings of another source, whose patients have other names"
    parts = parts_of(trained.split)
    rows = np.concatenate([parts["train"], parts["valid"]])
    return set(trained.store.index["patient_id"].iloc[rows])
