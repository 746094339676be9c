"""Population-based training: the worst trials go on from the best ones' weights, with other choices.

Pure decisions and their arithmetic; `search_spaces.tuning` pauses and restarts the trials. Every draw follows from the
study's seed, the trial and the epoch, so that a decision can be repeated.

Source: Jaderberg et al. 2017, arXiv:1711.09846, truncation selection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.distributions import Space, decoded
from search_spaces.schema import PbtScheduler


def donor_for(number: int, values: Mapping[int, float], *, quantile: float, draw: np.random.Generator) -> int | None:
    """The trial whose weights trial `number` takes over; None if it goes on with its own.

    Args:
        number: a trial that has come to an interval's end.
        values: of the trials that came as far and still run, `number` among them; greater is better.
        quantile: the share of them that takes over, and the share that is taken from.
        draw: decides among the best.
    """
    size = math.floor(len(values) * quantile)
    if size < 1 or number == 0:  # trial 0 is the default configuration, for the report to compare with
        return None
    ranked = sorted(values, key=lambda trial: (values[trial], -trial))
    if number not in ranked[:size]:
        return None
    best = [trial for trial in ranked[-size:] if trial != number]
    return int(draw.choice(best)) if best else None


def explored(
    params: Mapping[str, Any], space: Space, settings: PbtScheduler, draw: np.random.Generator
) -> dict[str, Any]:
    """A donor's choices, each drawn anew or moved a little, and inside its range.

    Args:
        params: the donor's, decoded, by dotted name.
        space: what is searched.
        settings: how likely and how far.
        draw: decides.
    """
    changed = dict(params)
    for leaf in space.leaves:
        if leaf.key in params:
            anew = draw.random() < settings.resample_probability
            factor = settings.factors[int(draw.integers(2))]
            changed[leaf.key] = (
                sampled(leaf.distribution, draw) if anew else moved(leaf.distribution, params[leaf.key], factor)
            )
    return changed


def sampled(distribution: BaseDistribution, draw: np.random.Generator) -> Any:
    """A value from the whole range, uniformly, or log-uniformly where the range is logarithmic."""
    if isinstance(distribution, CategoricalDistribution):
        return decoded(distribution.choices[int(draw.integers(len(distribution.choices)))])
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    value = math.exp(draw.uniform(math.log(low), math.log(high))) if distribution.log else draw.uniform(low, high)
    return inside(distribution, value)


def moved(distribution: BaseDistribution, value: Any, factor: float) -> Any:
    """A number times `factor`; a choice stays."""
    if isinstance(distribution, CategoricalDistribution):
        return value
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return inside(distribution, value * factor)


def inside(distribution: FloatDistribution | IntDistribution, value: float) -> float | int:
    """The value of the range, and of its steps, that is nearest."""
    value = min(max(value, distribution.low), distribution.high)
    if distribution.step is not None and not distribution.log:
        steps = round((value - distribution.low) / distribution.step)
        value = min(distribution.low + steps * distribution.step, distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else value
