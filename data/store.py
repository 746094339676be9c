"""Recordings prepared once: one memory-mapped array, a table, and a manifest that says what they are.

A store is a folder `<name>-<hash>` of signals.int16 (all records one after another, each (C, T) and contiguous),
index.parquet (one row a record), manifest.json, and unreadable.csv where records were left out. Every process maps
the same pages; nothing is copied for a trial.

Shapes: C leads, T samples of a record (records may differ in T), n records, K classes.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import json
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from fractions import Fraction
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.folders import build_folder, synced
from data.labels import LabelProtocol, Labels, read_labels
from data.record import TABLE_COLUMNS, DataError, Reader, Record, RecordError, lead_name, one_of

FORMAT_VERSION = 2
"""2: reports. A column that may be null (quality) needs no new number: the stores without it are read as unknown."""
MV_PER_UNIT = 0.001
"""1 uV, the unit in which PTB-XL is published: its records are kept to the bit where nothing is filtered."""

MAX_CLIPPED_SHARE = 0.01
"""Of a record's samples beyond the int16 range. Spikes of electrodes and pacemakers are rarer; an ECG in uV that is
taken for mV has its QRS complexes, a tenth of the time, beyond it."""
MIN_VARIATION_MV = 0.01
"""Peak to peak of the lead that varies most. A low-voltage ECG has 0.5 mV; an ECG in V that is taken for mV has some
0.002, two units of the store."""

_CHUNK_RECORDS = 64
_MIN_RECORDS_FOR_PROCESSES = 2000  # below, starting processes costs more than they save
_INDEX_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("patient_id", pa.string()),
        ("fold", pa.int64()),
        ("codes", pa.list_(pa.string())),
        ("age", pa.float64()),
        ("sex", pa.string()),
        ("device", pa.string()),
        ("site", pa.string()),
        ("path", pa.string()),
        ("report", pa.large_string()),  # large: see _read_index
        ("quality", pa.list_(pa.string())),
        ("offset", pa.int64()),
        ("num_samples", pa.int64()),
        ("flat_leads", pa.string()),
    ]
)


@dataclass(frozen=True)
class Preparation:
    """What is done to every record, once.

    Attributes:
        sampling_rate_hz: the rate that records are brought to.
        leads: C lead names in the order that is kept; any spelling is brought to the standard one.
        highpass_hz: cutoff of the high-pass, or None for none.
        lowpass_hz: cutoff of the low-pass, or None for none.
        filter_order: of both Butterworth filters, each run forwards and backwards.
        min_duration_s: shorter records are left out.
    """

    sampling_rate_hz: float
    leads: tuple[str, ...]
    highpass_hz: float | None
    lowpass_hz: float | None
    filter_order: int
    min_duration_s: float

    def __post_init__(self) -> None:
        leads = tuple(lead_name(name) for name in self.leads)
        if not leads or len(set(leads)) != len(leads):
            raise DataError(f"data.leads must name each lead once, and at least one, got {list(self.leads)}")
        if self.sampling_rate_hz <= 0:
            raise DataError(f"data.sampling_rate_hz must be positive, got {self.sampling_rate_hz:g}")
        for key in ("highpass_hz", "lowpass_hz"):
            cutoff_hz = getattr(self, key)
            if cutoff_hz is not None and not 0 < cutoff_hz < self.sampling_rate_hz / 2:
                nyquist_hz = self.sampling_rate_hz / 2
                raise DataError(f"data.{key} must lie between 0 and {nyquist_hz:g} Hz, got {cutoff_hz:g}")
        object.__setattr__(self, "leads", leads)
        # floats throughout, so that 100 and 100.0 are one preparation with one hash
        for key in ("sampling_rate_hz", "highpass_hz", "lowpass_hz", "min_duration_s"):
            value = getattr(self, key)
            object.__setattr__(self, key, None if value is None else float(value))


def prepare_signal(record: Record, preparation: Preparation) -> NDArray[np.float32]:
    """Bring one record to the form that models are trained on; training and inference both go through here.

    Leads are picked by name, the whole record is resampled by a polyphase filter (its ends extended along the line
    from the first sample to the last, so that an offset rings nowhere) and then filtered without phase by Butterworth
    sections, before anything is cropped.

    Args:
        record: as its source holds it, signal_mv (C', T').
        preparation: what to do.

    Returns:
        (C, T) float32, mV.

    Raises:
        RecordError: if a lead is missing or there twice, the record is too short, holds NaN or infinity, or all leads
            are flat.
    """
    from scipy import signal as scipy_signal  # half a second, for which no process of a trial has use

    signal_mv: NDArray[Any] = _pick_leads(record, preparation)
    _check_signal(signal_mv, record, preparation)
    if record.sampling_rate_hz != preparation.sampling_rate_hz:
        ratio = Fraction(preparation.sampling_rate_hz / record.sampling_rate_hz).limit_denominator(10_000)
        signal_mv = scipy_signal.resample_poly(
            signal_mv.astype(np.float64), ratio.numerator, ratio.denominator, axis=-1, padtype="line"
        )
    sections = filter_sections(preparation)
    if len(sections):
        signal_mv = _without_phase(preparation, sections, signal_mv)
    return np.ascontiguousarray(signal_mv, dtype=np.float32)


def _without_phase(
    preparation: Preparation, sections: NDArray[np.float64], signal_mv: NDArray[Any]
) -> NDArray[np.float64]:
    """(C, T) filtered forwards and backwards: `scipy.signal.sosfiltfilt` to the bit.

    Scipy solves anew for every record what its sections begin with, which is half of its time on 1,000 samples; here
    it is kept. Both ends are extended as there, but less where a record is shorter, which scipy refuses.
    """
    from scipy import signal as scipy_signal  # as in prepare_signal

    num_taps = 2 * len(sections) + 1 - min((sections[:, 2] == 0).sum(), (sections[:, 5] == 0).sum())
    extension = min(3 * num_taps, signal_mv.shape[-1] - 1)
    first, last = signal_mv[:, :1], signal_mv[:, -1:]
    before = 2 * first - signal_mv[:, extension:0:-1]  # turned about the end, so that value and slope go on
    after = 2 * last - signal_mv[:, -2 : -2 - extension : -1]
    filtered = np.concatenate((before, signal_mv, after), axis=-1)
    begin = _steady_state(preparation)
    for _ in range(2):
        filtered, _ = scipy_signal.sosfilt(sections, filtered, axis=-1, zi=begin * filtered[:, :1])
        filtered = filtered[:, ::-1]
    inside: NDArray[np.float64] = filtered[:, extension : extension + signal_mv.shape[-1]]
    return inside


def prepare(
    reader: Reader,
    preparation: Preparation,
    store_dir: Path,
    *,
    name: str,
    max_unreadable_share: float,
    progress: Callable[[int, int], None] | None = None,
    num_processes: int | None = None,
) -> Store:
    """The store of a source under a preparation: the one that is there, or a new one, built as a whole or not at all.

    Two processes that ask for the same store at once build it once: the second waits for the first.

    Args:
        reader: where the recordings come from.
        preparation: what is done to each.
        store_dir: folder that keeps the stores.
        name: what the store's folder is called, before its hash.
        max_unreadable_share: the largest share of records that may be left out.
        progress: called with (records done, records in all), now and then.
        num_processes: how many read and filter at once; four or the machine's CPUs where None, and this process alone
            for fewer than 2,000 records.

    Raises:
        DataError: if the source cannot be used, too many of its records cannot be read, or the store cannot be kept.
    """
    source = reader.fingerprint()
    protocols = {key: protocol.to_json() for key, protocol in reader.protocols().items()}
    identity = {"format": FORMAT_VERSION, "source": source, "preparation": asdict(preparation), "protocols": protocols}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = Path(store_dir) / f"{name}-{digest[:12]}"

    def build(folder: Path) -> None:
        _Build(path, folder, identity | {"hash": digest}, reader, preparation).run(
            max_unreadable_share, progress, num_processes
        )

    build_folder(path, build, key="data.store_dir")
    store = Store.open(path)
    _check_share(store.num_unreadable, store.num_unreadable + len(store.index), max_unreadable_share, path)
    return store


class Store:
    """Prepared recordings, opened read-only; pickles as its path.

    Attributes:
        path: the store's folder.
        hash: hexadecimal digest of source, preparation and label protocols.
        source: digest of what the recordings were read from, the same whatever their preparation.
        preparation: what was done to every record.
        index: one row a record: record_id, patient_id, fold, codes, age, sex, device, site, path, report (null for
            none), quality (names of flags; null where it is not known, as in a store that was built before flags were
            kept), offset (first sample's position in `signals`), num_samples (T), flat_leads (names joined by commas,
            "" for none).
        signals: (sum of C * T,) int16 memory map of all records.
        mv_per_unit: what one unit of `signals` is, in mV.
        num_unreadable: how many of the source's records were left out; unreadable.csv says which and why.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], index: pd.DataFrame) -> None:
        fields = {**manifest["preparation"], "leads": tuple(manifest["preparation"]["leads"])}
        self.path = path
        self.hash: str = manifest["hash"]
        self.source: str = manifest["source"]
        self.preparation = Preparation(**fields)
        self.index = index
        self.mv_per_unit: float = manifest["mv_per_unit"]
        self.num_unreadable: int = manifest["counts"]["unreadable"]
        self.signals: np.memmap[Any, np.dtype[np.int16]] = np.memmap(path / "signals.int16", dtype="<i2", mode="r")
        self._protocols = {key: LabelProtocol.from_json(value) for key, value in manifest["protocols"].items()}
        self._offsets = index["offset"].to_numpy(np.int64)
        self._num_samples = index["num_samples"].to_numpy(np.int64)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the store in the folder `path`.

        Raises:
            DataError: if it is not there, or is damaged or incomplete.
        """
        path = Path(path).absolute()
        try:
            manifest = _read_manifest(path)
            return cls(path, manifest, _read_index(path, manifest))
        except (OSError, ValueError, KeyError) as error:  # ValueError: JSON, UTF-8, arrow, and our own checks
            if not path.exists():
                raise DataError(f"there is no store at {path}: build it with command=prepare") from error
            told = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise DataError(f"the store {path} is damaged ({told}): delete the folder, it is built anew") from error

    def __reduce__(self) -> tuple[Callable[[Path], Store], tuple[Path]]:
        return Store.open, (self.path,)

    def record(self, row: int) -> NDArray[np.int16]:
        """(C, T) view of the record in a row of the index."""
        num_leads = len(self.preparation.leads)
        start, num_samples = int(self._offsets[row]), int(self._num_samples[row])
        return self.signals[start : start + num_leads * num_samples].reshape(num_leads, num_samples)

    def reports(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str | None]:
        """The texts of the clinical reports of some rows of the index, None where a record has none.

        They are patient data, to learn from: they belong in no log, no error and no page.
        """
        return list(pa.array(self.index["report"].iloc[rows]).to_pylist())

    def quality(self, rows: Sequence[int] | NDArray[np.int64]) -> list[list[str] | None]:
        """What was flagged about the signal in some rows of the index, None where nobody looked."""
        return list(pa.array(self.index["quality"].iloc[rows]).to_pylist())

    @property
    def protocols(self) -> Mapping[str, LabelProtocol]:
        """The label protocols of the source, by name."""
        return self._protocols

    def labels(self, protocol: str, classes: Sequence[str] | None = None) -> Labels:
        """Targets of every row of the index.

        Args:
            protocol: name of one of the source's label protocols.
            classes: which of its classes, in this order; all where None.

        Raises:
            DataError: if the source has no such protocol or the protocol no such class.
        """
        if protocol not in self._protocols:
            known = one_of(self._protocols, protocol) if self._protocols else "cannot be set, the source has no labels"
            raise DataError(f"the source has no labels {protocol!r}: task.labels {known}")
        return read_labels(_lists(self.index["codes"]), self._protocols[protocol], classes)


def _lists(codes: pd.Series) -> list[list[str]]:
    """A column of lists as plain lists; pandas alone takes microseconds a row."""
    return list(pa.array(codes).to_pylist())


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = json.loads((path / "manifest.json").read_text())
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_VERSION:
        raise ValueError(f"manifest.json is not of format {FORMAT_VERSION}, the one that this version reads")
    if (size := (path / "signals.int16").stat().st_size) != manifest["signals_bytes"]:
        raise ValueError(f"signals.int16 has {size} bytes where manifest.json names {manifest['signals_bytes']}")
    return manifest


def _read_index(path: Path, manifest: Mapping[str, Any]) -> pd.DataFrame:
    content = (path / "index.parquet").read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["index_sha256"]:
        raise ValueError("index.parquet differs from the checksum in manifest.json")
    # arrow's own pool and reader would keep 20 to 40 MB in each process that opens a store
    pool = pa.system_memory_pool()
    fragment = pa_dataset.ParquetFileFormat().make_fragment(pa.py_buffer(content))
    table = fragment.to_table(use_threads=False, memory_pool=pool)
    if "quality" not in table.column_names:  # built before flags were kept, which is no reason to build it again
        table = table.append_column(_INDEX_SCHEMA.field("quality"), pa.nulls(len(table), pa.list_(pa.string())))
    few_values = ["sex", "device", "site", "flat_leads"]
    # Lists stay arrow lists: as Python lists they would take ten times the memory of the whole rest. So do the reports,
    # told from short texts by their type: all but two of PTB-XL's records have one, of a hundred characters.
    return table.to_pandas(
        categories=few_values,
        types_mapper=lambda kind: (
            pd.ArrowDtype(kind) if pa.types.is_list(kind) or pa.types.is_large_string(kind) else None
        ),
        split_blocks=True,
        self_destruct=True,
        memory_pool=pool,
    )


def _pick_leads(record: Record, preparation: Preparation) -> NDArray[np.float32]:
    if len(set(record.leads)) != len(record.leads) or len(record.leads) != len(record.signal_mv):
        raise RecordError(
            f"record {record.record_id}: a signal of {len(record.signal_mv)} leads must name each once, got "
            f"{', '.join(record.leads)}: correct its lead names"
        )
    if missing := [name for name in preparation.leads if name not in record.leads]:
        raise RecordError(
            f"record {record.record_id}: it lacks the leads {', '.join(missing)} and has {', '.join(record.leads)}: "
            f"leave them out of data.leads"
        )
    if record.leads == preparation.leads:
        return record.signal_mv
    return record.signal_mv[[record.leads.index(name) for name in preparation.leads]]


def _check_signal(signal_mv: NDArray[np.float32], record: Record, preparation: Preparation) -> None:
    """Refuse what cannot be learnt from; `flat_leads` lists what can be with a flat lead."""
    duration_s = signal_mv.shape[-1] / record.sampling_rate_hz
    if duration_s < preparation.min_duration_s - 1e-9 or signal_mv.shape[-1] < 2:
        raise RecordError(
            f"record {record.record_id}: it must last at least {preparation.min_duration_s:g} s, got {duration_s:g} s: "
            f"leave it out or shorten data.window_s"
        )
    finite = np.atleast_1d(np.isfinite(signal_mv).all(axis=-1))
    if not finite.all():
        bad = ", ".join(name for name, good in zip(preparation.leads, finite, strict=True) if not good)
        raise RecordError(f"record {record.record_id}: every sample must be a number, got NaN or infinity in {bad}")
    if np.ptp(signal_mv, axis=-1).max() == 0:
        raise RecordError(f"record {record.record_id}: at least one lead must vary, got only flat ones")


@functools.lru_cache(maxsize=8)
def filter_sections(preparation: Preparation) -> NDArray[np.float64]:
    """(S, 6) second-order sections of the high-pass followed by the low-pass."""
    from scipy import signal as scipy_signal  # as in prepare_signal

    sections = [
        scipy_signal.butter(preparation.filter_order, cutoff_hz, kind, fs=preparation.sampling_rate_hz, output="sos")
        for cutoff_hz, kind in ((preparation.highpass_hz, "highpass"), (preparation.lowpass_hz, "lowpass"))
        if cutoff_hz is not None
    ]
    return np.concatenate(sections) if sections else np.empty((0, 6))


@functools.lru_cache(maxsize=8)
def _steady_state(preparation: Preparation) -> NDArray[np.float64]:
    """(S, 1, 2) what the sections hold after an endless signal of 1."""
    from scipy import signal as scipy_signal  # as in prepare_signal

    state: NDArray[np.float64] = scipy_signal.sosfilt_zi(filter_sections(preparation))
    return state[:, None, :]


@dataclass(frozen=True)
class _Prepared:
    """One record as the store keeps it, or why it does not."""

    units: NDArray[np.int16] | None  # (C, T)
    flat_leads: str = ""
    num_clipped: int = 0
    reason: str = ""


def _live_and_die_with_the_parent() -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the parent; end when it is killed.

    A pool's processes hold both ends of their queue open and would otherwise wait for a dead parent for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after_the_parent, daemon=True).start()


def _end_after_the_parent() -> None:
    parent = parent_process()
    assert parent is not None, "this runs in a pool's processes"
    parent.join()
    os._exit(1)


def _prepare_rows(reader: Reader, preparation: Preparation, rows: Sequence[Mapping[str, Any]]) -> list[_Prepared]:
    """What a worker process does; at the top level so that it can be sent there."""
    return [_prepare_row(reader, preparation, row) for row in rows]


def _prepare_row(reader: Reader, preparation: Preparation, row: Mapping[str, Any]) -> _Prepared:
    try:
        record = reader.read(row)
        signal_mv = prepare_signal(record, preparation)
        units, num_clipped = _units_of(signal_mv, record.record_id)
    except RecordError as error:
        return _Prepared(None, reason=str(error))
    source = _pick_leads(record, preparation)
    flat = [name for name, lead in zip(preparation.leads, source, strict=True) if np.ptp(lead) == 0]
    return _Prepared(units, ",".join(flat), num_clipped)


def _units_of(signal_mv: NDArray[np.float32], record_id: str) -> tuple[NDArray[np.int16], int]:
    """(C, T) mV in the units of a store, and how many samples were clipped to their range.

    Raises:
        RecordError: if so many are beyond the range, or so little varies, that the source's unit must be wrong; a store
            would hold nothing else of such a record.
    """
    limits = np.iinfo(np.int16)
    units = np.rint(signal_mv / np.float32(MV_PER_UNIT))
    num_clipped = int(((units < limits.min) | (units > limits.max)).sum())
    cure = "correct the unit of the source (data.reader.unit, if the reader has one) or leave the record out"
    if num_clipped > MAX_CLIPPED_SHARE * units.size:
        raise RecordError(
            f"record {record_id}: at most {MAX_CLIPPED_SHARE:.0%} of its samples may lie beyond "
            f"{limits.max * MV_PER_UNIT:g} mV, got {num_clipped / units.size:.2%}: {cure}"
        )
    variation_mv = float(np.ptp(signal_mv, axis=-1).max())
    if variation_mv < MIN_VARIATION_MV:
        raise RecordError(
            f"record {record_id}: at least one lead must vary by {MIN_VARIATION_MV:g} mV from peak to peak after "
            f"filtering, got at most {variation_mv:.2g} mV: {cure}"
        )
    return units.clip(limits.min, limits.max).astype("<i2"), num_clipped


class _Build:
    """The writing of the store `path`, in `folder`, which takes its name when all is done."""

    def __init__(
        self, path: Path, folder: Path, identity: dict[str, Any], reader: Reader, preparation: Preparation
    ) -> None:
        self.path = path
        self.folder = folder
        self.identity = identity
        self.reader = reader
        self.preparation = preparation
        self.table = _checked_table(reader.table())
        self.kept: list[tuple[int, int, int, str]] = []  # row, offset, num_samples, flat leads
        self.unreadable: list[tuple[str, str]] = []  # record_id, reason
        self.num_values = 0
        self.num_clipped = 0

    def run(
        self, max_unreadable_share: float, progress: Callable[[int, int], None] | None, num_processes: int | None
    ) -> None:
        """Write the signals, check the share of unreadable records, and only then say what is there."""
        row = 0
        chunks = self._prepared(num_processes)
        # closed at once after an error, so that no process goes on reading
        with synced(self.folder / "signals.int16") as file, contextlib.closing(chunks):
            for prepared in chunks:
                for one in prepared:
                    self._write_record(file, row, one)
                    row += 1
                if progress is not None:
                    progress(row, len(self.table))
        self._check_unreadable(max_unreadable_share)
        self._write_tables()

    def _write_record(self, file: BinaryIO, row: int, prepared: _Prepared) -> None:
        if prepared.units is None:
            self.unreadable.append((self.table["record_id"].iloc[row], prepared.reason))
            return
        file.write(prepared.units.tobytes())
        self.kept.append((row, self.num_values, prepared.units.shape[1], prepared.flat_leads))
        self.num_values += prepared.units.size
        self.num_clipped += prepared.num_clipped

    def _prepared(self, num_processes: int | None) -> Generator[list[_Prepared], None, None]:
        """All records in the table's order, a chunk at a time."""
        chunks = _chunks(self.table)
        if num_processes is None:
            many = len(self.table) >= _MIN_RECORDS_FOR_PROCESSES
            num_processes = min(os.cpu_count() or 1, 4) if many else 1
        if num_processes == 1:
            return (_prepare_rows(self.reader, self.preparation, rows) for rows in chunks)
        return self._prepared_in_processes(chunks, num_processes)

    def _prepared_in_processes(
        self, chunks: Iterator[list[dict[str, Any]]], num_processes: int
    ) -> Generator[list[_Prepared], None, None]:
        """Few chunks are under way at a time, so memory stays bounded however large the source is."""
        # spawned, not forked: the caller may have threads (torch, Ray), and a forked child inherits their locks
        with ProcessPoolExecutor(num_processes, get_context("spawn"), _live_and_die_with_the_parent) as pool:
            waiting: deque[Future[list[_Prepared]]] = deque()
            try:
                for rows in chunks:
                    waiting.append(pool.submit(_prepare_rows, self.reader, self.preparation, rows))
                    if len(waiting) > 2 * num_processes:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenProcessPool as error:
                raise DataError(
                    f"a process that prepared {self.path.name} was killed, mostly for want of memory: free some and "
                    f"type the same line again"
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _check_unreadable(self, max_share: float) -> None:
        """Leave the list where a user finds it even if the store itself is refused."""
        refused_list = self.path.parent / f"{self.path.name}-unreadable.csv"
        refused_list.unlink(missing_ok=True)
        if not self.unreadable:
            return
        listed = self.folder / "unreadable.csv"
        with listed.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("record_id", "reason"), *self.unreadable])
        if len(self.unreadable) > max_share * len(self.table) or not self.kept:
            shutil.copyfile(listed, refused_list)
            reasons = "; ".join(dict.fromkeys(reason for _, reason in self.unreadable[:3]))
            raise _too_many(len(self.unreadable), len(self.table), max_share, refused_list, f" ({reasons} ...)")

    def _write_tables(self) -> None:
        rows, offsets, lengths, flat_leads = zip(*self.kept, strict=True)
        kept = self.table.iloc[list(rows)]
        optional = {"report": _reports(kept), "quality": _quality(kept)}
        index = kept.assign(**optional, offset=offsets, num_samples=lengths, flat_leads=flat_leads)
        with synced(self.folder / "index.parquet") as file:
            pq.write_table(pa.Table.from_pandas(index, schema=_INDEX_SCHEMA, preserve_index=False), file)
        counts = {
            "records": len(rows),
            "unreadable": len(self.unreadable),
            "records_with_flat_leads": sum(bool(names) for names in flat_leads),
            "clipped_samples": self.num_clipped,
        }
        manifest = self.identity | {
            "mv_per_unit": MV_PER_UNIT,
            "counts": counts,
            "index_sha256": hashlib.sha256((self.folder / "index.parquet").read_bytes()).hexdigest(),
            "signals_bytes": 2 * self.num_values,
        }
        with synced(self.folder / "manifest.json") as file:
            file.write(json.dumps(manifest, indent=1).encode())


def _checked_table(table: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in TABLE_COLUMNS if name not in table.columns]
    assert not missing, f"a reader's table must have all of {TABLE_COLUMNS}, it lacks {missing}"
    if table.empty:
        raise DataError("a source must hold at least one record, got none: check data.root")
    repeated = table["record_id"][table["record_id"].duplicated()]
    if len(repeated):
        names = ", ".join(repeated.iloc[:3])
        raise DataError(f"record ids must be unique, {len(repeated)} repeat another's (the first: {names})")
    return table


def _reports(table: pd.DataFrame) -> list[str | None]:
    """The report of every row without blanks around it; None where the reader gives none or a blank one."""
    if "report" not in table.columns:
        return [None] * len(table)
    return [None if pd.isna(text) else text.strip() or None for text in table["report"]]


def _quality(table: pd.DataFrame) -> list[list[str] | None]:
    """The flags of every row; None where the reader gives none, which is not the same as an empty list."""
    if "quality" not in table.columns:
        return [None] * len(table)
    return [None if flags is None else list(flags) for flags in table["quality"]]


def _chunks(table: pd.DataFrame) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(table), _CHUNK_RECORDS):
        yield table.iloc[start : start + _CHUNK_RECORDS].to_dict("records")


def _check_share(num_unreadable: int, num_records: int, max_share: float, path: Path) -> None:
    if num_unreadable > max_share * num_records:
        raise _too_many(num_unreadable, num_records, max_share, path / "unreadable.csv", "")


def _too_many(count: int, total: int, max_share: float, listed: Path, reasons: str) -> DataError:
    return DataError(
        f"at most {max_share:.2%} of the records may be unreadable, got {count} of {total} ({count / total:.2%}), all "
        f"listed in {listed}{reasons}: repair them or raise data.max_unreadable_share"
    )
