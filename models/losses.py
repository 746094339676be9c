"""What is minimised: functions of predictions and targets, each a mean over the records of a batch.

Contrastive losses hold this worker's records against those of all workers (models.across_workers).

Shapes: b records of this worker, B of all of them, P samples of a patch, K classes, D width of an embedding.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.across_workers import gathered

NEVER = -1e30
"""A logit of what is no candidate: its weight is 0, and unlike minus infinity it leaves gradients finite."""


def patch_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of reconstructed patches, in float32: (..., P), (..., P) -> scalar.

    Source: MAE, He et al. 2022, arXiv:2111.06377, sec. 3 (there, and in ST-MEM, of the hidden patches alone).
    """
    return F.mse_loss(prediction.float(), target.float())


def standardized_patches(patches: Tensor) -> Tensor:
    """(..., P), every patch brought to mean 0 and divided by the root of its (unbiased) variance + 1e-6.

    Source: MAE, He et al. 2022, arXiv:2111.06377, sec. 3 ("normalised pixels").
    """
    return (patches - patches.mean(dim=-1, keepdim=True)) / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Normalised cross-correlation at lag 0, in float32: (..., T), (..., T) -> (...), from -1 to 1.

    1 for a copy scaled by a positive number and shifted, -1 for a negated one; 0 where one is constant.

    Source: Turgut et al. 2025, arXiv:2308.05764.
    """
    first, second = (values.float() - values.float().mean(dim=-1, keepdim=True) for values in (first, second))
    energy = first.square().sum(dim=-1) * second.square().sum(dim=-1)
    return (first * second).sum(dim=-1) / (energy + 1e-12).sqrt()


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Normalised-temperature cross-entropy of two views of each record, against all other views of the global batch.

    Args:
        first: (b, D) embeddings of one view.
        second: (b, D) of the other.
        temperature: what cosine similarities are divided by.

    Returns:
        The scalar mean over this worker's 2 b views, in float32.

    Source: SimCLR, Chen et al. 2020, arXiv:2002.05709, eq. 1 (the mean, not the sum, of both directions).
    """
    views = F.normalize(torch.stack([first, second], dim=1).float(), dim=-1)  # (b, 2, D)
    everything, start = gathered(views)
    with _full_precision(views):
        logits = views.flatten(0, 1) @ everything.flatten(0, 1).T / temperature  # (2 b, 2 B)
    own = torch.arange(2 * len(views), device=views.device) + 2 * start
    logits = logits.scatter(1, own[:, None], NEVER)  # a view is no candidate for itself
    return F.cross_entropy(logits, own ^ 1)  # the other view of the same record


def alignment_loss(
    first: Tensor,
    second: Tensor,
    *,
    scale: Tensor | float,
    same: Tensor | None = None,
    treatment: Literal["exclude", "positive", "ignore"] = "ignore",
    first_weight: float = 0.5,
) -> Tensor:
    """Contrast two embeddings of each record, in both directions, over the global batch (CLIP's loss).

    Each `first` is to find its own among all `second`, and the reverse. Records that say the same (one report, one
    patient) are no true negatives of each other; `treatment` says what they are. Where no record says the same as
    another the three agree.

    Args:
        first: (b, D) embeddings of one kind.
        second: (b, D) of the other.
        scale: what cosine similarities are multiplied with, 1 / temperature.
        same: (b,) int64; records of one number say the same. None: all differ.
        treatment: `ignore` leaves them negatives; `exclude` leaves them out of the sums; `positive` makes each of them
            a target of its own, against those alone that say something else, and averages over a record's targets.
        first_weight: weight of the direction from `first` to `second`; the other has the rest.

    Returns:
        The scalar mean over this worker's records, in float32.

    Source: CLIP, Radford et al. 2021, arXiv:2103.00020; several positives as in "SupCon-out", Khosla et al. 2020,
    arXiv:2004.11362, eq. 2, with the positives of a term kept out of each other's sums.
    """
    pair = F.normalize(torch.stack([first, second], dim=1).float(), dim=-1)
    everything, start = gathered(pair)
    own = torch.arange(len(pair), device=pair.device) + start
    if same is None or treatment == "ignore":
        alike = F.one_hot(own, len(everything)).bool()
    else:
        alike = same[:, None] == gathered(same)[0]
    with _full_precision(pair):
        there, back = (scale * pair[:, one] @ everything[:, 1 - one].T for one in (0, 1))
    losses = [_several_positives(logits, own, alike, exclude=treatment == "exclude") for logits in (there, back)]
    return first_weight * losses[0] + (1 - first_weight) * losses[1]


def _full_precision(values: Tensor) -> torch.autocast:
    """No autocast: divided by a small temperature, what bfloat16 leaves of similarities would order them anew."""
    return torch.autocast(values.device.type, enabled=False)


def _several_positives(logits: Tensor, own: Tensor, alike: Tensor, *, exclude: bool) -> Tensor:
    """The mean over records of -log softmax of a target among itself and the records that are not `alike`.

    Args:
        logits: (b, B).
        own: (b,) the column of each record itself.
        alike: (b, B) bool, its own column among them.
        exclude: whether the record itself is its only target, and those alike are left out; else each is a target.
    """
    others = torch.logsumexp(logits.masked_fill(alike, NEVER), dim=1)
    if exclude:
        target = logits.gather(1, own[:, None])[:, 0]
        return (torch.logaddexp(target, others) - target).mean()
    terms = torch.logaddexp(logits, others[:, None]) - logits
    return ((terms * alike).sum(dim=1) / alike.sum(dim=1)).mean()


def cosine_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean of 2 - 2 cos, in float32: (b, D), (b, D) -> scalar.

    Source: BYOL, Grill et al. 2020, arXiv:2006.07733, eq. 2 (the squared distance of the normalised vectors).
    """
    return 2 - 2 * F.cosine_similarity(prediction.float(), target.float(), dim=-1).mean()


def multilabel_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """Binary cross-entropy of classes that may hold together.

    Args:
        logits: (B, K).
        targets: (B, K) 0 or 1.
        label_smoothing: s; the target y becomes y * (1 - s) + s / 2, i.e. is drawn towards 0.5.

    Returns:
        The scalar mean over records and classes, in float32.
    """
    smooth = targets.float() * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits.float(), smooth)


def single_label_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """Cross-entropy of classes of which exactly one holds.

    Args:
        logits: (B, K).
        targets: (B, K), one 1 a row, the rest 0.
        label_smoothing: s; the target y becomes y * (1 - s) + s / K, i.e. is drawn towards the uniform distribution.

    Returns:
        The scalar mean over records, in float32.

    Source: label smoothing, Szegedy et al. 2016, arXiv:1512.00567, sec. 7.
    """
    return F.cross_entropy(logits.float(), targets.float(), label_smoothing=label_smoothing)
