"""What is minimised: pure functions of predictions and targets, each a mean over the records of a batch.

Shapes: B records, C leads, N patches of a lead, H of them hidden, P samples of a patch, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.masking import take


def hidden_patch_mse(prediction: Tensor, patches: Tensor, hidden: Tensor, *, norm_pix_loss: bool) -> Tensor:
    """Mean squared error of the reconstruction, over the hidden patches alone.

    Args:
        prediction: (B, C, H, P) reconstructed hidden patches, in the order of `hidden`.
        patches: (B, C, N, P) the whole signal as the model was given it.
        hidden: (B, C, H) int64 positions of the hidden patches.
        norm_pix_loss: standardise every target patch by its own mean and (unbiased) variance + 1e-6.

    Returns:
        The scalar mean over samples, patches, leads and records, in float32.

    Source: MAE, He et al. 2022, arXiv:2111.06377, sec. 3; ST-MEM, Na et al. 2024, arXiv:2402.09450, sec. 3.
    """
    target = take(patches, hidden)
    if norm_pix_loss:
        target = (target - target.mean(dim=-1, keepdim=True)) / (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    return F.mse_loss(prediction.float(), target.float())


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
