"""Metrics by their torchmetrics names, computed on probabilities of one split."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data.labels import Kind


def metric_key(name: str) -> str:
    """`AveragePrecision` -> `average_precision`, `AUROC` -> `auroc`: how a metric is logged after its split."""
    words = re.findall(r"[A-Z]+\d*(?=[A-Z][a-z]|$)|[A-Z]?[a-z]+\d*", name)
    return "_".join(word.lower() for word in words)


def metric_names() -> list[str]:
    """The torchmetrics classes that `compute` can use: those that choose by `task` and average over classes."""
    return ["AUROC", "AveragePrecision", "Accuracy", "F1Score", "Precision", "Recall", "Specificity"]


def compute(
    names: Sequence[str], kind: Kind, probabilities: NDArray[np.float32], targets: NDArray[np.float32], *, split: str
) -> dict[str, float]:
    """Macro metrics over the classes given.

    Args:
        names: torchmetrics class names.
        kind: multilabel (sigmoid probabilities) or single_label (softmax probabilities).
        probabilities: (n, K), K classes that all occur both ways among the n records.
        targets: (n, K) of 0 and 1.
        split: what the keys begin with.

    Returns:
        Values by key, e.g. {"val/auroc": 0.91}; decisions are taken at 0.5 or at the most probable class.
    """
    import torchmetrics  # takes seconds to import, which a process that measures nothing need not wait for

    scores, truth = torch.from_numpy(probabilities), torch.from_numpy(targets).long()
    num_classes = scores.shape[1]
    values = {}
    for name in names:
        metric = getattr(torchmetrics, name)
        if kind == "multilabel":
            value = metric(task="multilabel", num_labels=num_classes, average="macro")(scores, truth)
        else:
            value = metric(task="multiclass", num_classes=num_classes, average="macro")(scores, truth.argmax(dim=1))
        values[f"{split}/{metric_key(name)}"] = float(value)
    return values
