"""ST-MEM: masked modelling of ECGs over time and leads.

Na, Park, Tae, Joo: Guiding Masked Representation Learning to Capture Spatio-Temporal Relationship of
Electrocardiogram, ICLR 2024, arXiv:2402.09450, sec. 3.

Shapes: B records, C leads, T samples, N patches of a lead, P samples of a patch, K patches kept and H hidden of a
lead, S separator tokens of a lead, D width of the encoder, W width of the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder import LEADS, Encoder, lead_rows
from models.losses import hidden_patch_mse
from models.masking import num_kept_patches, split_by_noise, take
from models.pretext import PretextTask
from models.vit import Block, PatchEmbedding, initialize, random_token, sin_cos_table

Size = Literal["tiny", "small", "base"]

SIZES: dict[str, tuple[int, int, int]] = {"tiny": (64, 3, 1), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, depth and heads (64 wide each) of the encoder; small and base are the paper's, tiny is for laptops."""

DECODERS: dict[str, tuple[int, int, int]] = {"tiny": (64, 1, 1), "small": (256, 4, 4), "base": (256, 4, 4)}
"""Width, depth and heads of the decoder that goes with each encoder; the paper's costs 20 times a tiny encoder."""


class STMEMEncoder(Encoder):
    """A transformer over the patches of all leads together.

    A token is the embedding of one patch of one lead, plus that of its position in time, plus that of its lead. Each
    lead brings `num_sep_tokens` separators: one learnt vector, the same for all, plus the lead's embedding. A
    transformer knows of order only what the position table says, so the separators stand in front of their lead's
    patches here where the paper puts them around: the result is the same. For the same reason the paper's left and
    right separator, with equal vectors and zero positions, are equal at every layer, and stay so when fine-tuned, as
    both receive the same gradient. One a lead therefore tells the others as much as two (it is only attended to with
    half the weight, which keys can learn), in a ninth fewer tokens at a mask ratio of 0.75 of 30 patches.

    Positions are fixed while pre-training (`requires_grad` is off) and zero for separators; a classifier trains them.
    The final norm acts on every token while pre-training, and on the mean over all patches' tokens in `forward`.

    The weights do not depend on `leads`: all hold the embeddings of the twelve standard leads, and `leads` says which
    of them the input brings, in which order. Weights trained on twelve leads are those of a model of one.
    """

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_patches: int,
        patch_size: int,
        num_sep_tokens: int,
        size: Size,
        standardize_patches: bool,
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_patches: N.
            patch_size: P.
            num_sep_tokens: S, 0 to 2.
            size: a key of SIZES.
            standardize_patches: whether a patch loses its mean and amplitude before it is embedded.

        Raises:
            ValueError: if the leads, the number of separators or the size are none of these.
        """
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        if num_sep_tokens not in (0, 1, 2):
            raise ValueError(f"num_sep_tokens must be 0, 1 or 2, got {num_sep_tokens}")
        rows = lead_rows(leads)
        self.leads = tuple(leads)
        self.num_patches, self.patch_size, self.num_sep_tokens = num_patches, patch_size, num_sep_tokens
        self.width, self.depth, num_heads = SIZES[size]
        self.patch_embedding = PatchEmbedding(patch_size, self.width, standardize=standardize_patches)
        separators = torch.zeros(num_sep_tokens, self.width)
        positions = torch.cat([separators, sin_cos_table(num_patches, self.width)])
        self.positions = nn.Parameter(positions, requires_grad=False)  # (S + N, D)
        if num_sep_tokens:
            self.sep_token = random_token(self.width)
        self.lead_embeddings = random_token(len(LEADS), self.width)
        self.register_buffer("lead_rows", torch.tensor(rows), persistent=False)
        self.lead_rows: Tensor
        self.blocks = nn.ModuleList(Block(self.width, num_heads) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width)
        initialize(self)

    def forward(self, signal: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Embed whole signals, as `Encoder.forward` says: (B, C, T) -> (B, D)."""
        tokens = self.encode(self.patches(signal), drop_path=drop_path)
        embedding: Tensor = self.norm(tokens[:, :, self.num_sep_tokens :].mean(dim=(1, 2)))
        return embedding

    def patches(self, signal: Tensor) -> Tensor:
        """Cut signals into patches: (B, C, T) -> (B, C, N, P), a view.

        Raises:
            ValueError: if the signal has another number of leads or samples than the encoder.
        """
        expected = (len(self.leads), self.num_patches * self.patch_size)
        if tuple(signal.shape[1:]) != expected:
            raise ValueError(
                f"the signal must be (records, {expected[0]} leads, {expected[1]} samples) "
                f"with the leads {', '.join(self.leads)}, got {tuple(signal.shape)}"
            )
        return signal.reshape(*signal.shape[:2], self.num_patches, self.patch_size)

    def encode(self, patches: Tensor, *, kept: Tensor | None = None, drop_path: Tensor | None = None) -> Tensor:
        """Encode some or all patches of each lead, without the final norm.

        Args:
            patches: (B, C, K, P), the patches to encode; all N where `kept` is None.
            kept: (B, C, K) int64 positions of these patches, or None for 0..N-1.
            drop_path: (B, depth, 2) factors of the blocks' branches, or None.

        Returns:
            (B, C, S + K, D): every lead's separators, then its patches.
        """
        tokens = self._tokens(patches, kept)
        sequence = tokens.flatten(1, 2)
        for index, block in enumerate(self.blocks):
            sequence = block(sequence, None if drop_path is None else drop_path[:, index])
        return sequence.view(tokens.shape)

    def _tokens(self, patches: Tensor, kept: Tensor | None) -> Tensor:
        """The blocks' input: (B, C, K, P) -> (B, C, S + K, D)."""
        num_sep = self.num_sep_tokens
        positions = self.positions[num_sep:]
        tokens: Tensor = self.patch_embedding(patches) + (positions if kept is None else positions[kept])
        if num_sep:
            separators = self.sep_token + self.positions[:num_sep]
            tokens = torch.cat([separators.expand(*tokens.shape[:2], -1, -1), tokens], dim=2)
        return tokens + self.lead_embeddings.index_select(0, self.lead_rows)[:, None]

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter, as `Encoder.layer_of` says."""
        part, _, rest = parameter.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        return self.depth + 1 if part == "norm" else 0


class STMEMDecoder(nn.Module):
    """A light transformer that fills in the hidden patches of each lead from that lead's tokens alone.

    All leads share it. They are folded into the batch, so that no token sees another lead's.
    """

    def __init__(
        self, *, encoder_width: int, num_patches: int, patch_size: int, width: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(encoder_width, width)
        self.mask_token = random_token(width)
        self.register_buffer("positions", sin_cos_table(num_patches, width))  # (N, W); zeros for separators
        self.positions: Tensor
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, patch_size)
        initialize(self)

    def forward(self, tokens: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
        """Reconstruct the hidden patches.

        Args:
            tokens: (B, C, S + K, D) the encoder's output, every lead's separators first.
            kept: (B, C, K) int64 positions of its patches.
            hidden: (B, C, H) int64 positions of the others.

        Returns:
            (B, C, H, P), in the order of `hidden`.
        """
        num_sep = tokens.shape[2] - kept.shape[2]
        separators, visible = self.embedding(tokens).tensor_split([num_sep], dim=2)
        masks = self.mask_token + self.positions[hidden]
        # The hidden patches' tokens stay at the end: their order is told by their positions alone.
        tokens = torch.cat([separators, visible + self.positions[kept], masks], dim=2)
        sequence = tokens.flatten(0, 1)  # (B C, S + N, W)
        for block in self.blocks:
            sequence = block(sequence)
        reconstruction: Tensor = self.head(self.norm(sequence[:, -hidden.shape[2] :]))
        return reconstruction.view(*hidden.shape, -1)


class STMEM(PretextTask):
    """Hide most patches of every lead, each lead's by itself, and reconstruct them from what all leads still show."""

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_samples: int,
        sampling_rate_hz: float,
        size: Size,
        patch_duration_s: float,
        mask_ratio: float,
        num_sep_tokens: int,
        norm_pix_loss: bool,
        standardize_patches: bool,
        decoder_width: int | None,
        decoder_depth: int | None,
        decoder_heads: int | None,
    ) -> None:
        """Build the model with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            sampling_rate_hz: of the input.
            size: of the encoder: tiny, small or base.
            patch_duration_s: a whole number of samples, of which the input is a whole number of times; paper: 0.3.
            mask_ratio: the share of each lead's patches to hide; paper: 0.75.
            num_sep_tokens: separators of a lead: 2 as in the paper, 1, which tells as much (see STMEMEncoder), or 0.
            norm_pix_loss: whether target patches are standardised one by one.
            standardize_patches: whether the encoder sees the shape of each patch alone, without its mean and
                amplitude, as in the published models.
            decoder_width: W, even; None is the size's own (DECODERS), and so below.
            decoder_depth: blocks of the decoder.
            decoder_heads: heads of the decoder, 64 wide each.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__()
        patch_size, num_patches = _patch_grid(num_samples, sampling_rate_hz, patch_duration_s)
        self.num_kept = num_kept_patches(num_patches, mask_ratio)
        self.norm_pix_loss = norm_pix_loss
        self.encoder: STMEMEncoder = STMEMEncoder(
            leads=leads,
            num_patches=num_patches,
            patch_size=patch_size,
            num_sep_tokens=num_sep_tokens,
            size=size,
            standardize_patches=standardize_patches,
        )
        own = DECODERS[size]
        width, depth, num_heads = (
            default if given is None else given
            for given, default in zip((decoder_width, decoder_depth, decoder_heads), own, strict=True)
        )
        _check_decoder(width, depth, num_heads)
        self.decoder = STMEMDecoder(
            encoder_width=self.encoder.width,
            num_patches=num_patches,
            patch_size=patch_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Uniform noise (B, C, N) that decides which patches are hidden, on the generator's device."""
        shape = (batch_size, len(self.encoder.leads), self.encoder.num_patches)
        return torch.rand(shape, generator=generator, device=generator.device)

    def forward(self, signal: Tensor, draws: Tensor) -> Tensor:
        """The mean squared error over the hidden patches: (B, C, T), (B, C, N) -> scalar."""
        prediction, hidden = self.reconstruct(signal, draws)
        return hidden_patch_mse(prediction, self.encoder.patches(signal), hidden, norm_pix_loss=self.norm_pix_loss)

    def reconstruct(self, signal: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Hide patches and reconstruct them.

        Args:
            signal: (B, C, T), standardised.
            draws: (B, C, N), from `draw`.

        Returns:
            prediction (B, C, H, P), standardised patch by patch if `norm_pix_loss`, and hidden (B, C, H), the int64
            positions of these patches, ascending.
        """
        patches = self.encoder.patches(signal)
        assert draws.shape == patches.shape[:3], f"draws must be {tuple(patches.shape[:3])}, got {tuple(draws.shape)}"
        kept, hidden = split_by_noise(draws.to(signal.device), self.num_kept)
        tokens = self.encoder.norm(self.encoder.encode(take(patches, kept), kept=kept))
        return self.decoder(tokens, kept, hidden), hidden


def _patch_grid(num_samples: int, sampling_rate_hz: float, patch_duration_s: float) -> tuple[int, int]:
    """P and N of a signal; a ValueError if either is not whole."""
    exact = patch_duration_s * sampling_rate_hz
    patch_size = round(exact) if math.isfinite(exact) else 0
    if patch_size < 2 or abs(exact - patch_size) > 1e-6:
        raise ValueError(
            f"patch_duration_s must be a whole number of samples, two or more, at {sampling_rate_hz:g} Hz; "
            f"got {patch_duration_s:g} s, which is {exact:g} samples"
        )
    if num_samples % patch_size:
        raise ValueError(
            f"patch_duration_s must divide the window of {num_samples} samples; "
            f"got {patch_duration_s:g} s, which is {patch_size} samples"
        )
    return patch_size, num_samples // patch_size


def _check_decoder(width: int, depth: int, num_heads: int) -> None:
    """Raise a ValueError if no decoder has these sizes."""
    if width < 2 or width % 2:
        raise ValueError(f"decoder_width must be even and positive, got {width}")
    if depth < 1:
        raise ValueError(f"decoder_depth must be at least 1, got {depth}")
    if num_heads < 1:
        raise ValueError(f"decoder_heads must be at least 1, got {num_heads}")
