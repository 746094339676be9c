"""Probabilities of a classifier on rows of a store: the one way in which anything here is evaluated."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.store import Store
from models.classifier import Classifier
from trainables import metrics
from trainables.probe import crop_embeddings
from trainables.recordings import Recordings, window_of
from trainables.settings import Data, Task
from trainables.workers import Workers


def probabilities_of(logits: Tensor, kind: str) -> Tensor:
    """(..., K) logits as probabilities: sigmoids for multilabel, a softmax for single_label."""
    return logits.sigmoid() if kind == "multilabel" else logits.softmax(dim=-1)


def predict(
    classifier: Classifier, store: Store, rows: NDArray[np.int64], data: Data, workers: Workers, *, kind: str
) -> NDArray[np.float32]:
    """(n, K) probabilities of `rows`, the mean over each record's evaluation crops, on every worker."""
    embeddings = crop_embeddings(classifier.encoder, store, rows, window_of(data), workers)
    return _answers(classifier, embeddings, workers, kind)


@torch.no_grad()
def _answers(classifier: Classifier, embeddings: Iterable[Tensor], workers: Workers, kind: str) -> NDArray[np.float32]:
    """(n, K) probabilities of all workers' records from this worker's (b, num_crops, D) embeddings of its own."""
    shares = [probabilities_of(classifier.head(crops), kind).mean(dim=1).cpu().numpy() for crops in embeddings]
    mine = np.concatenate(shares) if shares else np.empty((0, classifier.head.out_features), np.float32)
    return workers.joined(mine)


def validate(
    classifier: Classifier,
    recordings: Recordings,
    data: Data,
    task: Task,
    workers: Workers,
    *,
    embeddings: Iterable[Tensor] | None = None,
) -> dict[str, float]:
    """The task's metrics of `classifier` on the validation rows, as `val/<metric>`.

    Args:
        classifier: answers.
        recordings: whose validation rows are asked about.
        data: window and crops.
        task: which metrics.
        workers: this worker's place.
        embeddings: what `crop_embeddings` gave of these rows, where the encoder has not changed since.

    Raises:
        FloatingPointError: if a probability is not finite.
    """
    rows, kind = recordings.split.valid, recordings.labels.kind
    if embeddings is None:
        embeddings = crop_embeddings(classifier.encoder, recordings.store, rows, window_of(data), workers)
    probabilities = _answers(classifier, embeddings, workers, kind)
    if not np.isfinite(probabilities).all():
        raise FloatingPointError("the model's validation probabilities are not finite")
    classes = recordings.valid_classes
    return metrics.compute(
        task.metrics,
        kind,
        np.ascontiguousarray(probabilities[:, classes]),
        np.ascontiguousarray(recordings.targets(rows)[:, classes]),
        split="val",
    )
