"""What the store of prepared recordings gives and costs, on PTB-XL at its native 100 Hz.

Figures:

    records_per_second      crops of whole recordings delivered to a training loop in batches, filtered, cropped and
                            standardised, by one thread. Baseline: a Dataset that reads each record with wfdb, crops
                            it, filters the crop with scipy and standardises it in __getitem__. Target: a ratio of 50.
    second_process_mib      private memory that opening the store and reading every record of it adds to a second
                            process. Baseline: the size of the store, what a copy would take. Target: 5 % of it.
    second_process_percent  the same, of the store's size.
    build_seconds           the whole store, made of the source's files by a process for each core, four at most. Target
                            for PTB-XL on 2 cores: 90.
    build_processor_seconds what they computed for it together, which a busy machine changes less.
    build_peak_mib          the most private memory that these processes gained at once.
    build_resident_mib      the most memory of theirs that was resident at once, with all that was there before and
                            with what they share counted for each. Target: 1 GB.

Without --data-root the source is a generated one in the same layout.

    python benchmarks/store.py --data-root DIR --json FILE
"""

import contextlib
import gc
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import psutil
from figures import Figure, parse_arguments, publish
from scipy.signal import butter, sosfiltfilt

from data.record import DataError
from data.store import Store, prepare
from data.synthetic import Synthetic
from search_spaces.compose import compose_choices
from search_spaces.schema import checked
from trainables.settings import Data

# torch and wfdb are imported where they are used: every process that builds the store first imports this file, as it
# would launch.py, which does without them too.
if TYPE_CHECKING:
    from torch import Tensor

MIB = 2**20
BATCH_SIZE = 32
NUM_SYNTHETIC_PATIENTS = 4000
NUM_ROUNDS = 5
"""Both ways of reading are timed in turn, so that a machine that is busy for a while slows both down."""
NUM_USUAL_RECORDS = 256
"""Read in the usual way in each round: seconds, where all of PTB-XL would take minutes."""
TARGET_RATIO = 50.0
TARGET_PERCENT = 5.0
TARGET_BUILD_SECONDS = 90.0
TARGET_RESIDENT_MIB = 1e9 / MIB


def main() -> int:
    """Measure the store of a source and publish the figures; a source that cannot be read ends in one line."""
    assert __doc__ is not None
    root_option = ("--data-root", {"type": Path, "metavar": "DIR", "help": "PTB-XL as published, with records100/"})
    arguments = parse_arguments(__doc__, root_option)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.data_root or generated(Path(folder), NUM_SYNTHETIC_PATIENTS)
        try:
            figures = measured(root, Path(folder), num_rounds=NUM_ROUNDS, num_usual_records=NUM_USUAL_RECORDS)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    publish(figures, arguments.json)
    return 0


def generated(folder: Path, num_patients: int) -> Path:
    """The root of a synthetic source in the layout of PTB-XL."""
    source = Synthetic(root=folder, source_rate_hz=100, num_patients=num_patients, seed=0)
    source.table()
    return source.folder


def measured(root: Path, folder: Path, *, num_rounds: int, num_usual_records: int) -> list[Figure]:
    """All figures.

    Args:
        root: of a source in the layout of PTB-XL.
        folder: where the store may be built.
        num_rounds: how often reading is timed; the medians count.
        num_usual_records: read in the usual way in each round.
    """
    settings = data_settings(root, folder)
    store, cost = build(settings)
    ours, usual = rates(store, settings, num_rounds, num_usual_records)
    store_mib, added_mib = store.signals.nbytes / MIB, private_mib_of_second_process(store)
    return [
        Figure(
            "records_per_second",
            ours,
            "records/s",
            baseline=usual,
            ratio=ours / usual,
            target=TARGET_RATIO,
            bound="ratio at least",
        ),
        Figure(
            "second_process_mib",
            added_mib,
            "MiB",
            baseline=store_mib,
            ratio=store_mib / added_mib if added_mib > 0 else None,
            target=TARGET_PERCENT / 100 * store_mib,
            bound="at most",
        ),
        Figure(
            "second_process_percent",
            100 * added_mib / store_mib,
            "% of the store",
            target=TARGET_PERCENT,
            bound="at most",
        ),
        Figure("build_seconds", cost.seconds, "s", target=TARGET_BUILD_SECONDS, bound="at most"),
        Figure("build_processor_seconds", cost.processor_seconds, "s"),
        Figure("build_peak_mib", cost.private_mib, "MiB"),
        Figure("build_resident_mib", cost.resident_mib, "MiB", target=TARGET_RESIDENT_MIB, bound="at most"),
    ]


def data_settings(root: Path, store_dir: Path) -> Data:
    """How the main search prepares and crops PTB-XL at 100 Hz."""
    typed = ["command=prepare", "data=ptb_xl", "scale=laptop", f"data.root={root}", f"data.store_dir={store_dir}"]
    return checked(compose_choices(typed).tree).data


# -------- building


@dataclass
class Cost:
    """What a block took, in this process and all that it started.

    Attributes:
        seconds: from its begin to its end.
        processor_seconds: of all processes.
        private_mib: the most private memory that they gained at once.
        resident_mib: the most that was resident at once, shared memory counted for each that has it.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    private_mib: float = 0.0
    resident_mib: float = 0.0


def build(settings: Data) -> tuple[Store, Cost]:
    """The store, and what it took."""
    from trainables.recordings import preparation_of, reader_of

    reader, preparation = reader_of(settings), preparation_of(settings)
    with watched() as cost:
        store = prepare(
            reader,
            preparation,
            Path(settings.store_dir),
            name=settings.name,
            max_unreadable_share=settings.max_unreadable_share,
        )
    return store, cost


@contextlib.contextmanager
def watched() -> Iterator[Cost]:
    """Look five times a second at this process and its children; what they took is there in the end."""
    used: dict[int, float] = {}
    (before_mib, _), before_seconds = of_family(used), sum(used.values())
    cost, ended, began = Cost(), threading.Event(), time.perf_counter()

    def look() -> None:
        private_mib, resident_mib = of_family(used)
        cost.private_mib = max(cost.private_mib, private_mib - before_mib)
        cost.resident_mib = max(cost.resident_mib, resident_mib)

    def watch() -> None:
        while not ended.wait(0.2):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - began
        ended.set()
        watcher.join()
        look()
        cost.processor_seconds = sum(used.values()) - before_seconds


def of_family(used: dict[int, float]) -> tuple[float, float]:
    """Private and resident MiB of this process and all that it has started; `used` gets their processor seconds."""
    this = psutil.Process()
    private = resident = 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # ended since it was listed
            memory, times = process.memory_full_info(), process.cpu_times()
            private, resident = private + memory.uss, resident + memory.rss
            used[process.pid] = times.user + times.system
    return private / MIB, resident / MIB


# -------- reading in this process


def rates(store: Store, settings: Data, num_rounds: int, num_usual_records: int) -> tuple[float, float]:
    """Medians of the records a second that a loop gets: from the store, and in the usual way. One thread each."""
    import torch
    from torch.utils.data import DataLoader

    from data.loaders import TrainBatches
    from trainables.recordings import window_of

    torch.set_num_threads(1)
    batches = TrainBatches(
        store,
        np.arange(len(store.index)),
        targets=None,
        window=window_of(settings),
        batch_size=BATCH_SIZE,
        transforms=(),
        seed=0,
        device=torch.device("cpu"),
    )
    dataset = FilteredAtEveryRead(store.index, settings)
    generator = np.random.default_rng(0)
    ours, usual = [], []
    for number in range(num_rounds):
        rows = generator.permutation(len(dataset))[:num_usual_records].tolist()
        usual.append(per_second(DataLoader(dataset, batch_size=BATCH_SIZE, sampler=rows)))
        ours.append(per_second(batch.signal for batch in batches.epoch(number)))
    print(f"records_per_second of {num_rounds} rounds: {spread(ours)} (baseline {spread(usual)})")
    return statistics.median(ours), statistics.median(usual)


def per_second(batches: Iterable["Tensor"]) -> float:
    """Records a second of an epoch."""
    start = time.perf_counter()
    num_records = sum(len(signal) for signal in batches)
    return num_records / (time.perf_counter() - start)


def spread(values: Sequence[float]) -> str:
    """Lowest to highest."""
    return f"{min(values):.0f} to {max(values):.0f}"


class FilteredAtEveryRead:
    """The usual Dataset: an item is a record, read with wfdb, cropped, filtered and standardised when asked for."""

    def __init__(self, index: pd.DataFrame, settings: Data) -> None:
        root = Path(settings.root or "")
        self._paths = [str(root / path) for path in index["path"]]
        self._num_samples = settings.window_samples
        self._filters = [
            butter(settings.filter_order, cutoff_hz, kind, fs=settings.sampling_rate_hz, output="sos")
            for cutoff_hz, kind in ((settings.highpass_hz, "highpass"), (settings.lowpass_hz, "lowpass"))
            if cutoff_hz is not None
        ]
        self._generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> "Tensor":
        import torch
        import wfdb

        signal_mv = wfdb.rdrecord(self._paths[position]).p_signal.T  # (C, T)
        start = self._generator.integers(signal_mv.shape[1] - self._num_samples + 1)
        crop = signal_mv[:, start : start + self._num_samples]
        for sections in self._filters:
            crop = sosfiltfilt(sections, crop, axis=-1)
        return torch.from_numpy(((crop - crop.mean()) / crop.std()).astype(np.float32))


# -------- reading in a second process


def private_mib_of_second_process(store: Store) -> float:
    """What a process of its own gains by opening and reading a store that this one has read."""
    read_every_record(store)  # a page that no other process maps would count as its own
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(private_mib_of_reading, store.path).result()


def private_mib_of_reading(path: Path) -> float:
    """Private memory that this process gains by opening a store and reading every record; its imports are done."""
    before = private_mib()
    store = Store.open(path)
    read_every_record(store)
    return private_mib() - before


def private_mib() -> float:
    """Memory that this process alone holds."""
    gc.collect()
    private: int = psutil.Process().memory_full_info().uss
    return private / MIB


def read_every_record(store: Store) -> None:
    """Touch every page of the signals."""
    for row in range(len(store.index)):
        store.record(row).max()


if __name__ == "__main__":
    sys.exit(main())
