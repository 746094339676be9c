"""Learning rates as pure functions of the optimiser step, so that a resumed run needs to restore nothing."""

import math


def learning_rate(step: int, num_steps: int, *, peak_lr: float, min_lr: float, warmup_share: float) -> float:
    """Rate of one optimiser step: a linear rise to `peak_lr`, then half a cosine down to `min_lr`.

    Args:
        step: s, counted from 0; `num_steps` itself is allowed and gives the end point.
        num_steps: S, the steps of the whole stage.
        peak_lr: the rate at the end of the warm-up.
        min_lr: the rate at step S.
        warmup_share: W / S, the share of the steps that rise; 0 starts at the peak, 1 never falls.

    Returns:
        peak_lr * s / W for s < W, else min_lr + (peak_lr - min_lr) * (1 + cos(pi * (s - W) / (S - W))) / 2.

    Raises:
        ValueError: if `step` lies outside 0 .. num_steps.

    Source: SGDR, Loshchilov & Hutter 2017, arXiv:1608.03983, with the warm-up of Goyal et al. 2017,
    arXiv:1706.02677. ST-MEM states both in fractional epochs; steps say the same and need no loader length.
    """
    if not 0 <= step <= num_steps:
        raise ValueError(f"step must lie in 0..{num_steps}, got {step}")
    warmup_steps = warmup_share * num_steps
    if step < warmup_steps:
        return peak_lr * step / warmup_steps
    if warmup_steps == num_steps:  # nothing is left to fall over
        return peak_lr
    progress = (step - warmup_steps) / (num_steps - warmup_steps)
    return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
