import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.duplicates import DIGESTS, check_parts, content_digests, leaks, signal_digests, split_digests
from data.record import DataError
from data.splits import Split
from data.store import Store


@pytest.fixture
def copied(tiny_store, tmp_path):
    """A store of its own to change."""
    shutil.copytree(tiny_store.path, tmp_path / tiny_store.path.name)
    (tmp_path / tiny_store.path.name / DIGESTS).unlink(missing_ok=True)
    return tmp_path / tiny_store.path.name


def with_signal_of(path, row, other):
    """The store at `path` in which one record has another's samples."""
    store = Store.open(path)
    start, end = (int(store.index["offset"].iloc[row]) for row in (row, other))
    size = store.record(row).size
    assert store.record(other).size == size
    signals = np.memmap(path / "signals.int16", dtype="<i2", mode="r+")
    signals[start : start + size] = signals[end : end + size]
    signals.flush()
    return Store.open(path)


def split_of(train, valid, test):
    return Split(*(np.array(rows, dtype=np.int64) for rows in (train, train, valid, test)))


def test_the_digest_of_a_signal_is_that_of_its_samples(copied):
    store = Store.open(copied)
    found = signal_digests(store)
    expected = [
        hashlib.blake2b(store.record(row).tobytes(), digest_size=16).digest() for row in range(len(store.index))
    ]
    assert [bytes(one) for one in found] == expected


def test_digests_are_kept_beside_the_signals_and_read_again(copied, monkeypatch):
    store = Store.open(copied)
    first = signal_digests(store).tobytes()
    monkeypatch.setattr("data.duplicates._digests_of_records", lambda store: pytest.fail("computed again"))
    assert signal_digests(store).tobytes() == first
    assert [path.name for path in copied.glob(".*")] == []


def test_a_store_that_cannot_be_written_is_checked_all_the_same(copied, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    assert len(signal_digests(Store.open(copied))) == len(Store.open(copied).index)


def test_a_copied_signal_is_found_across_parts_with_both_records_named(copied):
    store = with_signal_of(copied, 40, 3)
    ids = store.index["record_id"].astype(str).tolist()
    found = check_parts(store, split_of(range(20), range(20, 30), range(30, 50)))
    assert found["signals_in_two_parts"] == {"train+valid": 0, "train+test": 1, "valid+test": 0}
    assert found["examples"] == [[ids[3], ids[40]]]
    assert leaks(found)[1] == 1


def test_a_signal_that_repeats_within_a_part_is_no_leak_but_counted(copied):
    found = check_parts(with_signal_of(copied, 40, 41), split_of(range(20), range(20, 30), range(30, 50)))
    assert leaks(found)[1] == 0
    assert found["repeated_signals"] == {"train": 0, "valid": 0, "test": 1}


def test_nothing_is_found_where_nothing_is(tiny_recordings):
    found = check_parts(tiny_recordings.store, tiny_recordings.split)
    assert leaks(found) == (0, 0)
    assert found["examples"] == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=3, max_size=12), st.data())
def test_patients_in_two_parts_are_counted_as_sets_do(patients, data):
    part = [data.draw(st.sampled_from(("train", "valid", "test"))) for _ in patients]
    rows = {name: [row for row, one in enumerate(part) if one == name] for name in ("train", "valid", "test")}
    number = len(patients)
    index = pd.DataFrame({"record_id": [f"r{row}" for row in range(number)], "patient_id": patients})

    class OfDigests:
        pass

    store = OfDigests()
    store.index = index
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.duplicates.signal_digests", lambda store: np.arange(2 * number).view("V16"))
        found = check_parts(store, split_of(rows["train"], rows["valid"], rows["test"]))
    members = {name: {patients[row] for row in chosen} for name, chosen in rows.items()}
    for pair, counted in found["patients_in_two_parts"].items():
        one, other = pair.split("+")
        assert counted == len(members[one] & members[other])


def test_the_digest_of_a_split_depends_on_who_is_in_it_and_not_on_the_order_of_the_rows():
    index = pd.DataFrame({"record_id": ["b", "a", "c", "d"]})
    split = split_of([0, 1], [2], [3])
    turned = split_digests(index.iloc[::-1].reset_index(drop=True), split_of([2, 3], [1], [0]))
    assert split_digests(index, split) == turned
    assert split_digests(index, split)["train"] == hashlib.sha256(json.dumps(["a", "b"]).encode()).hexdigest()
    assert split_digests(index, split_of([0], [2], [3]))["all"] != turned["all"]
    assert split_digests(index, split_of([0, 1], [3], [2]))["all"] != turned["all"]


def test_one_sample_changes_the_digest_of_the_signals_and_not_that_of_the_manifest(copied):
    before = content_digests(Store.open(copied))
    (copied / DIGESTS).unlink()
    with_signal_of(copied, 40, 3)
    after = content_digests(Store.open(copied))
    assert (
        after["manifest"] == before["manifest"] == hashlib.sha256((copied / "manifest.json").read_bytes()).hexdigest()
    )
    assert after["signals"] != before["signals"]


def test_a_patient_in_two_parts_is_refused_before_anything_is_trained(tiny_store):
    from data.splits import split

    index = tiny_store.index.copy()
    index["patient_id"] = "one"
    everyone = {"max_train_patients": None, "max_valid_patients": None, "seed": 0}
    folds = sorted(index["fold"].unique().tolist())
    with pytest.raises(DataError, match="no patient may be in two parts"):
        split(
            index,
            tiny_store.labels(next(iter(tiny_store.protocols))),
            train_folds=folds[:1],
            valid_folds=folds[1:2],
            test_folds=folds[2:],
            **everyone,
        )
