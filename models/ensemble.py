"""Several classifiers as one, which answers with the mean of their probabilities.

Shapes: B records, C leads, T samples, M members, D width of an embedding of all of them together, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.classifier import Classifier
from models.encoder import Encoder


class Ensemble(Classifier):
    """Members side by side, with the parts of a classifier: what uses an encoder and a head uses this, too.

    Its encoder gives the members' embeddings one after another; its head turns these into logits of the mean of the
    members' probabilities. It is for answering: nothing here trains it.
    """

    def __init__(self, members: Sequence[Classifier], kind: Literal["multilabel", "single_label"]) -> None:
        """Put trained classifiers together.

        Args:
            members: of the same leads and classes; taken as they are, not copied.
            kind: whether a logit is that of a sigmoid, or one of a softmax.

        Raises:
            ValueError: if there is no member.
        """
        if not members:
            raise ValueError("an ensemble needs at least one member, got none")
        encoder = SideBySide([member.encoder for member in members])
        super().__init__(encoder, members[0].head.out_features, drop_path=0.0, head_init_std=0.0)
        self.head = MeanHead([member.head for member in members], kind)  # type: ignore[assignment]

    def alone(self) -> list[Classifier]:
        """All members, with the very weights of this."""
        assert isinstance(self.encoder, SideBySide)
        return [self.member(number) for number in range(len(self.encoder.members))]

    def member(self, number: int) -> Classifier:
        """One of the members, with the very weights of this."""
        assert isinstance(self.encoder, SideBySide)
        assert isinstance(self.head, MeanHead)
        head = self.head.members[number]
        assert isinstance(head, nn.Linear)
        encoder = self.encoder.members[number]
        assert isinstance(encoder, Encoder)
        alone = Classifier(encoder, head.out_features, drop_path=0.0, head_init_std=0.0)
        alone.head = head
        return alone.train(self.training)


class SideBySide(Encoder):
    """Encoders of the same signals, whose embeddings are put one after another."""

    def __init__(self, members: Sequence[Encoder]) -> None:
        """Put encoders together; they are taken as they are."""
        super().__init__()
        first = members[0]
        self.leads, self.num_samples, self.segment_samples = first.leads, first.num_samples, first.segment_samples
        self.depth = first.depth
        self.width = sum(member.width for member in members)
        self.members = nn.ModuleList(members)

    def forward(self, signal: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Embed signals: (B, C, T) -> (B, D)."""
        return torch.cat([member(signal, drop_path) for member in self.members], dim=-1)

    def layer_of(self, parameter: str) -> int:
        """As the member's that has the parameter."""
        _, number, name = parameter.split(".", maxsplit=2)
        member = self.members[int(number)]
        assert isinstance(member, Encoder)
        return member.layer_of(name)


class MeanHead(nn.Module):
    """The members' heads, each on its own part of an embedding, and the mean of what they say."""

    def __init__(self, members: Sequence[nn.Linear], kind: Literal["multilabel", "single_label"]) -> None:
        """Put heads together; they are taken as they are."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.kind = kind
        self.out_features = members[0].out_features
        self._widths = [member.in_features for member in members]

    def forward(self, embedding: Tensor) -> Tensor:
        """(..., D) embeddings -> (..., K) logits whose probabilities are the mean of the members'."""
        parts = torch.split(embedding, self._widths, dim=-1)
        logits = torch.stack([member(part) for member, part in zip(self.members, parts, strict=True)])
        if self.kind == "multilabel":  # log p - log (1 - p), each the log of a mean
            return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)
        return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(self.members))


def name_of_member(number: int, name: str) -> str:
    """What a member's tensor is called in the ensemble: `head.weight` of member 1 is `head.members.1.weight`."""
    part, _, rest = name.partition(".")
    return f"{part}.members.{number}.{rest}"
