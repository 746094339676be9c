import csv
import hashlib
import json
import os
import pickle
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.index_csv import IndexCsv
from data.labels import read_labels
from data.record import LEADS, DataError, Record, RecordError
from data.splits import split

SIGNAL = np.random.default_rng(0).normal(0, 0.5, (12, 300))
ROW = {"record_id": "r1", "path": "r1.npy", "rate_hz": 250.0}


def write_index(path: Path, num_records=4, **columns) -> None:
    """FILE_NAME, SAMPLE_RATE, LABEL and who, of records r0, r1, ...; `columns` replace or add."""
    ids = [f"r{number}" for number in range(num_records)]
    table = {
        "FILE_NAME": [f"{name}.npy" for name in ids],
        "SAMPLE_RATE": 250,
        "LABEL": ["a", "b", "a", "c"][:num_records],
    }
    table |= {"who": [f"00{number}" for number in range(num_records)], "fold": [1, 2, 9, 10][:num_records]}
    pd.DataFrame(table | columns).to_csv(path, index=False)


@pytest.fixture
def root(tmp_path) -> Path:
    write_index(tmp_path / "index.csv")
    return tmp_path


def one_table(root, **keys):
    return IndexCsv(root, **({"source_rate_hz": 500, "csv": "index.csv", "fold_column": "fold"} | keys))


# --- tables


def test_a_table_with_a_fold_column_says_who_and_where(root):
    reports = ["Sinusrhythmus, kein\nBefund. ", None, " ", "bÄÖü 心"]
    write_index(
        root / "index.csv", age=[61, None, 50, 40], sex=["F", "male", None, "m"], device="x", site=1, text=reports
    )
    flags = ["noise; drift", None, ",", "pacemaker"]
    pd.read_csv(root / "index.csv", dtype=str).assign(flags=flags).to_csv(root / "index.csv", index=False)
    reader = one_table(
        root,
        label_columns=["LABEL"],
        patient_id_column="who",
        age_column="age",
        sex_column="sex",
        device_column="device",
        site_column="site",
        report_column="text",
        quality_column="flags",
    )
    rows = reader.table().to_dict("records")
    assert rows[0] == {
        "record_id": "r0.npy",
        "patient_id": "000",
        "fold": 1,
        "codes": ["a"],
        "age": 61.0,
        "sex": "female",
        "device": "x",
        "site": "1",
        "path": "r0.npy",
        "report": "Sinusrhythmus, kein\nBefund.",
        "quality": ["noise", "drift"],
        "rate_hz": 250.0,
    }
    assert np.isnan(rows[1]["age"])
    assert [pd.isna(row["report"]) for row in rows] == [False, True, True, False]
    assert [row["quality"] for row in rows[1:]] == [[], [], ["pacemaker"]]  # an empty cell: nothing was found
    assert rows[3]["report"] == "bÄÖü 心"
    assert [row["fold"] for row in rows] == [1, 2, 9, 10]


def test_three_tables_become_the_folds_1_9_and_10(tmp_path):
    for number, name in enumerate(("train", "valid", "test")):
        write_index(tmp_path / f"{name}.csv", 1, FILE_NAME=[f"n{number}.npy"])
    reader = IndexCsv(tmp_path, 500, train_csv="train.csv", valid_csv="valid.csv", test_csv="test.csv")
    assert reader.table()["fold"].tolist() == [1, 9, 10]
    assert replace(reader, test_csv=None).table()["fold"].tolist() == [1, 9]


def test_every_record_is_a_patient_of_its_own_unless_a_column_says_otherwise(root):
    assert one_table(root).table()["patient_id"].is_unique
    write_index(root / "index.csv", who=["ann", "bob", "ann", "cid"])
    reader = one_table(root, patient_id_column="who", label_columns=["LABEL"])
    table = reader.table()
    labels = read_labels(table["codes"], reader.protocols()["labels"])
    with pytest.raises(DataError, match="1 are in both data.train_folds and data.valid_folds .*ann"):
        split(
            table,
            labels,
            train_folds=[1, 2],
            valid_folds=[9],
            test_folds=[10],
            max_train_patients=None,
            max_valid_patients=None,
            seed=0,
        )


def test_tables_and_recordings_may_lie_in_folders_of_their_own(tmp_path):
    for name in ("tables", "signals/deep"):
        (tmp_path / name).mkdir(parents=True)
    write_index(tmp_path / "tables" / "index.csv", 1, FILE_NAME=["deep/r0.npy"])
    np.save(tmp_path / "signals" / "deep" / "r0.npy", SIGNAL)
    reader = one_table(tmp_path, index_dir="tables", ecg_dir="signals")
    assert reader.read(reader.table().iloc[0].to_dict()).signal_mv.shape == (12, 300)
    absolute = one_table(None, index_dir=str(tmp_path / "tables"), ecg_dir=str(tmp_path / "signals"))
    assert absolute.table().equals(reader.table())
    assert absolute.fingerprint() == reader.fingerprint()


def test_one_rate_holds_for_all_where_no_column_has_it(root):
    rates = one_table(root, sampling_rate_column=None, sampling_rate_hz=257.5).table()["rate_hz"]
    assert rates.tolist() == [257.5] * 4


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sampling_rate_column": None}, "exactly one of .* got None and None"),
        ({"sampling_rate_hz": 250.0}, "exactly one of .* got SAMPLE_RATE and 250.0"),
        ({"sampling_rate_column": None, "sampling_rate_hz": 0.0}, "must be positive and finite, got 0.0"),
    ],
)
def test_the_rate_is_never_guessed(root, keys, said):
    with pytest.raises(DataError, match=said):
        one_table(root, **keys).table()


# --- labels


def test_one_label_column_of_names_is_single_label(root):
    reader = one_table(root, label_columns=["LABEL"])
    protocol = reader.protocols()["labels"]
    assert (protocol.kind, protocol.classes) == ("single_label", ("a", "b", "c"))
    labels = read_labels(reader.table()["codes"], protocol)
    assert labels.targets.argmax(axis=1).tolist() == [0, 1, 0, 2]
    assert labels.labelled.all()


def test_numbered_classes_are_in_numerical_order_and_empty_cells_are_unlabelled(root):
    write_index(root / "index.csv", LABEL=[10, 2, None, 2])  # pandas writes 10.0, 2.0, nothing
    reader = one_table(root, label_columns=["LABEL"])
    assert reader.protocols()["labels"].classes == ("2", "10")
    labels = read_labels(reader.table()["codes"], reader.protocols()["labels"])
    assert labels.labelled.tolist() == [True, True, False, True]


def test_several_label_columns_of_0_and_1_are_multilabel(root):
    write_index(root / "index.csv", AF=[1, 0, 0, None], MI=[1.0, 1.0, 0.0, None])
    reader = one_table(root, label_columns=["AF", "MI"])
    protocol = reader.protocols()["labels"]
    assert (protocol.kind, protocol.classes) == ("multilabel", ("AF", "MI"))
    labels = read_labels(reader.table()["codes"], protocol)
    assert labels.targets.tolist() == [[1, 1], [0, 1], [0, 0], [0, 0]]
    assert labels.labelled.tolist() == [True, True, True, False]  # 0 and 0 is an answer, nothing is none


def test_a_class_and_a_patient_may_be_called_what_pandas_takes_for_nothing(root):
    write_index(root / "index.csv", LABEL=["None", "AF", "", "null"], who=["NA", "nan", "NULL", "n/a"], site="None")
    reader = one_table(root, label_columns=["LABEL"], patient_id_column="who", site_column="site")
    assert reader.protocols()["labels"].classes == ("AF", "None", "null")
    table = reader.table()
    assert table["codes"].tolist() == [["None"], ["AF"], [], ["null"]]  # an empty cell alone is unlabelled
    assert table["patient_id"].tolist() == ["NA", "nan", "NULL", "n/a"]
    assert table["site"].tolist() == ["None"] * 4


def test_without_label_columns_there_are_no_protocols(root):
    assert one_table(root).protocols() == {}
    assert one_table(root).table()["codes"].tolist() == [[]] * 4


def test_without_a_report_column_there_are_no_reports(root):
    assert one_table(root).table()["report"].isna().all()


def test_without_a_quality_column_nothing_is_known_of_flags_and_stores_built_before_it_are_found(root):
    reader = one_table(root)
    assert reader.table()["quality"].isna().all()
    keys = {name: value for name, value in asdict(reader).items() if name not in ("root", "index_dir", "ecg_dir")}
    assert keys.pop("quality_column") is None
    digest = hashlib.sha256(json.dumps(keys, sort_keys=True, default=list).encode())
    digest.update(hashlib.sha256((root / "index.csv").read_bytes()).digest())
    files = [root / name for name in reader.table()["path"]]
    sizes = [file.stat().st_size if file.exists() else "missing" for file in files]
    digest.update("".join(f"{file.name} {size}\n" for file, size in zip(files, sizes, strict=True)).encode())
    assert reader.fingerprint() == digest.hexdigest()
    assert one_table(root, quality_column="LABEL").fingerprint() != digest.hexdigest()


# --- bad tables


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"csv": None}, "either data.reader.csv or some of .* got neither"),
        ({"train_csv": "t.csv"}, "got data.reader.csv=index.csv and train_csv"),
        ({"csv": None, "train_csv": "index.csv"}, "data.reader.fold_column=fold needs data.reader.csv"),
        ({"fold_column": None}, "data.reader.csv needs data.reader.fold_column"),
        ({"csv": "no.csv"}, "the index .*no.csv cannot be read as a table: No such file"),
        (
            {"filename_column": "FILENAME"},
            r"no column 'FILENAME' for data.reader.filename_column, .*did you mean FILE_NAME\?",
        ),
        (
            {"label_columns": ["LABEL", "rhythm"]},
            "no column 'rhythm' for data.reader.label_columns, .* one of FILE_NAME",
        ),
        ({"label_columns": ["LABEL", "LABEL"]}, "label_columns must not repeat"),
        ({"patient_id_column": "nobody"}, "no column 'nobody' for data.reader.patient_id_column"),
        ({"report_column": "text"}, "no column 'text' for data.reader.report_column"),
        ({"unit": "mmHg"}, "data.reader.unit must be one of mV, uV, V, got 'mmHg'"),
        ({"leads": ["I", "X"]}, "lead 'X' is unknown"),
        ({"leads": ["I", "i"]}, "data.reader.leads must name each lead once"),
    ],
)
def test_keys_that_do_not_fit_are_named(root, keys, message):
    with pytest.raises(DataError, match=message):
        one_table(root, **keys).table()


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        (
            {"FILE_NAME": ["a.npy", None, "c.npy", "d.npy"]},
            {},
            "line 3: the column 'FILE_NAME' .* must not be empty, got nothing",
        ),
        (
            {"FILE_NAME": ["a.npy", "b.mat", "c.npy", "d.npy"]},
            {},
            "must name files ending in .npy, .npz, .* got 'b.mat'",
        ),
        ({"FILE_NAME": "same.npy"}, {}, r"listed once, 3 are listed again.*same.npy"),
        (
            {"SAMPLE_RATE": [250, "fast", 1, 1]},
            {},
            r"line 3: the column 'SAMPLE_RATE' \(data.reader.sampling_rate_column\) must be .* got 'fast'",
        ),
        ({"SAMPLE_RATE": [250, 250, 0, 250]}, {}, "line 4: .* must be a positive number, got '0'"),
        ({"fold": [1, 2.5, 9, 10]}, {}, "line 3: the column 'fold' .* must be a whole number, got '2.5'"),
        ({"fold": [1, None, 9, 10]}, {}, "line 3: the column 'fold' .* must be a number, got nothing"),
        (
            {"sex": [0, 1, 0, 1]},
            {"sex_column": "sex"},
            "line 2: the column 'sex' .* must be male, female, m, f or empty, got '0'",
        ),
        ({"age": ["old", 1, 2, 3]}, {"age_column": "age"}, "line 2: the column 'age' .* must be a number, got 'old'"),
        ({"age": [1, "NA", 2, 3]}, {"age_column": "age"}, "line 3: the column 'age' .* must be a number, got 'NA'"),
        (
            {"AF": [0, 1, 2, 0], "MI": 0},
            {"label_columns": ["AF", "MI"]},
            "line 4: the column 'AF' .* must be 0 or 1, .* got '2'",
        ),
        (
            {"AF": [0, 1, None, 0], "MI": 0},
            {"label_columns": ["AF", "MI"]},
            "line 4: the column 'AF' .* all labels of a row empty, got nothing",
        ),
    ],
)
def test_a_cell_that_makes_no_sense_is_named_by_line_column_and_key(root, columns, keys, message):
    write_index(root / "index.csv", **columns)
    with pytest.raises(DataError, match=message):
        one_table(root, **keys).table()


def test_without_a_root_the_folders_must_be_absolute():
    with pytest.raises(DataError, match="data.root must be given where data.reader.index_dir is not an absolute path"):
        one_table(None).table()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b"a\n1,2\n1,2,3\n"])
def test_an_index_that_is_no_table_ends_in_one_line(root, content):
    (root / "index.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"index.csv (cannot be read as a table|has no column)") as caught:
        one_table(root).table()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", ["r0.npy,Sinusrhythmus, kein Befund,250,1", "r0.npy,Sinus,rhythmus,,250,1"])
def test_a_report_with_a_comma_and_no_quotes_is_refused_and_not_quoted(root, row):
    (root / "index.csv").write_text(f"FILE_NAME,text,SAMPLE_RATE,fold\n{row}\n")
    with pytest.raises(DataError, match="as many cells in each row as in its header.*commas in quotes") as caught:
        one_table(root, report_column="text").table()
    assert "Sinus" not in str(caught.value)


def test_an_index_without_rows_is_refused(root):
    (root / "index.csv").write_text("FILE_NAME,SAMPLE_RATE,fold\n")
    with pytest.raises(DataError, match="must name at least one record, got none"):
        one_table(root).table()


def test_the_same_record_in_two_tables_is_refused(tmp_path):
    write_index(tmp_path / "a.csv")
    write_index(tmp_path / "b.csv", 1)
    with pytest.raises(DataError, match="each record must be listed once, 1 are listed again, in one table or in two"):
        IndexCsv(tmp_path, 500, train_csv="a.csv", test_csv="b.csv").table()


def test_the_fingerprint_follows_keys_tables_and_files(root):
    np.save(root / "r0.npy", SIGNAL)
    reader = one_table(root)
    prints = [reader.fingerprint(), one_table(root, unit="uV").fingerprint()]
    np.save(root / "r0.npy", SIGNAL[:, 1:])
    prints.append(reader.fingerprint())
    (root / "r0.npy").unlink()
    prints.append(reader.fingerprint())
    write_index(root / "index.csv", SAMPLE_RATE=500)
    prints.append(reader.fingerprint())
    assert len(set(prints)) == 5


# --- recordings


def save(path: Path, array, protocol=None) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, ecg=array)
    elif path.suffix == ".csv":
        pd.DataFrame(np.asarray(array).T).to_csv(path, index=False, header=False)
    else:
        path.write_bytes(pickle.dumps(array, protocol=protocol))


def read(root, name, **keys):
    return one_table(root, **keys).read(ROW | {"path": name})


@pytest.mark.parametrize("name", ["r1.npy", "r1.npz", "r1.csv", "r1.pkl", "r1.pickle", "R1.NPY"])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16])
def test_every_kind_of_file_gives_the_same_record(root, name, kind):
    array = (SIGNAL * 1000).astype(kind)
    with (root / name).open("wb") as file:
        if name.lower().endswith("npy"):
            np.save(file, array)
    if not name.lower().endswith("npy"):
        save(root / name, array)
    record = read(root, name, unit="uV")
    np.testing.assert_allclose(record.signal_mv, array / 1000, rtol=1e-6)
    assert record.signal_mv.dtype == np.float32
    assert (record.record_id, record.sampling_rate_hz, record.leads) == ("r1", 250.0, LEADS)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("content", [SIGNAL, {"signal": SIGNAL, "id": 3}, {"ecg": SIGNAL.tolist()}, list(SIGNAL)])
def test_pickled_arrays_in_plain_containers_are_read(root, content, protocol):
    save(root / "r1.pkl", content, protocol)
    np.testing.assert_array_equal(read(root, "r1.pkl").signal_mv, SIGNAL.astype(np.float32))


class Malicious:
    """A pickle that runs a command when an ordinary unpickler loads it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: {"signal": one}, lambda one: np.array([one])])
def test_a_malicious_pickle_runs_nothing_and_is_a_record_error(root, wrap):
    mark = root / "ran"
    save(root / "r1.pkl", wrap(Malicious(mark)))
    with pytest.raises(RecordError, match=r"numpy arrays in plain containers alone, got posix.system"):
        read(root, "r1.pkl")
    assert not mark.exists()
    pickle.loads((root / "r1.pkl").read_bytes())
    assert mark.exists()  # the attack itself works


def test_leads_in_another_order_and_spelling_keep_their_names(root):
    save(root / "r1.npy", SIGNAL[:3])
    assert read(root, "r1.npy", leads=["v6", "AVR", " I "]).leads == ("V6", "aVR", "I")


def test_one_lead_may_be_one_dimensional(root):
    save(root / "r1.npy", SIGNAL[1])
    assert read(root, "r1.npy", leads=["II"]).signal_mv.shape == (1, 300)


def test_a_csv_header_that_names_leads_is_believed(root):
    pd.DataFrame(SIGNAL[:2].T, columns=["V2", "avl"]).to_csv(root / "r1.csv", index=False)
    record = read(root, "r1.csv")
    assert record.leads == ("V2", "aVL")
    np.testing.assert_allclose(record.signal_mv, SIGNAL[:2], rtol=1e-6)


@pytest.mark.parametrize(
    "first_line", ['"V2","avl"', '"V2", "avl"', 'V2,"avl"', '"V2" ,avl ', "\n\nV2,avl", '\ufeff"V2",avl']
)
def test_a_csv_header_may_be_quoted(root, first_line):
    rows = "".join(f"{one!r},{other!r}\n" for one, other in SIGNAL[:2].T.tolist())
    (root / "r1.csv").write_text(f"{first_line}\n{rows}", encoding="utf-8")
    record = read(root, "r1.csv")
    assert record.leads == ("V2", "aVL")
    np.testing.assert_allclose(record.signal_mv, SIGNAL[:2], rtol=1e-6)


@pytest.mark.parametrize("header", [True, False])
def test_a_csv_in_which_every_cell_is_quoted_is_read(root, header):
    table = pd.DataFrame(SIGNAL.T, columns=list(LEADS))
    table.to_csv(root / "r1.csv", index=False, header=header, quoting=csv.QUOTE_ALL)
    np.testing.assert_allclose(read(root, "r1.csv").signal_mv, SIGNAL, rtol=1e-6)


def object_array(path):
    np.save(path, np.array([1, "a", None], dtype=object), allow_pickle=True)


def edit(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


def unknown_compression(path):
    np.savez(path, SIGNAL)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] = 99  # the method, in the directory at the end
    path.write_bytes(content)


def garbled_deflate(path):
    np.savez_compressed(path, SIGNAL)
    content = bytearray(path.read_bytes())
    content[100:200] = b"\xff" * 100
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("r1.npy", lambda path: None, "No such file"),
        ("r1.npy", lambda path: (save(path, SIGNAL), edit(path, b"}", b"(")), "cannot be read"),
        ("r1.npz", unknown_compression, "cannot be read: That compression method is not supported"),
        ("r1.npz", garbled_deflate, "cannot be read: Error -3 while decompressing"),
        ("r1.csv", lambda path: path.write_text("1" * 200_000), "cannot be read: field larger than field limit"),
        ("r1.npy", lambda path: path.write_bytes(b""), "cannot be read"),
        ("r1.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01"), "cannot be read"),
        ("r1.npy", lambda path: (save(path, SIGNAL), path.write_bytes(path.read_bytes()[:-8])), "cannot be read"),
        ("r1.npy", object_array, "cannot be read: Object arrays"),
        ("r1.npy", lambda path: save(path, SIGNAL.T), r"shape \(12, T\) .*got float64 of shape \(300, 12\)"),
        ("r1.npy", lambda path: save(path, SIGNAL[None]), r"got float64 of shape \(1, 12, 300\)"),
        ("r1.npy", lambda path: save(path, SIGNAL * 1j), "got complex128"),
        ("r1.npy", lambda path: save(path, np.full((12, 3), "x")), "got <U1"),
        ("r1.npz", lambda path: path.write_bytes(b"PK\x03\x04no zip"), "cannot be read"),
        ("r1.npz", lambda path: np.savez(path, a=SIGNAL, b=SIGNAL), "one array or one called 'signal', got a, b"),
        ("r1.csv", lambda path: path.write_bytes(b""), "cannot be read"),
        ("r1.csv", lambda path: path.write_text("time,I\n0,1\n"), "the header of .* lead 'time' is unknown"),
        ("r1.csv", lambda path: path.write_text("1,2\n3,4\n"), r"got int64 of shape \(2, 2\)"),
        ("r1.pkl", lambda path: path.write_bytes(b""), "cannot be read"),
        ("r1.pkl", lambda path: path.write_bytes(b"garbage"), "cannot be read"),
        ("r1.pkl", lambda path: path.write_bytes(pickle.dumps(SIGNAL)[:-50]), "cannot be read"),
        ("r1.pkl", lambda path: save(path, {"a": 1, "b": 2}), "one array or one called 'signal', got a, b"),
        ("r1.pkl", lambda path: save(path, [[1, 2], [3]]), "cannot be read"),
        ("r1.pkl", lambda path: save(path, "text"), "must hold numbers"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_a_record_error(root, name, write, message):
    write(root / name)
    with pytest.raises(RecordError, match=f"record r1: .*{message}"):
        read(root, name)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut short, or with one to four bits turned over, often in the first bytes, where headers are."""
    if rng.random() < 0.3:
        return content[: rng.randrange(len(content))]
    turned = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        turned[rng.randrange(min(len(turned), rng.choice([80, 160, len(turned)])))] ^= 1 << rng.randrange(8)
    return bytes(turned)


def save_compressed(path, array):
    np.savez_compressed(path, array)


def save_with_names(path, array):
    pd.DataFrame(array.T, columns=list(LEADS)).to_csv(path, index=False)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("r1.npy", save),
        ("r1.npz", save),
        ("r1.npz", save_compressed),
        ("r1.csv", save),
        ("r1.csv", save_with_names),
        ("r1.pkl", lambda path, array: save(path, array, protocol=2)),
        ("r1.pkl", lambda path, array: save(path, array, protocol=4)),
        ("r1.pkl", lambda path, array: save(path, {"signal": array.tolist()})),
    ],
)
def test_a_damaged_file_is_a_record_or_a_record_error(root, name, write):
    path = root / name
    write(path, SIGNAL[:, :20])
    whole, rng, refusals = path.read_bytes(), random.Random(0), []
    for _ in range(300):
        path.write_bytes(damaged(whole, rng))
        try:
            assert isinstance(read(root, name), Record)
        except RecordError as error:
            refusals.append(str(error))
    assert refusals
    assert all(told.startswith("record r1: ") and "\n" not in told for told in refusals)
