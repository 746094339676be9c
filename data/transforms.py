"""What may be done to a batch of crops before a model sees it, and where crops start.

The catalogue is that of ST-MEM (Na et al. 2024, arXiv:2402.09450) with RandAugment (Cubuk et al. 2019,
arXiv:1909.13719), batched: every record of a batch has draws of its own, and nothing loops over records. Resampling
and the high-pass and low-pass filters are not here: they belong to the preparation of the store (data.store), which
runs them once over whole records, so that no crop has the transients of a filter at its edges.

Where we differ from the public code: period shares are called what they are (there: a frequency), waves start at a
random phase, a record never loses all its leads, level 0 of RandAugment is the identity, and no list of crops is ever
longer or shorter than asked for.

Shapes: B records of the global batch, b of them on this worker, C leads, T samples of a crop.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.record import LEADS, one_of

LIMB_LEADS = LEADS[:6]

FLAT = 1e-6
"""A standard deviation below this share of the mean's size is what float32 leaves of a constant signal."""


class Transform(ABC):
    """One change to a batch of crops, split into its randomness and what follows from it.

    The draws are made for the global batch and sliced, so that a record is changed in the same way whichever worker
    holds it.
    """

    @abstractmethod
    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Everything random of one batch.

        Args:
            shape: (B, C, T) of the global batch.
            generator: the only source of randomness; the draws live on its device.

        Returns:
            Tensors by name, each with the leading dimension B: row i belongs to record i. Empty where nothing is
            random.
        """

    @abstractmethod
    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Change some or all records of a batch as their draws say.

        Args:
            signal: (b, C, T) float, left as it is.
            draws: the rows of `draw` that belong to these records, on any device.

        Returns:
            (b, C, T) of the same type on the signal's device.
        """


@dataclass(frozen=True, kw_only=True)
class Standardize(Transform):
    """Mean 0 and standard deviation 1 over each `record` or each `lead`; see `standardize`."""

    axis: Literal["record", "lead"]

    def __post_init__(self) -> None:
        if self.axis not in ("record", "lead"):
            raise ValueError(f"axis must be record or lead, got {self.axis!r}")

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing is random."""
        return {}

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T); what is constant becomes 0."""
        return standardize(signal, self.axis)


@dataclass(frozen=True, kw_only=True)
class Flip(Transform):
    """Turn the signal upside down."""

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing is random."""
        return {}

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        return -signal


@dataclass(frozen=True, kw_only=True)
class Erase(Transform):
    """Set one lead, any as likely as another, to 0."""

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`lead`: (B,) position of the lead to erase."""
        return {"lead": torch.randint(shape[1], shape[:1], generator=generator, device=generator.device)}

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        leads = torch.arange(signal.shape[1], device=signal.device)
        erased = leads == draws["lead"].to(signal.device)[:, None]
        return signal.masked_fill(erased[:, :, None], 0)


@dataclass(frozen=True, kw_only=True)
class Drop(Transform):
    """Set a random number of time points, from none to `share` of the crop, to 0 on all leads."""

    share: float

    def __post_init__(self) -> None:
        _check_share("share", self.share)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`dropped`: (B, T) bool."""
        num_records, _, num_samples = shape
        count = _up_to(_samples(self.share, num_samples), num_records, generator)
        noise = torch.rand(num_records, num_samples, generator=generator, device=generator.device)
        return {"dropped": noise.argsort(dim=1) < count[:, None]}  # a permutation of 0..T-1: exactly `count` are below

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        return signal.masked_fill(draws["dropped"].to(signal.device)[:, None], 0)


@dataclass(frozen=True, kw_only=True)
class Cutout(Transform):
    """Set one random stretch, from nothing to `share` of the crop, to 0 on all leads."""

    share: float

    def __post_init__(self) -> None:
        _check_share("share", self.share)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`first` and `length`: (B,) samples."""
        return _draw_stretch(self.share, shape, generator)

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        return signal.masked_fill(_in_stretch(signal, draws), 0)


@dataclass(frozen=True, kw_only=True)
class Shift(Transform):
    """Move the signal up to `share` of the crop to the left or right, with 0 where nothing moves in."""

    share: float

    def __post_init__(self) -> None:
        _check_share("share", self.share)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`steps`: (B,) samples to the right, negative to the left."""
        most = _samples(self.share, shape[2])
        return {"steps": _up_to(2 * most, shape[0], generator) - most}

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        num_samples = signal.shape[2]
        origin = torch.arange(num_samples, device=signal.device) - draws["steps"].to(signal.device)[:, None]  # (b, T)
        outside = (origin < 0) | (origin >= num_samples)
        origin = origin.clamp(0, num_samples - 1)[:, None].expand_as(signal)
        return signal.gather(2, origin).masked_fill(outside[:, None], 0)


@dataclass(frozen=True, kw_only=True)
class Sine(Transform):
    """Add a sine of random phase, the same on all leads.

    Attributes:
        amplitude: in the signal's own unit: standard deviations once it is standardised.
        period_share: period as a share of the crop; 0.5 is two cycles whatever the sampling rate.
    """

    amplitude: float
    period_share: float

    def __post_init__(self) -> None:
        _check_wave(self.amplitude, self.period_share)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`phase`: (B,) cycles."""
        return _draw_phase(shape, generator)

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        return signal + self.amplitude * _sine(_cycles(signal, draws, self.period_share))


@dataclass(frozen=True, kw_only=True)
class PartialSine(Transform):
    """Add a sine as `Sine` does, on one random stretch from nothing to `share` of the crop."""

    amplitude: float
    period_share: float
    share: float

    def __post_init__(self) -> None:
        _check_wave(self.amplitude, self.period_share)
        _check_share("share", self.share)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`phase`: (B,) cycles; `first` and `length`: (B,) samples."""
        return _draw_phase(shape, generator) | _draw_stretch(self.share, shape, generator)

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        wave = self.amplitude * _sine(_cycles(signal, draws, self.period_share))
        return signal + wave * _in_stretch(signal, draws)


@dataclass(frozen=True, kw_only=True)
class SquareWave(Transform):
    """Add a square wave of random phase, `amplitude` up and down, the same on all leads; attributes as for `Sine`."""

    amplitude: float
    period_share: float

    def __post_init__(self) -> None:
        _check_wave(self.amplitude, self.period_share)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`phase`: (B,) cycles."""
        return _draw_phase(shape, generator)

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        return signal + self.amplitude * _square(_cycles(signal, draws, self.period_share))


@dataclass(frozen=True, kw_only=True)
class PartialSquareWave(Transform):
    """Add a square wave as `SquareWave` does, on one random stretch from nothing to `share` of the crop."""

    amplitude: float
    period_share: float
    share: float

    def __post_init__(self) -> None:
        _check_wave(self.amplitude, self.period_share)
        _check_share("share", self.share)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`phase`: (B,) cycles; `first` and `length`: (B,) samples."""
        return _draw_phase(shape, generator) | _draw_stretch(self.share, shape, generator)

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        wave = self.amplitude * _square(_cycles(signal, draws, self.period_share))
        return signal + wave * _in_stretch(signal, draws)


@dataclass(frozen=True, kw_only=True)
class WhiteNoise(Transform):
    """Add independent normal noise of standard deviation `amplitude` to every sample of every lead."""

    amplitude: float

    def __post_init__(self) -> None:
        _check_amplitude(self.amplitude)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`noise_seed`: (B,) from which each record's noise follows."""
        return _draw_noise_seed(shape, generator)

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        return signal + self.amplitude * _normal_noise(signal, draws)


@dataclass(frozen=True, kw_only=True)
class PartialWhiteNoise(Transform):
    """Add noise as `WhiteNoise` does, on one random stretch from nothing to `share` of the crop."""

    amplitude: float
    share: float

    def __post_init__(self) -> None:
        _check_amplitude(self.amplitude)
        _check_share("share", self.share)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`noise_seed`: (B,); `first` and `length`: (B,) samples."""
        return _draw_noise_seed(shape, generator) | _draw_stretch(self.share, shape, generator)

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        return signal + self.amplitude * _normal_noise(signal, draws) * _in_stretch(signal, draws)


@dataclass(frozen=True, kw_only=True)
class RandomLeadMask(Transform):
    """Set each lead to 0 with a probability and standardise those left, all together.

    One lead always stays, whatever the probability; the public code of ST-MEM can lose them all.
    """

    probability: float

    def __post_init__(self) -> None:
        _check_share("probability", self.probability)

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`kept`: (B, C) bool, at least one a record."""
        chance = torch.rand(shape[:2], generator=generator, device=generator.device)
        return {"kept": (chance >= self.probability) | (chance == chance.amax(dim=1, keepdim=True))}

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T)."""
        kept = draws["kept"].to(signal.device)[:, :, None]
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

    def __post_init__(self) -> None:
        if not self.keep:
            raise ValueError("keep must name at least one lead, got none")
        if unknown := [name for name in self._kept_names if name not in self.leads]:
            raise ValueError(f"keep may name only the signal's leads {list(self.leads)} or limb, got {unknown}")

    @property
    def _kept_names(self) -> list[str]:
        return [name for item in self.keep for name in (LIMB_LEADS if item == "limb" else (item,))]

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing is random."""
        return {}

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T); ValueError where C is not the number of `leads`."""
        if signal.shape[1] != len(self.leads):
            raise ValueError(
                f"leads must name each lead of the signal, got {len(self.leads)} names for {signal.shape[1]} leads: "
                f"name those of data.leads, in their order"
            )
        masked = torch.tensor([name not in self._kept_names for name in self.leads], device=signal.device)
        return signal.masked_fill(masked[:, None], 0)


OPERATIONS: dict[str, type[Any]] = {
    "erase": Erase,
    "flip": Flip,
    "drop": Drop,
    "cutout": Cutout,
    "shift": Shift,
    "sine": Sine,
    "partial_sine": PartialSine,
    "square_wave": SquareWave,
    "partial_square_wave": PartialSquareWave,
    "white_noise": WhiteNoise,
    "partial_white_noise": PartialWhiteNoise,
    "random_lead_mask": RandomLeadMask,
}
"""What RandAugment can choose from."""


@dataclass(frozen=True, kw_only=True)
class RandAugment(Transform):
    """Apply to every record `num_layers` different operations of its own, each behind a coin.

    Attributes:
        operations: names in OPERATIONS to choose from.
        level: strength of all of them, 0 (nothing is changed) to 10.
        num_layers: operations drawn for a record, without replacement; applied in the order drawn.
        probability: that a drawn operation is applied; 0.5 in ST-MEM.

    Source: RandAugment, Cubuk et al. 2019, arXiv:1909.13719, with the strengths of ST-MEM's public configuration:
    shares, amplitudes and probabilities are 0.3 * level / 10, the period share is 0.5 / (level / 10). At level 0 that
    code divides by zero.
    """

    operations: Sequence[str]
    level: float
    num_layers: int
    probability: float

    def __post_init__(self) -> None:
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
        _check_share("probability", self.probability)

    @cached_property
    def built(self) -> dict[str, Transform]:
        """The operations by name at this level; none at level 0."""
        if self.level == 0:
            return {}
        strength = 0.3 * self.level / 10
        values = {"share": strength, "amplitude": strength, "probability": strength, "period_share": 5 / self.level}
        return {
            name: OPERATIONS[name](**{field.name: values[field.name] for field in fields(OPERATIONS[name])})
            for name in self.operations
        }

    def draw(self, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """`operation`: (B, num_layers) position in `operations`, -1 for none; the operations' own as `<name>.<key>`."""
        sizes, device = (shape[0], len(self.operations)), generator.device
        order = torch.rand(sizes, generator=generator, device=device).argsort(dim=1)[:, : self.num_layers]
        applied = torch.rand(order.shape, generator=generator, device=device) < self.probability
        draws = {"operation": order.where(applied, -1)}
        for name, operation in self.built.items():
            draws |= {f"{name}.{key}": value for key, value in operation.draw(shape, generator).items()}
        return draws

    def apply(self, signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """(b, C, T) -> (b, C, T): layer by layer, each operation on those records that drew it."""
        signal = signal.clone()
        chosen = draws["operation"].cpu()  # the loader's draws are there already, so no device is waited for
        for layer in range(self.num_layers):
            for number, (name, operation) in enumerate(self.built.items()):
                records = (chosen[:, layer] == number).nonzero()[:, 0]
                if len(records) > 0:
                    here = records.to(signal.device)
                    changed = operation.apply(signal.index_select(0, here), _rows_of(draws, f"{name}.", records))
                    signal.index_copy_(0, here, changed)
        return signal


def standardize(signal: Tensor, axis: Literal["record", "lead", "none"]) -> Tensor:
    """Shift to mean 0 and scale to standard deviation 1 (population); what is constant becomes 0.

    Args:
        signal: (..., C, T) float.
        axis: `record` takes all leads and samples of a record together, so the leads keep their relative sizes;
            `lead` takes every lead for itself; `none` returns the signal as it is.

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
    centred = signal - mean
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


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}")


def _check_amplitude(value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"amplitude must be at least 0 and finite, got {value}")


def _check_wave(amplitude: float, period_share: float) -> None:
    _check_amplitude(amplitude)
    if not 0 < period_share < math.inf:
        raise ValueError(f"period_share must be above 0 and finite, got {period_share}")


def _samples(share: float, num_samples: int) -> int:
    """The whole samples in a share of the crop: 0.3 of 10 is 3, though 0.3 * 10 may fall short of it in floats."""
    return math.floor(share * num_samples + 1e-9)


def _up_to(most: int, num_records: int, generator: torch.Generator) -> Tensor:
    """(B,) int64 from 0 to `most`, both ends included."""
    return torch.randint(most + 1, (num_records,), generator=generator, device=generator.device)


def _rows_of(draws: dict[str, Tensor], prefix: str, records: Tensor) -> dict[str, Tensor]:
    """The draws whose names start with `prefix`, without it, for these records."""
    return {
        name.removeprefix(prefix): value.index_select(0, records.to(value.device))
        for name, value in draws.items()
        if name.startswith(prefix)
    }


def _draw_stretch(share: float, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
    """`first` and `length`, (B,) int64: a stretch of any length up to `share` of the crop, anywhere inside it."""
    num_records, _, num_samples = shape
    length = _up_to(_samples(share, num_samples), num_records, generator)
    place = torch.rand(num_records, generator=generator, device=generator.device, dtype=torch.float64)
    return {"first": (place * (num_samples - length + 1)).long(), "length": length}  # in float64 never rounded up


def _in_stretch(signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """(b, 1, T) bool: the samples inside each record's stretch."""
    first, length = (draws[name].to(signal.device)[:, None, None] for name in ("first", "length"))
    time = torch.arange(signal.shape[2], device=signal.device)
    return (time >= first) & (time < first + length)


def _draw_phase(shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
    return {"phase": torch.rand(shape[0], generator=generator, device=generator.device)}


def _cycles(signal: Tensor, draws: dict[str, Tensor], period_share: float) -> Tensor:
    """(b, 1, T) position in a wave, in cycles."""
    time = torch.arange(signal.shape[2], device=signal.device, dtype=signal.dtype)
    return time / (period_share * signal.shape[2]) + draws["phase"].to(signal.device, signal.dtype)[:, None, None]


def _sine(cycles: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * cycles)


def _square(cycles: Tensor) -> Tensor:
    return torch.where(cycles.frac() < 0.5, 1.0, -1.0).to(cycles.dtype)


def _draw_noise_seed(shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
    return {"noise_seed": torch.randint(2**32, shape[:1], generator=generator, device=generator.device)}


def _normal_noise(signal: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """(b, C, T) standard normal noise that is a function of each record's seed alone.

    Every sample scrambles its own position with the seed. Drawn from a generator instead, the noise of the whole
    global batch would have to be made on every worker's CPU and sent to its device.
    """
    position = torch.arange(math.prod(signal.shape[1:]), device=signal.device).view(signal.shape[1:])
    word = _scrambled(_scrambled(position) ^ draws["noise_seed"].to(signal.device)[:, None, None])
    uniform = (word >> 9).to(torch.float32).add_(0.5).mul_(2.0**-22).sub_(1)  # 23 bits: -1 and 1 are never reached
    return uniform.erfinv_().mul_(math.sqrt(2)).to(signal.dtype)


def _scrambled(word: Tensor) -> Tensor:
    """int64 below 2^32, overwritten, one to one, every bit depending on all: the finaliser of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B - 2**32), (13, 0xC2B2AE35 - 2**32)):  # less 2^32: no product leaves int64
        word.bitwise_xor_(word >> shift).mul_(factor).bitwise_and_(0xFFFFFFFF)
    return word.bitwise_xor_(word >> 16)
