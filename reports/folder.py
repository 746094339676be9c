"""What a study's folder says, read without the code that ran it: configuration, events, trials, predictions.

A folder may be copied to a machine without torch or Ray, may belong to a study that is still running, and may have
lost its last line to a killed process, so everything but `study.yaml` is read as far as it is there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

PREDICTIONS = {
    "best": "predictions.parquet",
    "random_encoder": "predictions_random_encoder.parquet",
    "default_configuration": "predictions_default_configuration.parquet",
}
"""Model -> file under report/ that holds its predictions."""
MADE_BY = b"heartsweep.made_by"
"""Key of such a file's metadata: JSON of the trial and the digest of the weights that made it."""
UNTRAINED = "untrained.json"
"""File under report/: searched choice -> option -> the linear probe on the option's untrained encoder."""
RANGES = ("uniform", "log_uniform", "int_uniform", "log_int")
"""Kinds of distributions with two ends; the other kind is `choice`."""
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

    def of_split(self, split: str) -> Predictions:
        """The records of one split; there may be none."""
        rows = self.splits == split
        return replace(
            self,
            record_ids=self.record_ids[rows],
            patient_ids=self.patient_ids[rows],
            splits=self.splits[rows],
            targets=self.targets[rows],
            scores=self.scores[rows],
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
    untrained: dict[str, Any] = field(default_factory=dict)
    """The content of UNTRAINED; empty where no encoder has been probed."""
    errors: dict[str, Any] = field(default_factory=dict)
    """The list of drawn mistakes (reports.error_sheets); empty where none was drawn."""
    folder: Path | None = None
    """Where all this was read from."""
    journal: Path | None = None
    """Optuna's journal, which may be missing or damaged: only `reports.importance` reads it."""

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

    @property
    def best_trial(self) -> Trial | None:
        """The trial of checkpoints/best_1, else the best that ran to its end."""
        for trial in self.trials:
            if trial.number == self.best.get("trial"):
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


def read_study(study_dir: Path) -> Study:
    """Read a study's folder.

    Raises:
        ValueError: if it is not one, or a file in it is not what it should be.
    """
    config = _read_yaml(study_dir / "study.yaml")
    events, num_unreadable = _read_events(study_dir / "events.jsonl")
    checkpoints = study_dir / "checkpoints"
    best = _read_json(checkpoints / "best_1" / "checkpoint.json")
    test_folds = at_path(config, "data.test_folds", [])
    files = {model: study_dir / "report" / name for model, name in PREDICTIONS.items()}
    predictions = {model: read_predictions(path, test_folds) for model, path in files.items() if path.exists()}
    outdated = None
    if "best" in predictions and predictions["best"].made_by.get("trial", best.get("trial")) != best.get("trial"):
        outdated = predictions.pop("best").made_by["trial"]
    return Study(
        name=str(config.get("study_dir") or study_dir.resolve().name),
        config=config,
        events=tuple(events),
        num_unreadable_events=num_unreadable,
        trials=_trials(study_dir / "trials.parquet", events, metric=at_path(config, "search.metric", "val/auroc")),
        best=best,
        default=_read_json(checkpoints / "default" / "checkpoint.json"),
        predictions=predictions,
        outdated=outdated,
        untrained=_read_json(study_dir / "report" / UNTRAINED),
        errors=_read_json(study_dir / "report" / "errors" / "errors.json"),
        folder=study_dir,
        journal=study_dir / "journal.log",
    )


def read_predictions(path: Path, test_folds: list[int]) -> Predictions:
    """Read one model's predictions.

    Args:
        path: a parquet file with record_id, patient_id, fold, y_<class> and p_<class>, and usually split.
        test_folds: folds that are "test" where the file has no column `split`.

    Raises:
        ValueError: if a column is missing, an id repeats, or a label or probability is not a number of its kind.
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
    targets = table[[f"y_{name}" for name in classes]].to_numpy(dtype=np.float64)
    scores = table[[f"p_{name}" for name in classes]].to_numpy(dtype=np.float64)
    if not np.isin(targets, (0.0, 1.0)).all():
        raise ValueError(f"{path} must hold labels that are 0 or 1: evaluate the model again")
    if not np.isfinite(scores).all():
        raise ValueError(f"{path} must hold finite probabilities, {np.sum(~np.isfinite(scores))} are not: train again")
    splits = table["split"] if "split" in table else table["fold"].isin(test_folds).map({True: "test", False: "valid"})
    return Predictions(
        classes=classes,
        record_ids=table["record_id"].to_numpy(dtype=str),
        patient_ids=table["patient_id"].astype(str).to_numpy(dtype=str),
        splits=splits.to_numpy(dtype=str),
        targets=targets,
        scores=scores,
        made_by=made_by,
    )


def _made_by(path: Path) -> dict[str, Any]:
    content = (pq.read_schema(path).metadata or {}).get(MADE_BY, b"{}")
    made_by: dict[str, Any] = json.loads(content)
    return made_by


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
    except (OSError, ValueError) as error:  # pyarrow's errors are these two
        raise ValueError(f"{path} is not readable parquet ({' '.join(str(error).split())}): make it again") from None


def _read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Every whole line, and the number of those that a killed process left in parts."""
    events: list[dict[str, Any]] = []
    num_unreadable = 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in lines:
        try:
            event = json.loads(line) if line.strip() else None
        except json.JSONDecodeError:
            event = line
        if isinstance(event, dict):
            events.append(event)
        elif event is not None:
            num_unreadable += 1
    return events, num_unreadable


def _trials(path: Path, events: list[dict[str, Any]], *, metric: str) -> tuple[Trial, ...]:
    """Trials of the table, and those that only the events know because they still run."""
    curves = _curves(events, metric)
    table = _read_parquet(path) if path.exists() else pd.DataFrame(columns=TRIAL_COLUMNS)
    if "number" not in table:
        raise ValueError(f"{path} lacks the column number: type the line of the search again, which writes it anew")
    rows = {int(row["number"]): row for row in table.to_dict("records")}
    started = {event["trial"]: event for event in events if event.get("event") == "trial_started"}
    for number in started.keys() - rows.keys():
        rows[number] = {"state": "RUNNING"} | dict(started[number].get("params") or {})
    return tuple(_trial(number, rows[number], curves.get(number, {})) for number in sorted(rows))


def _trial(number: int, row: Mapping[Any, Any], curve: Mapping[int, Epoch]) -> Trial:
    known = {str(name): plain(value) for name, value in row.items()}
    epochs = known.get("epochs")
    return Trial(
        number=number,
        state=str(known.get("state") or "RUNNING"),
        value=known.get("value"),
        epochs=len(curve) if epochs is None else int(epochs),
        seconds=known.get("seconds"),
        reason=known.get("reason"),
        params={name: value for name, value in known.items() if name not in TRIAL_COLUMNS and value is not None},
        curve=tuple(curve[epoch] for epoch in sorted(curve)),
    )


def _curves(events: list[dict[str, Any]], metric: str) -> dict[int, dict[int, Epoch]]:
    curves: dict[int, dict[int, Epoch]] = {}
    for event in events:
        value = (event.get("metrics") or {}).get(metric)
        if event.get("event") == "epoch" and isinstance(value, int | float) and math.isfinite(value):
            epoch = Epoch(int(event["epoch"]), str(event.get("stage", "")), float(value))
            curves.setdefault(event["trial"], {})[epoch.epoch] = epoch
    return curves


def plain(value: Any) -> Any:
    """A cell of a table as a Python value; NaN, which is how a table leaves a cell empty, as None."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value
