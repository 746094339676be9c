"""The best trial's most confident mistakes on the test fold, drawn as ECG sheets with what each answer rests on.

No fold is opened here: the very same weights have answered these very records before, and that pass is in the study's
events. What is drawn follows from those answers; nothing is chosen by it, and no record that was not answered is read.
That records were drawn is written into the events all the same.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.record import DataError
from data.store import Store
from data.transforms import n_crop_starts, standardize
from models.classifier import Classifier
from reports.checkpoints.ecg_sheet import draw, legend_for
from reports.checkpoints.saliency import attribution, smoothed
from reports.evaluate import maker_of
from reports.folder import PREDICTIONS, read_predictions
from reports.mistakes import Mistake, mistakes, table_of
from trainables.checkpoint import Checkpoint, load, weights_digest
from trainables.files import StorageError, write_atomically, writing_to
from trainables.recordings import open_recordings
from trainables.settings import Data
from trainables.study import StudyFolder
from trainables.workers import Workers

ERRORS, LIST, TABLE = "errors", "errors.json", "errors.parquet"
"""Folder under report/, and the files in it beside the sheets."""


@dataclass(frozen=True)
class Seen:
    """A record as a classifier sees it.

    Attributes:
        signal_mv: (C, T) the whole record as prepared, in mV.
        crops: (n, C, T') its crops, standardised, on the classifier's device.
        starts: of each crop in the record.
    """

    signal_mv: NDArray[np.float32]
    crops: torch.Tensor
    starts: list[int]


def seen(store: Store, row: int, data: Data, device: torch.device) -> Seen:
    """A record of a store, whole and as the crops that an evaluation makes of it."""
    signal_mv = store.record(row).astype(np.float32) * np.float32(store.mv_per_unit)
    window = data.window_samples
    starts = n_crop_starts(np.array([signal_mv.shape[1]]), window, data.eval_crops)[0].tolist()
    crops = torch.from_numpy(np.stack([signal_mv[:, start : start + window] for start in starts]))
    return Seen(signal_mv, standardize(crops, data.standardize).to(device), starts)


def band_of(data: Data) -> str:
    """In words, in which band a record was drawn."""
    low, high = data.highpass_hz, data.lowpass_hz
    if low and high:
        return f"{low:g} to {high:g} Hz, as the model saw it"
    if low or high:
        return f"{'above' if low else 'below'} {low or high:g} Hz, as the model saw it"
    return "unfiltered, as the model saw it"


def draw_mistakes(study: StudyFolder, store: Path, workers: Workers, *, num_mistakes: int) -> int:
    """Draw the most confident mistakes of checkpoints/best_1 on the test fold, unless they are there.

    Args:
        study: evaluated: report/predictions.parquet is there, made by these weights.
        store: the prepared recordings.
        workers: this process.
        num_mistakes: of each class and kind at most; 0 draws none.

    Returns:
        How many sheets were drawn now. What keeps them from being drawn is written into report/errors/errors.json and
        shown in the report, which does without them.
    """
    folder = study.report / ERRORS
    try:
        made_by = _made_by(study)
        wanted = {"made_by": made_by, "num_mistakes": num_mistakes}
        if _is_done(folder, wanted):
            return 0
        checkpoint = load(study.checkpoints / "best_1")
        recordings = open_recordings(checkpoint.run, store)
        predictions = read_predictions(study.report / PREDICTIONS["best"], checkpoint.run.data.test_folds)
        found = mistakes(predictions.of_split("test"), checkpoint.contract["label_kind"])
        shown = [mistake for mistake in found if mistake.rank <= num_mistakes]
        with writing_to(folder):
            shutil.rmtree(folder, ignore_errors=True)
        if shown:
            study.record("test_records_drawn", model="best", trial=made_by.get("trial"), records=len(shown))
        drawn = [_drawn(mistake, checkpoint, recordings.store, folder, workers) for mistake in shown]
        content = table_of(found)
        content["drawn"] = content["rank"] <= num_mistakes
        write_atomically(folder / TABLE, content.to_parquet(index=False))
        _write(folder, wanted | {"num_records": int((predictions.splits == "test").sum()), "mistakes": drawn})
    except (DataError, StorageError, FloatingPointError, ValueError, RuntimeError) as error:  # memory, for the last
        _write(folder, {"reason": " ".join(str(error).split())[:300]})
        return 0
    return len(drawn)


def _made_by(study: StudyFolder) -> dict[str, Any]:
    """Who made the predictions, if it is the weights that are kept.

    Raises:
        DataError: if it is not.
    """
    made_by = maker_of(study.report / PREDICTIONS["best"])
    if made_by is None or made_by.get("digest") != weights_digest(study.checkpoints / "best_1"):
        raise DataError("the best trial's weights are not those that the test records were answered by")
    return made_by


def _is_done(folder: Path, wanted: dict[str, Any]) -> bool:
    try:
        content = json.loads((folder / LIST).read_text(encoding="utf-8"))
        files = [folder / mistake["file"] for mistake in content["mistakes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(content.get(key) == value for key, value in wanted.items()) and all(path.exists() for path in files)


def _write(folder: Path, content: dict[str, Any]) -> None:
    write_atomically(folder / LIST, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def _drawn(mistake: Mistake, checkpoint: Checkpoint, store: Store, folder: Path, workers: Workers) -> dict[str, Any]:
    """Draw one mistake; what the list of errors says of it."""
    rows = np.flatnonzero(store.index["record_id"].astype(str).to_numpy() == mistake.record_id)
    if len(rows) != 1:
        raise DataError(f"record {mistake.record_id}, which was answered, is not in the prepared recordings")
    record = seen(store, int(rows[0]), checkpoint.run.data, workers.device)
    column = checkpoint.classes.index(mistake.label)
    classifier: Classifier = checkpoint.classifier.to(workers.device)
    why = attribution(classifier, record.crops, record.starts, record.signal_mv.shape[1], column)
    says = "says" if mistake.kind == "false_positive" else "does not say"
    data = checkpoint.run.data
    name = f"{column + 1:02d}_{re.sub(r'[^A-Za-z0-9]+', '_', mistake.label)}_{mistake.kind}_{mistake.rank}.svg"
    sheet = draw(
        record.signal_mv,
        data.leads,
        data.sampling_rate_hz,
        title=f"Record {mistake.record_id}: the model {says} {mistake.label} ({mistake.probability:.3f})",
        notes=[f"Labels: {', '.join(mistake.labels) or 'none of the classes'} · {band_of(data)}"],
        saliency=smoothed(why.values, data.sampling_rate_hz),
        legend=legend_for(mistake.label),
    )
    write_atomically(folder / name, sheet.encode())
    return {
        "class": mistake.label,
        "kind": mistake.kind,
        "rank": mistake.rank,
        "record_id": mistake.record_id,
        "probability": mistake.probability,
        "confidence": mistake.confidence,
        "threshold": mistake.threshold,
        "labels": list(mistake.labels),
        "answers": list(mistake.answers),
        "file": name,
        "saliency": {
            "method": "integrated gradients of the mean logit over crops, from a flat record",
            "explains": why.total,
            "error": why.error,
            "share_of_lead": _shares(why.values.numpy(), data.leads),
        },
    }


def _shares(values: NDArray[np.float32], leads: list[str]) -> dict[str, float]:
    """Each lead's part in the sizes of all attributions."""
    sizes = np.abs(values).sum(axis=1, dtype=np.float64)
    total = sizes.sum() or 1.0
    return {lead: round(float(size / total), 4) for lead, size in zip(leads, sizes, strict=True)}
