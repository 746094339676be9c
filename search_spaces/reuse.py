"""Whether the trials of a search can share pre-trainings: how many different ones its space has."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.distributions import Leaf, Space, extremes, parse
from search_spaces.schema import Launch

OF_FINE_TUNING = "task.finetune."
"""Searched keys that begin so change nothing of a pre-training."""


@dataclass(frozen=True)
class Shared:
    """What the trials of a study compute once for all of them, in folders of the study's.

    Attributes:
        pretraining: whether that is pre-trainings with equal settings (trainables.pretrained).
        embeddings: whether that is what a frozen encoder gives (trainables.frozen).
        max_bytes: of what is kept, each.
    """

    pretraining: bool
    embeddings: bool
    max_bytes: float


NOTHING_SHARED = Shared(pretraining=False, embeddings=False, max_bytes=0.0)


def shared_by(launch: Launch, *, confirming: bool = False) -> Shared:
    """What the trials of a search share, or the runs of its confirmation, which have seeds of their own."""
    reuse = launch.search.reuse
    return Shared(
        pretraining=why_not(launch) is None and not confirming,
        embeddings=reuse.embeddings and launch.storage is None,
        max_bytes=reuse.max_gb * 1e9,
    )


def why_not(launch: Launch) -> str | None:
    """Why no two trials of a search share a pre-training; None where they do."""
    if launch.task.stages != "joint":
        return "task.stages is not joint"
    if not launch.search.reuse.pretraining:
        return "search.reuse.pretraining is false"
    if launch.scheduler.name == "pbt":
        return "with scheduler=pbt they take over each other's weights"
    if launch.storage is not None:
        return "with storage=URL they share no folder"
    if endless := endless_of_pretraining(parse(launch.space)):
        first = endless[0]
        others = f" and {len(endless) - 1} more" if len(endless) > 1 else ""
        return (
            f"space.{first.key}{others} can take any value, so that no two are equal; with steps they are "
            f"('space.{first.key}={{choice: [...]}}')"
        )
    return None


def said_of_pretrainings(launch: Launch) -> str | None:
    """What a user is told of it before a search; None where trials have no pre-training of their own."""
    if launch.task.stages != "joint":
        return None
    if (reason := why_not(launch)) is not None:
        return f"reuse: no two trials share a pre-training: {reason}"
    number = num_pretrainings(parse(launch.space))
    if number == 1:
        return "reuse: all trials share one pre-training"
    return f"reuse: {number} different pre-trainings; trials with equal ones share their epochs"


def endless_of_pretraining(space: Space) -> list[Leaf]:
    """The searched keys of pre-training whose values cannot be counted."""
    return [leaf for leaf in _of_pretraining(space) if num_values(leaf) is None]


def num_pretrainings(space: Space) -> int:
    """How many different pre-trainings the points of a space have, of which no leaf of pre-training is endless.

    What only a fine-tuning reads does not tell two of them apart, unless a leaf of pre-training depends on it.
    """
    counted = _of_pretraining(space)
    named = {name for leaf in space.leaves for name, _ in leaf.when}
    deciding = [leaf for leaf in space.leaves if leaf.key in named]
    rest = [leaf for leaf in counted if leaf.key not in named]
    found: dict[str, int] = {}
    for values in itertools.product(*(extremes(leaf) for leaf in deciding)):
        point: dict[str, Any] = {}
        for leaf, value in zip(deciding, values, strict=True):
            if leaf.holds(point):
                point[leaf.key] = value
        held = [leaf for leaf in rest if leaf.holds(point)]
        own = {leaf.key: point[leaf.key] for leaf in counted if leaf.key in point}
        told_by = json.dumps([own, [leaf.key for leaf in held]], sort_keys=True)
        found[told_by] = math.prod(num_values(leaf) or 1 for leaf in held)
    return sum(found.values())


def num_values(leaf: Leaf) -> int | None:
    """How many values a leaf can take; None where they cannot be counted."""
    distribution = leaf.distribution
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        return None
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    step = distribution.step if distribution.step is not None else 1
    return round((distribution.high - distribution.low) / step) + 1


def _of_pretraining(space: Space) -> list[Leaf]:
    return [leaf for leaf in space.leaves if not leaf.key.startswith(OF_FINE_TUNING)]
