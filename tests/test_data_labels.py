import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.labels import LabelProtocol, read_labels
from data.record import DataError

CLASSES = ("NORM", "MI", "CD")
OF_CODE = {"NORM": ("NORM",), "IMI": ("MI",), "AMI": ("MI",), "CLBBB": ("CD",), "UNREMARKABLE": ()}
MULTI = LabelProtocol("superdiagnostic", "multilabel", CLASSES, OF_CODE)
SINGLE = LabelProtocol("superdiagnostic_single", "single_label", CLASSES, OF_CODE)
RECORDS = [["NORM", "SR"], ["IMI", "AMI"], ["IMI", "CLBBB"], ["SR"], [], ["UNREMARKABLE"]]


def test_every_code_counts_once_towards_its_class():
    labels = read_labels(RECORDS, MULTI)
    expected = [[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(labels.targets, np.array(expected, dtype=np.float32))
    assert labels.targets.dtype == np.float32
    assert labels.classes == CLASSES


def test_a_record_is_labelled_when_a_code_of_its_is_known_even_one_for_no_class():
    assert read_labels(RECORDS, MULTI).labelled.tolist() == [True, True, True, False, False, True]


def test_the_single_label_protocol_keeps_records_with_exactly_one_class():
    assert read_labels(RECORDS, SINGLE).labelled.tolist() == [True, True, False, False, False, False]


def test_a_subset_of_classes_keeps_the_others_as_negatives_of_the_multilabel_protocol():
    labels = read_labels(RECORDS, MULTI, ["CD", "NORM"])
    assert labels.classes == ("CD", "NORM")
    np.testing.assert_array_equal(labels.targets[:3], [[0, 1], [0, 0], [1, 0]])
    assert labels.labelled.tolist() == read_labels(RECORDS, MULTI).labelled.tolist()


def test_a_subset_never_makes_a_record_with_two_classes_single_label():
    labels = read_labels(RECORDS, SINGLE, ["NORM", "CD"])
    assert labels.labelled.tolist() == [True, False, False, False, False, False]


@given(st.lists(st.lists(st.sampled_from([*OF_CODE, "SR"]), max_size=4), max_size=20))
def test_single_label_rows_hold_one_class_whatever_the_codes(records):
    labels = read_labels(records, SINGLE)
    assert (labels.targets[labels.labelled].sum(axis=1) == 1).all()
    assert len(labels.labelled) == len(labels.targets) == len(records)


@pytest.mark.parametrize(
    ("protocol", "classes", "message"),
    [
        (MULTI, ["NORN"], "no class 'NORN': each of task.classes must be one of .* did you mean NORM?"),
        (MULTI, [], "at least 1 of the classes"),
        (MULTI, ["MI", "MI"], "once each"),
        (SINGLE, ["MI"], "at least 2 of the classes"),
    ],
)
def test_classes_that_cannot_be_are_refused_by_name(protocol, classes, message):
    with pytest.raises(DataError, match=message):
        read_labels(RECORDS, protocol, classes)


def test_a_protocol_survives_json():
    assert LabelProtocol.from_json(json.loads(json.dumps(MULTI.to_json()))) == MULTI
