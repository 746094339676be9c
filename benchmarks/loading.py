"""What a training loop gets of its recordings: crops a second, and for how much of a step it waits for them.

The configuration is that of search=stmem_ptbxl: 12 leads at 500 Hz for 10 s, brought to 250 Hz; crops of 9 s (2,250
samples), 0.67 to 40 Hz, standardised by record; batches of 32 to pre-train, and of 16 with RandAugment (2 of 8
operations, each behind a coin) to fine-tune. Both sides read the same generated recordings, with as many cores, in
turns, and the fastest round of each counts:

    published   what the public code of ST-MEM does to each record in every epoch, written here from a description of
                it: read (12, 5000) float32 from a file of its own, resample to 250 Hz by FFT, crop, high-pass and then
                low-pass the crop (Butterworth of order 5, forwards and backwards), standardise, RandAugment, collate.
                A torch DataLoader with a process for each core. Its files are .npy here, read as fast as its pickles.
    ours        data.loaders.TrainBatches over data.store. Whole records were resampled (polyphase) and filtered once,
                when the store was built; an epoch gathers int16 crops from the memory map, standardises and augments
                them, many at once. This process alone, with a thread for each core.

Figures:

    pretrain_records_per_second   of an epoch alone: what is left to do in each, however often it is repeated. Target: a
                                  ratio of 30.
    finetune_records_per_second   the same with RandAugment. Target: a ratio of 30.
    ..._whole_stage               the same over all of a stage's epochs as shipped, 100 and 30, and with what was done
                                  before the first: building the store; there, writing the files of arrays.
    ..._first_epoch               the same of one epoch and all that was done before it. No training ends there.
    preparation_seconds           what was done before. Baseline: writing the arrays.
    agreement                     of both sides' middle crops, without two seconds at each end, where it shows that a
                                  filter began at the crop's edge: the smallest correlation of a record. Target: 0.99.
    laptop_..._wait_percent       of the time of an epoch's steps, how much the loop waits for its next batch, on the
                                  CPU: stmem_ptbxl at scale=laptop, and mtae_ptbxl, whose steps are among the shortest.
    gpu_..._wait_percent          the same on a GPU, stmem_ptbxl as shipped. Target: 2. Left out where there is none.

    python benchmarks/loading.py --json FILE [--cores 2]
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from figures import Figure, parse_arguments, publish, unless_on_gpu
from numpy.typing import NDArray
from scipy import signal as scipy_signal

from data.record import Reader
from data.store import Store, prepare
from search_spaces.compose import compose_choices
from search_spaces.schema import checked
from trainables.settings import Data, Run

# torch is imported where it is used: every process that prepares records first imports this file
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from data.loaders import TrainBatches

NUM_PATIENTS = 2000
"""Some 2,300 records, 140 MB as a store: more than a processor's cache holds."""
NUM_ROUNDS = 5
NUM_PUBLISHED_RECORDS = 512
"""In each round: about a second; as many of ours take hundredths."""
ROUND_SECONDS = 0.5
TARGET_RATIO = 30.0
TARGET_PERCENT = 2.0
TARGET_AGREEMENT = 0.99
AS_SHIPPED = ("search=stmem_ptbxl", "data.source_rate_hz=500", "data.sampling_rate_hz=250")
"""As for PTB-XL; generated recordings are read at 100 Hz otherwise."""
OPERATIONS = ["shift", "cutout", "drop", "flip", "erase", "sine", "partial_sine", "partial_white_noise"]


def main() -> None:
    """Measure both pipelines and the waiting of the real loops, and publish them."""
    assert __doc__ is not None
    arguments = parse_arguments(__doc__, ("--cores", {"type": int, "default": 2, "help": "of either side (2)"}))
    with tempfile.TemporaryDirectory() as folder:
        figures = pipelines(Path(folder), arguments.cores, num_patients=NUM_PATIENTS, num_rounds=NUM_ROUNDS)
        figures += waits(Path(folder), arguments.cores)
    publish(figures, arguments.json, not_measured=unless_on_gpu("waiting for batches on a GPU"))


# -------- what the public code does


class Published:
    """A torch Dataset whose item is a record, prepared anew each time it is asked for.

    Args:
        files: of (12, T) float32 arrays in mV.
        source_rate_hz: of these.
        data: rate, filters and window.
        augment: whether items go through RandAugment.
    """

    def __init__(self, files: Sequence[Path], source_rate_hz: float, data: Data, *, augment: bool) -> None:
        self._files, self._augment = files, augment
        self._ratio = data.sampling_rate_hz / source_rate_hz
        self._num_samples = data.window_samples
        self._filters = [
            scipy_signal.butter(data.filter_order, cutoff_hz, kind, fs=data.sampling_rate_hz, output="sos")
            for cutoff_hz, kind in ((data.highpass_hz, "highpass"), (data.lowpass_hz, "lowpass"))
        ]
        self._generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, position: int) -> Tensor:
        import torch

        whole = self.resampled(position)
        crop = self.cropped(whole, int(self._generator.integers(whole.shape[1] - self._num_samples + 1)))
        if self._augment:
            crop = rand_augment(crop, self._generator)
        return torch.from_numpy(crop.astype(np.float32))

    def resampled(self, position: int) -> NDArray[np.float32]:
        """(12, T) of a file at the rate that is wanted."""
        signal_mv = np.load(self._files[position])
        resampled: NDArray[np.float32] = scipy_signal.resample(
            signal_mv, round(signal_mv.shape[1] * self._ratio), axis=1
        )
        return resampled

    def cropped(self, signal_mv: NDArray[np.float32], start: int) -> NDArray[np.float64]:
        """A crop, filtered and standardised."""
        crop = signal_mv[:, start : start + self._num_samples]
        for sections in self._filters:
            crop = scipy_signal.sosfiltfilt(sections, crop, axis=-1)
        std = crop.std()
        standardized: NDArray[np.float64] = (crop - crop.mean()) / std if std > 0 else np.zeros_like(crop)
        return standardized


def rand_augment(
    signal: NDArray[np.float64], generator: np.random.Generator, *, level: float = 5, num_layers: int = 2
) -> NDArray[np.float64]:
    """One record, (C, T), through operations drawn without replacement, each behind a coin."""
    for name in generator.choice(OPERATIONS, num_layers, replace=False):
        if generator.random() < 0.5:
            signal = changed(str(name), signal, level / 10 * 0.3, 0.5 / (level / 10), generator)
    return signal


def changed(
    name: str, signal: NDArray[np.float64], strength: float, period_share: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """One operation on one record, (C, T): `strength` is a share of the crop, or an amplitude, or both."""
    num_leads, num_samples = signal.shape
    length = int(generator.integers(int(strength * num_samples) + 1))
    first = int(generator.integers(num_samples - length + 1))
    wave = np.sin(2 * np.pi * np.arange(num_samples) / (period_share * num_samples))
    result = signal.copy()
    if name == "shift":
        result[:] = 0
        if generator.random() < 0.5:
            result[:, length:] = signal[:, : num_samples - length]
        else:
            result[:, : num_samples - length] = signal[:, length:]
    elif name == "cutout":
        result[:, first : first + length] = 0
    elif name == "drop":
        result[:, generator.permutation(num_samples)[:length]] = 0
    elif name == "flip":
        result *= -1
    elif name == "erase":
        result[generator.integers(num_leads)] = 0
    elif name == "sine":
        result += strength * wave
    elif name == "partial_sine":
        result[:, first : first + length] += strength * wave[:length]
    else:
        assert name == "partial_white_noise", name
        result[:, first : first + length] += strength * generator.standard_normal((num_leads, length))
    return result


def write_arrays(reader: Reader, folder: Path, num_processes: int) -> list[Path]:
    """A file of (12, T) float32 for each record of a source, which that code then reads."""
    folder.mkdir()
    rows = reader.table().to_dict("records")
    files = [folder / f"{row['record_id']}.npy" for row in rows]
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(functools.partial(_write_array, reader), rows, files, chunksize=64))
    return files


def _write_array(reader: Reader, row: dict[str, Any], file: Path) -> None:
    np.save(file, reader.read(row).signal_mv)


# -------- both sides


def pipelines(folder: Path, cores: int, *, num_patients: int, num_rounds: int) -> list[Figure]:
    """Records a second of both sides, and what their preparation takes.

    Args:
        folder: for the recordings and what is made of them.
        cores: of either side.
        num_patients: to generate.
        num_rounds: in which each side is timed.
    """
    import torch

    torch.set_num_threads(cores)
    run = composed(folder, *AS_SHIPPED, num_patients=num_patients)
    reader, store, our_seconds = built(run.data, folder, cores)
    began = time.perf_counter()
    files = write_arrays(reader, folder / "arrays", cores)
    their_seconds = time.perf_counter() - began
    assert len(files) == len(store.index)
    figures = []
    for name, stage in (("pretrain", run.task.pretrain), ("finetune", run.task.finetune)):
        published = Published(files, run.data.source_rate_hz, run.data, augment=name == "finetune")
        ours, theirs = rates(batches_of(store, run, name), published, stage.batch_size, cores, num_rounds)
        figures.append(compared(f"{name}_records_per_second", ours, theirs))
        for kind, epochs in (("whole_stage", stage.num_epochs), ("first_epoch", 1)):
            num_seen = epochs * len(files)
            amortised = (
                num_seen / (seconds + num_seen / rate)
                for seconds, rate in ((our_seconds, ours), (their_seconds, theirs))
            )
            figures.append(replace(compared(f"{name}_{kind}", *amortised), target=None, bound=None))
    ratio = their_seconds / our_seconds
    figures.append(Figure("preparation_seconds", our_seconds, "s", baseline=their_seconds, ratio=ratio))
    agreed = agreement(store, published, run)
    figures.append(Figure("agreement", agreed, "correlation", target=TARGET_AGREEMENT, bound="at least"))
    return figures


def composed(folder: Path, *typed: str, num_patients: int) -> Run:
    """A run over generated recordings, which are written on first use."""
    generated = ["data=synthetic", f"data.root={folder}", f"data.reader.num_patients={num_patients}"]
    run: Run = checked(compose_choices([*generated, *typed, "task.finetune.head_init=normal"]).tree).run
    return run


def built(data: Data, folder: Path, cores: int) -> tuple[Reader, Store, float]:
    """The source, its store, and the seconds that it took."""
    from trainables.recordings import preparation_of, reader_of

    reader = reader_of(data)
    reader.table()  # writes what is generated
    began = time.perf_counter()
    store = prepare(
        reader, preparation_of(data), folder / "stores", name=data.name, max_unreadable_share=0, num_processes=cores
    )
    return reader, store, time.perf_counter() - began


def batches_of(store: Store, run: Run, stage: str) -> TrainBatches:
    """Our batches of a stage, over all records of the store."""
    import torch

    from data.loaders import TrainBatches
    from trainables.components import build
    from trainables.recordings import window_of

    pretrain = stage == "pretrain"
    return TrainBatches(
        store,
        np.arange(len(store.index)),
        targets=None,
        window=window_of(run.data),
        batch_size=(run.task.pretrain if pretrain else run.task.finetune).batch_size,
        transforms=[build(each) for each in (run.model.transforms if pretrain else run.task.finetune.transforms)],
        seed=0,
        device=torch.device("cpu"),
    )


def rates(
    ours: TrainBatches, published: Published, batch_size: int, cores: int, num_rounds: int
) -> tuple[float, float]:
    """Records a second of both sides in their fastest rounds."""
    from torch.utils.data import DataLoader, RandomSampler

    sampler = RandomSampler(range(len(published)), num_samples=NUM_PUBLISHED_RECORDS)
    workers = {"num_workers": cores, "persistent_workers": True} if cores > 1 else {}
    loader: Any = DataLoader(published, batch_size=batch_size, sampler=sampler, **workers)  # type: ignore[arg-type]
    per_second(lambda: loader)  # starts the processes
    our_rates, their_rates = [], []
    for number in range(num_rounds):
        our_rates.append(per_second(functools.partial(signals, ours, number)))
        their_rates.append(per_second(lambda: loader))
    return max(our_rates), max(their_rates)


def signals(batches: TrainBatches, epoch: int) -> Iterator[Tensor]:
    """The crops of an epoch."""
    return (batch.signal for batch in batches.epoch(epoch))


def per_second(epoch: Callable[[], Iterable[Tensor]]) -> float:
    """Records a second of an epoch, repeated until it has taken long enough to be timed."""
    num_records, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < ROUND_SECONDS:
        num_records += sum(len(signal) for signal in epoch())
    return num_records / seconds


def compared(name: str, ours: float, theirs: float) -> Figure:
    """Rates of both sides as a figure."""
    return Figure(
        name, ours, "records/s", baseline=theirs, ratio=ours / theirs, target=TARGET_RATIO, bound="ratio at least"
    )


def agreement(store: Store, published: Published, run: Run) -> float:
    """The smallest correlation of a record's middle crop on both sides, without two seconds at each end."""
    import torch

    from data.loaders import eval_batches
    from trainables.recordings import window_of

    window = replace(window_of(run.data), num_crops=1)
    edge = int(2 * run.data.sampling_rate_hz)
    found = []
    for crops, rows in eval_batches(
        store, np.arange(min(256, len(store.index))), window=window, batch_size=64, device=torch.device("cpu")
    ):
        for crop, row in zip(crops[:, 0].numpy(), rows.tolist(), strict=True):
            whole = published.resampled(row)
            theirs = published.cropped(whole, (whole.shape[1] - window.num_samples) // 2)
            found.append(np.corrcoef(crop[:, edge:-edge].ravel(), theirs[:, edge:-edge].ravel())[0, 1])
    return float(min(found))


# -------- how long the loops wait


def waits(folder: Path, cores: int) -> list[Figure]:
    """Shares of the steps' time for which the real loops wait for batches."""
    import torch

    cpu, few = torch.device("cpu"), ("scale=laptop", "data.max_train_patients=500", "data.max_valid_patients=50")
    figures = []
    for search in ("stmem", "mtae"):
        run = composed(folder, f"search={search}_ptbxl", *few, num_patients=900)
        for stage, value in wait_percents(run, folder, cpu, cores).items():
            figures.append(Figure(f"laptop_{search}_{stage}_wait_percent", value, "%"))
    if not torch.cuda.is_available():
        return figures
    run = composed(folder, *AS_SHIPPED, num_patients=NUM_PATIENTS)
    for stage, value in wait_percents(run, folder, torch.device("cuda", 0), cores).items():
        figures.append(Figure(f"gpu_stmem_{stage}_wait_percent", value, "%", target=TARGET_PERCENT, bound="at most"))
    return figures


def wait_percents(run: Run, folder: Path, device: torch.device, cores: int) -> dict[str, float]:
    """Per cent of the steps' time, by stage, in the second epoch of each: in the first, much is done for once."""
    import torch

    from trainables import classify, pretrain
    from trainables.recordings import open_recordings
    from trainables.state import TrainState
    from trainables.workers import Workers

    torch.set_num_threads(cores)
    _, store, _ = built(run.data, folder, cores)
    recordings, workers = open_recordings(run, store.path), Workers(device=device)
    shares: list[float] = []
    with mock.patch.multiple("trainables.pretrain", TrainBatches=timed(shares)):
        state = TrainState("val/auroc", maximize=True)
        pretrain.enter_pretrain(run, state, workers)
        take(pretrain.pretrain(run, state, recordings, workers), 2)
    with mock.patch.multiple("trainables.classify", TrainBatches=timed(shares)):
        state = TrainState("val/auroc", maximize=True)
        classify.enter_finetune(run, state, pretrain.fresh_encoder(run), recordings, workers)
        take(classify.classify(run, state, recordings, workers), 2)
    (_, pretraining, _, finetuning) = shares
    return {"pretrain": 100 * pretraining, "finetune": 100 * finetuning}


def take(epochs: Iterator[Any], number: int) -> None:
    """Go through some epochs."""
    for _ in range(number):
        next(epochs)


def timed(shares: list[float]) -> type[TrainBatches]:
    """A TrainBatches that adds to `shares`, after each epoch, what part of its time was spent on making batches.

    On a GPU both are times of the GPU: what it did for a batch, and how long it stood still until it was told to.
    """
    from data.loaders import Batch, TrainBatches

    class Timed(TrainBatches):
        def epoch(self, epoch: int) -> Iterator[Batch]:
            batches, stamp, laps = super().epoch(epoch), functools.partial(stamped, self.device), []
            while True:
                before, batch, after = stamp(), next(batches, None), stamp()
                laps.append((before, after))
                if batch is None:
                    break
                yield batch
            waited = sum(seconds_between(before, after) for before, after in laps)
            shares.append(waited / seconds_between(laps[0][0], laps[-1][1]))

    return Timed


def stamped(device: torch.device) -> float | torch.cuda.Event:
    """Now, in seconds; on a GPU, when it will have done all that it has been told so far."""
    if device.type == "cpu":
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(first: Any, last: Any) -> float:
    """From one stamp to another."""
    if isinstance(first, float):
        return float(last - first)
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000


if __name__ == "__main__":
    main()
