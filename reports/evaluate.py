"""What a study's models answer after the search, on validation and on test: the one place that opens the test fold.

Every pass of a model over the test fold is written down before it is made. A file of predictions says by which weights
they were made: what these weights have predicted once is read again, never predicted again. The untrained encoders of
the methods that were searched among are probed on the validation fold alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.labels import Labels
from data.splits import Rows
from data.store import Store
from models.classifier import Classifier
from models.encoder import Encoder
from reports.folder import ATTRIBUTES, ENSEMBLE, MADE_BY, PREDICTIONS, UNTRAINED, read_study
from reports.search.choices import probed_trials
from trainables.checkpoint import DESCRIPTION, Checkpoint, load, read_description, weights_digest
from trainables.ensemble import MEMBERS, EnsembleCheckpoint, difference_between, digest_of, make_ensemble
from trainables.files import write_atomically
from trainables.folds import answering_model, predict_unseen, probed_unit, validate_unit
from trainables.pretrain import fresh_encoder
from trainables.recordings import open_recordings
from trainables.retention import CONFIRMED, confirmed_path
from trainables.settings import Run
from trainables.study import StudyFolder
from trainables.workers import Workers


def evaluate_study(study: StudyFolder, store: Path, workers: Workers) -> int:
    """Predict with the best trial's model, an untrained encoder with a linear probe, and the default configuration's.

    The ensemble's members are fixed before the first of these passes, and are passed over the test fold one by one.

    Args:
        study: whose `checkpoints/best_1` and `checkpoints/default` are there.
        store: the prepared recordings.
        workers: this process.

    Returns:
        How many models were passed over the test fold now; 0 where all that is wanted had been predicted before.

    Raises:
        DataError, StorageError: if the recordings or a checkpoint cannot be read.
    """
    members = fix_members(study)  # before the first look: who they are must not be able to follow from one
    best = load(study.checkpoints / "best_1")
    searched = _as_searched(study, best)
    untrained = fresh_encoder(searched)
    opened = _predict_once(
        study, "best", _made_by(study, "best_1", best), lambda: best.classifier, best.run, store, workers
    )
    opened += _predict_once(
        study,
        "random_encoder",
        {"trial": None, "digest": _digest_of_probe(searched, untrained)},
        lambda: probed_unit(searched, untrained.to(workers.device), open_recordings(searched, store), workers),
        searched,
        store,
        workers,
    )
    opened += _evaluate_ensemble(study, members, store, workers)
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
                probe = probed_unit(run, encoder.to(workers.device), recordings, workers)
                known[digest] = validate_unit(probe, recordings, run, workers)
                num_probed += 1
            entry = {"trial": trial, "digest": digest, "metrics": known[digest]}
            if content.setdefault(parameter, {}).get(option) != entry:
                content[parameter][option] = entry
                write_atomically(study.report / UNTRAINED, json.dumps(content, indent=1).encode() + b"\n")
    return num_probed


def _made_by(study: StudyFolder, name: str, checkpoint: Checkpoint) -> dict[str, Any]:
    digest = weights_digest(study.checkpoints / name)
    return {"trial": checkpoint.description["trial"], "digest": digest, **_seed_of(checkpoint.description)}


def _seed_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """Which of its trial's seeds a model is of, where it was made by a confirmation run."""
    return {"index": description[CONFIRMED]["index"]} if CONFIRMED in description else {}


def _as_searched(study: StudyFolder, best: Checkpoint) -> Run:
    """The run that a confirmed model has but for its seed: what it is held against must not change with that."""
    if CONFIRMED not in best.description:
        return best.run
    held = study.read_configuration()
    data = best.run.data.model_copy(update={"subsample_seed": held["data"].get("subsample_seed")})
    return best.run.model_copy(update={"seed": held["seed"], "data": data})


def _digest_of_probe(run: Run, untrained: Encoder) -> str:
    """What a linear probe on an untrained encoder follows from: the encoder's weights, the recordings, the probe."""
    task = run.task
    data = run.data.model_dump(mode="json", exclude={"subsample_seed"} if run.data.subsample_seed is None else None)
    settings = {"data": data, "labels": task.labels, "classes": task.classes, "probe": task.probe, "seed": run.seed}
    if task.folds > 1:  # else as files of earlier versions have it
        settings["folds"] = task.folds
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
        model: one of PREDICTIONS, or "ensemble_member".
        made_by: the trial and the digest of its weights.
        classifier: makes the model, where it is needed.
        run: whose recordings, window and crops are used.
        store: the prepared recordings.
        workers: this process.
    """
    path = study.report / (PREDICTIONS[model] if model in PREDICTIONS else _member_file(made_by["digest"]))
    if maker_of(path) == made_by:
        _describe_again(path, store, made_by)
        return 0
    # the best trial may be the default configuration, or have been in an ensemble: one pass serves both
    for other in (
        *(study.report / name for name in PREDICTIONS.values()),
        study.report / _member_file(made_by["digest"]),
    ):
        if maker_of(other) == made_by:
            write_atomically(path, other.read_bytes())
            return 0
    recordings = open_recordings(run, store)
    rows = {"valid": recordings.split.valid, "test": recordings.split.test}
    ready = classifier()
    _record_opening(study, model, made_by["trial"], recordings.store, rows["test"])
    held_out = () if recordings.folds is None else recordings.folds.held_out
    found = table(ready, run, recordings.store, recordings.labels, rows, workers, held_out=held_out)
    write_predictions(path, found, made_by)
    return 1


def _describe_again(path: Path, store: Path, made_by: dict[str, Any]) -> None:
    """Put the attributes beside predictions of a version that did not keep them; no model is asked anything."""
    if set(ATTRIBUTES) <= set(pq.read_schema(path).names):
        return
    opened, predictions = Store.open(store), pd.read_parquet(path)
    row_of_record = pd.Series(np.arange(len(opened.index)), index=opened.index["record_id"].astype(str))
    rows = row_of_record.reindex(predictions["record_id"].astype(str))
    if rows.isna().any():  # of other recordings: they keep what they say of themselves
        return
    found = pd.DataFrame(_attributes(opened, rows.to_numpy(dtype=np.int64)), index=predictions.index)
    write_predictions(path, predictions.assign(**{name: found[name] for name in ATTRIBUTES}), made_by)


def fix_members(study: StudyFolder) -> list[dict[str, Any]]:
    """Say who the members of a study's ensemble are (search.ensemble), and make checkpoints/ensemble of them.

    They are one model a configuration: of confirmed ones the median seed's in the order of their means, then the
    search's kept ones by rank. Who they are follows from validation values alone.

    Returns:
        As checkpoint.json of the ensemble lists them; none where there is no ensemble.

    Raises:
        DataError, StorageError: if a checkpoint cannot be read.
    """
    search = study.read_configuration().get("search") or {}
    asked = search.get("ensemble")
    sources = ensemble_sources(study, search.get("keep_best", 0) if asked is None else asked)
    if asked == 0 or (asked is None and len(sources) < 2):
        if (study.report / ENSEMBLE).exists():  # one was asked for before
            _say_ensemble(study, {"members": [], "reason": None})
        return []
    reason = "only one configuration was completed and kept" if len(sources) < 2 else None
    reason = reason or difference_between([read_description(source) for source in sources])
    if reason is not None:
        _say_ensemble(study, {"members": [], "reason": reason})
        return []
    members: list[dict[str, Any]] = make_ensemble(study.checkpoints / MEMBERS, sources)[MEMBERS]
    _say_ensemble(study, {"members": members, "reason": None})
    return members


def _evaluate_ensemble(study: StudyFolder, members: Sequence[Mapping[str, Any]], store: Path, workers: Workers) -> int:
    """Average the probabilities of an ensemble's members; say how many were passed over the test fold now."""
    if not members:
        return 0
    folder = study.checkpoints / MEMBERS
    opened = sum(_predict_member(study, folder / member["folder"], store, workers) for member in members)
    path, made_by = study.report / PREDICTIONS["ensemble"], {"trial": None, "digest": digest_of(members)}
    if maker_of(path) != made_by | {"members": members}:
        tables = [pd.read_parquet(study.report / _member_file(member["digest"])) for member in members]
        write_predictions(path, averaged(tables), made_by | {"members": members})
    return opened


def ensemble_sources(study: StudyFolder, most: int) -> list[Path]:
    """The checkpoints that an ensemble of at most so many models is made of, the best first, each of another trial."""
    chosen = [event for event in study.read_events() if event["event"] == "confirmation_chosen"]
    ranking = (chosen[-1].get("ranking") or []) if chosen else []
    confirmed = [confirmed_path(study, row["trial"], row["index"]) for row in ranking if row["index"] is not None]
    ranks = sorted(study.checkpoints.glob("best_*"), key=lambda folder: (len(folder.name), folder.name))
    found: dict[int | None, Path] = {}
    for folder in (*confirmed, *ranks):
        if (folder / DESCRIPTION).exists():
            found.setdefault(read_description(folder)["trial"], folder)
    return list(found.values())[:most]


def averaged(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Members' predictions of the same records as one table: the mean of their probabilities.

    Raises:
        ValueError: if they are of different records, labels or classes.
    """
    first = tables[0]
    answers = [name for name in first.columns if name.startswith("p_")]
    for other in tables[1:]:
        if not other.drop(columns=answers, errors="ignore").equals(first.drop(columns=answers)):
            raise ValueError("the members of an ensemble must have predicted the same records: evaluate them again")
    mean = np.mean([table[answers].to_numpy() for table in tables], axis=0)
    return first.assign(**dict(zip(answers, mean.T, strict=True)))


def _predict_member(study: StudyFolder, folder: Path, store: Path, workers: Workers) -> int:
    checkpoint = load(folder)
    made_by = {"trial": checkpoint.description["trial"], "digest": weights_digest(folder)}
    made_by |= _seed_of(checkpoint.description)
    run, classifier = checkpoint.run, checkpoint.classifier
    return _predict_once(study, "ensemble_member", made_by, lambda: classifier, run, store, workers)


def _member_file(digest: str) -> str:
    return f"members/{digest[:16]}.parquet"


def _say_ensemble(study: StudyFolder, content: dict[str, Any]) -> None:
    write_atomically(study.report / ENSEMBLE, json.dumps(content, indent=1).encode() + b"\n")


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
    *,
    held_out: Sequence[Rows] = (),
) -> pd.DataFrame:
    """Predictions of some rows: record_id, patient_id, fold, split, ATTRIBUTES, then y_<class> and p_<class>.

    Of a model of k folds also answered_by, see `trainables.folds.answering_model`.

    Args:
        classifier: predicts.
        run: whose window and crops are used.
        store: prepared as the classifier's contract says.
        labels: of the store's rows, a column for each of the classifier's classes.
        rows: of each split that is wanted.
        workers: this process.
        held_out: what each model of a run on k folds has not seen (trainables.folds.predict_unseen).
    """
    assert len(labels.classes) == classifier.head.out_features
    parts = []
    for split, chosen in rows.items():
        probabilities = predict_unseen(
            classifier.to(workers.device), store, chosen, run.data, workers, kind=labels.kind, held_out=held_out
        )
        index = store.index.iloc[chosen]
        targets = labels.targets[chosen]
        columns: dict[str, Any] = {
            "record_id": index["record_id"].astype(str).to_numpy(),
            "patient_id": index["patient_id"].astype(str).to_numpy(),
            "fold": index["fold"].to_numpy(),
            "split": split,
            **_attributes(store, chosen),
        }
        if held_out:
            columns["answered_by"] = answering_model(chosen, held_out)
        columns |= {f"y_{name}": targets[:, k].astype(np.int8) for k, name in enumerate(labels.classes)}
        # float64 of what was computed in float32: every reader then sees the same numbers
        columns |= {f"p_{name}": probabilities[:, k].astype(np.float64) for k, name in enumerate(labels.classes)}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _attributes(store: Store, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What the index says of some rows that subgroups are made of: the ATTRIBUTES of `reports.folder`."""
    index = store.index.iloc[rows]
    texts = {
        name: np.array([None if pd.isna(text) else str(text) for text in index[name]], dtype=object)
        for name in ("sex", "device", "site")
    }
    quality = pd.Series(store.quality(rows), dtype=object).to_numpy()  # numpy would make a table of lists of one length
    return {"age": index["age"].to_numpy(), **texts, "quality": quality}


def evaluate_checkpoint(
    checkpoint: Checkpoint | EnsembleCheckpoint,
    folder: Path,
    store: Store,
    labels: Labels,
    rows: NDArray[np.int64],
    split: str,
    workers: Workers,
    *,
    together: bool = False,
) -> pd.DataFrame:
    """Predictions of a checkpoint or an ensemble on some rows; a pass over the test fold is in its study's events.

    Args:
        checkpoint: loaded from `folder`.
        folder: somewhere in a study's folder, or anywhere else: the event then goes beside the checkpoint.
        store: prepared as the checkpoint's contract says.
        labels: of its rows, as `Checkpoint.labels_in` gives them.
        rows: which.
        split: "valid" or "test", what they count as.
        workers: this process.
        together: have the models of a run on k folds answer together, as they do on records that none has seen.
    """
    if split == "test":
        studies = [StudyFolder(parent) for parent in folder.absolute().parents]
        home = next((study for study in studies if study.configuration.exists()), StudyFolder(folder))
        _record_opening(home, folder.name, checkpoint.description.get("trial"), store, rows)
    members = checkpoint.members if isinstance(checkpoint, EnsembleCheckpoint) else (checkpoint,)
    return averaged([_answers_of(member, store, labels, {split: rows}, workers, together) for member in members])


def _answers_of(
    checkpoint: Checkpoint, store: Store, labels: Labels, rows: dict[str, Rows], workers: Workers, together: bool
) -> pd.DataFrame:
    """One checkpoint's predictions; of a run on k folds, each record is answered by who has not seen it."""
    held_out: Sequence[Rows] = ()
    if not together and checkpoint.run.task.folds > 1 and store.hash == checkpoint.description["store"]:
        folds = open_recordings(checkpoint.run, store.path).folds
        assert folds is not None
        held_out = folds.held_out
    return table(checkpoint.classifier, checkpoint.run, store, labels, rows, workers, held_out=held_out)
