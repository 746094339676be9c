"""Whether an encoder still tells records apart: a pretext loss is lowest where it does not.

Shapes: n records, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainables.settings import Collapse

TELLING_RECORDS = 16
"""Records of which random embeddings have an effective rank of 10 and more."""
FEATURE_STD, EFFECTIVE_RANK, MEAN_COSINE = "val/feature_std", "val/effective_rank", "val/mean_cosine"


class CollapsedError(ArithmeticError):
    """An encoder gives all records nearly the same embedding; the message says by which measure."""


def spread(embeddings: Tensor) -> dict[str, float]:
    """How differently an encoder embeds different records.

    Args:
        embeddings: (n, D), two records at least.

    Returns:
        val/feature_std: the root mean square of what is not common to all records, as a share of the embeddings' whole
        root mean square: 0 where all are the same, 1 where their mean is 0.
        val/effective_rank: the exponential of the entropy of the centred embeddings' singular values, taken as shares:
        1 where they lie on a line, D where no direction is preferred.
        val/mean_cosine: of all pairs of records.

    Source: the effective rank, Roy & Vetterli 2007, as RankMe uses it, Garrido et al. 2023, arXiv:2210.02885 (there
    of embeddings that are not centred).
    """
    values = embeddings.double()
    centred = values - values.mean(dim=0)
    size = values.square().mean().sqrt().clamp(min=1e-30)
    singular = torch.linalg.svdvals(centred)
    shares = singular / singular.sum().clamp(min=1e-30)
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum()
    directions = torch.nn.functional.normalize(values, dim=1)
    number = len(values)
    pairs = (directions.sum(dim=0).square().sum() - directions.square().sum()) / (number * (number - 1))
    return {
        FEATURE_STD: float(centred.square().mean().sqrt() / size),
        EFFECTIVE_RANK: float(entropy.exp()),
        MEAN_COSINE: float(pairs),
    }


def refuse_collapsed(metrics: Mapping[str, float], settings: Collapse, *, num_records: int) -> None:
    """Say that an encoder has collapsed, by what `spread` measured.

    Args:
        metrics: of an epoch.
        settings: the least that they must be.
        num_records: n, of the embeddings; a few span few directions whatever the encoder, so their rank tells nothing.

    Raises:
        CollapsedError: with the measure and the least that it must have.
    """
    rank = settings.min_effective_rank if num_records >= TELLING_RECORDS else None
    for name, least in ((FEATURE_STD, settings.min_feature_std), (EFFECTIVE_RANK, rank)):
        if least is not None and metrics[name] < least:
            raise CollapsedError(f"{name} is {metrics[name]:.3g}, below task.collapse.min_{name[4:]}={least:g}")
