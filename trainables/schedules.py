"""Learning rates and weight decays as pure functions of the optimiser step: a resumed run needs to restore nothing."""

import math


def learning_rate(
    step: int, num_steps: int, *, peak_lr: float, min_lr: float, warmup_share: float, start_lr: float = 0.0
) -> float:
    """Rate of one optimiser step: a linear rise to `peak_lr`, then half a cosine down to `min_lr`.

    Args:
        step: s, counted from 0; `num_steps` itself is allowed and gives the end point.
        num_steps: S, the steps of the whole stage.
        peak_lr: the rate at the end of the warm-up.
        min_lr: the rate at step S.
        warmup_share: W / S, the share of the steps that rise; 0 starts at the peak, 1 never falls.
        start_lr: the rate at step 0 of a rise.

    Returns:
        start_lr + (peak_lr - start_lr) * s / W for s < W, else
        min_lr + (peak_lr - min_lr) * (1 + cos(pi * (s - W) / (S - W))) / 2.

    Raises:
        ValueError: if `step` lies outside 0 .. num_steps.

    Source: SGDR, Loshchilov & Hutter 2017, arXiv:1608.03983, with the warm-up of Goyal et al. 2017,
    arXiv:1706.02677. ST-MEM states both in fractional epochs; steps say the same and need no loader length.
    """
    _check_step(step, num_steps)
    warmup_steps = warmup_share * num_steps
    if step < warmup_steps:
        return start_lr + (peak_lr - start_lr) * step / warmup_steps
    if warmup_steps == num_steps:  # nothing is left to fall over
        return peak_lr
    return _half_cosine((step - warmup_steps) / (num_steps - warmup_steps), peak_lr, min_lr)


def weight_decay(step: int, num_steps: int, *, start: float, end: float | None) -> float:
    """Weight decay of one optimiser step: half a cosine from `start` to `end`; `start` throughout where that is None.

    Raises:
        ValueError: if `step` lies outside 0 .. num_steps.

    Source: DINO, Caron et al. 2021, arXiv:2104.14294, appendix; I-JEPA likewise.
    """
    _check_step(step, num_steps)
    return start if end is None else _half_cosine(step / num_steps, start, end)


def _half_cosine(progress: float, start: float, end: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _check_step(step: int, num_steps: int) -> None:
    if not 0 <= step <= num_steps:
        raise ValueError(f"step must lie in 0..{num_steps}, got {step}")
