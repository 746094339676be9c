"""PTB-XL in its published layout: two tables and WFDB records at 100 and 500 Hz.

Source: Wagner et al. 2020, Scientific Data 7:154, PhysioNet doi:10.13026/kfzx-aw45. Label protocols: Strodthoff et
al. 2021, arXiv:2004.13701. Shapes: C leads, T samples.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data.labels import LabelProtocol
from data.record import MV_OF_UNIT, DataError, Record, RecordError, lead_name

DATABASE = "ptbxl_database.csv"
STATEMENTS = "scp_statements.csv"
RECORDS_FOLDER = {100: "records100", 500: "records500"}
FILENAME_COLUMN = {100: "filename_lr", 500: "filename_hr"}
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
"""In the order of the data's paper, table 5."""

_COLUMNS = ["ecg_id", "patient_id", "age", "sex", "site", "device", "scp_codes", "strat_fold"]
QUALITY_COLUMNS = (
    "static_noise",
    "burst_noise",
    "baseline_drift",
    "electrodes_problems",
    "extra_beats",
    "pacemaker",
)
"""Columns of free text, mostly the leads concerned, on the signal: any text in one is a flag of its name."""
_OPTIONAL_COLUMNS = ["report", *QUALITY_COLUMNS]
_SEXES = {0: "male", 1: "female"}


@dataclass(frozen=True)
class PTBXL:
    """The records of PTB-XL at one of its two published rates.

    Patients keep the published folds 1 to 10. Ages of 300 stand for "over 89" (the mean of the group is not
    published) and become 90. Every statement of a record counts, whatever likelihood the cardiologist gave it, as in
    Strodthoff et al. 2021.

    Attributes:
        root: folder with ptbxl_database.csv, scp_statements.csv and records100/ or records500/.
        source_rate_hz: 100 or 500, which of the two is read.
    """

    root: Path | None
    source_rate_hz: int

    def table(self) -> pd.DataFrame:
        """One row a record (data.record.Reader); `path` is relative to the root, without a suffix.

        Raises:
            DataError: if the folder, a table or the records of this rate are missing, or a row makes no sense.
        """
        filename = FILENAME_COLUMN[self._checked_rate()]
        path = self._checked_root() / DATABASE
        database = _read_csv(path, [*_COLUMNS, filename], _OPTIONAL_COLUMNS)
        _check_complete(database, path, ["ecg_id", "patient_id", "strat_fold", "age", "sex"], [filename])
        ages = database["age"].to_numpy(dtype=np.float64)
        return pd.DataFrame(
            {
                "record_id": _whole_number_text(database["ecg_id"]),
                "patient_id": _whole_number_text(database["patient_id"]),
                "fold": database["strat_fold"].astype(np.int64),
                "codes": _parse_codes(database, path),
                "age": np.where(ages > 89, 90.0, ages),
                "sex": [_SEXES.get(sex) for sex in database["sex"]],
                "device": [None if pd.isna(name) else " ".join(str(name).split()) for name in database["device"]],
                "site": _whole_number_text(database["site"]),
                "path": database[filename],
                "report": _reports(database),
                "quality": _quality(database),
            }
        ).reset_index(drop=True)

    def read(self, row: Mapping[str, Any]) -> Record:
        """The recording of one row of `table`.

        Raises:
            RecordError: if its files are missing, damaged or not 12-lead ECG.
        """
        assert self.root is not None, "table() has checked the root"
        return read_wfdb(self.root / row["path"], row["record_id"])

    def protocols(self) -> dict[str, LabelProtocol]:
        """What scp_statements.csv says: 71 statements in all, 44 diagnostic, 19 form and 12 rhythm.

        `superdiagnostic` (5 classes, any number a record) and `superdiagnostic_single` are two protocols that must
        never be compared: the second, used in the paper of ST-MEM (arXiv:2402.09450), keeps only records with exactly
        one superclass, which are fewer and easier.

        Raises:
            DataError: if the table is missing or lacks a column.
        """
        columns = ["diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"]
        return protocols_of(_read_csv(self._checked_root() / STATEMENTS, columns, index_col=0))

    def fingerprint(self) -> str:
        """Digest of both tables and of the names and sizes of the records of this rate."""
        rate = self._checked_rate()
        root = self._checked_root()
        digest = hashlib.sha256(f"PTBXL {rate}".encode())
        for name in (DATABASE, STATEMENTS):
            digest.update(_content(root / name))
        for line in sorted(_sizes(root / RECORDS_FOLDER[rate], "")):
            digest.update(line.encode())
        return digest.hexdigest()

    def _checked_rate(self) -> int:
        if self.source_rate_hz not in RECORDS_FOLDER:
            raise DataError(f"data.source_rate_hz must be 100 or 500 for PTB-XL, got {self.source_rate_hz}")
        return self.source_rate_hz

    def _checked_root(self) -> Path:
        """The root, with tables and the records of this rate in it."""
        looked_for = f"PTB-XL as published ({DATABASE}, {STATEMENTS}, records100/ or records500/)"
        if self.root is None:
            raise DataError(
                f"data.root must be the folder of {looked_for}, got none: give data.root=DIR or set ECG_DATA"
            )
        root = Path(self.root)
        if missing := [name for name in (DATABASE, STATEMENTS) if not (root / name).is_file()]:
            found = f"{root} lacks {' and '.join(missing)}" if root.is_dir() else f"there is no folder {root}"
            deeper = next((path.parent for path in sorted(root.glob(f"*/{DATABASE}"))), None)
            cure = f"did you mean data.root={deeper}?" if deeper else "give data.root=DIR or set ECG_DATA"
            raise DataError(f"data.root must be the folder of {looked_for}; {found}: {cure}")
        rate = self._checked_rate()
        if not (root / RECORDS_FOLDER[rate]).is_dir():
            others = [other for other, folder in RECORDS_FOLDER.items() if other != rate and (root / folder).is_dir()]
            cure = "".join(
                f"records{other}/ is there: read it with data.source_rate_hz={other}"
                + f" data.sampling_rate_hz={other}" * (other < rate)  # else it would be resampled upwards
                for other in others
            )
            raise DataError(
                f"data.source_rate_hz={rate} needs the folder {root / RECORDS_FOLDER[rate]}, which is missing: "
                f"{cure or 'unpack the records of PTB-XL there'}"
            )
        return root


def protocols_of(statements: pd.DataFrame) -> dict[str, LabelProtocol]:
    """The label protocols that a table of SCP-ECG statements, indexed by code, gives rise to."""
    table = statements.set_axis(statements.index.astype(str))
    diagnostic = table[table["diagnostic"] == 1]
    superclass = {str(code): str(name) for code, name in diagnostic["diagnostic_class"].dropna().items()}
    subclass = {str(code): str(name) for code, name in diagnostic["diagnostic_subclass"].dropna().items()}
    protocols = [
        _identity("all", table.index),
        _identity("diagnostic", diagnostic.index),
        _grouped("subdiagnostic", "multilabel", subclass, ()),
        _grouped("superdiagnostic", "multilabel", superclass, SUPERCLASSES),
        _grouped("superdiagnostic_single", "single_label", superclass, SUPERCLASSES),
        _identity("form", table.index[table["form"] == 1]),
        _identity("rhythm", table.index[table["rhythm"] == 1]),
    ]
    return {protocol.name: protocol for protocol in protocols}


def read_wfdb(path: Path, record_id: str) -> Record:
    """Read a WFDB record, given its path without a suffix.

    Plain records (one segment, format 16, all leads in one file) are read here, ten times as fast as by wfdb and to
    the same bits; every other kind is left to wfdb.

    Raises:
        RecordError: if a file is missing or damaged, or holds other than voltages of standard leads.
    """
    try:
        header = path.with_name(path.name + ".hea").read_text(encoding="utf-8", errors="replace")
        plain = _plain_header(header)
        if plain is None:
            return _read_other_wfdb(path, record_id)
        samples = np.fromfile(path.with_name(plain.file), dtype="<i2")
    except OSError as error:
        raise RecordError(f"record {record_id}: {path}: {error.strerror or error}: fetch it again") from error
    _check_samples(samples, plain, record_id, path.with_name(plain.file))
    return Record(record_id, plain.millivolts(samples), plain.rate_hz, _standard_leads(plain.leads, record_id, path))


@dataclass(frozen=True)
class _PlainHeader:
    """A header whose samples are 16-bit, interleaved by lead, alone in one file."""

    file: str
    rate_hz: float
    num_samples: int
    leads: list[str]
    gains: list[float]  # units of the file per mV, uV or V
    baselines: list[int]
    mv_per_unit: list[float]
    checksums: list[int]

    def millivolts(self, samples: NDArray[np.int16]) -> NDArray[np.float32]:
        """(C, T) mV of the file's samples; the value that stands for "no sample" becomes NaN."""
        digital = samples.reshape(self.num_samples, len(self.leads))
        physical = digital.astype(np.float64)
        physical -= self.baselines
        physical /= self.gains  # in float64 and in this order, as wfdb does
        physical[digital == np.iinfo(np.int16).min] = np.nan
        physical *= self.mv_per_unit
        return np.ascontiguousarray(physical.T, dtype=np.float32)


_NUMBER = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
_RECORD_LINE = re.compile(
    rf"[\w-]+ +(?P<leads>\d+) +(?P<rate>{_NUMBER})(?:/\S*)? +(?P<samples>\d+)(?: +\d[\d:.]*)?(?: .*)?"
)
_SIGNAL_LINE = re.compile(
    rf"(?P<file>[\w-]+\.\w+)[ \t]+16[ \t]+(?P<gain>{_NUMBER})(?:\((?P<baseline>-?\d+)\))?/(?P<unit>[^\s\d]+)[ \t]+"
    rf"\d+[ \t]+(?P<zero>-?\d+)[ \t]+-?\d+[ \t]+(?P<checksum>-?\d+)[ \t]+0[ \t]+(?P<lead>\S.*)"
)


def _plain_header(text: str) -> _PlainHeader | None:
    """What the header says, or None where it is of any kind but the plainest."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    first = _RECORD_LINE.fullmatch(lines[0]) if lines else None
    signals = [_SIGNAL_LINE.fullmatch(line) for line in lines[1:]]
    if first is None or len(signals) != int(first["leads"]):
        return None
    plain = [signal for signal in signals if signal is not None]
    units = [MV_OF_UNIT.get(signal["unit"].casefold()) for signal in plain]
    known_units = [unit for unit in units if unit is not None]
    gains = [float(signal["gain"]) for signal in plain]
    one_file = len({signal["file"] for signal in plain}) == 1
    if len(known_units) != len(signals) or not one_file or 0 in gains or float(first["rate"]) <= 0:
        return None
    return _PlainHeader(
        file=plain[0]["file"],
        rate_hz=float(first["rate"]),
        num_samples=int(first["samples"]),
        leads=[signal["lead"] for signal in plain],
        gains=gains,
        baselines=[int(signal["baseline"] or signal["zero"]) for signal in plain],
        mv_per_unit=known_units,
        checksums=[int(signal["checksum"]) for signal in plain],
    )


def _check_samples(samples: NDArray[np.int16], header: _PlainHeader, record_id: str, path: Path) -> None:
    expected = header.num_samples * len(header.leads)
    size = path.stat().st_size
    if size != 2 * expected:
        raise RecordError(
            f"record {record_id}: {path} must hold the {header.num_samples} samples of {len(header.leads)} leads that "
            f"its header names ({2 * expected} bytes), got {size} bytes: fetch it again"
        )
    sums = samples.reshape(header.num_samples, len(header.leads)).sum(axis=0, dtype=np.int64)
    wrong = [
        name for name, total, told in zip(header.leads, sums, header.checksums, strict=True) if (total - told) % 65536
    ]
    if wrong:
        raise RecordError(
            f"record {record_id}: {path} is damaged, the checksum of {', '.join(wrong)} differs from its header: "
            f"fetch it again"
        )


def _read_other_wfdb(path: Path, record_id: str) -> Record:
    """Any WFDB record, by the reference library; it is imported here because few sources need it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wfdb 4.3 uses what pandas 3 deprecates
        import wfdb

        try:
            record = wfdb.rdrecord(str(path))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # what wfdb 4.3 lets through on damaged headers and short files
            raise RecordError(f"record {record_id}: {path} is not a WFDB record: {error}: fetch it again") from error
    if record.p_signal is None or not record.n_sig or not record.sig_len:
        raise RecordError(f"record {record_id}: {path} must hold at least one signal, got none: leave it out")
    units = [MV_OF_UNIT.get(str(unit).casefold()) for unit in record.units]
    if None in units:
        raise RecordError(f"record {record_id}: {path} must be in mV, uV or V, got {', '.join(map(str, record.units))}")
    signal_mv = np.ascontiguousarray((record.p_signal * np.array(units)).T, dtype=np.float32)
    return Record(record_id, signal_mv, float(record.fs), _standard_leads(record.sig_name, record_id, path))


def _standard_leads(names: Sequence[str | None], record_id: str, path: Path) -> tuple[str, ...]:
    given = [name for name in names if name]
    if len(given) < len(names):  # wfdb gives None where a header is cut off or garbled
        raise RecordError(
            f"record {record_id}: {path}.hea must name the lead of each of its {len(names)} signals, got a name for "
            f"{len(given)}: fetch it again"
        )
    try:
        return tuple(lead_name(name) for name in given)
    except DataError as error:
        raise RecordError(f"record {record_id}: {path}.hea: {error}") from error


def _read_csv(
    path: Path, columns: list[str], optional: Sequence[str] = (), *, index_col: int | None = None
) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, index_col=index_col)
    except (OSError, ValueError) as error:  # parser and decoding errors are ValueErrors
        told = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as a table: {told}: fetch it again") from error
    if missing := [name for name in columns if name not in table.columns]:
        raise DataError(
            f"{path} must have the columns of PTB-XL 1.0.1 or later, it lacks {', '.join(missing)} and has "
            f"{', '.join(map(str, table.columns))}: fetch it again"
        )
    return table[[*columns, *(name for name in optional if name in table.columns)]]


def _check_complete(database: pd.DataFrame, path: Path, numbers: list[str], texts: list[str]) -> None:
    if database.empty:
        raise DataError(f"{path} must hold at least one record, got none: fetch it again")
    for name in numbers:
        if not pd.api.types.is_numeric_dtype(database[name]):
            raise DataError(f"{path}: the column {name} must hold numbers alone, got other text: fetch it again")
    for name in [*numbers, *texts]:
        if (lacking := int(database[name].isna().sum())) and name not in ("age", "sex"):
            raise DataError(f"{path}: every record must have a {name}, {lacking} have none: fetch it again")


def _parse_codes(database: pd.DataFrame, path: Path) -> list[list[str]]:
    # no cell is quoted: where a table lost its quotes, it may be the report, the column before
    parsed = []
    for record_id, text in zip(database["ecg_id"], database["scp_codes"], strict=True):
        try:
            codes = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError) as error:
            raise DataError(
                f"{path}: record {record_id} has scp_codes that are no dictionary: fetch it again"
            ) from error
        if not isinstance(codes, dict):
            found = type(codes).__name__
            raise DataError(
                f"{path}: record {record_id} must have a dictionary as scp_codes, got a {found}: fetch it again"
            )
        parsed.append([str(code) for code in codes])
    return parsed


def _reports(database: pd.DataFrame) -> list[str | None]:
    """Texts of the reports, German or English; None where there is none."""
    if "report" not in database.columns:
        return [None] * len(database)
    return [None if pd.isna(text) else str(text) for text in database["report"]]


def _quality(database: pd.DataFrame) -> list[list[str] | None]:
    """Names of the columns on quality in which anything is written; None where the table has none of them."""
    flagged = {
        name: database[name].notna() & (database[name].astype(str).str.strip() != "")
        for name in QUALITY_COLUMNS
        if name in database.columns
    }
    if not flagged:
        return [None] * len(database)
    rows = zip(*flagged.values(), strict=True)
    return [[name for name, here in zip(flagged, row, strict=True) if here] for row in rows]


def _whole_number_text(column: pd.Series) -> list[str | None]:
    """Numbers that pandas read as floats because some are missing, as text: 15709.0 is "15709"."""
    return [None if pd.isna(value) else f"{value:.0f}" if isinstance(value, float) else str(value) for value in column]


def _identity(name: str, codes: pd.Index) -> LabelProtocol:
    """Every code is a class of its own."""
    return LabelProtocol(name, "multilabel", tuple(codes), {code: (code,) for code in codes})


def _grouped(name: str, kind: Any, class_of_code: dict[str, str], first: tuple[str, ...]) -> LabelProtocol:
    """Codes share classes; the classes named in `first` lead, the others follow in the table's order."""
    classes = dict.fromkeys([label for label in first if label in class_of_code.values()])
    classes |= dict.fromkeys(class_of_code.values())
    return LabelProtocol(name, kind, tuple(classes), {code: (label,) for code, label in class_of_code.items()})


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _sizes(folder: Path, prefix: str) -> Iterator[str]:
    """A line for every file under `folder`: its path and size."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir():
                yield from _sizes(folder / entry.name, f"{name}/")
            else:
                yield f"{name} {entry.stat().st_size}\n"
