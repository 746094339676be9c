"""What transforms are made of: draws, and the stretches, waves, noises and readings along time that follow from them.

A draw is a tensor or a dict of tensors with the leading dimension B that lives on its generator's device. All else is
a function of a signal and its draws: on the signal's device, and for each record of what its own row says.

Shapes: B records of the global batch, b of them on this worker, C leads, T samples of a crop, M stretches and K waves
of a record.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Shape = tuple[int, int, int]
"""(B, C, T) of the global batch."""


def sent_to(signal: Tensor, draw: Tensor) -> Tensor:
    """`draw` on the signal's device.

    A GPU is not waited for: its driver puts away anything as small as a draw before it returns. On the way back from
    one a draw that is not waited for would be read too early.
    """
    return draw.to(signal.device, non_blocking=signal.device.type != "cpu")


def draw_uniform(low: float, high: float, sizes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Float32 of any sizes from `low` up to `high`, which is left out."""
    return low + (high - low) * torch.rand(sizes, generator=generator, device=generator.device)


def draw_up_to(most: int, sizes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """int64 of any sizes from 0 to `most`, both ends included."""
    return torch.randint(most + 1, sizes, generator=generator, device=generator.device)


def sizes_per(per: Literal["record", "lead"], shape: Shape) -> tuple[int, int]:
    """The sizes of a draw that each record has one of, (B, 1), or each lead, (B, C)."""
    return shape[0], shape[1] if per == "lead" else 1


def samples_in(share: float, num_samples: int) -> int:
    """The whole samples in a share of the crop: 0.3 of 10 is 3, though 0.3 * 10 may fall short of it in floats."""
    return math.floor(share * num_samples + 1e-9)


def draw_stretch(
    share: float, sizes: tuple[int, ...], num_samples: int, generator: torch.Generator, *, min_share: float = 0.0
) -> dict[str, Tensor]:
    """`first` and `length` in samples, int64 of any sizes: stretches anywhere inside the crop.

    Args:
        share: of the crop, at most in a stretch; every length from `min_share` on is as likely as another.
        sizes: (B,), or (B, M) for M stretches a record that may overlap.
        num_samples: T.
        generator: draws them.
        min_share: of the crop, at least in a stretch.
    """
    least = samples_in(min_share, num_samples)
    length = least + draw_up_to(samples_in(share, num_samples) - least, sizes, generator)
    place = torch.rand(sizes, generator=generator, device=generator.device, dtype=torch.float64)
    return {"first": (place * (num_samples - length + 1)).long(), "length": length}  # in float64 never rounded up


def in_stretch(signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """The samples inside each stretch, bool: (b, 1, T), or (b, M, T) where `first` and `length` are (b, M)."""
    first, length = (sent_to(signal, draws[name]) for name in ("first", "length"))
    first, length = (value.view(len(value), -1, 1) for value in (first, length))
    time = torch.arange(signal.shape[2], device=signal.device)
    return (time >= first) & (time < first + length)


def draw_phase(shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """`phase`: (B,) cycles from 0 up to 1."""
    return {"phase": torch.rand(shape[0], generator=generator, device=generator.device)}


def cycles_of(signal: Tensor, draws: dict[str, Tensor], period_share: float) -> Tensor:
    """(b, 1, T) position in a wave, in cycles, whose period is a share of the crop."""
    time = torch.arange(signal.shape[2], device=signal.device, dtype=signal.dtype)
    return time / (period_share * signal.shape[2]) + sent_to(signal, draws["phase"]).to(signal.dtype)[:, None, None]


def sine(cycles: Tensor) -> Tensor:
    """A sine of amplitude 1, of the shape and type of `cycles`."""
    return torch.sin(2 * math.pi * cycles)


def square(cycles: Tensor) -> Tensor:
    """A square wave of amplitude 1, of the shape and type of `cycles`."""
    return torch.where(cycles.frac() < 0.5, 1.0, -1.0).to(cycles.dtype)


def draw_waves(num_waves: int, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """What K cosines of a record and its leads' shares of their sum follow from.

    Returns:
        `phase` (B, K) in cycles; `weight` (B, K) above 0, of square sum 1, so that the sum of the waves is as strong
        (root mean square 0.71) however many there are; `gain` (B, C) from -1 up to 1.
    """
    sizes = (shape[0], num_waves)
    weight = 1 - draw_uniform(0, 1, sizes, generator)  # of (0, 1]: they are never all 0
    return {
        "phase": draw_uniform(0, 1, sizes, generator),
        "weight": weight / weight.square().sum(dim=1, keepdim=True).sqrt(),
        "gain": draw_uniform(-1, 1, shape[:2], generator),
    }


def draw_slow_waves(num_waves: int, max_cycles: float, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """`draw_waves`, and `cycles` (B, K) of each wave in a crop, from 0 up to `max_cycles` or the Nyquist frequency."""
    fastest = min(max_cycles, shape[2] / 2)  # T / 2 cycles in a crop: what is faster looks like something slower
    return {"cycles": draw_uniform(0, fastest, (shape[0], num_waves), generator)} | draw_waves(
        num_waves, shape, generator
    )


def sum_of_waves(signal: Tensor, draws: dict[str, Tensor], cycles: Tensor) -> Tensor:
    """Every lead's share of the sum of its record's K cosines.

    Args:
        signal: (b, C, T), of which only shape, type and device matter.
        draws: of `draw_waves`.
        cycles: (b, K) or (1, K) of each wave in a crop.

    Returns:
        (b, C, T); at time t the sum over the waves of weight * cos(2 pi (cycles * t / T + phase)), times the lead's
        gain.
    """
    phase, weight, gain = (sent_to(signal, draws[name])[:, :, None] for name in ("phase", "weight", "gain"))
    time = torch.arange(signal.shape[2], device=signal.device) / signal.shape[2]
    angle = (2 * math.pi) * (sent_to(signal, cycles)[:, :, None] * time + phase)  # (b, K, T)
    return (gain * torch.cos(angle).mul_(weight).sum(dim=1, keepdim=True)).to(signal.dtype)


def draw_noise_seed(shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """`noise_seed`: (B,) below 2^32, from which each record's noise follows."""
    return {"noise_seed": torch.randint(2**32, shape[:1], generator=generator, device=generator.device)}


def uniform_noise(seeds: Tensor, rows: int, columns: int) -> Tensor:
    """(b,) seeds -> (b, rows, columns) float32 between -1 and 1, both left out, a function of each seed alone.

    Every place scrambles its own number with the seed. Drawn from a generator instead, the noise of the whole global
    batch would have to be made on every worker's CPU and sent to its device.
    """
    return _uniform_noise_at(seeds, torch.arange(rows * columns, device=seeds.device).view(rows, columns))


def normal_noise(signal: Tensor, draws: dict[str, Tensor], time: Tensor | None = None) -> Tensor:
    """Standard normal noise that is a function of each record's `noise_seed` alone.

    Args:
        signal: (b, C, T).
        draws: of `draw_noise_seed`.
        time: (b, n) samples of the crop that the noise is wanted at, all where None.

    Returns:
        (b, C, T), or its samples at `time`, (b, C, n).
    """
    seeds, num_leads, num_samples = sent_to(signal, draws["noise_seed"]), signal.shape[1], signal.shape[2]
    if time is None:
        uniform = uniform_noise(seeds, num_leads, num_samples)
    else:
        lead = torch.arange(num_leads, device=signal.device)[:, None]
        uniform = _uniform_noise_at(seeds, lead * num_samples + time[:, None])
    return uniform.erfinv_().mul_(math.sqrt(2)).to(signal.dtype)


def _uniform_noise_at(seeds: Tensor, position: Tensor) -> Tensor:
    """(b,) seeds and (rows, columns) or (b, rows, columns) positions below 2^31 -> (b, rows, columns) float32."""
    # in int32, whose products wrap around as the hash wants them to: a CPU is several times as fast as in int64
    word = _scrambled(_scrambled(position.to(torch.int32)) ^ seeds.to(torch.int32)[:, None, None])
    word = (word >> 9).bitwise_and_(2**23 - 1)
    return word.to(torch.float32).add_(0.5).mul_(2.0**-22).sub_(1)  # 23 bits: -1 and 1 are never reached


def _scrambled(word: Tensor) -> Tensor:
    """int32, overwritten, one to one, every bit depending on all: the finaliser of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B - 2**32), (13, 0xC2B2AE35 - 2**32)):  # less 2^32: as int32 has them
        word.bitwise_xor_(_shifted_right(word, shift)).mul_(factor)
    return word.bitwise_xor_(_shifted_right(word, 16))


def _shifted_right(word: Tensor, shift: int) -> Tensor:
    """int32 with zeros moving in; `>>` moves the sign in."""
    return (word >> shift).bitwise_and_(2 ** (32 - shift) - 1)


def spectrum_of(signal: Tensor) -> Tensor:
    """(b, C, T) -> (b, C, T // 2 + 1) complex, each lead by itself; in float32 at least, since halves have no FFT."""
    spectrum: Tensor = torch.fft.rfft(signal.to(torch.promote_types(signal.dtype, torch.float32)), dim=2)
    return spectrum


def signal_of(spectrum: Tensor, like: Tensor) -> Tensor:
    """The signal with a spectrum, of the length and type of `like`."""
    signal: Tensor = torch.fft.irfft(spectrum, n=like.shape[2], dim=2)
    return signal.to(like.dtype)


def with_edges(signal: Tensor, width: int) -> Tensor:
    """(b, C, T) -> (b, C, T + 2 width): each lead's first and last sample repeated beyond its ends."""
    return functional.pad(signal, (width, width), mode="replicate")


def read_at(signal: Tensor, position: Tensor) -> Tensor:
    """All leads of each record at positions between its samples, by linear interpolation.

    Args:
        signal: (b, C, T).
        position: (b, T) float64 in samples, from 0 to T - 1; in float32 a late position would be off by 0.0001.

    Returns:
        (b, C, T), exact wherever a position is a whole number.
    """
    last = signal.shape[2] - 1
    below = position.floor().clamp(0, last)
    weight = (position - below).to(signal.dtype)[:, None]
    before, after = (
        signal.gather(2, index.long()[:, None].expand_as(signal)) for index in (below, (below + 1).clamp(max=last))
    )
    return before.lerp(after, weight)
