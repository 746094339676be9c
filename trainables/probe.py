"""A linear probe: logistic regression on frozen embeddings, solved to its one optimum in seconds.

It turns every pre-training epoch into the one number that is comparable across mask ratios, and it is the baseline that
every report names: the same probe on an encoder that was never trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.loaders import Window, eval_batches
from data.store import Store
from models.classifier import Classifier
from models.encoder import Encoder
from trainables.recordings import Recordings, window_of
from trainables.settings import Data, Probe
from trainables.workers import Workers

EVAL_BATCH_SIZE = 128  # records at a time; no gradients are kept, so this only bounds memory
MAX_ITERATIONS = 1000  # of L-BFGS; 200 to 400 reach the tolerance, as embeddings are strongly correlated
GRADIENT_TOLERANCE = 1e-6  # of the largest component, where probabilities are within 1e-4 of the optimum's


@torch.no_grad()
def embed(encoder: Encoder, store: Store, rows: NDArray[np.int64], data: Data, workers: Workers) -> Tensor:
    """Embeddings of the middle crop of `rows`, from the encoder in evaluation mode.

    Returns:
        (n, D) float32 on the CPU, in the order of `rows`, on every worker.
    """
    middle = replace(window_of(data), num_crops=1)
    shares = [crops[:, 0].cpu() for crops in crop_embeddings(encoder, store, rows, middle, workers)]
    mine = torch.cat(shares).numpy() if shares else np.empty((0, encoder.width), np.float32)
    return torch.from_numpy(workers.joined(mine))


@torch.no_grad()
def crop_embeddings(
    encoder: Encoder, store: Store, rows: NDArray[np.int64], window: Window, workers: Workers
) -> Iterator[Tensor]:
    """Embeddings of the evaluation crops of this worker's share of `rows`, from the encoder in evaluation mode.

    Yields:
        (b, num_crops, D) float32 on the worker's device, in the order of `rows`.
    """
    was_training = encoder.training
    encoder.eval()
    for crops, _ in eval_batches(
        store,
        rows,
        window=window,
        batch_size=EVAL_BATCH_SIZE,
        device=workers.device,
        rank=workers.rank,
        world_size=workers.world_size,
    ):
        embeddings: Tensor = encoder(crops.flatten(0, 1))
        yield embeddings.float().view(*crops.shape[:2], -1)
    encoder.train(was_training)


def fit(features: Tensor, targets: Tensor, *, kind: str, l2: float) -> tuple[Tensor, Tensor]:
    """L2-regularised logistic regression by L-BFGS on standardised features.

    Args:
        features: (n, D) embeddings.
        targets: (n, K) of 0 and 1.
        kind: multilabel (K sigmoids) or single_label (one softmax).
        l2: weight of half the squared norm of the standardised weights, beside the mean loss.

    Returns:
        weight (K, D) and bias (K) for the features as they came: the standardisation is folded in.
    """
    mean, std = features.double().mean(dim=0), features.double().std(dim=0, correction=0)
    std = torch.where(std > 1e-8, std, 1.0)  # a constant feature carries nothing
    scaled = (features.double() - mean) / std
    truth = targets.double()
    weight = torch.zeros(truth.shape[1], scaled.shape[1], dtype=torch.float64, requires_grad=True)
    share = truth.mean(dim=0).clamp(1e-6, 1 - 1e-6)
    start = torch.logit(share) if kind == "multilabel" else share.log()
    bias = start.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        max_eval=2 * MAX_ITERATIONS,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,  # small steps are no sign of the optimum where the loss is flat
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        logits = F.linear(scaled, weight, bias)
        if kind == "multilabel":
            loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(dim=1).mean()
        else:
            loss = F.cross_entropy(logits, truth)
        loss = loss + 0.5 * l2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    folded = weight.detach() / std
    return folded.float(), (bias.detach() - folded @ mean).float()


def probed_rows(recordings: Recordings, settings: Probe) -> NDArray[np.int64]:
    """The training records that a probe is fitted on."""
    rows = recordings.split.train
    if settings.max_train_records is not None and len(rows) > settings.max_train_records:
        # equally spaced rows: the same ones at every epoch and for every trial of a study
        rows = rows[np.linspace(0, len(rows) - 1, settings.max_train_records).round().astype(np.int64)]
    return rows


def probe_head(
    classifier: Classifier,
    recordings: Recordings,
    data: Data,
    settings: Probe,
    workers: Workers,
    *,
    features: Tensor | None = None,
) -> None:
    """Make the head of `classifier` the linear probe of its encoder, fitted on the training records.

    Args:
        classifier: whose head is changed.
        recordings: the run's.
        data: window.
        settings: of the probe.
        workers: this worker's place.
        features: what `embed` gives of `probed_rows`, where it is known.

    Raises:
        FloatingPointError: if an embedding is not finite.
    """
    rows = probed_rows(recordings, settings)
    if features is None:
        features = embed(classifier.encoder, recordings.store, rows, data, workers)
    if not torch.isfinite(features).all():
        raise FloatingPointError("the encoder's embeddings are not finite")
    targets = torch.from_numpy(recordings.targets(rows))
    weight, bias = fit(features, targets, kind=recordings.labels.kind, l2=settings.l2)
    with torch.no_grad():
        classifier.head.weight.copy_(weight)
        classifier.head.bias.copy_(bias)
