import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.folds import deal, grouped, k_folds
from data.labels import LabelProtocol, Labels, read_labels
from data.record import DataError
from data.splits import split

PROTOCOL = LabelProtocol("heart", "multilabel", ("A", "B"), {"A": ("A",), "B": ("B",), "-": ()})
TEST = 10


def table(patients, folds):
    return pd.DataFrame({"patient_id": [f"p{patient}" for patient in patients], "fold": folds})


def labels_of(codes) -> Labels:
    return read_labels(codes, PROTOCOL)


def in_turn(index) -> Labels:
    return labels_of([["A"], ["B"]][number % 2] for number in range(len(index)))


def folded(index, labels=None, **changed):
    given = {"train_folds": [1], "valid_folds": [9], "test_folds": [TEST], "num_folds": 3, "seed": 0}
    given |= {"max_train_patients": None, "max_valid_patients": None}
    return k_folds(index, in_turn(index) if labels is None else labels, **(given | changed))


def published(num_patients=90, records=2):
    """Patients 0.. in turn in the folds 1 to 10, each with as many records."""
    patients = np.repeat(np.arange(num_patients), records)
    return table(patients, patients % 10 + 1)


WHOLE = {"train_folds": list(range(1, 9)), "valid_folds": [9], "test_folds": [TEST]}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 14), st.sampled_from(["A", "B", "AB", "-", ""])),
        min_size=1,
        max_size=60,
    ),
    st.lists(st.integers(1, TEST), min_size=15, max_size=15),
    st.integers(2, 4),
    st.one_of(st.none(), st.integers(2, 6)),
    st.integers(0, 5),
)
def test_each_record_validates_once_by_a_model_that_has_not_seen_its_patient(records, fold_of, num_folds, most, seed):
    patients, codes = zip(*records, strict=True)
    index, labels = table(patients, [fold_of[patient] for patient in patients]), labels_of(map(list, codes))
    folds = {
        "train_folds": sorted(set(index["fold"]) - {9, TEST}),
        "valid_folds": [9],
        "test_folds": [TEST],
        "num_folds": num_folds,
        "seed": seed,
    }
    try:
        found = folded(index, labels, **folds, max_train_patients=most)
    except DataError:
        return
    tested = index["fold"].to_numpy() == TEST
    assert np.array_equal(np.sort(np.concatenate(found.held_out)), np.flatnonzero(~tested))
    validated = np.concatenate([part.valid for part in found.splits])
    assert sorted(validated) == np.flatnonzero(~tested & labels.labelled).tolist()
    names = index["patient_id"]
    for part, held_out in zip(found.splits, found.held_out, strict=True):
        seen = set(names[part.pretrain])
        assert set(part.train) <= set(part.pretrain)
        assert set(part.valid) <= set(held_out)
        assert not seen & set(names[held_out])
        assert not seen & set(names[tested])
        assert np.array_equal(part.test, np.flatnonzero(tested & labels.labelled))
        if most is not None:
            assert len(seen) <= most
    again = folded(index, labels, **folds, max_train_patients=most)
    for part, other in zip(found.held_out, again.held_out, strict=True):
        assert np.array_equal(part, other)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.booleans()), min_size=4, max_size=60),
    st.integers(2, 5),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_who_is_dealt_where_does_not_depend_on_the_order_of_the_records(records, num_folds, seed, shuffle):
    def fold_of_patient(rows):
        patients, *marks = zip(*rows, strict=True)
        names = np.array([f"p{patient}" for patient in patients], dtype=object)
        fold = deal(names, np.column_stack([*marks, np.ones(len(rows))]), num_folds=num_folds, seed=seed)
        dealt = dict(zip(names, fold.tolist(), strict=True))
        assert all(dealt[name] == one for name, one in zip(names, fold, strict=True))  # whole patients
        assert set(dealt.values()) <= set(range(num_folds))
        return dealt

    first = fold_of_patient(records)
    shuffle.shuffle(records)
    assert fold_of_patient(records) == first


def test_the_folds_of_a_single_split_are_what_that_split_is():
    index = published()
    labels, limits = in_turn(index), {"max_train_patients": 11, "max_valid_patients": 5, "seed": 3}
    found = folded(index, labels, **WHOLE, **limits)
    assert found.published == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    for number, group in enumerate(found.published):
        others = [fold for fold in range(1, 10) if fold not in group]
        one = split(index, labels, train_folds=others, valid_folds=group, test_folds=[TEST], **limits)
        for name in ("pretrain", "train", "valid", "test"):
            assert np.array_equal(getattr(found.splits[number], name), getattr(one, name)), name


def test_nine_published_folds_make_five_groups_of_neighbours():
    found = folded(published(), **WHOLE, num_folds=5)
    assert found.published == ((1, 2), (3, 4), (5, 6), (7, 8), (9,))
    assert found.described().startswith("5 folds (published 1-2, 3-4, 5-6, 7-8, 9): 36, 36, 36, 36, 18 validate where ")


@pytest.mark.parametrize(
    ("index", "folds"),
    [
        (published(), WHOLE | {"num_folds": 10}),  # more than are published
        (table(range(40), [1] * 27 + [9] * 3 + [TEST] * 10), {"num_folds": 2}),  # one group of a tenth
    ],
)
def test_where_published_folds_make_no_folds_patients_are_dealt(index, folds):
    found = folded(index, **folds)
    assert found.published is None
    assert "(patients dealt by class)" in found.described()
    sizes = [len(part.valid) for part in found.splits]
    assert max(sizes) - min(sizes) <= 2
    assert not np.array_equal(found.held_out[0], folded(index, **folds, seed=1).held_out[0])


def test_published_folds_that_share_a_patient_are_not_grouped():
    numbers, patients = np.array([1, 1, 2, 2]), np.array(["a", "b", "c", "d"], dtype=object)
    labelled = np.ones(4, dtype=bool)
    assert grouped(numbers, patients, labelled, 2) == ((1,), (2,))
    patients[2] = "a"
    assert grouped(numbers, patients, labelled, 2) is None


def test_rare_classes_are_spread_evenly():
    draw = np.random.default_rng(0)
    shares = np.array([0.5, 0.2, 0.05, 0.02])
    carried = (draw.random((1000, 4)) < shares).astype(float)
    patients = np.array([f"p{number}" for number in draw.integers(0, 600, 1000)], dtype=object)
    fold = deal(patients, np.column_stack([carried, np.ones(1000)]), num_folds=5, seed=0)
    positives = np.array([carried[fold == number].sum(axis=0) for number in range(5)])
    by_chance = draw.integers(0, 5, 1000)
    chance = np.array([carried[by_chance == number].sum(axis=0) for number in range(5)])
    assert (np.ptp(positives, axis=0) <= 3).all()
    assert (np.ptp(chance, axis=0) > 3).sum() >= 3  # else the line above would say nothing
    assert np.ptp(np.bincount(fold)) <= 6


def test_a_class_that_only_one_fold_holds_is_refused_with_the_fold():
    index = table(range(40), [1] * 36 + [TEST] * 4)
    index.loc[30:35, "fold"] = 9
    labels = labels_of([["A", "B"]] + [["A"], ["-"]] * 19 + [["-"]])
    with pytest.raises(DataError, match=r"^fold \d of task\.folds=3: 1 of 2 classes of heart cannot be learnt, .* B; "):
        folded(index, labels)


def test_more_folds_than_labelled_patients_are_refused():
    index = table(range(6), [1, 1, 1, 9, TEST, TEST])
    with pytest.raises(DataError, match="at most the number of labelled patients, 4, got 5"):
        folded(index, num_folds=5)


def test_a_patient_who_is_tested_too_is_refused():
    index = table(["a", "b", "c", "d", "a"], [1, 1, 9, 9, TEST])
    with pytest.raises(DataError, match="data.test_folds .*pa"):
        folded(index, num_folds=2)


def test_all_folds_together_are_what_is_not_tested():
    index = published()
    together = folded(index, **WHOLE).together
    developed = np.flatnonzero(index["fold"] != TEST)
    for name in ("pretrain", "train", "valid"):
        assert np.array_equal(getattr(together, name), developed), name
    assert set(index["fold"].iloc[together.test]) == {TEST}
