"""Where a model is wrong and sure of it: its false positives and negatives on the test fold, most confident first.

Everything here follows from saved predictions. n records, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from reports.folder import Predictions, Study, at_path

Kind = Literal["false_positive", "false_negative"]
KINDS: tuple[Kind, ...] = ("false_positive", "false_negative")
HALF = 0.5
COLUMNS = ("class", "kind", "rank", "record_id", "probability", "confidence", "threshold")


@dataclass(frozen=True)
class Mistake:
    """One record that a model is wrong about.

    Attributes:
        label: the class.
        kind: false_positive (it says the class, the labels do not) or false_negative.
        rank: 1 for the most confident of its class and kind.
        record_id: which record.
        probability: that the model gives the class.
        threshold: from which it counts as said; None for single_label, where the largest probability is what is said.
        labels: the classes that the record has.
        answers: those that the model says.
    """

    label: str
    kind: Kind
    rank: int
    record_id: str
    probability: float
    threshold: float | None
    labels: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def confidence(self) -> float:
        """The probability of the wrong answer: p of a false positive, 1 - p of a false negative."""
        return self.probability if self.kind == "false_positive" else 1 - self.probability


def mistakes(
    predictions: Predictions, kind_of_labels: str, *, thresholds: Mapping[str, float] | None = None
) -> list[Mistake]:
    """All mistakes of a model, by class, kind and rank; equal confidences in the order of the record ids.

    A record without a class is a false positive from the threshold on, and one with it a false negative below; where
    labels are single, what is said is the class with the largest probability. Probabilities that are no numbers are
    left out.

    Args:
        predictions: of one split.
        kind_of_labels: multilabel or single_label.
        thresholds: of the classes, where they are not a half.
    """
    if not predictions.record_ids.size:
        return []
    limits = np.array([(thresholds or {}).get(name, HALF) for name in predictions.classes])
    single = kind_of_labels == "single_label"
    finite = np.asarray(np.isfinite(predictions.scores).all(axis=1))
    scores = np.where(finite[:, None], predictions.scores, 0.0)
    said = np.eye(len(limits), dtype=bool)[scores.argmax(axis=1)] if single else np.asarray(scores >= limits)
    true = np.asarray(predictions.targets > HALF)
    found = []
    for column, label in enumerate(predictions.classes):
        for kind in KINDS:
            positive = kind == "false_positive"
            wrong = np.flatnonzero(finite & (said[:, column] == positive) & (true[:, column] != positive))
            confidence = scores[wrong, column] if positive else 1 - scores[wrong, column]
            order = wrong[np.lexsort([predictions.record_ids[wrong], -confidence])]
            for rank, row in enumerate(order.tolist(), start=1):
                found.append(
                    Mistake(
                        label=label,
                        kind=kind,
                        rank=rank,
                        record_id=str(predictions.record_ids[row]),
                        probability=float(scores[row, column]),
                        threshold=None if single else float(limits[column]),
                        labels=_names(predictions, true[row]),
                        answers=_names(predictions, said[row]),
                    )
                )
    return found


def table_of(found: list[Mistake]) -> pd.DataFrame:
    """The mistakes as a table with COLUMNS."""
    rows = [(m.label, m.kind, m.rank, m.record_id, m.probability, m.confidence, m.threshold) for m in found]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def figures_of_mistakes(study: Study) -> dict[str, Any]:
    """How many mistakes the best trial makes of each class and kind on the test fold, and how sure it is at most."""
    predictions = study.predictions.get("best")
    test = None if predictions is None else predictions.of_split("test")
    if test is None or not test.record_ids.size:
        return {"reason": "the best trial has no predictions on the test fold"}
    found = mistakes(test, str(at_path(study.best, "contract.label_kind", "multilabel")))
    return {
        "num_records": int(test.record_ids.size),
        "classes": {
            label: {kind: _counted([m for m in found if m.label == label and m.kind == kind]) for kind in KINDS}
            for label in test.classes
        },
    }


def _counted(found: list[Mistake]) -> dict[str, Any]:
    return {"count": len(found), "largest_confidence": found[0].confidence if found else None}


def _names(predictions: Predictions, chosen: Any) -> tuple[str, ...]:
    return tuple(name for name, yes in zip(predictions.classes, chosen, strict=True) if yes)
