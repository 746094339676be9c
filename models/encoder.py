"""What every encoder promises to pretext tasks, classifiers and the loops.

Shapes: B records, C leads, T samples, D = width of an embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The standard twelve leads. Tables of weights that belong to leads hold one row for each, in this order."""

Gift = Literal["vector", "patches", "segments"]
"""What an encoder can give: one embedding of a signal, tokens of its patches (models.patch_encoder.PatchEncoder), or
embeddings of signals shorter than the whole."""


class Encoder(nn.Module, ABC):
    """A network that turns ECGs into embeddings; the only part of a pre-trained model that later stages use.

    A concrete encoder is told `leads`, `num_samples` and `sampling_rate_hz` of its input by the program, beside its own
    keys, and takes a `size`, of which one is called `laptop`.

    Attributes:
        gives: what a pretext task may need of it; a task names its own in `PretextTask.needs`.
        width: D, the length of an embedding.
        depth: the number of blocks that layer decay and drop path count.
        leads: the leads of the input, in its order.
        num_samples: T, of a whole signal.
        segment_samples: what the length of a segment must be a multiple of, where the encoder gives segments.
    """

    gives: ClassVar[frozenset[Gift]] = frozenset({"vector"})
    width: int
    depth: int
    leads: tuple[str, ...]
    num_samples: int
    segment_samples: int = 1

    @abstractmethod
    def forward(self, signal: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Embed whole, unmasked signals.

        Args:
            signal: (B, C, T), standardised; of fewer samples where the encoder gives segments.
            drop_path: (B, depth, 2) what the two branches of each block are multiplied by for each record: 0, or
                1 / the probability of not being 0; None leaves all of them as they are. Blocks of one branch take the
                first.

        Returns:
            (B, width) embeddings.

        Raises:
            ValueError: if the signal has another number of leads or samples than the encoder takes.
        """

    @abstractmethod
    def layer_of(self, parameter: str) -> int:
        """The layer that a parameter belongs to, for layer decay.

        Args:
            parameter: a name from `named_parameters()`.

        Returns:
            0 for what comes before the blocks (patch embedding, stem, positions, tokens), 1..depth for the blocks,
            depth + 1 for what follows them.
        """

    def _check(self, signal: Tensor) -> None:
        """Refuse a signal of other leads or more samples than the encoder's."""
        if signal.ndim != 3 or signal.shape[1] != len(self.leads) or not 0 < signal.shape[2] <= self.num_samples:
            raise ValueError(
                f"the signal must be (records, {len(self.leads)} leads, {self.num_samples} samples) "
                f"with the leads {', '.join(self.leads)}, got {tuple(signal.shape)}"
            )


def lead_rows(leads: Sequence[str]) -> list[int]:
    """The rows of `LEADS` that `leads` name, in their order.

    Raises:
        ValueError: if there is none, one is not a standard lead, or one comes twice.
    """
    if not leads:
        raise ValueError("leads must name at least one lead, got none")
    for lead in leads:
        if lead not in LEADS:
            raise ValueError(f"leads must be among {', '.join(LEADS)}, got {lead!r}")
    if len(set(leads)) != len(leads):
        raise ValueError(f"leads must not repeat, got {', '.join(leads)}")
    return [LEADS.index(lead) for lead in leads]


def has_weight_decay(name: str, parameter: Tensor) -> bool:
    """Whether weight decay commonly applies to a parameter: matrices of layers, not biases, norms, tokens or tables.

    Args:
        name: the parameter's name from `named_parameters()`; tokens and tables are no `weight`.
        parameter: the parameter itself.
    """
    return name.endswith("weight") and parameter.ndim >= 2  # in_proj_weight, too
