"""One epoch of optimiser steps, the same arithmetic for every stage and any number of workers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.memory import keep_freed_memory
from trainables.optimizers import set_learning_rate, set_weight_decay
from trainables.schedules import learning_rate, weight_decay
from trainables.settings import Stage
from trainables.sharding import whole_tensor
from trainables.workers import Workers

STEPS_BETWEEN_CHECKS = 64
"""Optimiser steps after which the device is asked whether all was finite; each question waits for it."""


@dataclass(frozen=True)
class Share:
    """What one worker computes of one global batch.

    Attributes:
        loss: gives the mean loss of this worker's records, with a graph.
        num_records: b, this worker's records.
        global_size: B, those of all workers.
    """

    loss: Callable[[], Tensor]
    num_records: int
    global_size: int


def train_epoch(
    shares: Iterator[Share],
    *,
    num_batches: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    stage_epoch: int,
    workers: Workers,
    after_step: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Step through one epoch.

    Args:
        shares: this worker's parts of the epoch's `num_batches` global batches.
        num_batches: forward passes in an epoch.
        module: what the gradients belong to, as `Workers.together` gave it.
        optimizer: steps after every `stage.accumulation_steps` batches, and after the epoch's last.
        stage: learning rate, accumulation, clipping and precision.
        stage_epoch: epochs of this stage done before.
        workers: gradients become those of the global batch, whatever the sizes of the parts.
        after_step: called after each step of the optimiser with its number and that of all steps of the stage.

    Returns:
        train/loss, the mean over all records of the epoch, and train/lr, the rate of the last step.

    Raises:
        FloatingPointError: if a loss or a gradient was not finite: on all workers at the same step. No weight has
            changed since the last good one.
    """
    keep_freed_memory()
    module.train()
    steps_per_epoch = -(-num_batches // stage.accumulation_steps)
    num_steps = stage.num_epochs * steps_per_epoch
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    total = torch.zeros(2, dtype=torch.float64, device=workers.device)
    bad_step = torch.full((), math.inf, dtype=torch.float64, device=workers.device)
    lr = 0.0
    for number, share in enumerate(shares):
        first = number - number % stage.accumulation_steps
        cycle = min(stage.accumulation_steps, num_batches - first)  # the last cycle of an epoch may be shorter
        last_of_cycle = number == first + cycle - 1
        with _synchronised(module, last_of_cycle):
            with autocast(stage, workers.device):
                loss = share.loss()
            # the gradients of the workers are averaged: weigh each by its records, so that this is the batch's mean
            weight = share.num_records * workers.world_size / share.global_size / cycle
            # 0 times a loss is 0, or NaN if it is not finite: the gradients then tell all workers, where the loss of
            # one may be infinite with finite gradients
            (loss * (weight + 0 * loss.detach())).backward()  # type: ignore[no-untyped-call]
        total[0] += loss.detach().double() * share.num_records
        total[1] += share.num_records
        if not last_of_cycle:
            continue
        step = stage_epoch * steps_per_epoch + number // stage.accumulation_steps
        lr = _set_rates(optimizer, stage, step, num_steps)
        bad_step = _step(optimizer, parameters, stage, step, bad_step)
        if after_step is not None:
            after_step(step, num_steps)
        if (step + 1) % STEPS_BETWEEN_CHECKS == 0:
            _refuse(bad_step)
    _refuse(bad_step)
    loss_sum, count = workers.total(total).tolist()
    return {"train/loss": loss_sum / count, "train/lr": lr}


def _set_rates(optimizer: torch.optim.Optimizer, stage: Stage, step: int, num_steps: int) -> float:
    """Give the optimiser its rates for a step; return that of learning."""
    lr = learning_rate(
        step,
        num_steps,
        peak_lr=stage.peak_lr,
        min_lr=stage.min_lr,
        warmup_share=stage.warmup_share,
        start_lr=stage.start_lr,
    )
    set_learning_rate(optimizer, lr)
    set_weight_decay(optimizer, weight_decay(step, num_steps, start=stage.weight_decay, end=stage.final_weight_decay))
    return lr


def _step(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], stage: Stage, step: int, bad_step: Tensor
) -> Tensor:
    """Clip and step, unless something is not finite or was so before; a fused step waits for no answer.

    The norm is that of the averaged gradient: every worker sees the same.

    Args:
        optimizer: of `parameters`.
        parameters: with their gradients.
        stage: whether to clip.
        step: which of the stage's steps this is.
        bad_step: () the first one whose gradient was not finite; infinite where there was none.

    Returns:
        `bad_step` after this one.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole_tensor(nn.utils.get_total_norm(gradients))  # over the shards of all workers, where there are any
    bad_step = torch.where(torch.isfinite(norm), bad_step, bad_step.clamp(max=step))
    if optimizer.defaults["fused"]:
        optimizer.found_inf = torch.isfinite(bad_step).float()  # type: ignore[attr-defined]  # at 1 no weight changes
    else:
        _refuse(bad_step)
    if stage.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, stage.clip_norm, norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return bad_step


def _refuse(bad_step: Tensor) -> None:
    """Raise where a step was bad; this asks the device, and waits for it."""
    step = bad_step.item()
    if math.isfinite(step):
        raise FloatingPointError(f"the gradient is not finite at optimiser step {step:.0f}")


def _synchronised(module: nn.Module, last_of_cycle: bool) -> contextlib.AbstractContextManager[None]:
    """Between the batches of one step the workers need not talk.

    Shards do: gradients that wait for the step's last batch would be whole on every worker, four bytes a weight.
    """
    if isinstance(module, DistributedDataParallel) and not last_of_cycle:
        return module.no_sync()
    return contextlib.nullcontext()


def autocast(stage: Stage, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16 where the stage and the device want it; weights and optimiser stay float32."""
    wanted = stage.precision == "bfloat16" or (
        stage.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)
