"""How a model gets its batches: crops gathered from the store's memory map, finished on the device.

A batch leaves the map as int16 and becomes float32 mV on the device, where it is standardised and augmented; records
are read in this process, without workers: one core gathers far more crops than a model on one device takes. A GPU that
has room for it keeps the whole map (`resident_signals`), and crops are gathered there; to any other they are sent from
pinned memory. Neither waits for what the GPU is doing.

Shapes: B records of the global batch, b of them on this worker, C leads, T samples of a window, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.transforms import Transform, last_starts, n_crop_starts, random_crop_starts, standardize

if TYPE_CHECKING:
    from data.store import Store

ORDER, AUGMENTATION = 0, 1  # what a seed sequence is for: no two purposes share a stream

RESIDENT_SHARE = 0.25
"""Of a GPU's free memory, at most for recordings; the model, its optimiser and other trials need the rest. PTB-XL takes
0.5 GB at 100 Hz and 1.3 GB at 250 Hz."""
_PREPARED_RECORDS = 64  # of one worker at once: a call for a few records costs more than its arithmetic
_COPIED_SAMPLES = 2**25  # 64 MB at a time: a copy from a memory map goes through memory of the process


@dataclass(frozen=True)
class Window:
    """What a model sees of a record.

    Attributes:
        num_samples: T, the length of a crop.
        standardize: over which values a crop is brought to mean 0 and standard deviation 1 (data.transforms).
        num_crops: equally spaced crops of each record in an evaluation.
    """

    num_samples: int
    standardize: Literal["record", "lead", "none"]
    num_crops: int

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.num_crops < 1:
            raise ValueError(f"num_samples and num_crops must be at least 1, got {self.num_samples}, {self.num_crops}")
        if self.standardize not in ("record", "lead", "none"):
            raise ValueError(f"standardize must be record, lead or none, got {self.standardize!r}")


@dataclass
class Batch:
    """The part of a global batch that one worker holds.

    Attributes:
        signal: (b, C, T) float32 on the device, mV unless the window standardises; (b, V, C, T) where more than one
            view of each record is asked for.
        targets: (b, K) float32 on the device, or None where nothing is labelled.
        rows: (b,) rows of the store's index.
        positions: (b,) of these among the rows that are trained on.
        start: position of the first record in the global batch: draws for the global batch are sliced at
            `start : start + b`.
        global_size: B, the records of all workers' parts together.
    """

    signal: Tensor
    targets: Tensor | None
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    start: int
    global_size: int


class TrainBatches:
    """Random crops for training, the same for the same (seed, epoch) whatever the number of workers.

    Args:
        store: the prepared recordings.
        rows: (n,) rows of the store's index to train on.
        targets: (n, K) labels of `rows`, or None.
        window: length and standardisation of a crop.
        batch_size: B, the records of one forward pass over all workers together.
        transforms: augmentations in order, applied after the standardisation: amplitudes are in standard deviations.
        num_views: V, crops of each record in a batch, each with a start and augmentations of its own.
        seed: of order, crops and augmentations.
        device: where batches end up.
        rank: this worker's number.
        world_size: number of workers that share each batch.

    Raises:
        ValueError: if there is nothing to train on, a record is shorter than the window, `targets` and `rows` differ
            in length, or a batch has fewer records than there are workers.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        *,
        targets: NDArray[np.float32] | None,
        window: Window,
        batch_size: int,
        transforms: Sequence[Transform],
        seed: int,
        device: torch.device,
        num_views: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(rows) == 0:
            raise ValueError("training needs at least one record, got none: check the training folds and labels")
        self.batch_size = min(batch_size, len(rows))
        if self.batch_size < world_size:
            raise ValueError(
                f"each of {world_size} workers needs a record of every batch, got batch_size={batch_size} and "
                f"{len(rows)} training records: lower cluster.workers_per_trial or raise batch_size"
            )
        if targets is not None and len(targets) != len(rows):
            raise ValueError(f"targets must have a row for each of the {len(rows)} rows, got {len(targets)}")
        self.num_batches = len(rows) // self.batch_size
        self.device = device
        self._crops = _Crops(store, rows, window, device)
        self._targets = None if targets is None else torch.tensor(targets, dtype=torch.float32, device=device)
        self._transforms = tuple(transforms)
        self._num_views = num_views
        self._seed = seed
        self._rank, self._world_size = rank, world_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; what a last, incomplete batch would hold is left out of this epoch."""
        crops = self._crops
        generator = np.random.default_rng([self._seed, epoch, ORDER])
        order = generator.permutation(len(crops.rows))
        lengths = crops.num_samples[order]
        starts = np.stack(
            [random_crop_starts(lengths, crops.window.num_samples, generator) for _ in range(self._num_views)], axis=1
        )
        part = worker_share(self.batch_size, self._rank, self._world_size)
        mine = np.arange(len(order))[: self.num_batches * self.batch_size].reshape(self.num_batches, self.batch_size)
        mine = mine[:, part.start : part.stop]  # (batches, b): places of this worker's records in the order
        at_once = max(1, _PREPARED_RECORDS // len(part))
        for first in range(0, self.num_batches, at_once):
            numbers = range(first, min(first + at_once, self.num_batches))
            positions = order[mine[first : numbers.stop]]
            signal = self._prepared(positions, starts[mine[first : numbers.stop]], part, epoch, numbers)
            for own, of_batch in zip(positions, signal.view(*positions.shape, *signal.shape[1:]), strict=True):
                yield Batch(
                    signal=of_batch,
                    targets=None if self._targets is None else self._targets[_sent(own, crops.device)],
                    rows=crops.rows[own],
                    positions=own,
                    start=part.start,
                    global_size=self.batch_size,
                )

    def _prepared(
        self, positions: NDArray[np.int64], starts: NDArray[np.int64], part: range, epoch: int, numbers: range
    ) -> Tensor:
        """The crops of some batches on end, augmented: (m, b) positions and (m, b, V) starts -> (m b, [V,] C, T)."""
        gathered = self._crops.gather(positions.ravel(), starts.reshape(-1, self._num_views)).unbind(1)
        views = [self._augmented(view, part, epoch, numbers, place) for place, view in enumerate(gathered)]
        return views[0] if self._num_views == 1 else torch.stack(views, dim=1)

    def _augmented(self, signal: Tensor, part: range, epoch: int, numbers: range, view: int) -> Tensor:
        """Every transform in turn, its randomness drawn for each global batch on the CPU and sliced."""
        shape = (self.batch_size, signal.shape[1], signal.shape[2])
        for position, transform in enumerate(self._transforms):
            of_batches = []
            for number in numbers:
                entropy = np.random.SeedSequence([self._seed, epoch, AUGMENTATION, number, position, view])
                generator = torch.Generator().manual_seed(int(entropy.generate_state(1)[0]))
                of_batches.append(transform.draw(shape, generator))
            names = of_batches[0]
            draws = {name: torch.cat([each[name][part.start : part.stop] for each in of_batches]) for name in names}
            signal = transform.apply(signal, draws, in_place=True)
        return signal


def eval_batches(
    store: Store,
    rows: NDArray[np.int64],
    *,
    window: Window,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Every record once, in the order of `rows`, as equally spaced crops.

    Args:
        store: the prepared recordings.
        rows: (n,) rows of the store's index.
        window: length, standardisation and number of the crops.
        batch_size: records of one batch of this worker; the last batch holds what is left.
        device: where the crops end up.
        rank: this worker's number.
        world_size: number of workers; each gets a contiguous share, possibly empty, and no record comes twice.

    Yields:
        (b, num_crops, C, T) float32 crops, each standardised for itself, and the (b,) rows that they belong to.

    Raises:
        ValueError: if a record is shorter than the window.
    """
    share = worker_share(len(rows), rank, world_size)
    crops = _Crops(store, rows[share.start : share.stop], window, device)
    starts = n_crop_starts(crops.num_samples, window.num_samples, window.num_crops)
    for first in range(0, len(share), batch_size):
        positions = np.arange(first, min(first + batch_size, len(share)))
        yield crops.gather(positions, starts[positions]), crops.rows[positions]


def worker_share(total: int, rank: int, world_size: int) -> range:
    """The contiguous part of `total` things that a worker gets: sizes differ by one at most, larger ones first."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie between 0 and world_size - 1, got {rank=} and {world_size=}")
    size, larger = divmod(total, world_size)
    first = rank * size + min(rank, larger)
    return range(first, first + size + (rank < larger))


class _Crops:
    """Windows of chosen records, from the memory map to standardised float32 on the device."""

    def __init__(self, store: Store, rows: NDArray[np.int64], window: Window, device: torch.device) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self.num_samples = store.index["num_samples"].to_numpy(np.int64)[self.rows]
        last_starts(self.num_samples, window.num_samples)  # refuses records shorter than the window
        self.window = window
        self.device = device
        self._offsets = store.index["offset"].to_numpy(np.int64)[self.rows]
        self._leads = np.arange(len(store.record(0)))
        # Row i is samples i to i + T of the flat array: one fancy index then copies whole windows, whatever the
        # lengths of the records. Taken from a plain view, since np.memmap is slow to index.
        self._windows = np.lib.stride_tricks.sliding_window_view(np.asarray(store.signals), window.num_samples)
        resident = None if device.type == "cpu" else resident_signals(store, device)
        self._resident_windows = None if resident is None else resident.unfold(0, window.num_samples, 1)
        self._mv_per_unit = store.mv_per_unit

    def gather(self, positions: NDArray[np.int64], starts: NDArray[np.int64]) -> Tensor:
        """(b,) positions in `rows` and (b, n) starts of crops -> (b, n, C, T) float32, each crop by itself."""
        first_leads = self._offsets[positions, None] + starts  # (b, n): where the first lead's window lies in the map
        leads = self.num_samples[positions, None, None] * self._leads  # (b, 1, C): how far behind it the others lie
        signal = self._read(first_leads[:, :, None] + leads).to(torch.float32)
        return standardize(signal.mul_(self._mv_per_unit), self.window.standardize, in_place=True)

    def _read(self, places: NDArray[np.int64]) -> Tensor:
        """(b, n, C) places where windows begin in the map -> (b, n, C, T) int16 on the device."""
        if self._resident_windows is not None:
            return self._resident_windows[_sent(places, self.device)]
        return _sent(self._windows[places], self.device)


def _sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on a device, by way of pinned memory where that spares waiting for the device."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@functools.lru_cache(maxsize=1)  # a process trains and validates on one store at a time
def resident_signals(store: Store, device: torch.device) -> Tensor | None:
    """All samples of a store on a GPU; None where they would take more than RESIDENT_SHARE of its free memory."""
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return copied_to(device, store.signals) if store.signals.nbytes <= RESIDENT_SHARE * free_bytes else None


def copied_to(device: torch.device, signals: NDArray[np.int16]) -> Tensor:
    """(n,) samples on a device, copied there part by part."""
    copy = torch.empty(len(signals), dtype=torch.int16, device=device)
    for first in range(0, len(signals), _COPIED_SAMPLES):
        part = np.array(signals[first : first + _COPIED_SAMPLES])  # a plain array that may be written to, for torch
        copy[first : first + len(part)] = torch.from_numpy(part)
    return copy
