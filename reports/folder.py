"""What a study's folder says, read without the code that ran it: configuration, events, trials, predictions.

A folder may be copied to a machine without torch or Ray, may belong to a study that is still running, and may have
lost its last line to a killed process, so everything but `study.yaml` is read as far as it is there. It may be another
version's, too: events and columns that are not known here are passed over.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

PREDICTIONS = {
    "best": "predictions.parquet",
    "ensemble": "predictions_ensemble.parquet",
    "random_encoder": "predictions_random_encoder.parquet",
    "default_configuration": "predictions_default_configuration.parquet",
}
"""Model -> file under report/ that holds its predictions."""
ROUNDING = 1e-6
"""A probability that was computed in float32 may lie so far outside of 0 to 1."""
MADE_BY = b"heartsweep.made_by"
"""Key of such a file's metadata: JSON of the trial and the digest of the weights that made it."""
ENSEMBLE = "ensemble.json"
"""File under report/: the members of the ensemble, or the reason why there is none."""
UNTRAINED = "untrained.json"
"""File under report/: searched choice -> option -> the linear probe on the option's untrained encoder."""
RANGES = ("uniform", "log_uniform", "int_uniform", "log_int")
"""Kinds of distributions with two ends; the other kind is `choice`."""
ATTRIBUTES = ("age", "sex", "device", "site", "quality")
"""Columns of such a file that say whose recording it is and how it was made; files of older versions have none."""
NEEDED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "trial_started": {"trial": int, "params": dict},
    "epoch": {"trial": int, "epoch": int, "metrics": dict},
    "exploit": {"trial": int},
    "confirmation_started": {"trial": int, "index": int},
    "confirmation_ended": {"trial": int, "index": int},
    "confirmation_chosen": {"trial": int, "index": int, "seeds": int, "ranking": list},
    "trial_interrupted": {"trial": int},
    "released": {"stops": int, "gone": int, "longest_s": (int, float), "left": list},
}
"""What a report reads of an event without asking whether it is there; one without is another version's."""
Content = TypeVar("Content")
TRIAL_COLUMNS = ("number", "state", "value", "epochs", "seconds", "reason")
"""Columns of trials.parquet that are not parameters."""


@dataclass(frozen=True)
class Epoch:
    """The objective after one epoch of a trial."""

    epoch: int
    stage: str
    value: float


@dataclass(frozen=True)
class Trial:
    """One trial: how it ended, what it was given, how it went."""

    number: int
    state: str
    value: float | None
    epochs: int | None
    seconds: float | None
    reason: str | None
    params: dict[str, Any]
    """By dotted name; a parameter that its branch of the space does not have is left out."""
    curve: tuple[Epoch, ...]
    """Ascending; an epoch that was repeated after an interruption counts as it went the last time."""

    @property
    def non_finite(self) -> bool:
        """Whether the trial ended because its loss or its metric was not a number."""
        return (self.reason or "").startswith("non_finite")


@dataclass(frozen=True)
class Predictions:
    """A model's probabilities on validation and test records; n records in ascending order of id, K classes."""

    classes: tuple[str, ...]
    record_ids: NDArray[Any]
    """(n,) str."""
    patient_ids: NDArray[Any]
    """(n,) str."""
    splits: NDArray[Any]
    """(n,) "valid" or "test"."""
    targets: NDArray[np.float64]
    """(n, K) 0 or 1."""
    scores: NDArray[np.float64]
    """(n, K) probabilities."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """{"trial", "digest"} of the model; empty where the file does not say."""
    answered_by: NDArray[np.int64] | None = None
    """(n,) which of k fold models answered, from 1; 0 where all did together. None of a model of one split."""
    attributes: pd.DataFrame = field(default_factory=pd.DataFrame)
    """(n rows) those of ATTRIBUTES that the file has; `quality` holds tuples of flags, None where it is not known."""

    def of_split(self, split: str) -> Predictions:
        """The records of one split; there may be none."""
        return self.of_rows(self.splits == split)

    def of_rows(self, rows: NDArray[np.bool_]) -> Predictions:
        """Some of the records."""
        return replace(
            self,
            record_ids=self.record_ids[rows],
            patient_ids=self.patient_ids[rows],
            splits=self.splits[rows],
            targets=self.targets[rows],
            scores=self.scores[rows],
            answered_by=None if self.answered_by is None else self.answered_by[rows],
            attributes=self.attributes[rows] if len(self.attributes) else self.attributes,
        )

    def with_classes(self, classes: Sequence[str]) -> Predictions:
        """The same records with some of the classes."""
        columns = [self.classes.index(name) for name in classes]
        return replace(self, classes=tuple(classes), targets=self.targets[:, columns], scores=self.scores[:, columns])


@dataclass(frozen=True)
class Study:
    """A study's folder, read."""

    name: str
    """`study_dir` of its configuration, else the folder's own name."""
    config: dict[str, Any]
    events: tuple[dict[str, Any], ...]
    num_unreadable_events: int
    """Lines of events.jsonl that were cut, or that lack what an event of that name has here."""
    trials: tuple[Trial, ...]
    """Ascending by number."""
    best: dict[str, Any]
    """checkpoint.json of the best trial; empty where there is none yet."""
    default: dict[str, Any]
    """The same of the default configuration."""
    predictions: dict[str, Predictions] = field(repr=False)
    """By the keys of PREDICTIONS, those that have been made; never another trial's for the best one's."""
    outdated: int | None = None
    """The trial that predictions.parquet was made by where another one has become the best since."""
    ensemble: dict[str, Any] = field(default_factory=dict)
    """The content of ENSEMBLE; empty where none was asked for."""
    untrained: dict[str, Any] = field(default_factory=dict)
    """The content of UNTRAINED; empty where no encoder has been probed."""
    errors: dict[str, Any] = field(default_factory=dict)
    """The list of drawn mistakes (reports.checkpoints.error_sheets); empty where none was drawn."""
    folder: Path | None = None
    """Where all this was read from."""
    journal: Path | None = None
    """Optuna's journal, which may be missing or damaged: only `reports.search.importance` reads it."""
    problems: tuple[str, ...] = ()
    """What could not be read, or must not be shown, and why; a sentence each, without the folder's path."""
    refused: frozenset[str] = frozenset()
    """The models of PREDICTIONS whose files are there and cannot be used."""

    def setting(self, dotted: str, otherwise: Any = None) -> Any:
        """A value of the configuration by its dotted name."""
        return at_path(self.config, dotted, otherwise)

    def distribution_of(self, name: str) -> tuple[str, list[Any]]:
        """What a parameter was drawn from: the kind with its two ends or its options; ("", []) where nothing says."""
        return leaf((self.setting("space") or {}).get(name))

    @property
    def metric(self) -> str:
        """What was searched on."""
        return str(self.setting("search.metric", "val/auroc"))

    @property
    def maximizes(self) -> bool:
        """Whether more of it is better."""
        return str(self.setting("search.direction", "maximize")) != "minimize"

    @cached_property  # asked for once a mark in the drawings
    def best_trial(self) -> Trial | None:
        """The trial of checkpoints/best_1, else of the best one's predictions, else the best that ran to its end."""
        told = self.best or (self.predictions["best"].made_by if "best" in self.predictions else {})
        for trial in self.trials:
            if trial.number == told.get("trial"):
                return trial
        ended = [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]
        sign = 1 if self.maximizes else -1
        return max(ended, key=lambda trial: sign * (trial.value or 0.0), default=None)

    @property
    def default_params(self) -> dict[str, Any]:
        """The searched parameters as the default configuration has them; trial 0 is that configuration."""
        first = [trial.params for trial in self.trials if trial.number == 0]
        return dict(self.default.get("params") or (first[0] if first else {}))

    def of_event(self, name: str) -> list[dict[str, Any]]:
        """The events of one name, as they happened."""
        return [event for event in self.events if event.get("event") == name]


def read_study(study_dir: Path, *, with_predictions: bool = True) -> Study:
    """Read a study's folder as far as it can be read; what cannot be is left out and named in `problems`.

    Args:
        study_dir: the folder.
        with_predictions: whether the models' predictions are wanted, which are most of what is to be read.

    Raises:
        ValueError: if it is not one, or its configuration is damaged.
    """
    config = _read_yaml(study_dir / "study.yaml")
    problems: list[str] = []

    def part(read: Callable[[], Content], otherwise: Content) -> Content:
        try:
            return read()
        except ValueError as error:
            problems.append(" ".join(str(error).replace(f"{study_dir}{os.sep}", "").split()))  # not its author's path
            return otherwise

    def json_of(*names: str) -> dict[str, Any]:
        return part(lambda: _read_json(study_dir.joinpath(*names)), {})

    events, num_unreadable = _read_events(study_dir / "events.jsonl")
    best, default = (json_of("checkpoints", name, "checkpoint.json") for name in ("best_1", "default"))
    told = _trial_that_was_passed(events)
    predictions, outdated = _read_models(study_dir, config, best, told, part) if with_predictions else ({}, None)
    refused = frozenset(model for model, found in predictions.items() if found is None)
    shown = {model: found for model, found in predictions.items() if found is not None}
    for model, reason in (_not_of_default(shown, default) | _not_comparable(shown)).items():
        problems.append(f"{reason}; {PREDICTIONS[model]} is left out")
        del shown[model]
    metric = at_path(config, "search.metric", "val/auroc")
    table = part(lambda: _read_trials(study_dir / "trials.parquet"), pd.DataFrame(columns=TRIAL_COLUMNS))
    ensemble = json_of("report", ENSEMBLE)
    if "ensemble" in shown and shown["ensemble"].made_by.get("members") != ensemble.get("members"):
        del shown["ensemble"]  # of other members than those of now
    return Study(
        name=str(config.get("study_dir") or study_dir.resolve().name),
        config=config,
        events=tuple(events),
        num_unreadable_events=num_unreadable,
        trials=_trials(table, events, metric=metric, searched=at_path(config, "space", {})),
        best=best,
        default=default,
        predictions=shown,
        outdated=outdated,
        ensemble=ensemble,
        untrained=json_of("report", UNTRAINED),
        errors=_of_these(json_of("report", "errors", "errors.json"), shown.get("best")),
        folder=study_dir,
        journal=study_dir / "journal.log",
        problems=tuple(problems),
        refused=refused,
    )


def is_made_by(made_by: Mapping[str, Any], described: Mapping[str, Any]) -> bool:
    """Whether predictions are of a checkpoint's trial, and of its seed where it was confirmed.

    Args:
        made_by: what the predictions say of who made them; without a trial nothing speaks against it.
        described: the checkpoint.json; empty where it cannot be read, and nothing speaks against it either.
    """
    if "trial" not in made_by or not described:
        return True
    seeds = made_by.get("index"), (described.get("confirmed") or {}).get("index")
    return made_by["trial"] == described.get("trial") and seeds[0] == seeds[1]


def _of_these(errors: dict[str, Any], best: Predictions | None) -> dict[str, Any]:
    """The list of drawn mistakes, or why none was drawn; empty where they are another model's."""
    if "mistakes" not in errors or (best is not None and best.made_by and errors.get("made_by") == best.made_by):
        return errors
    return {}


def _read_models(
    study_dir: Path,
    config: dict[str, Any],
    best: dict[str, Any],
    told: dict[str, Any],
    part: Callable[[Callable[[], Predictions | None], Predictions | None], Predictions | None],
) -> tuple[dict[str, Predictions | None], int | None]:
    """Every model's predictions, None where `part` could not read them, and the trial that those of another are of.

    `told` is what the events say of predictions.parquet, for a file of an earlier version that says nothing itself.
    """
    test_folds = at_path(config, "data.test_folds", [])
    files = {model: study_dir / "report" / name for model, name in PREDICTIONS.items()}
    found = {
        model: part(functools.partial(read_predictions, path, test_folds), None)
        for model, path in files.items()
        if path.exists()
    }
    of_best = found.get("best")
    if of_best is not None and "trial" not in of_best.made_by:
        found["best"] = of_best = replace(of_best, made_by=of_best.made_by | told)
    if of_best is not None and not is_made_by(of_best.made_by, best):
        del found["best"]
        return found, of_best.made_by["trial"]
    return found, None


def _trial_that_was_passed(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"trial"} of the last pass of a best model over the test fold; empty where no event says it."""
    passed = [e for e in events if e.get("event") == "test_fold_opened" and e.get("model") == "best"]
    trial = passed[-1].get("trial") if passed else None
    return {} if trial is None else {"trial": trial}


def _not_of_default(predictions: Mapping[str, Predictions], default: Mapping[str, Any]) -> dict[str, str]:
    """The default configuration, with the reason, where its predictions are another model's."""
    model = "default_configuration"
    if model not in predictions or is_made_by(predictions[model].made_by, default):
        return {}
    trial = predictions[model].made_by["trial"]
    return {
        model: f"{PREDICTIONS[model]} is of trial {trial}, the default configuration is trial {default.get('trial')}"
    }


def _not_comparable(predictions: Mapping[str, Predictions]) -> dict[str, str]:
    """The models that cannot stand beside the best one, with the reason."""
    if "best" not in predictions:
        return {}
    best = predictions["best"]
    reasons = {
        model: why_not_comparable(best, other, names=(PREDICTIONS["best"], PREDICTIONS[model]))
        for model, other in predictions.items()
    }
    return {model: reason for model, reason in reasons.items() if reason is not None}


def why_not_comparable(one: Predictions, other: Predictions, *, names: tuple[str, str]) -> str | None:
    """Why two models' figures must not stand side by side; None where they may.

    Args:
        one: predictions.
        other: predictions of another model.
        names: what they are called in the reason.
    """
    both = f"{names[0]} and {names[1]}"
    if alone := set(one.record_ids) ^ set(other.record_ids):
        return (
            f"{both} must hold the same records, {len(alone)} are in one only (e.g. {min(alone)}): evaluate both again"
        )
    if one.classes != other.classes:
        return f"{both} must hold the same classes, got {', '.join(one.classes)} and {', '.join(other.classes)}"
    if not np.array_equal(one.patient_ids, other.patient_ids) or not np.array_equal(one.targets, other.targets):
        return f"{both} must give each record the same patient and labels: evaluate both again"
    if not np.array_equal(one.splits, other.splits):
        return f"{both} must have each record in the same split: evaluate both again"
    return None


def read_predictions(path: Path, test_folds: list[int]) -> Predictions:
    """Read one model's predictions.

    Args:
        path: a parquet file with record_id, patient_id, fold, y_<class> and p_<class>, and usually split.
        test_folds: folds that are "test" where the file has no column `split`.

    Raises:
        ValueError: if a column is missing, an id repeats, a label or probability is not a number of its kind, or a
            record has no patient.
    """
    table, made_by = _read_parquet(path), _made_by(path)
    classes = tuple(column[2:] for column in table.columns if column.startswith("y_"))
    needed = ["record_id", "patient_id", "fold", *(f"p_{name}" for name in classes)]
    if missing := [column for column in needed if column not in table.columns]:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}: evaluate the model again")
    if not classes or table.empty:
        raise ValueError(f"{path} must hold a label y_<class> and a row at least, got {table.shape}: evaluate again")
    table = table.assign(record_id=table["record_id"].astype(str)).sort_values("record_id")
    if table["record_id"].duplicated().any():
        repeated = table.loc[table["record_id"].duplicated(), "record_id"].iloc[0]
        raise ValueError(f"{path} must hold each record once, got {repeated} again: evaluate the model again")
    try:
        targets = table[[f"y_{name}" for name in classes]].to_numpy(dtype=np.float64)
        scores = table[[f"p_{name}" for name in classes]].to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{path} must hold numbers as labels and probabilities: evaluate the model again") from None
    if not np.isin(targets, (0.0, 1.0)).all():
        raise ValueError(f"{path} must hold labels that are 0 or 1: evaluate the model again")
    if not np.isfinite(scores).all():
        first = table["record_id"].iloc[int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])]
        raise ValueError(
            f"{path} must hold finite probabilities, {np.sum(~np.isfinite(scores))} are not (the first: of record "
            f"{first}): train again"
        )
    if (outside := np.abs(scores - 0.5) > 0.5 + ROUNDING).any():
        first = table["record_id"].iloc[int(np.flatnonzero(outside.any(axis=1))[0])]
        raise ValueError(
            f"{path} must hold probabilities between 0 and 1, {outside.sum()} are not (the first: of record {first}): "
            "evaluate the model again"
        )
    if (unknown := table["patient_id"].isna()).any():
        raise ValueError(
            f"{path} must name each record's patient, {unknown.sum()} have none (the first: record "
            f"{table.loc[unknown, 'record_id'].iloc[0]}): evaluate the model again"
        )
    splits = table["split"] if "split" in table else table["fold"].isin(test_folds).map({True: "test", False: "valid"})
    return Predictions(
        classes=classes,
        record_ids=table["record_id"].to_numpy(dtype=str),
        patient_ids=table["patient_id"].astype(str).to_numpy(dtype=str),
        splits=splits.to_numpy(dtype=str),
        targets=targets,
        scores=np.clip(scores, 0.0, 1.0),
        made_by=made_by,
        answered_by=table["answered_by"].to_numpy(dtype=np.int64) if "answered_by" in table else None,
        attributes=_attributes(table),
    )


def _attributes(table: pd.DataFrame) -> pd.DataFrame:
    """Those of ATTRIBUTES that a table of predictions has, with None for what is not known."""
    found = table[[name for name in ATTRIBUTES if name in table]].reset_index(drop=True)
    if "quality" in found:
        found["quality"] = pd.Series(
            [None if flags is None else tuple(flags) for flags in found["quality"]], dtype=object
        )
    return found


def _made_by(path: Path) -> dict[str, Any]:
    made_by = json.loads((pq.read_schema(path).metadata or {}).get(MADE_BY, b"{}"))
    return made_by if isinstance(made_by, dict) else {}


def at_path(tree: Any, dotted: str, otherwise: Any = None) -> Any:
    """The value at a dotted name in nested dicts, or `otherwise` where the path ends early."""
    for key in dotted.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return otherwise
        tree = tree[key]
    return tree


def leaf(content: Any) -> tuple[str, list[Any]]:
    """The kind of a distribution, with its two ends or its options: {log_uniform: [1e-4, 1e-2]} or {choice: [A, B]}."""
    if isinstance(content, list):
        return "choice", content
    for kind in RANGES:
        ends = at_path(content, kind)
        if isinstance(ends, list) and len(ends) == 2:
            return kind, [float(end) for end in ends]
    options = at_path(content, "choice")
    return ("choice", options) if isinstance(options, list) else ("", [])


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} is no study's folder, it lacks {path.name}: give the folder of a search as study_dir=DIR"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a configuration of named keys, got {type(config).__name__}")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; empty where there is none.

    Raises:
        ValueError: if it is damaged.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not readable JSON ({error}): restore it, or delete it with what it describes"
        ) from None
    return content if isinstance(content, dict) else {}


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not readable parquet ({' '.join(str(error).split())}): make it again") from None


def _read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Every event, and the number of lines that a killed process left in parts or that say another thing here."""
    events: list[dict[str, Any]] = []
    num_unreadable = 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in lines:
        try:
            event = json.loads(line) if line.strip() else None
        except json.JSONDecodeError:
            event = line
        if isinstance(event, dict) and _is_whole(event):
            events.append(event)
        elif event is not None:
            num_unreadable += 1
    return events, num_unreadable


def _is_whole(event: Mapping[str, Any]) -> bool:
    needed = NEEDED.get(event["event"], {}) if isinstance(event.get("event"), str) else {}
    return all(isinstance(event.get(key), kind) for key, kind in needed.items())


def _read_trials(path: Path) -> pd.DataFrame:
    """The table of trials; empty where there is none."""
    if not path.exists():
        return pd.DataFrame(columns=TRIAL_COLUMNS)
    table = _read_parquet(path)
    if "number" not in table or not all(isinstance(plain(number), int | float) for number in table["number"]):
        raise ValueError(f"{path} lacks the column number: type the line of the search again, which writes it anew")
    return table


def _trials(table: pd.DataFrame, events: list[dict[str, Any]], *, metric: str, searched: Any) -> tuple[Trial, ...]:
    """Trials of the table, and those that only the events know because they still run."""
    curves = _curves(events, metric)
    rows = {int(row["number"]): row for row in table.to_dict("records")}
    started = {event["trial"]: event["params"] for event in events if event.get("event") == "trial_started"}
    for number in started.keys() - rows.keys():
        rows[number] = {"state": "RUNNING"} | dict(started[number])
    names = {name for params in started.values() for name in params}
    names |= set(searched) if isinstance(searched, Mapping) else set()
    return tuple(_trial(number, rows[number], curves.get(number, {}), names) for number in sorted(rows))


def _trial(number: int, row: Mapping[Any, Any], curve: Mapping[int, Epoch], names: set[str]) -> Trial:
    """One trial; of its columns those that `names` has are parameters, all but our own where it has none."""
    known = {str(name): plain(value) for name, value in row.items()}
    epochs = _number_in(known, "epochs")
    params = {name: value for name, value in known.items() if name not in TRIAL_COLUMNS and value is not None}
    return Trial(
        number=number,
        state=str(known.get("state") or "RUNNING"),
        value=_number_in(known, "value"),
        epochs=len(curve) if epochs is None else int(epochs),
        seconds=_number_in(known, "seconds"),
        reason=None if known.get("reason") is None else str(known["reason"]),
        params={name: value for name, value in params.items() if not names or name in names},
        curve=tuple(curve[epoch] for epoch in sorted(curve)),
    )


def _number_in(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return value if isinstance(value, int | float) else None


def _curves(events: list[dict[str, Any]], metric: str) -> dict[int, dict[int, Epoch]]:
    curves: dict[int, dict[int, Epoch]] = {}
    for event in events:
        if event.get("event") != "epoch":
            continue
        value, number = event["metrics"].get(metric), event["epoch"]
        if isinstance(value, int | float) and math.isfinite(value):
            curves.setdefault(event["trial"], {})[number] = Epoch(number, str(event.get("stage", "")), float(value))
    return curves


def plain(value: Any) -> Any:
    """A cell of a table as a Python value; NaN, which is how a table leaves a cell empty, as None."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value
