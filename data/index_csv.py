"""Recordings named by an index: CSV tables of file names and labels beside .npy, .npz, .csv or .pkl arrays.

The format in which ST-MEM's configuration names its data (index_dir, ecg_dir, train/valid/test_csv, filename_col,
fs_col, label_col), with patients, folds and units added. Shapes: C leads, T samples.
"""

from __future__ import annotations

import csv
import hashlib
import json
import lzma
import math
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data.labels import LabelProtocol
from data.plain_pickles import ArraysOnly
from data.record import LEADS, MV_OF_UNIT, DataError, Record, RecordError, lead_name, one_of

FOLD_OF_TABLE = {"train_csv": 1, "valid_csv": 9, "test_csv": 10}
"""Folds of records whose part is told by the table they are in: the ones that PTB-XL's split uses."""

PROTOCOL = "labels"
SUFFIXES = (".npy", ".npz", ".csv", ".pkl", ".pickle")

_NONE_OF_THEM = "none of them"  # the code of a record that was labelled and carries no class
_SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}
_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True)
class IndexCsv:
    """Recordings that CSV tables name, with their own columns for everything.

    The table is either `csv` with a `fold_column`, or any of `train_csv`, `valid_csv` and `test_csv`, whose records
    get the folds 1, 9 and 10. Of `label_columns`, one column of class names or numbers makes the single-label
    protocol `labels`, several columns of 0 and 1 the multi-label one; empty cells leave a record unlabelled. A
    cell is empty only where nothing is in it: `NA` and `None` are texts like any other. Arrays are (C, T); in .csv
    files columns are leads, and a header that names leads is believed before `leads`.

    Attributes:
        root: folder that the others start from; may be None if they are absolute.
        source_rate_hz: not used; every reader is told it.
        index_dir: folder of the tables; the root where None.
        ecg_dir: folder that file names start from; the root where None.
        csv: the one table, with `fold_column`.
        train_csv: table of the records to train on.
        valid_csv: table of the records to validate on.
        test_csv: table of the records to test on.
        fold_column: whole numbers.
        filename_column: files relative to `ecg_dir`.
        sampling_rate_column: in Hz; None where `sampling_rate_hz` is that of every record.
        sampling_rate_hz: one for all; None where a column tells each.
        label_columns: see above; empty for unlabelled data.
        record_id_column: unique names of the records; the file names where None.
        patient_id_column: None takes each record for a patient of its own.
        age_column: in years.
        sex_column: male, female, m or f.
        device_column: any text.
        site_column: any text.
        report_column: the text of the clinical report.
        quality_column: names of flags on the signal, apart by commas or semicolons; an empty cell says that there are
            none.
        leads: what the rows of the arrays are.
        unit: mV, uV or V.
    """

    root: Path | None
    source_rate_hz: int
    index_dir: str | None = None
    ecg_dir: str | None = None
    csv: str | None = None
    train_csv: str | None = None
    valid_csv: str | None = None
    test_csv: str | None = None
    fold_column: str | None = None
    filename_column: str = "FILE_NAME"
    sampling_rate_column: str | None = "SAMPLE_RATE"
    sampling_rate_hz: float | None = None
    label_columns: Sequence[str] = ()
    record_id_column: str | None = None
    patient_id_column: str | None = None
    age_column: str | None = None
    sex_column: str | None = None
    device_column: str | None = None
    site_column: str | None = None
    report_column: str | None = None
    quality_column: str | None = None
    leads: Sequence[str] = LEADS
    unit: str = "mV"

    def table(self) -> pd.DataFrame:
        """One row a record (data.record.Reader), and `rate_hz`; `path` is relative to `ecg_dir`.

        Raises:
            DataError: if a table or a column is missing or a cell makes no sense; the message names the key.
        """
        self._check_keys()
        tables = [self._read_table(path, fold) for path, fold in self._tables()]
        table = pd.concat(tables, ignore_index=True)
        if table.empty:
            raise DataError(f"{self._tables()[0][0]} must name at least one record, got none")
        repeated = table["record_id"][table["record_id"].duplicated()].tolist()
        if repeated:
            raise DataError(
                f"each record must be listed once, {len(repeated)} are listed again, in one table or in two (the "
                f"first: {', '.join(repeated[:3])}): remove them or name another data.reader.record_id_column"
            )
        return table

    def read(self, row: Mapping[str, Any]) -> Record:
        """The recording of one row of `table`.

        Raises:
            RecordError: if its file is missing, damaged, or of another shape than the leads say.
        """
        name, path = str(row["record_id"]), self._folder("ecg_dir") / row["path"]
        try:
            array, header = _READ_OF_SUFFIX[path.suffix.lower()](path)
        except _UNREADABLE as error:
            told = error.strerror if isinstance(error, OSError) and error.strerror else error
            reason = " ".join(str(told).split()) or type(error).__name__  # one line, and never none
            raise RecordError(f"record {name}: {path} cannot be read: {reason}: replace the file") from error
        try:
            leads = tuple(lead_name(lead) for lead in (self.leads if header is None else header))
        except DataError as error:
            raise RecordError(f"record {name}: the header of {path}: {error}") from error
        array = np.atleast_2d(array)
        if array.ndim != 2 or len(array) != len(leads) or array.dtype.kind not in "iuf":
            raise RecordError(
                f"record {name}: {path} must hold numbers of shape ({len(leads)}, T) for the leads "
                f"{', '.join(leads)}, got {array.dtype} of shape {array.shape}: correct data.reader.leads or the file"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are refused, by lead, with the record
            signal_mv = (array.astype(np.float64) * MV_OF_UNIT[self.unit.casefold()]).astype(np.float32)
        return Record(name, signal_mv, float(row["rate_hz"]), leads)

    def protocols(self) -> dict[str, LabelProtocol]:
        """The one protocol `labels` that the label columns make; none without them.

        Raises:
            DataError: as `table`.
        """
        if not self.label_columns:
            return {}
        if len(self.label_columns) > 1:
            classes = tuple(self.label_columns)
            of_code = {name: (name,) for name in classes} | {_NONE_OF_THEM: ()}
            return {PROTOCOL: LabelProtocol(PROTOCOL, "multilabel", classes, of_code)}
        codes = {code for record in self.table()["codes"] for code in record}
        numbers = all(code.lstrip("-").isdecimal() for code in codes)
        classes = tuple(sorted(codes, key=int) if numbers else sorted(codes))
        return {PROTOCOL: LabelProtocol(PROTOCOL, "single_label", classes, {name: (name,) for name in classes})}

    def fingerprint(self) -> str:
        """Digest of the keys, the tables, and the sizes of the files that they name."""
        keys = {name: value for name, value in asdict(self).items() if name not in ("root", "index_dir", "ecg_dir")}
        if self.quality_column is None:  # stores that were built before there was such a key are the same ones
            del keys["quality_column"]
        digest = hashlib.sha256(json.dumps(keys, sort_keys=True, default=list).encode())
        for path, _ in self._tables():
            digest.update(hashlib.sha256(_content(path)).digest())
        for line in _sizes(self._folder("ecg_dir"), self.table()["path"].tolist()):
            digest.update(line.encode())
        return digest.hexdigest()

    def _check_keys(self) -> None:
        """What can be told wrong without a file."""
        if self.unit.casefold() not in MV_OF_UNIT:
            raise DataError(f"data.reader.unit {one_of(['mV', 'uV', 'V'], self.unit)}, got {self.unit!r}")
        if (self.sampling_rate_column is None) == (self.sampling_rate_hz is None):
            raise DataError(
                "exactly one of data.reader.sampling_rate_column and data.reader.sampling_rate_hz must be given, got "
                f"{self.sampling_rate_column} and {self.sampling_rate_hz}"
            )
        if self.sampling_rate_hz is not None and not 0 < self.sampling_rate_hz < math.inf:
            raise DataError(f"data.reader.sampling_rate_hz must be positive and finite, got {self.sampling_rate_hz}")
        leads = [lead_name(name) for name in self.leads]
        if not leads or len(set(leads)) != len(leads):
            raise DataError(f"data.reader.leads must name each lead once, and at least one, got {list(self.leads)}")
        if len(set(self.label_columns)) != len(self.label_columns):
            raise DataError(f"data.reader.label_columns must not repeat, got {list(self.label_columns)}")

    def _tables(self) -> list[tuple[Path, int | None]]:
        """The tables and the fold that each stands for; None where a column tells."""
        given = {key: getattr(self, key) for key in FOLD_OF_TABLE if getattr(self, key)}
        if bool(self.csv) == bool(given):
            found = f"data.reader.csv={self.csv} and {', '.join(given)}" if given else "neither"
            raise DataError(
                f"either data.reader.csv or some of data.reader.train_csv, valid_csv and test_csv must be given, got "
                f"{found}"
            )
        folder = self._folder("index_dir")
        if given and self.fold_column:
            raise DataError(
                f"data.reader.fold_column={self.fold_column} needs data.reader.csv: with {', '.join(given)} the table "
                f"tells the fold"
            )
        if self.csv:
            if not self.fold_column:
                raise DataError(
                    "data.reader.csv needs data.reader.fold_column=NAME to tell who trains and who is tested"
                )
            return [(folder / self.csv, None)]
        return [(folder / name, FOLD_OF_TABLE[key]) for key, name in given.items()]

    def _folder(self, key: str) -> Path:
        folder = getattr(self, key)
        if self.root is None and not (folder and Path(folder).is_absolute()):
            raise DataError(f"data.root must be given where data.reader.{key} is not an absolute path, got {folder}")
        return Path(self.root or "") / (folder or "")

    def _read_table(self, path: Path, fold: int | None) -> pd.DataFrame:
        try:
            # every cell as text: identifiers keep their leading zeros, and errors can quote what was there; pandas'
            # own words for nothing ("None", "NA", "null") may be classes and patients here
            cells = pd.read_csv(
                path, dtype=str, encoding="utf-8-sig", skipinitialspace=True, keep_default_na=False, na_values=[""]
            )
        except (OSError, ValueError) as error:
            told = " ".join(str(error.strerror if isinstance(error, OSError) else error).split())
            raise DataError(f"the index {path} cannot be read as a table: {told}: correct data.reader") from error
        if len(cells) and not isinstance(cells.index, pd.RangeIndex):
            # pandas would take the first cells for names of the rows, and every column for the one before it
            raise DataError(
                f"the index {path} must have as many cells in each row as in its header, the first row has more: put "
                f"texts with commas in quotes"
            )
        cells = _Cells(cells, path)
        files = cells.texts("filename_column", self.filename_column)
        _check_suffixes(files, path)
        record_ids = cells.texts("record_id_column", self.record_id_column) if self.record_id_column else files
        patient_ids = cells.texts("patient_id_column", self.patient_id_column) if self.patient_id_column else record_ids
        if self.sampling_rate_column:
            rates = cells.numbers("sampling_rate_column", self.sampling_rate_column, positive=True)
        else:
            rates = [float(self.sampling_rate_hz or 0)] * len(files)
        folds: list[int] = [fold] * len(files) if fold is not None else cells.whole("fold_column", self.fold_column)
        ages = cells.numbers("age_column", self.age_column, optional=True) if self.age_column else None
        return pd.DataFrame(
            {
                "record_id": record_ids,
                "patient_id": patient_ids,
                "fold": folds,
                "codes": cells.codes(self.label_columns),
                "age": [float("nan")] * len(files) if ages is None else ages,
                "sex": cells.sexes(self.sex_column),
                "device": cells.optional("device_column", self.device_column),
                "site": cells.optional("site_column", self.site_column),
                "path": files,
                "report": cells.optional("report_column", self.report_column),
                "quality": cells.flags("quality_column", self.quality_column),
                "rate_hz": rates,
            }
        )


class _Cells:
    """A table of texts, read a column at a time; every complaint names the column, the file and the key."""

    def __init__(self, cells: pd.DataFrame, path: Path) -> None:
        self.cells = cells
        self.path = path

    def optional(self, key: str, name: str | None) -> list[str | None]:
        """A column's texts, None for empty cells or where no column is named."""
        if name is None:
            return [None] * len(self.cells)
        if name not in self.cells.columns:
            raise DataError(
                f"{self.path} has no column {name!r} for data.reader.{key}, which "
                f"{one_of(map(str, self.cells.columns), name)}"
            )
        return [None if pd.isna(text) else str(text).strip() for text in self.cells[name]]

    def flags(self, key: str, name: str | None) -> list[list[str] | None]:
        """A column of names that commas or semicolons part; None where no column is named."""
        if name is None:
            return [None] * len(self.cells)
        texts = [(text or "").replace(";", ",").split(",") for text in self.optional(key, name)]
        return [[flag.strip() for flag in parts if flag.strip()] for parts in texts]

    def texts(self, key: str, name: str) -> list[str]:
        """A column without empty cells."""
        texts = self.optional(key, name)
        for row, text in enumerate(texts):
            if not text:
                raise self._error(row, key, name, "must not be empty", text)
        return [text for text in texts if text]

    def numbers(self, key: str, name: str, *, positive: bool = False, optional: bool = False) -> list[float]:
        """A column of finite numbers; NaN for empty cells where they are `optional`."""
        texts = self.optional(key, name)
        numbers = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
        for row, (text, number) in enumerate(zip(texts, numbers, strict=True)):
            if optional and not text:
                continue
            if not np.isfinite(number) or (positive and number <= 0):
                raise self._error(row, key, name, f"must be a{' positive' * positive} number", text)
        return [float(number) for number in numbers]

    def whole(self, key: str, name: str | None) -> list[int]:
        """A column of whole numbers."""
        assert name is not None, "_tables() has checked the key"
        numbers = self.numbers(key, name)
        for row, number in enumerate(numbers):
            if number != round(number):
                raise self._error(row, key, name, "must be a whole number", str(number))
        return [round(number) for number in numbers]

    def sexes(self, name: str | None) -> list[str | None]:
        """A column of male, female or nothing; numbers are refused because data sets do not agree on them."""
        texts = self.optional("sex_column", name)
        for row, text in enumerate(texts):
            if text and text.casefold() not in _SEXES:
                raise self._error(row, "sex_column", str(name), "must be male, female, m, f or empty", text)
        return [_SEXES[text.casefold()] if text else None for text in texts]

    def codes(self, names: Sequence[str]) -> list[list[str]]:
        """The codes of every record, from one column of names or several of 0 and 1."""
        columns = {name: self.optional("label_columns", name) for name in names}
        if len(columns) == 1:
            return [[code] if code else [] for code in _whole_as_text(columns[names[0]])]
        rows: list[list[str]] = []
        for row in range(len(self.cells)):
            cells = {name: texts[row] for name, texts in columns.items()}
            rows.append(self._carried(row, cells) if any(cells.values()) else [])
        return rows

    def _carried(self, row: int, cells: Mapping[str, str | None]) -> list[str]:
        for name, text in cells.items():
            if (text or "").casefold() not in _FLAGS:
                raise self._error(row, "label_columns", name, "must be 0 or 1, or all labels of a row empty", text)
        return [name for name, text in cells.items() if _FLAGS[str(text).casefold()]] or [_NONE_OF_THEM]

    def _error(self, row: int, key: str, name: str, must: str, text: str | None) -> DataError:
        found = repr(text) if text else "nothing"
        return DataError(
            f"{self.path}, line {row + 2}: the column {name!r} (data.reader.{key}) {must}, got {found}: correct it"
        )


def _whole_as_text(texts: Sequence[str | None]) -> list[str | None]:
    """Class numbers that a table with empty cells was saved with as 1.0 become 1 again."""
    numbers = pd.to_numeric(pd.Series([text for text in texts if text], dtype=object), errors="coerce")
    if numbers.isna().any() or (numbers % 1 != 0).any():
        return list(texts)
    return [f"{float(text):.0f}" if text else None for text in texts]


def _check_suffixes(files: Sequence[str], path: Path) -> None:
    for name in files:
        if Path(name).suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path} (data.reader.filename_column) must name files ending in {', '.join(SUFFIXES)}, got {name!r}"
            )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the index {path} cannot be read: {error.strerror or error}: correct data.reader") from error


def _sizes(folder: Path, names: Sequence[str]) -> list[str]:
    """A line for every file: its name and size; each folder is listed once, which on a network disk is far faster."""
    size_of_path: dict[str, int] = {}
    for parent in sorted({os.path.dirname(folder / name) for name in names}):
        if os.path.isdir(parent):
            with os.scandir(parent) as entries:
                size_of_path |= {entry.path: entry.stat().st_size for entry in entries if entry.is_file()}
    return [f"{name} {size_of_path.get(str(folder / name), 'missing')}\n" for name in names]


_Array = NDArray[Any]


def _read_npy(path: Path) -> tuple[_Array, None]:
    return np.load(path, allow_pickle=False), None


def _read_npz(path: Path) -> tuple[_Array, None]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return np.asarray(_signal_of(dict(arrays))), None


def _read_csv(path: Path) -> tuple[_Array, list[str] | None]:
    """Columns are leads; a first line that is not numbers names them."""
    with path.open(encoding="utf-8-sig", newline="") as file:  # newline as the csv module asks for
        lines = csv.reader(file, skipinitialspace=True)
        first = next((cells for cells in lines if any(cells)), [])  # pandas skips blank lines, too
    first = [cell.strip() for cell in first]
    named = not all(_is_number(cell) for cell in first)
    table = pd.read_csv(path, header=0 if named else None, encoding="utf-8-sig", skipinitialspace=True)
    return table.to_numpy().T, first if named else None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_pickle(path: Path) -> tuple[_Array, None]:
    with path.open("rb") as file:
        content = ArraysOnly(file).load()
    array = np.asarray(_signal_of(content) if isinstance(content, dict) else content)
    return array, None


def _signal_of(arrays: Mapping[str, Any]) -> Any:
    """The only array of a file, or the one called `signal`."""
    if "signal" in arrays:
        return arrays["signal"]
    if len(arrays) != 1:
        raise ValueError(f"it must hold one array or one called 'signal', got {', '.join(map(str, arrays)) or 'none'}")
    return next(iter(arrays.values()))


_READ_OF_SUFFIX = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".pkl": _read_pickle,
    ".pickle": _read_pickle,
}

_UNREADABLE = (
    # what the readers above let through on damaged files
    OSError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    ImportError,
    OverflowError,
    MemoryError,
    RuntimeError,  # an .npz that claims to be encrypted; also NotImplementedError and RecursionError
    SyntaxError,  # numpy parses the header of an .npy as Python
    tokenize.TokenError,  # so it does
    SystemError,  # of numpy, on the state of a pickled dtype
    csv.Error,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    pickle.UnpicklingError,
)
