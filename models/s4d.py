"""S4D: diagonal state-space models over time, each block a very long convolution computed by Fourier transform.

Gu, Gupta, Goel & Re 2022, 'On the Parameterization and Initialization of Diagonal State Space Models',
arXiv:2206.11893; on ECGs Mehari & Strodthoff 2022, arXiv:2211.07579.

Shapes: B records, C leads, T samples, t tokens (T / the stem's stride), D width, M states of a channel, in conjugate
pairs of which one is kept, K directions in time (1 or 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder import Encoder, Gift, lead_rows
from models.linear import Linear
from models.unit import Unit

S4DSize = Literal["laptop", "s4d"]


class Dimensions(NamedTuple):
    """Width, number of blocks, and samples that the stem joins to one token."""

    width: int
    depth: int
    stride: int


S4DS: dict[str, Dimensions] = {"laptop": Dimensions(128, 4, 4), "s4d": Dimensions(512, 4, 1)}
"""`s4d` has the width and depth of the ECG paper and a token a sample; `laptop` takes a thirtieth of its time."""


class S4D(Encoder):
    """Stem, residual blocks of state-space models, layer norm, mean over time.

    The stem embeds one sample of all leads, or as many together as the size says. With 12 leads, 8 states and both
    directions the encoder has 2.166 million parameters, the laptop's has 0.153. Differences from the ECG paper: its
    layers are S4, whose state matrix has a term of low rank beside the diagonal, and it regularises by dropout; here
    the program may draw a drop path, once for all workers.

    What describes the dynamics (decay, frequency, step, output) is no layer's `weight`, so weight decay leaves it be.
    """

    gives: ClassVar[frozenset[Gift]] = frozenset({"vector", "segments"})

    def __init__(
        self,
        *,
        leads: Sequence[str],
        num_samples: int,
        sampling_rate_hz: float,
        size: S4DSize,
        state_size: int,
        bidirectional: bool,
        min_memory_s: float,
        max_memory_s: float,
    ) -> None:
        """Build the encoder with random weights.

        Args:
            leads: C names of standard leads, in the order of the input.
            num_samples: T.
            sampling_rate_hz: of the input.
            size: a key of S4DS.
            state_size: M, even; ECG paper: 8.
            bidirectional: whether a token is told of later ones too; else of itself and earlier ones alone.
            min_memory_s: the time after which the most forgetful channel's states begin at 1 / e of themselves. State
                n of a channel turns n times in its memory. The paper's largest step, 0.1, is 0.2 s at 100 Hz.
            max_memory_s: that of the least forgetful channel; the paper's smallest step, 0.001, is 20 s at 100 Hz.

        Raises:
            ValueError: naming the argument that cannot be.
        """
        super().__init__()
        lead_rows(leads)  # refuses what are none
        if size not in S4DS:
            raise ValueError(f"size must be one of {', '.join(S4DS)}, got {size!r}")
        if state_size < 2 or state_size % 2:
            raise ValueError(f"state_size must be even and positive, got {state_size}")
        if not 0 < min_memory_s <= max_memory_s < math.inf:
            raise ValueError(
                f"min_memory_s must be positive and at most max_memory_s, got {min_memory_s=} and {max_memory_s=}"
            )
        self.leads, self.num_samples = tuple(leads), num_samples
        self.width, self.depth, self.stride = S4DS[size]
        self.stem = nn.Conv1d(len(leads), self.width, self.stride, self.stride)
        token_s = self.stride / sampling_rate_hz
        memory = (min_memory_s / token_s, max_memory_s / token_s)
        self.blocks = nn.ModuleList(Block(self.width, state_size, memory, bidirectional) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width)

    def forward(self, signal: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Embed signals, as `Encoder.forward` says: (B, C, T) -> (B, D)."""
        self._check(signal)
        whole = F.pad(signal, (0, -signal.shape[2] % self.stride))  # zeros, the mean of standardised signals
        tokens = self.stem(whole).transpose(1, 2)  # (B, t, D)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, None if drop_path is None else drop_path[:, index, 0])
        embedding: Tensor = self.norm(tokens).mean(dim=1)
        return embedding

    def layer_of(self, parameter: str) -> int:
        """The layer of a parameter, as `Encoder.layer_of` says; the norm follows the blocks."""
        part, _, rest = parameter.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        return self.depth + 1 if part == "norm" else 0


class Block(Unit):
    """Norm, state-space models, GELU, and a gated mixture of channels, added to the input: (B, t, D) -> (B, t, D)."""

    def __init__(self, width: int, state_size: int, memory: tuple[float, float], bidirectional: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.state_space = DiagonalStateSpace(width, state_size, memory, bidirectional)
        self.mix = Linear(width, 2 * width)

    def forward(self, tokens: Tensor, factor: Tensor | None = None) -> Tensor:
        """Transform a sequence.

        Args:
            tokens: (B, t, D).
            factor: (B,) what is added to the tokens is multiplied by; None stands for ones.

        Returns:
            (B, t, D).

        Source: S4, Gu et al. 2022, arXiv:2111.00396, sec. 3.4; stochastic depth, Huang et al. 2016, arXiv:1603.09382.
        """
        change = F.glu(self.mix(F.gelu(self.state_space(self.norm(tokens)))), dim=-1)
        return tokens + (change if factor is None else change * factor[:, None, None])


class DiagonalStateSpace(nn.Module):
    """A state-space model of its own for each channel: (B, t, D) -> (B, t, D).

    In continuous time a channel u has the states x' = A x + u and the output y = 2 Re(C x) + d u, with A diagonal and
    complex: the paper's model with its B = 1, which C makes up for. Held constant over a step, dt of a token, this is
    x_k = exp(dt A) x_(k-1) + (exp(dt A) - 1) / A u_k (zero-order hold, sec. 3.1), hence y the convolution of u with
    2 Re(C exp(dt A)^l (exp(dt A) - 1) / A) at l = 0, 1, ... and of d u. A second direction has a C of its own, reads
    the tokens after this one from the last to the next, and shares the rest.

    Parameters are real, as optimizers and DDP handle complex ones poorly. A = -exp(log_decay) + i frequency keeps the
    states from growing. At first A_n = -1/2 + i pi n (S4D-Lin, sec. 4), C is drawn from the complex N(0, 1), d from
    N(0, 1), and steps are log-uniform.

    Attributes:
        log_decay: (D, M / 2).
        frequency: (D, M / 2) radians in unit time.
        log_step: (D,) of dt, in unit time.
        output: (K, D, M / 2, 2) C, its real and imaginary parts.
        skip: (D,) d.
    """

    def __init__(self, width: int, state_size: int, memory: tuple[float, float], bidirectional: bool) -> None:
        """Draw the parameters.

        Args:
            width: D.
            state_size: M, even.
            memory: the shortest and the longest time, in tokens, after which a channel's states are at 1 / e: 2 / dt.
            bidirectional: whether K is 2.
        """
        super().__init__()
        pairs = state_size // 2
        self.log_decay = nn.Parameter(torch.full((width, pairs), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(pairs).expand(width, -1).float())
        shortest, longest = (math.log(tokens) for tokens in memory)
        self.log_step = nn.Parameter(math.log(2) - torch.empty(width).uniform_(shortest, longest))
        self.output = nn.Parameter(torch.randn(2 if bidirectional else 1, width, pairs, 2) * math.sqrt(0.5))
        self.skip = nn.Parameter(torch.randn(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Convolve every channel with its kernels: (B, t, D) -> (B, t, D)."""
        with torch.autocast(tokens.device.type, enabled=False):  # powers of exp(dt A) and sums over t need float32
            inputs = tokens.transpose(1, 2).to(self.skip.dtype).contiguous()  # contiguous: transforms 2 times as fast
            outputs = convolve(inputs, self.kernels(tokens.shape[1])) + self.skip[:, None] * inputs
        return outputs.transpose(1, 2).to(tokens.dtype)

    def kernels(self, length: int) -> Tensor:
        """What the first `length` outputs are after an input of 1, 0, 0, ..., without the skip: (K, D, length).

        The Vandermonde product of the paper's sec. 3.2, in real numbers, which are several times as fast: the real part
        of a pair's powers is a sum of a damped cosine and sine.
        """
        rate = torch.complex(-self.log_decay.exp(), self.frequency)  # A
        advance = rate * self.log_step.exp()[:, None]  # dt A
        weights = 2 * torch.view_as_complex(self.output) * torch.expm1(advance) / rate  # (K, D, M / 2)
        power = torch.arange(length, device=rate.device)
        decay, angle = (advance.real[..., None] * power).exp(), advance.imag[..., None] * power
        waves = torch.cat([decay * angle.cos(), decay * angle.sin()], dim=1)  # (D, M, length)
        return torch.einsum("kdm,dml->kdl", torch.cat([weights.real, -weights.imag], dim=2), waves)


def convolve(inputs: Tensor, kernels: Tensor) -> Tensor:
    """Convolve sequences with kernels as long as they are, by Fourier transform.

    Args:
        inputs: (B, D, t).
        kernels: (K, D, t): how an input adds to the outputs from its own on and, if K is 2, to those before it, from
            the nearest.

    Returns:
        (B, D, t): at i the sum of kernels[0, :, i - j] inputs[..., j] over j <= i, plus that of
        kernels[1, :, j - i - 1] inputs[..., j] over j > i.
    """
    length = inputs.shape[-1]
    # On a circle of twice the length the first half holds the past and the second, backwards, the future.
    circle = F.pad(kernels[0], (0, length)) if len(kernels) == 1 else torch.cat([kernels[0], kernels[1].flip(-1)], -1)
    spectrum = torch.fft.rfft(inputs, 2 * length) * torch.fft.rfft(circle)
    outputs: Tensor = torch.fft.irfft(spectrum, 2 * length)
    return outputs[..., :length]
