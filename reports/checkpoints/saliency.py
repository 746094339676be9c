"""What in a record an answer rests on: integrated gradients for any encoder, attention rollout for transformers.

Shapes: B records or crops, C leads, T samples, L tokens of a sequence, D width, A heads, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv1d

from models.attention_pool import AttentionPooled
from models.class_token_encoder import ClassTokenEncoder
from models.classifier import Classifier
from models.encoder import Encoder
from models.patch_encoder import PatchEncoder
from models.transformer import Attention

NUM_STEPS, MOST_STEPS = 32, 128
TOLERANCE = 0.05
"""How far the attributions' sum may be from what they explain, as a share of it, before the steps are doubled."""
SMOOTHED_S = 0.1
"""As long as a QRS complex."""
AT_A_TIME = 16
"""Points of one pass, over crops and steps: their activations are kept for the gradient, 0.3 GB each in a ViT-B."""


@dataclass(frozen=True)
class Attribution:
    """What a record's answer for one class rests on.

    Attributes:
        values: (C, T) share of each sample in the mean logit over crops, as against a flat record; 0 where no crop was.
        total: the difference that they explain: the mean logit less that of the flat record.
        error: how far their sum is from it.
    """

    values: Tensor
    total: float
    error: float


def integrated_gradients(
    answer: Callable[[Tensor], Tensor], signal: Tensor, baseline: Tensor, *, num_steps: int
) -> Tensor:
    """The gradient's mean along the straight way from the baseline, times that way.

    Points lie closer together near the baseline, by the fourth power: an encoder that standardises its patches answers
    a thousandth of a record almost as it answers the whole, so that all its gradient lies there. Which points the
    integral is summed at does not change what it is.

    Args:
        answer: maps (B, C, T) to (B,), each of its own record alone.
        signal: (B, C, T).
        baseline: (B, C, T), where nothing is said.
        num_steps: points of the midpoint rule.

    Returns:
        (B, C, T) whose sum over leads and samples is answer(signal) - answer(baseline) but for the rule's error.

    Source: Sundararajan, Taly & Yan 2017, arXiv:1703.01365, eq. 1; completeness is their proposition 1.
    """
    summed = torch.zeros_like(signal)
    way = signal - baseline
    edges = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64) ** 4
    at_once = max(1, AT_A_TIME // len(signal))
    middles_of, widths_of = (edges[:-1] + edges[1:]) / 2, edges.diff()
    for first in range(0, num_steps, at_once):
        middles, widths = (values[first : first + at_once] for values in (middles_of, widths_of))
        shares = middles.to(signal)[:, None, None, None]
        points = (baseline + shares * way).flatten(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(answer(points).sum(), points)
        summed += (gradient.view(len(middles), *signal.shape) * widths.to(signal)[:, None, None, None]).sum(dim=0)
    return summed * way


def attribution(classifier: Classifier, crops: Tensor, starts: list[int], num_samples: int, target: int) -> Attribution:
    """What the mean logit of one class over a record's crops rests on.

    The baseline is a flat line, which is what a standardised signal's mean is. Steps are doubled until the sum is
    within TOLERANCE of what it explains, or MOST_STEPS are taken; the rest is told.

    Args:
        classifier: in evaluation mode.
        crops: (n, C, T') as it sees them, standardised, on its device.
        starts: of each crop in the record.
        num_samples: T of the record.
        target: which class.
    """

    def answer(signal: Tensor) -> Tensor:
        logits: Tensor = classifier(signal)
        return logits[:, target]

    flat = torch.zeros_like(crops)
    with torch.no_grad():
        total = float((answer(crops) - answer(flat)).double().mean())
    steps = NUM_STEPS
    while True:
        values = integrated_gradients(answer, crops, flat, num_steps=steps)
        error = abs(float(values.double().sum()) / len(crops) - total)
        if error <= TOLERANCE * abs(total) or steps >= MOST_STEPS:
            break
        steps *= 2
    return Attribution(along_record(values, starts, num_samples) / len(crops), total, error)


def along_record(crops: Tensor, starts: list[int], num_samples: int) -> Tensor:
    """Sum of crops' values at their places in the record: (n, C, T') -> (C, T) on the CPU."""
    whole = torch.zeros(crops.shape[1], num_samples)
    for crop, start in zip(crops.detach().cpu(), starts, strict=True):
        whole[:, start : start + crop.shape[1]] += crop
    return whole


def smoothed(values: Tensor, sampling_rate_hz: float) -> NDArray[np.float32]:
    """Attributions to be looked at: the mean over SMOOTHED_S around each sample, (C, T) -> (C, T).

    A gradient changes from sample to sample; what a reader can compare with a wave is no shorter than a QRS complex.
    """
    width = 2 * round(SMOOTHED_S * sampling_rate_hz / 2) + 1
    kernel = torch.ones(values.shape[0], 1, width) / width
    mean: NDArray[np.float32] = conv1d(values[None], kernel, padding=width // 2, groups=values.shape[0])[0].numpy()
    return mean


def patches_of(encoder: Encoder) -> PatchEncoder | None:
    """The transformer over patches inside an encoder, or None for one of another kind."""
    inner = encoder.encoder if isinstance(encoder, AttentionPooled) else encoder
    return inner if isinstance(inner, PatchEncoder) else None


@torch.no_grad()
def attention_rollout(encoder: Encoder, signal: Tensor) -> Tensor:
    """How much of each sample reaches the embedding through a transformer's attention.

    Each block's attention, averaged over heads, and its residual way each count for a half; the blocks' matrices are
    multiplied. What reaches the embedding follows the encoder's own pooling: the class token, the mean over patches, or
    attention over them. It says where the model looked, not for which class, and is never negative.

    Args:
        encoder: a PatchEncoder, or AttentionPooled around one, in evaluation mode.
        signal: (B, C, T) standardised.

    Returns:
        (B, C, T), the share of each sample; with what reaches the embedding from own tokens, each record's sum is 1.

    Raises:
        ValueError: if the encoder has no patches.

    Source: Abnar & Zuidema 2020, arXiv:2005.00928, sec. 3.
    """
    inner = patches_of(encoder)
    if inner is None:
        raise ValueError(f"attention rollout needs a transformer over patches, got {type(encoder).__name__}")
    with _attention_inputs(inner) as inputs:
        tokens = inner.tokens(signal)
    num_groups, length = tokens.shape[1], tokens.shape[2]
    rolled = torch.eye(num_groups * length, device=signal.device).expand(len(signal), -1, -1)
    for attention, seen in zip(_attentions(inner), inputs, strict=True):
        mixed = attention.weights(seen).mean(dim=1)
        rolled = (mixed + torch.eye(mixed.shape[-1], device=signal.device)) @ rolled / 2
    reached = torch.einsum("bi,bij->bj", _pooling(encoder, inner, tokens), rolled)
    patches = reached.view(len(signal), num_groups, length)[:, :, inner.num_own_tokens :]
    patches = patches.reshape(len(signal), inner.num_groups, inner.num_patches, 1)
    return inner.signal_of(patches.expand(-1, -1, -1, inner.patch_size) / inner.patch_size)


def _pooling(encoder: Encoder, inner: PatchEncoder, tokens: Tensor) -> Tensor:
    """(B, G (S + N)) the share of each token of the last block in the embedding."""
    shares = torch.zeros(tokens.shape[:3], device=tokens.device)
    own = inner.num_own_tokens
    if isinstance(encoder, AttentionPooled):
        given = tokens[:, :, own:].flatten(1, 2)
        middle = given.mean(dim=1, keepdim=True)
        _, weights = encoder.attention(middle, given, given, need_weights=True)
        shares[:, :, own:] = weights[:, 0].view(shares[:, :, own:].shape)
    elif isinstance(inner, ClassTokenEncoder):
        shares[:, 0, 0] = 1
    else:
        shares[:, :, own:] = 1 / shares[0, :, own:].numel()
    return shares.flatten(1)


def _attentions(encoder: PatchEncoder) -> list[Attention]:
    """The attention of each block, in order."""
    return [module for module in encoder.blocks.modules() if isinstance(module, Attention)]


@contextmanager
def _attention_inputs(encoder: PatchEncoder) -> Iterator[list[Tensor]]:
    """Collects what each block's attention is given while the encoder runs."""
    seen: list[Tensor] = []

    def collect(module: Attention, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])

    hooks = [attention.register_forward_pre_hook(collect) for attention in _attentions(encoder)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
