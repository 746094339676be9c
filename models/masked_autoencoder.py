"""Masked autoencoding of patches: what ST-MEM, MTAE and MLAE share.

Hide most patches of each group (a lead's patches, or all there are), encode the rest, and have a light decoder fill in
what is hidden. The tasks differ in what a patch and a group are, which their encoders say.

Shapes: B records, C leads, T samples, G groups, N patches of a group, P values of a patch, K patches kept and H hidden
of a group, S tokens that a group begins with beside its patches' (separators, a class token), D width of the encoder,
W width of the decoder.

Source: MAE, He et al. 2022, arXiv:2111.06377; for ECGs Na et al. 2024, arXiv:2402.09450.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder import Encoder
from models.losses import hidden_patch_mse
from models.masking import num_kept_patches, split_by_noise, take
from models.pretext import PretextTask
from models.vit import Block, initialize, random_token, sin_cos_table

Size = Literal["tiny", "small", "base"]

SIZES: dict[str, tuple[int, int, int]] = {"tiny": (64, 3, 1), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, depth and heads (64 wide each) of the encoder; small and base are ST-MEM's, tiny is for laptops."""

DECODERS: dict[str, tuple[int, int, int]] = {"tiny": (64, 1, 1), "small": (256, 4, 4), "base": (256, 4, 4)}
"""Width, depth and heads of the decoder that goes with each encoder; ST-MEM's costs 20 times a tiny encoder."""


def width_of(size: Size) -> int:
    """D of a size.

    Raises:
        ValueError: if there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    return SIZES[size][0]


class PatchEncoder(Encoder):
    """An encoder whose transformer can be given some of a signal's patches.

    A subclass cuts signals (`patches`), makes tokens of patches (`_tokens`) and says what an embedding is (`forward`).

    Attributes:
        num_groups: G.
        num_patches: N.
        patch_size: P.
        blocks: the transformer.
        norm: of every token while pre-training, and of the embedding.
    """

    num_groups: int
    num_patches: int
    patch_size: int

    def __init__(self, size: Size) -> None:
        """Set width and depth; the subclass makes its tokens' parts and then calls `_add_transformer`.

        Raises:
            ValueError: if there is no such size.
        """
        super().__init__()
        self.width = width_of(size)
        _, self.depth, self._num_heads = SIZES[size]

    def _add_transformer(self) -> None:
        """Add the blocks and the norm, and initialise every layer there is."""
        self.blocks = nn.ModuleList(Block(self.width, self._num_heads) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width)
        initialize(self)

    @abstractmethod
    def patches(self, signal: Tensor) -> Tensor:
        """Cut signals into patches: (B, C, T) -> (B, G, N, P).

        Raises:
            ValueError: if the signal has another number of leads or samples than the encoder.
        """

    @abstractmethod
    def _tokens(self, patches: Tensor, kept: Tensor | None) -> Tensor:
        """The blocks' input: (B, G, K, P) -> (B, G, S + K, D)."""

    def encode(self, patches: Tensor, *, kept: Tensor | None = None, drop_path: Tensor | None = None) -> Tensor:
        """Encode some or all patches of each group, without the final norm; all tokens attend to all.

        Args:
            patches: (B, G, K, P), the patches to encode; all N where `kept` is None.
            kept: (B, G, K) int64 positions of these patches, or None for 0..N-1.
            drop_path: (B, depth, 2) factors of the blocks' branches, or None.

        Returns:
            (B, G, S + K, D): every group's own tokens, then its patches'.
        """
        tokens = self._tokens(patches, kept)
        sequence = tokens.flatten(1, 2)
        for index, block in enumerate(self.blocks):
            sequence = block(sequence, None if drop_path is None else drop_path[:, index])
        return sequence.view(tokens.shape)

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter, as `Encoder.layer_of` says."""
        part, _, rest = parameter.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        return self.depth + 1 if part == "norm" else 0

    def _checked(self, signal: Tensor, num_samples: int) -> Tensor:
        """The signal, if it has the encoder's leads and so many samples."""
        expected = (len(self.leads), num_samples)
        if tuple(signal.shape[1:]) != expected:
            raise ValueError(
                f"the signal must be (records, {expected[0]} leads, {expected[1]} samples) "
                f"with the leads {', '.join(self.leads)}, got {tuple(signal.shape)}"
            )
        return signal


class MaskedDecoder(nn.Module):
    """A light transformer that fills in the hidden patches of each group from that group's tokens alone.

    All groups share it. They are folded into the batch, so that no token sees another group's.
    """

    def __init__(
        self, *, encoder_width: int, num_patches: int, patch_size: int, width: int, depth: int, num_heads: int
    ) -> None:
        """Build the decoder with random weights.

        Raises:
            ValueError: naming the size that cannot be.
        """
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"decoder_width must be even and positive, got {width}")
        if depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {depth}")
        if num_heads < 1:
            raise ValueError(f"decoder_heads must be at least 1, got {num_heads}")
        self.embedding = nn.Linear(encoder_width, width)
        self.mask_token = random_token(width)
        self.register_buffer("positions", sin_cos_table(num_patches, width))  # (N, W); zeros for a group's own tokens
        self.positions: Tensor
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, patch_size)
        initialize(self)

    def forward(self, tokens: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
        """Reconstruct the hidden patches.

        Args:
            tokens: (B, G, S + K, D) the encoder's output, every group's own tokens first.
            kept: (B, G, K) int64 positions of its patches.
            hidden: (B, G, H) int64 positions of the others.

        Returns:
            (B, G, H, P), in the order of `hidden`.
        """
        num_own = tokens.shape[2] - kept.shape[2]
        own, visible = self.embedding(tokens).tensor_split([num_own], dim=2)
        masks = self.mask_token + self.positions[hidden]
        # The hidden patches' tokens stay at the end: their order is told by their positions alone.
        tokens = torch.cat([own, visible + self.positions[kept], masks], dim=2)
        sequence = tokens.flatten(0, 1)  # (B G, S + N, W)
        for block in self.blocks:
            sequence = block(sequence)
        reconstruction: Tensor = self.head(self.norm(sequence[:, -hidden.shape[2] :]))
        return reconstruction.view(*hidden.shape, -1)


class MaskedAutoencoder(PretextTask):
    """Hide most patches of every group, each group's by itself, and reconstruct them from what all groups still show.

    Attributes:
        num_kept: K.
        norm_pix_loss: whether target patches are standardised one by one.
    """

    encoder: PatchEncoder

    def __init__(
        self,
        encoder: PatchEncoder,
        *,
        size: Size,
        mask_ratio: float,
        norm_pix_loss: bool,
        decoder_width: int | None,
        decoder_depth: int | None,
        decoder_heads: int | None,
    ) -> None:
        """Put a decoder beside an encoder.

        Args:
            encoder: taken as it is.
            size: of the encoder; a decoder's number that is None is the size's own (DECODERS).
            mask_ratio: the share of each group's patches to hide.
            norm_pix_loss: whether target patches are standardised one by one.
            decoder_width: W, even.
            decoder_depth: blocks of the decoder.
            decoder_heads: heads of the decoder, 64 wide each.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__()
        self.num_kept = num_kept_patches(encoder.num_patches, mask_ratio)
        self.norm_pix_loss = norm_pix_loss
        self.encoder = encoder
        given: Sequence[int | None] = (decoder_width, decoder_depth, decoder_heads)
        width, depth, num_heads = (
            own if typed is None else typed for typed, own in zip(given, DECODERS[size], strict=True)
        )
        self.decoder = MaskedDecoder(
            encoder_width=encoder.width,
            num_patches=encoder.num_patches,
            patch_size=encoder.patch_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
        )

    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Uniform noise (B, G, N) that decides which patches are hidden, on the generator's device."""
        shape = (batch_size, self.encoder.num_groups, self.encoder.num_patches)
        return torch.rand(shape, generator=generator, device=generator.device)

    def forward(self, signal: Tensor, draws: Tensor) -> Tensor:
        """The mean squared error over the hidden patches: (B, C, T), (B, G, N) -> scalar."""
        prediction, hidden = self.reconstruct(signal, draws)
        return hidden_patch_mse(prediction, self.encoder.patches(signal), hidden, norm_pix_loss=self.norm_pix_loss)

    def reconstruct(self, signal: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Hide patches and reconstruct them.

        Args:
            signal: (B, C, T), standardised.
            draws: (B, G, N), from `draw`.

        Returns:
            prediction (B, G, H, P), standardised patch by patch if `norm_pix_loss`, and hidden (B, G, H), the int64
            positions of these patches, ascending.
        """
        patches = self.encoder.patches(signal)
        assert draws.shape == patches.shape[:3], f"draws must be {tuple(patches.shape[:3])}, got {tuple(draws.shape)}"
        kept, hidden = split_by_noise(draws.to(signal.device), self.num_kept)
        tokens = self.encoder.norm(self.encoder.encode(take(patches, kept), kept=kept))
        return self.decoder(tokens, kept, hidden), hidden


def patch_grid(num_samples: int, sampling_rate_hz: float, patch_duration_s: float) -> tuple[int, int]:
    """Samples of a patch, and patches of a lead.

    Raises:
        ValueError: if either is not whole.
    """
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
