import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.labels import LabelProtocol, Labels, read_labels
from data.record import DataError
from data.splits import absent_classes, labelled_rows, split, valid_rows

PROTOCOL = LabelProtocol("heart", "multilabel", ("A", "B"), {"A": ("A",), "B": ("B",), "-": ()})
ALL = {"train_folds": [1, 2], "valid_folds": [9], "test_folds": [10]}


def whole(index, labels=None, **changed):
    """The split; without labels given, the records of every patient carry A and B in turn."""
    keys = ALL | {"max_train_patients": None, "max_valid_patients": None, "seed": 0}
    labels = labels or labels_of([["A"], ["B"]][number % 2] for number in range(len(index)))
    return split(index, labels, **(keys | changed))


def table(patients, folds):
    return pd.DataFrame({"patient_id": [str(patient) for patient in patients], "fold": folds})


def some_patients(num_patients=40, records=2):
    """Patients 0.. in turn in the folds 1, 2, 9 and 10, each with as many records."""
    patients = np.repeat(np.arange(num_patients), records)
    return table(patients, np.array([1, 2, 9, 10])[patients % 4])


def labels_of(codes) -> Labels:
    return read_labels(codes, PROTOCOL)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from([1, 2, 3, 9, 10])), min_size=1, max_size=40),
    st.one_of(st.none(), st.integers(1, 6)),
    st.integers(0, 5),
)
def test_no_patient_is_ever_in_two_parts(records, max_patients, seed):
    index = table(*zip(*records, strict=True))
    try:
        parts = whole(index, max_train_patients=max_patients, max_valid_patients=max_patients, seed=seed)
    except DataError:
        return
    groups = [set(index["patient_id"].iloc[rows]) for rows in (parts.pretrain, parts.valid, parts.test)]
    assert sum(len(group) for group in groups) == len(set.union(*groups))
    assert set(parts.train) <= set(parts.pretrain)
    for rows in (parts.pretrain, parts.train, parts.valid, parts.test):
        assert (np.diff(rows) > 0).all()
        assert rows.dtype == np.int64
    assert set(index["fold"].iloc[parts.test]) == {10}


def test_a_patient_in_two_parts_is_refused_by_name():
    index = table(["ann", "bob", "cid", "dan", "bob"], [1, 2, 9, 10, 10])
    with pytest.raises(DataError, match="1 are in both data.train_folds and data.test_folds .*bob"):
        whole(index)


def test_a_patient_in_two_training_folds_is_in_one_part():
    assert whole(table(["a", "a", "b", "c"], [1, 2, 9, 10])).train.tolist() == [0, 1]


def test_a_fold_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(
        DataError, match=r"data.valid_folds names folds .* \[11\]; the folds that exist are \[1, 2, 9, 10\]"
    ):
        whole(some_patients(), valid_folds=[9, 11])


def test_a_part_without_a_labelled_record_is_refused():
    index = some_patients(4, records=1)
    labels = labels_of([["A"], ["B"], [], ["A"]])
    with pytest.raises(
        DataError, match=r"data.valid_folds=\[9\] must hold at least one .* labelled under heart, got 1 without"
    ):
        whole(index, labels)


def test_only_pre_training_takes_part_in_what_is_not_labelled():
    index = some_patients(8, records=1)
    labels = labels_of([["A"], ["B"], ["A"], ["A"], [], ["A"], ["-"], ["B"]])
    parts = whole(index, labels)
    assert (parts.train.tolist(), parts.valid.tolist(), parts.test.tolist()) == ([0, 1, 5], [2, 6], [3, 7])
    assert parts.pretrain.tolist() == [0, 1, 4, 5]


def test_an_unlabelled_record_of_a_test_patient_is_not_pre_trained_on():
    index = table(["ann", "bob", "cid", "dan", "dan"], [1, 2, 9, 10, 1])
    with pytest.raises(DataError, match="data.train_folds and data.test_folds .*dan"):
        whole(index, labels_of([["A"], ["B"], ["A"], ["A"], []]))


def test_the_records_of_a_part_can_be_had_without_the_other_parts():
    index = some_patients(40)
    labels = labels_of([["A"]] * len(index))  # nothing could be trained on this
    parts = whole(index, max_valid_patients=3)
    chosen = valid_rows(index, labels, [9], max_patients=3, seed=0)
    np.testing.assert_array_equal(chosen, parts.valid)
    np.testing.assert_array_equal(labelled_rows(index, labels, "test_folds", [10]), parts.test)


def test_a_class_that_training_lacks_or_always_has_is_refused_by_name():
    index = some_patients(4, records=1)
    with pytest.raises(
        DataError, match=r"1 of 2 classes of heart cannot be learnt.*: B; leave them out with task.classes"
    ):
        whole(index, labels_of([["A"], ["-"], ["B"], ["B"]]))
    with pytest.raises(DataError, match=r"1 of 2 classes of heart cannot be learnt.*: A;"):
        whole(index, labels_of([["A"], ["A", "B"], ["B"], ["B"]]))


def test_a_class_absent_from_validation_alone_is_named_but_not_refused():
    index = some_patients(4, records=1)
    labels = labels_of([["A"], ["B"], ["B"], ["A"]])
    parts = whole(index, labels)
    assert absent_classes(labels, parts.valid) == ["A", "B"]  # no A, and every record has B
    assert absent_classes(labels, parts.train) == []


def test_subsampling_keeps_whole_patients_and_never_touches_the_test_part():
    index = some_patients(40, records=3)
    parts = whole(index, max_train_patients=5, max_valid_patients=2)
    everything = whole(index)
    assert index["patient_id"].iloc[parts.train].value_counts().tolist() == [3] * 5
    assert index["patient_id"].iloc[parts.valid].value_counts().tolist() == [3] * 2
    np.testing.assert_array_equal(parts.test, everything.test)


def test_a_larger_subsample_holds_a_smaller_one_of_the_same_seed():
    index = some_patients(60)
    chosen = [set(whole(index, max_train_patients=size, seed=7).train) for size in (3, 10, 1000)]
    assert chosen[0] < chosen[1] < chosen[2] == set(whole(index).train)
    assert chosen[0] != set(whole(index, max_train_patients=3, seed=8).train)


def test_who_is_drawn_does_not_depend_on_the_order_of_the_rows():
    index = some_patients(60)
    shuffled = index.sample(frac=1, random_state=0).reset_index(drop=True)
    drawn = [set(table["patient_id"].iloc[whole(table, max_train_patients=6).train]) for table in (index, shuffled)]
    assert drawn[0] == drawn[1]
