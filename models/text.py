"""What a report says, as a vector: a small transformer of our own, or one from a folder of `transformers`.

Shapes: n reports, B records, L tokens of a report, D width of an embedding. Token 0 is padding.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from models.transformer import HEAD_WIDTH, Block, initialize, random_token, sin_cos_table

PADDING, UNKNOWN = 0, 1
NUM_SPECIAL = 2


class TextEncoder(nn.Module, ABC):
    """From tokens of a report to an embedding; padding has no part in it.

    Attributes:
        width: D.
    """

    width: int

    @abstractmethod
    def tokens(self, reports: Sequence[str]) -> Tensor:
        """(n, L) int64 tokens of the training reports, from which a vocabulary may be learnt; 0 where one has ended."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Embed reports: (B, L) -> (B, D)."""


class SmallText(TextEncoder):
    """A transformer over words, whose vocabulary is learnt from the training reports: the mean over the words."""

    def __init__(self, *, width: int, depth: int, vocabulary_size: int, max_tokens: int) -> None:
        """Build the encoder with random weights.

        Args:
            width: D, a multiple of 64.
            depth: number of blocks.
            vocabulary_size: words that are told apart, with two for padding and for all others.
            max_tokens: of a report; what follows is cut off.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__()
        if width < HEAD_WIDTH or width % HEAD_WIDTH:
            raise ValueError(f"text_encoder.width must be a positive multiple of {HEAD_WIDTH}, got {width}")
        for name, value, least in (
            ("depth", depth, 1),
            ("vocabulary_size", vocabulary_size, NUM_SPECIAL + 1),
            ("max_tokens", max_tokens, 1),
        ):
            if value < least:
                raise ValueError(f"text_encoder.{name} must be at least {least}, got {value}")
        self.width, self.vocabulary_size, self.max_tokens = width, vocabulary_size, max_tokens
        self.words = random_token(vocabulary_size, width)
        self.register_buffer("positions", sin_cos_table(max_tokens, width), persistent=False)
        self.positions: Tensor
        self.blocks = nn.ModuleList(Block(width, width // HEAD_WIDTH) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        initialize(self)

    def tokens(self, reports: Sequence[str]) -> Tensor:
        """See TextEncoder: the most frequent words have numbers of their own, all others share one."""
        words = [words_of(report)[: self.max_tokens] for report in reports]
        number = vocabulary(words, self.vocabulary_size)
        return _padded([[number.get(word, UNKNOWN) for word in report] for report in words])

    def forward(self, tokens: Tensor) -> Tensor:
        """See TextEncoder."""
        present = tokens != PADDING
        length = max(1, int(present.sum(dim=1).max()))  # what no report of the batch has need not be computed
        tokens, present = tokens[:, :length], present[:, :length]
        sequence = self.words.index_select(0, tokens.flatten()).view(*tokens.shape, -1) + self.positions[:length]
        for block in self.blocks:
            sequence = block(sequence, visible=present)
        weights = present.to(sequence.dtype)[..., None]
        mean: Tensor = self.norm((sequence * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1))
        return mean


class PretrainedText(TextEncoder):
    """A text encoder that `transformers` can load from a folder, with its own tokenizer: the mean over its tokens."""

    def __init__(self, *, folder: str, max_tokens: int, frozen: bool) -> None:
        """Load the encoder.

        Args:
            folder: as `save_pretrained` wrote it, with weights as safetensors; nothing is fetched and nothing executed.
            max_tokens: of a report; what follows is cut off.
            frozen: whether its weights stay as they are.

        Raises:
            ValueError: if `transformers` is not installed, the folder holds no such encoder, or it takes no reports of
                that length.
        """
        super().__init__()
        self._tokenizer, self.encoder = _loaded(folder)
        least = self._tokenizer.num_special_tokens_to_add() + 1
        most = self._tokenizer.model_max_length
        most = min(most, getattr(self.encoder.config, "max_position_embeddings", None) or most)
        if not least <= max_tokens <= most:
            raise ValueError(
                f"text_encoder.max_tokens must lie between {least} and {most} for this encoder, got {max_tokens}"
            )
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(not frozen and "pooler" not in name)  # a pooler's output is not used here
        self.width, self.max_tokens, self.frozen = int(self.encoder.config.hidden_size), max_tokens, frozen

    def train(self, mode: bool = True) -> Self:
        """Always as in evaluation: its dropout would draw from a generator that no resumed run repeats."""
        super().train(mode)
        self.encoder.eval()
        return self

    def tokens(self, reports: Sequence[str]) -> Tensor:
        """See TextEncoder: its own tokenizer's numbers plus one, so that 0 is free for padding."""
        # padded here: some tokenizers have nothing to pad with, and some pad in front
        encoded = self._tokenizer(list(reports), truncation=True, max_length=self.max_tokens)["input_ids"]
        return _padded([[number + 1 for number in report] for report in encoded])

    def forward(self, tokens: Tensor) -> Tensor:
        """See TextEncoder."""
        present = (tokens != PADDING).long()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden = self.encoder(input_ids=(tokens - 1).clamp(min=0), attention_mask=present).last_hidden_state
        weights = present.to(hidden.dtype)[..., None]
        mean: Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return mean


def words_of(report: str) -> list[str]:
    """The words and numbers of a report, in lower case; punctuation is none of them."""
    return re.findall(r"\w+(?:[.,]\d+)*", report.lower())


def vocabulary(reports: Sequence[Sequence[str]], size: int) -> dict[str, int]:
    """The most frequent words, numbered after the special tokens; among equally frequent ones the alphabet decides."""
    count = Counter(word for report in reports for word in report)
    ranked = sorted(count, key=lambda word: (-count[word], word))
    return {word: number for number, word in enumerate(ranked[: size - NUM_SPECIAL], start=NUM_SPECIAL)}


def _padded(reports: Sequence[Sequence[int]]) -> Tensor:
    """(n, L) the tokens of each report, and 0 where it has ended; L is 1 at the least."""
    length = max([1, *(len(report) for report in reports)])
    rows = [[*report, *[PADDING] * (length - len(report))] for report in reports]
    return torch.tensor(rows, dtype=torch.int64).view(len(reports), length)


def _loaded(folder: str) -> tuple[Any, Any]:
    """Tokenizer and model of a folder, with float32 weights."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ValueError(
            "text_encoder: a pretrained one needs the package transformers: pip install 'heartsweep[text]'"
        ) from error
    if not Path(folder).is_dir():
        raise ValueError(f"text_encoder.folder must be a folder that save_pretrained wrote, got {folder}")
    try:
        only_here = {"local_files_only": True, "trust_remote_code": False}
        model, report = AutoModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **only_here)
        tokenizer = AutoTokenizer.from_pretrained(folder, **only_here)
        _check_nothing_is_made_up(tokenizer, report["missing_keys"])
        if model.config.is_encoder_decoder:
            raise ValueError("it is an encoder with a decoder; save the encoder alone")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"text_encoder.folder={folder} holds no text encoder that transformers loads: {reason}"
        ) from error
    return tokenizer, model.float()


def _check_nothing_is_made_up(tokenizer: Any, missing: Iterable[str]) -> None:
    """Refuse what transformers puts in the place of what a folder lacks: random weights, a tokenizer of no words."""
    used = sorted(name for name in missing if "pooler" not in name)
    if used:
        raise ValueError(f"its weights lack {len(used)} of the model's, {used[0]} first")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError("its tokenizer knows no words")
