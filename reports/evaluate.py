"""Predictions of a study's models on the validation and the test fold: the one place that opens the test fold.

Every pass of a model over the test fold is written down before it is made. What was predicted once for a trial is read
again, never predicted again.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.classifier import Classifier
from reports.folder import PREDICTIONS
from trainables.checkpoint import Checkpoint, load
from trainables.classify import fresh_encoder
from trainables.files import write_atomically
from trainables.predict import predict
from trainables.pretrain import probed
from trainables.recordings import Recordings, open_recordings
from trainables.retention import DEFAULT_TRIAL
from trainables.settings import Run
from trainables.study import StudyFolder
from trainables.workers import Workers


def evaluate_study(study: StudyFolder, store: Path, workers: Workers) -> int:
    """Predict with the best trial's model, an untrained encoder with a linear probe, and the default configuration's.

    Args:
        study: whose `checkpoints/best_1` and `checkpoints/default` are there.
        store: the prepared recordings.
        workers: this process.

    Returns:
        How many models were passed over the test fold now; 0 where all that is wanted had been predicted before.

    Raises:
        DataError, StorageError: if the recordings or a checkpoint cannot be read.
    """
    best = load(study.checkpoints / "best_1")
    recordings = open_recordings(best.run, store)
    trial = best.description["trial"]
    opened = _predict_once(study, "best", trial, best.classifier, best.run, recordings, workers)
    baseline = study.report / PREDICTIONS["random_encoder"]
    if _predicted(study, "random_encoder") is None or not baseline.exists():
        untrained = probed(best.run, fresh_encoder(best.run).to(workers.device), recordings, workers)
        opened += _predict_once(study, "random_encoder", None, untrained, best.run, recordings, workers)
    if not (study.checkpoints / "default").exists():
        return opened
    default = load(study.checkpoints / "default")
    if trial == DEFAULT_TRIAL:  # the same weights: nothing is gained by a second pass
        content = (study.report / PREDICTIONS["best"]).read_bytes()
        write_atomically(study.report / PREDICTIONS["default_configuration"], content)
        return opened
    recordings = open_recordings(default.run, store)
    return opened + _predict_once(
        study, "default_configuration", DEFAULT_TRIAL, default.classifier, default.run, recordings, workers
    )


def _predicted(study: StudyFolder, model: str) -> dict[str, Any] | None:
    """The last event of a pass of `model` over the test fold."""
    passes = [e for e in study.read_events() if e["event"] == "test_fold_opened" and e["model"] == model]
    return passes[-1] if passes else None


def _predict_once(
    study: StudyFolder,
    model: str,
    trial: int | None,
    classifier: Classifier,
    run: Run,
    recordings: Recordings,
    workers: Workers,
) -> int:
    """Predict with one model unless its predictions are there; say how often the test fold was opened for it."""
    path = study.report / PREDICTIONS[model]
    before = _predicted(study, model)
    if before is not None and before["trial"] == trial and path.exists():
        return 0
    rows = {"valid": recordings.split.valid, "test": recordings.split.test}
    study.record("test_fold_opened", model=model, trial=trial, records=len(rows["test"]))
    write_predictions(path, table(classifier, run, recordings, rows, workers))
    return 1


def write_predictions(path: Path, predictions: pd.DataFrame) -> None:
    """Write predictions as parquet, atomically."""
    buffer = io.BytesIO()
    predictions.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())


def table(
    classifier: Classifier, run: Run, recordings: Recordings, rows: dict[str, NDArray[np.int64]], workers: Workers
) -> pd.DataFrame:
    """Predictions of some rows: record_id, patient_id, fold, split, then y_<class> and p_<class>.

    Args:
        classifier: predicts.
        run: whose window and crops are used.
        recordings: of the run.
        rows: of each split that is wanted.
        workers: this process.
    """
    classes = recordings.labels.classes
    parts = []
    for split, chosen in rows.items():
        probabilities = predict(
            classifier.to(workers.device), recordings.store, chosen, run.data, workers, kind=recordings.labels.kind
        )
        index = recordings.store.index.iloc[chosen]
        targets = recordings.targets(chosen)
        columns: dict[str, Any] = {
            "record_id": index["record_id"].astype(str).to_numpy(),
            "patient_id": index["patient_id"].astype(str).to_numpy(),
            "fold": index["fold"].to_numpy(),
            "split": split,
        }
        columns |= {f"y_{name}": targets[:, k].astype(np.int8) for k, name in enumerate(classes)}
        # float64 of what was computed in float32: every reader then sees the same numbers
        columns |= {f"p_{name}": probabilities[:, k].astype(np.float64) for k, name in enumerate(classes)}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def evaluate_checkpoint(
    checkpoint: Checkpoint, folder: Path, recordings: Recordings, rows: NDArray[np.int64], split: str, workers: Workers
) -> pd.DataFrame:
    """Predictions of one checkpoint on some rows; a pass over the test fold is written into its study's events.

    Args:
        checkpoint: loaded from `folder`.
        folder: STUDY/checkpoints/NAME, or anywhere else: the event then goes beside the checkpoint.
        recordings: prepared as the checkpoint's contract says.
        rows: which.
        split: "valid" or "test", what they count as.
        workers: this process.
    """
    if split == "test":
        study = StudyFolder(folder.parent.parent)
        home = study if study.configuration.exists() else StudyFolder(folder)
        home.record("test_fold_opened", model=folder.name, trial=checkpoint.description.get("trial"), records=len(rows))
    return table(checkpoint.classifier, checkpoint.run, recordings, {split: rows}, workers)
