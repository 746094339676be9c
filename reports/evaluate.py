"""What a study's models answer after the search, on validation and on test: the one place that opens the test fold.

Every pass of a model over the test fold is written down before it is made. A file of predictions says by which weights
they were made: what these weights have predicted once is read again, never predicted again. The untrained encoders of
the methods that were searched among are probed on the validation fold alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.labels import Labels
from data.store import Store
from models.classifier import Classifier
from models.encoder import Encoder
from reports.choices import probed_trials
from reports.folder import MADE_BY, PREDICTIONS, UNTRAINED, read_study
from trainables.checkpoint import Checkpoint, load, weights_digest
from trainables.files import write_atomically
from trainables.predict import predict, validate
from trainables.pretrain import fresh_encoder, probed
from trainables.recordings import open_recordings
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
    untrained = fresh_encoder(best.run)
    opened = _predict_once(
        study, "best", _made_by(study, "best_1", best), lambda: best.classifier, best.run, store, workers
    )
    opened += _predict_once(
        study,
        "random_encoder",
        {"trial": None, "digest": _digest_of_probe(best.run, untrained)},
        lambda: probed(best.run, untrained.to(workers.device), open_recordings(best.run, store), workers),
        best.run,
        store,
        workers,
    )
    if not (study.checkpoints / "default").exists():
        return opened
    default = load(study.checkpoints / "default")
    return opened + _predict_once(
        study,
        "default_configuration",
        _made_by(study, "default", default),
        lambda: default.classifier,
        default.run,
        store,
        workers,
    )


def probe_untrained(study: StudyFolder, store: Path, run_of: Callable[[int], Run], workers: Workers) -> int:
    """Probe the untrained encoder of every method that a study searched among, on its validation rows.

    A method is an option of a searched `model` or `model.encoder`; the encoder is that of the trial with the method's
    best probe in pre-training, as it was before its first epoch, and so is the probe: what the two differ by is what
    pre-training did. Each probe is kept in report/untrained.json as soon as it is made, with a digest of what it
    follows from; where that has not changed it is not made again. The test fold is not opened.

    Args:
        study: a study's folder; a search of nothing of the kind is left as it is.
        store: the prepared recordings.
        run_of: makes a trial's run from its number.
        workers: this process.

    Returns:
        How many encoders were probed now.

    Raises:
        DataError, StorageError: if the recordings cannot be read or the file cannot be written.
        ValueError: if the study's folder is damaged.
        FloatingPointError: if an encoder's embeddings are not finite.
    """
    read = read_study(study.path)
    content = read.untrained
    known = {entry["digest"]: entry["metrics"] for options in content.values() for entry in options.values()}
    num_probed = 0
    for parameter, trials in probed_trials(read).items():
        for option, trial in trials.items():
            run = run_of(trial)
            encoder = fresh_encoder(run)
            digest = _digest_of_probe(run, encoder)
            if digest not in known:
                recordings = open_recordings(run, store)
                probe = probed(run, encoder.to(workers.device), recordings, workers)
                known[digest] = validate(probe, recordings, run.data, run.task, workers)
                num_probed += 1
            entry = {"trial": trial, "digest": digest, "metrics": known[digest]}
            if content.setdefault(parameter, {}).get(option) != entry:
                content[parameter][option] = entry
                write_atomically(study.report / UNTRAINED, json.dumps(content, indent=1).encode() + b"\n")
    return num_probed


def _made_by(study: StudyFolder, name: str, checkpoint: Checkpoint) -> dict[str, Any]:
    return {"trial": checkpoint.description["trial"], "digest": weights_digest(study.checkpoints / name)}


def _digest_of_probe(run: Run, untrained: Encoder) -> str:
    """What a linear probe on an untrained encoder follows from: the encoder's weights, the recordings, the probe."""
    task = run.task
    settings = {"data": run.data, "labels": task.labels, "classes": task.classes, "probe": task.probe, "seed": run.seed}
    digest = hashlib.sha256(json.dumps(settings, default=lambda part: part.model_dump(mode="json")).encode())
    for name, tensor in sorted(untrained.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _predict_once(
    study: StudyFolder,
    model: str,
    made_by: dict[str, Any],
    classifier: Callable[[], Classifier],
    run: Run,
    store: Path,
    workers: Workers,
) -> int:
    """Predict with one model unless its predictions are there; say how often the test fold was opened for it.

    Args:
        study: whose report the predictions are for.
        model: one of PREDICTIONS.
        made_by: the trial and the digest of its weights.
        classifier: makes the model, where it is needed.
        run: whose recordings, window and crops are used.
        store: the prepared recordings.
        workers: this process.
    """
    path = study.report / PREDICTIONS[model]
    if maker_of(path) == made_by:
        return 0
    for other in PREDICTIONS.values():  # the best trial may be the default configuration: one pass serves both
        if maker_of(study.report / other) == made_by:
            write_atomically(path, (study.report / other).read_bytes())
            return 0
    recordings = open_recordings(run, store)
    rows = {"valid": recordings.split.valid, "test": recordings.split.test}
    ready = classifier()
    _record_opening(study, model, made_by["trial"], recordings.store, rows["test"])
    write_predictions(path, table(ready, run, recordings.store, recordings.labels, rows, workers), made_by)
    return 1


def _record_opening(study: StudyFolder, model: str, trial: int | None, store: Store, rows: NDArray[np.int64]) -> None:
    study.record("test_fold_opened", model=model, trial=trial, records=len(rows), store=store.hash)


def maker_of(path: Path) -> dict[str, Any] | None:
    """What a file of predictions says about who made them; None where there is no such file, or it does not say."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        made_by: dict[str, Any] = json.loads(metadata[MADE_BY])
    except (OSError, ValueError, KeyError):  # missing, damaged, or without: predicted anew
        return None
    return made_by


def write_predictions(path: Path, predictions: pd.DataFrame, made_by: dict[str, Any]) -> None:
    """Write predictions as parquet, atomically, with who made them beside pandas' own metadata."""
    content = pa.Table.from_pandas(predictions, preserve_index=False)
    content = content.replace_schema_metadata({**content.schema.metadata, MADE_BY: json.dumps(made_by).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def table(
    classifier: Classifier,
    run: Run,
    store: Store,
    labels: Labels,
    rows: dict[str, NDArray[np.int64]],
    workers: Workers,
) -> pd.DataFrame:
    """Predictions of some rows: record_id, patient_id, fold, split, then y_<class> and p_<class>.

    Args:
        classifier: predicts.
        run: whose window and crops are used.
        store: prepared as the classifier's contract says.
        labels: of the store's rows, a column for each of the classifier's classes.
        rows: of each split that is wanted.
        workers: this process.
    """
    assert len(labels.classes) == classifier.head.out_features
    parts = []
    for split, chosen in rows.items():
        probabilities = predict(classifier.to(workers.device), store, chosen, run.data, workers, kind=labels.kind)
        index = store.index.iloc[chosen]
        targets = labels.targets[chosen]
        columns: dict[str, Any] = {
            "record_id": index["record_id"].astype(str).to_numpy(),
            "patient_id": index["patient_id"].astype(str).to_numpy(),
            "fold": index["fold"].to_numpy(),
            "split": split,
        }
        columns |= {f"y_{name}": targets[:, k].astype(np.int8) for k, name in enumerate(labels.classes)}
        # float64 of what was computed in float32: every reader then sees the same numbers
        columns |= {f"p_{name}": probabilities[:, k].astype(np.float64) for k, name in enumerate(labels.classes)}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    store: Store,
    labels: Labels,
    rows: NDArray[np.int64],
    split: str,
    workers: Workers,
) -> pd.DataFrame:
    """Predictions of one checkpoint on some rows; a pass over the test fold is written into its study's events.

    Args:
        checkpoint: loaded from `folder`.
        folder: somewhere in a study's folder, or anywhere else: the event then goes beside the checkpoint.
        store: prepared as the checkpoint's contract says.
        labels: of its rows, as `Checkpoint.labels_in` gives them.
        rows: which.
        split: "valid" or "test", what they count as.
        workers: this process.
    """
    if split == "test":
        studies = [StudyFolder(parent) for parent in folder.absolute().parents]
        home = next((study for study in studies if study.configuration.exists()), StudyFolder(folder))
        _record_opening(home, folder.name, checkpoint.description.get("trial"), store, rows)
    return table(checkpoint.classifier, checkpoint.run, store, labels, {split: rows}, workers)
