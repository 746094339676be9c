import gzip
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data import ptb_xl
from data.labels import read_labels
from data.ptb_xl import PTBXL, QUALITY_COLUMNS, read_wfdb
from data.record import LEADS, DataError, Record, RecordError
from data.synthetic import Synthetic

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # wfdb 4.3 uses what pandas 3 deprecates
    import wfdb


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A small folder in PTB-XL's layout, at 100 Hz."""
    source = Synthetic(tmp_path_factory.mktemp("source"), 100, num_patients=12, seed=0)
    source.table()
    return source.folder


@pytest.fixture
def root(published, tmp_path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(published, tmp_path / "ptb-xl"))


def first_record(root: Path) -> Path:
    return root / PTBXL(root, 100).table()["path"][0]


def edit_database(root: Path, **columns) -> None:
    table = pd.read_csv(root / "ptbxl_database.csv").assign(**columns)
    table.to_csv(root / "ptbxl_database.csv", index=False)


def edit_header(path: Path, old: str, new: str) -> None:
    header = path.with_suffix(".hea")
    assert old in header.read_text()
    header.write_text(header.read_text().replace(old, new))


# --- real data


def test_the_published_table_has_the_published_counts(ptbxl_datasets, tmp_path):
    source = ptbxl_datasets / "ptbxl_100hz"
    (tmp_path / "ptbxl_database.csv").write_bytes(gzip.decompress((source / "ptbxl_database.csv.gz").read_bytes()))
    shutil.copy(source / "scp_statements.csv", tmp_path)
    (tmp_path / "records100").mkdir()
    reader = PTBXL(tmp_path, 100)
    table = reader.table()
    protocols = reader.protocols()
    assert len(table) == 21_799
    assert table["patient_id"].nunique() == 18_869
    assert table.groupby("patient_id")["fold"].nunique().max() == 1
    assert sorted(table["fold"].unique()) == list(range(1, 11))
    assert table["age"].max() == 90
    assert not table["age"].isna().any()
    assert table["sex"].value_counts().to_dict() == {"male": 11_354, "female": 10_445}
    assert table["report"].str.strip().ne("").sum() == 21_797
    assert table["report"].nunique() == 9887
    flags = pd.Series([flag for flags in table["quality"] for flag in flags]).value_counts().to_dict()
    assert flags == {
        "static_noise": 3260,
        "extra_beats": 1949,
        "baseline_drift": 1598,
        "burst_noise": 612,
        "pacemaker": 291,
        "electrodes_problems": 30,
    }
    assert table["report"].str.contains("unbestÄtigter").sum() > 1000
    assert {name: len(protocol.classes) for name, protocol in protocols.items()} == {
        "all": 71,
        "diagnostic": 44,
        "subdiagnostic": 23,
        "superdiagnostic": 5,
        "superdiagnostic_single": 5,
        "form": 19,
        "rhythm": 12,
    }
    many = read_labels(table["codes"], protocols["superdiagnostic"])
    assert dict(zip(many.classes, many.targets.sum(axis=0).tolist(), strict=True)) == {
        "NORM": 9514,
        "MI": 5469,
        "STTC": 5235,
        "CD": 4898,
        "HYP": 2649,
    }
    assert (~many.labelled).sum() == 411
    one = read_labels(table["codes"], protocols["superdiagnostic_single"])
    assert one.targets[one.labelled].sum(axis=0).tolist() == [9069, 2532, 2400, 1708, 535]


def test_real_records_are_read_to_the_bits_that_wfdb_reads(ptbxl_datasets, tmp_path):
    unpack = [sys.executable, ptbxl_datasets / "unpack_ptbxl.py", tmp_path, "--folds", "10", "--records-per-fold", "12"]
    subprocess.run(unpack, check=True, capture_output=True)
    reader = PTBXL(tmp_path, 100)
    for row in reader.table().to_dict("records"):
        assert_same_as_wfdb(tmp_path / row["path"])
        assert reader.read(row).leads == LEADS


def assert_same_as_wfdb(path: Path) -> None:
    ours = read_wfdb(path, "one")
    theirs = wfdb.rdrecord(str(path))
    np.testing.assert_array_equal(ours.signal_mv, theirs.p_signal.T.astype(np.float32))
    assert ours.signal_mv.dtype == np.float32
    assert ours.sampling_rate_hz == theirs.fs


# --- records


def test_plain_records_are_read_without_wfdb_and_to_the_same_bits(root, monkeypatch):
    path = first_record(root)
    assert_same_as_wfdb(path)
    monkeypatch.setattr(ptb_xl, "_read_other_wfdb", None)
    assert read_wfdb(path, "one").signal_mv.shape == (12, 1000)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1000.0(0)/mV", "1000/mV"),
        ("1000.0(0)/mV", "200.5(-7)/mV"),
        ("1000.0(0)/mV 16 0", "1e3/mV 12 100"),
        ("12 100 1000", "12 100.0/100(0) 1000 10:02:30 01/01/2000"),
        ("12 100 1000", "12 99.5 1000"),
    ],
)
def test_every_plain_way_to_write_a_header_means_what_it_means_to_wfdb(root, old, new, monkeypatch):
    path = first_record(root)
    edit_header(path, old, new)
    monkeypatch.setattr(ptb_xl, "_read_other_wfdb", None)
    assert_same_as_wfdb(path)


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1e-3), ("V", 1e3), ("MV", 1.0)])
def test_every_unit_becomes_millivolts(root, unit, factor):
    path = first_record(root)
    in_mv = read_wfdb(path, "one").signal_mv
    edit_header(path, "/mV", f"/{unit}")
    np.testing.assert_allclose(read_wfdb(path, "one").signal_mv, in_mv * factor, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # wfdb's writer, under pandas 3
@pytest.mark.parametrize("fmt", ["212", "24", "80"])
def test_other_formats_are_left_to_wfdb(tmp_path, fmt):
    signal = np.random.default_rng(0).normal(0, 0.02, (500, 2))
    wfdb.wrsamp("odd", 250, ["mV"] * 2, ["II", "v5"], signal, fmt=[fmt] * 2, write_dir=str(tmp_path))
    record = read_wfdb(tmp_path / "odd", "odd")
    assert record.leads == ("II", "V5")
    assert record.sampling_rate_hz == 250
    np.testing.assert_allclose(record.signal_mv, signal.T, atol=0.005)


def test_a_sample_that_the_format_calls_missing_is_nan(root):
    path = first_record(root)
    samples = np.fromfile(path.with_suffix(".dat"), dtype="<i2").reshape(1000, 12)
    checksum = int(samples[:, 0].sum(dtype=np.int64) % 65536)
    moved = (checksum - int(samples[5, 0]) - 32768) % 65536
    samples[5, 0] = -32768
    samples.tofile(path.with_suffix(".dat"))
    edit_header(path, f" {checksum} 0 I\n", f" {moved} 0 I\n")
    assert np.isnan(read_wfdb(path, "one").signal_mv[0, 5])
    assert_same_as_wfdb(path)


def cut(path):
    path.with_suffix(".dat").write_bytes(path.with_suffix(".dat").read_bytes()[:-100])


def lengthen(path):
    path.with_suffix(".dat").write_bytes(path.with_suffix(".dat").read_bytes() + b"\0" * 24)


def flip(path):
    content = bytearray(path.with_suffix(".dat").read_bytes())
    content[1000] ^= 1
    path.with_suffix(".dat").write_bytes(content)


def cut_header(path):
    header = path.with_suffix(".hea")
    header.write_bytes(header.read_bytes()[:-6])  # the name of the last lead is gone


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.with_suffix(".dat").unlink(), "No such file"),
        (lambda path: path.with_suffix(".hea").unlink(), "No such file"),
        (cut, r"1000 samples of 12 leads .* \(24000 bytes\), got 23900 bytes"),
        (lengthen, r"\(24000 bytes\), got 24024 bytes"),
        (flip, "checksum of .* differs from its header"),
        (lambda path: edit_header(path, " 0 V6", " 0 V9"), "lead 'V9' is unknown"),
        (lambda path: edit_header(path, "/mV", "/mmHg"), "must be in mV, uV or V, got mmHg"),
        (cut_header, r"\.hea must name the lead of each of its 12 signals, got a name for 11: fetch it again"),
        (lambda path: path.with_suffix(".hea").write_text(""), "not a WFDB record"),
        (lambda path: path.with_suffix(".hea").write_bytes(b"\xff\x00 12 \n\n16"), "not a WFDB record"),
        (lambda path: path.with_suffix(".hea").write_text(f"{path.name} 0 100 1000\n"), "at least one signal"),
        (lambda path: edit_header(path, f"{path.name}.dat 16", f"{path.name}.dat 99"), "not a WFDB record"),
    ],
)
def test_a_damaged_record_is_a_record_error_that_names_it(root, damage, message):
    path = first_record(root)
    damage(path)
    with pytest.raises(RecordError, match=f"record r7: .*{message}"):
        read_wfdb(path, "r7")


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut short, or with a few bytes changed by a bit or taken out, often in the first two lines."""
    if rng.random() < 0.3:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(changed), rng.choice([30, 70, len(changed)])))
        if rng.random() < 0.5:
            changed[place] ^= 1 << rng.randrange(8)
        else:
            del changed[place : place + rng.randint(1, 5)]
    return bytes(changed)


def test_a_damaged_header_gives_a_record_or_a_record_error(root):
    path, rng, refusals = first_record(root), random.Random(0), []
    header = path.with_suffix(".hea")
    whole = header.read_bytes()
    for _ in range(300):
        header.write_bytes(damaged(whole, rng))
        try:
            assert isinstance(read_wfdb(path, "r7"), Record)
        except RecordError as error:
            refusals.append(str(error))
    assert refusals
    assert all(told.startswith("record r7: ") for told in refusals)


# --- tables


def test_a_row_says_who_and_where(root):
    edit_database(root, age=300.0, sex=1, site=2.0, device="CS100    3", patient_id=15709.0, report="unbestÄtigt, 2.")
    edit_database(root, static_noise=" , I-AVR,  ", burst_noise=" ", baseline_drift=None, pacemaker="ja, pacemaker")
    edit_database(root, extra_beats=None)
    row = PTBXL(root, 100).table().iloc[0].to_dict()
    assert row.pop("codes")
    assert row == {
        "record_id": "1",
        "patient_id": "15709",
        "fold": row["fold"],
        "age": 90.0,
        "sex": "female",
        "device": "CS100 3",
        "site": "2",
        "path": "records100/00000/00001_lr",
        "report": "unbestÄtigt, 2.",
        "quality": ["static_noise", "pacemaker"],
    }


def test_a_record_whose_device_and_site_are_unknown_has_none(root):
    edit_database(root, site=None, device=None, age=None)
    row = PTBXL(root, 100).table().iloc[0]
    assert pd.isna(row["site"])
    assert pd.isna(row["device"])
    assert np.isnan(row["age"])


def without_reports(root):
    table = pd.read_csv(root / "ptbxl_database.csv").drop(columns="report")
    table.to_csv(root / "ptbxl_database.csv", index=False)


@pytest.mark.parametrize("damage", [without_reports, lambda root: edit_database(root, report=None)])
def test_a_table_without_reports_is_read(root, damage):
    before = PTBXL(root, 100).table()
    damage(root)
    after = PTBXL(root, 100).table()
    assert after["report"].isna().all()
    assert after.drop(columns="report").equals(before.drop(columns="report"))


def test_a_table_without_columns_on_quality_knows_of_no_flags(root):
    database = pd.read_csv(root / "ptbxl_database.csv")
    database.drop(columns=list(QUALITY_COLUMNS)).to_csv(root / "ptbxl_database.csv", index=False)
    assert PTBXL(root, 100).table()["quality"].isna().all()


def test_a_report_that_lies_in_another_column_is_not_quoted(root):
    edit_database(root, scp_codes="sinusrhythmus, normales ekg")
    with pytest.raises(DataError, match="record 1 has scp_codes that are no dictionary: fetch it again") as caught:
        PTBXL(root, 100).table()
    assert "sinusrhythmus" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root), r"there is no folder .*: give data.root=DIR"),
        (lambda root: (root / "scp_statements.csv").unlink(), r"lacks scp_statements.csv"),
        (lambda root: (root / "records100").rename(root / "records500"), r"read it with data.source_rate_hz=500$"),
        (lambda root: shutil.rmtree(root / "records100"), r"needs the folder .*records100, .*unpack the records"),
        (lambda root: (root / "ptbxl_database.csv").write_bytes(b""), "cannot be read as a table"),
        (lambda root: (root / "ptbxl_database.csv").write_bytes(b"\xff\xfe\x00"), "cannot be read as a table"),
        (
            lambda root: (root / "ptbxl_database.csv").write_text("ecg_id,age\n1,2\n"),
            "lacks patient_id.* has ecg_id, age",
        ),
        (lambda root: edit_database(root, scp_codes="{'NORM': "), "record 1 has scp_codes that are no dictionary"),
        (lambda root: edit_database(root, scp_codes="['NORM']"), "record 1 must have a dictionary .* got a list"),
        (lambda root: edit_database(root, strat_fold=None), "every record must have a strat_fold"),
        (lambda root: edit_database(root, strat_fold="first"), "strat_fold must hold numbers alone"),
        (lambda root: edit_database(root, filename_lr=None), "every record must have a filename_lr"),
    ],
)
def test_a_source_that_cannot_be_used_says_so_in_one_line(root, damage, message):
    damage(root)
    with pytest.raises(DataError, match=message) as caught:
        PTBXL(root, 100).table()
    assert "\n" not in str(caught.value)


def test_a_rate_that_was_never_published_is_refused(root):
    with pytest.raises(DataError, match="must be 100 or 500 for PTB-XL, got 250"):
        PTBXL(root, 250).table()


def test_a_missing_root_says_how_to_give_one():
    with pytest.raises(DataError, match="got none: give data.root=DIR or set ECG_DATA"):
        PTBXL(None, 100).fingerprint()


def test_a_root_one_folder_too_high_is_recognised(root):
    with pytest.raises(DataError, match=f"did you mean data.root={root}?"):
        PTBXL(root.parent, 100).table()


def test_the_fingerprint_follows_tables_and_records_but_not_the_place(root, tmp_path):
    first = PTBXL(root, 100).fingerprint()
    moved = Path(shutil.copytree(root, tmp_path / "elsewhere"))
    assert PTBXL(moved, 100).fingerprint() == first
    cut(first_record(moved))
    assert PTBXL(moved, 100).fingerprint() != first
    edit_database(root, age=50.0)
    assert PTBXL(root, 100).fingerprint() != first
