"""From settings to a torch optimiser: parameter groups with layer decay and weight-decay exclusions."""

from collections.abc import Callable

import torch
from torch import nn

from models.encoder import has_weight_decay
from trainables.settings import Stage
from trainables.sharding import is_share


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_biases_and_norms: bool,
    layer_decay: float = 1.0,
    num_layers: int = 0,
    layer_of: Callable[[str], int] | None = None,
) -> list[dict[str, object]]:
    """Group the trainable parameters by what their learning rate and weight decay are multiplied with.

    Args:
        model: its parameters that require a gradient are grouped.
        weight_decay: for the matrices of layers (models.encoder.has_weight_decay).
        decay_biases_and_norms: decay biases, norms, tokens and tables too.
        layer_decay: a parameter of layer l learns at lr * layer_decay ** (num_layers - l).
        num_layers: the layer that learns at the full rate (the head's).
        layer_of: from a parameter's name to its layer, 0 for the embedding; None puts all in `num_layers`.

    Returns:
        groups for a torch optimiser, each with an `lr_scale` and whether it `decays`, which the setters below read.

    Source: layer-wise decay as in BEiT, Bao et al. 2022, arXiv:2106.08254, app. B.
    """
    groups: dict[tuple[float, bool], dict[str, object]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = num_layers if layer_of is None else layer_of(name)
        lr_scale = layer_decay ** (num_layers - layer)
        decays = decay_biases_and_norms or has_weight_decay(name, parameter)
        decay = weight_decay if decays else 0.0
        fresh = {"params": [], "lr_scale": lr_scale, "weight_decay": decay, "decays": decays}
        group = groups.setdefault((lr_scale, decays), fresh)
        members = group["params"]
        assert isinstance(members, list)
        members.append(parameter)
    return list(groups.values())


def build_optimizer(stage: Stage, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    """The stage's optimiser over `groups`; its rates are set before every step by `set_learning_rate`.

    It is fused where the weights are whole: one pass over them instead of ten, and a step that it can be told on the
    device to leave out (trainables.steps). torch has no fused steps of sharded weights.
    """
    fused = not any(is_share(parameter) for group in groups for parameter in group["params"])  # type: ignore[attr-defined]
    settings = stage.optimizer
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=stage.peak_lr, betas=settings.betas, fused=fused)
    return torch.optim.SGD(groups, lr=stage.peak_lr, momentum=settings.momentum, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Give `weight_decay` to every group that decays at all."""
    for group in optimizer.param_groups:
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
