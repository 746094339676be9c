"""Probabilities of a classifier on rows of a store: the one way in which anything here is evaluated."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.loaders import eval_batches
from data.store import Store
from models.classifier import Classifier
from trainables import metrics
from trainables.probe import EVAL_BATCH_SIZE
from trainables.recordings import Recordings, window_of
from trainables.settings import Data, Task
from trainables.workers import Workers


def probabilities_of(logits: Tensor, kind: str) -> Tensor:
    """(..., K) logits as probabilities: sigmoids for multilabel, a softmax for single_label."""
    return logits.sigmoid() if kind == "multilabel" else logits.softmax(dim=-1)


@torch.no_grad()
def predict(
    classifier: Classifier, store: Store, rows: NDArray[np.int64], data: Data, workers: Workers, *, kind: str
) -> NDArray[np.float32]:
    """(n, K) probabilities of `rows`, the mean over each record's evaluation crops, on every worker."""
    was_training = classifier.training
    classifier.eval()
    shares = []
    for crops, _ in eval_batches(
        store,
        rows,
        window=window_of(data),
        batch_size=EVAL_BATCH_SIZE,
        device=workers.device,
        rank=workers.rank,
        world_size=workers.world_size,
    ):
        logits = classifier(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])
        shares.append(probabilities_of(logits.float(), kind).mean(dim=1).cpu().numpy())
    classifier.train(was_training)
    mine = np.concatenate(shares) if shares else np.empty((0, classifier.head.out_features), np.float32)
    return workers.joined(mine)


def validate(
    classifier: Classifier, recordings: Recordings, data: Data, task: Task, workers: Workers
) -> dict[str, float]:
    """The task's metrics of `classifier` on the validation rows, as `val/<metric>`.

    Raises:
        FloatingPointError: if a probability is not finite.
    """
    rows = recordings.split.valid
    probabilities = predict(classifier, recordings.store, rows, data, workers, kind=recordings.labels.kind)
    if not np.isfinite(probabilities).all():
        raise FloatingPointError("the model's validation probabilities are not finite")
    classes = recordings.valid_classes
    return metrics.compute(
        task.metrics,
        recordings.labels.kind,
        np.ascontiguousarray(probabilities[:, classes]),
        np.ascontiguousarray(recordings.targets(rows)[:, classes]),
        split="val",
    )
