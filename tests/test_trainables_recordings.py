import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from data.folds import Folds
from data.labels import Labels
from data.record import DataError
from data.splits import Split
from data.synthetic import Synthetic
from trainables.recordings import (
    _measurable,
    open_recordings,
    preparation_of,
    reader_of,
    rows_of_fold,
    window_of,
)


def with_data(run, **changes):
    return run.model_copy(update={"data": run.data.model_copy(update=changes)})


def with_task(run, **changes):
    return run.model_copy(update={"task": run.task.model_copy(update=changes)})


def test_the_store_is_prepared_as_the_data_say(tiny_run):
    preparation = preparation_of(tiny_run.data)
    assert preparation.leads == ("II", "V2")
    assert (preparation.sampling_rate_hz, preparation.min_duration_s) == (100.0, 1.2)
    assert (preparation.highpass_hz, preparation.lowpass_hz, preparation.filter_order) == (0.67, 40.0, 5)


def test_the_window_is_the_one_of_the_data(tiny_run):
    window = window_of(tiny_run.data)
    assert (window.num_samples, window.standardize, window.num_crops) == (120, "record", 2)


def test_the_reader_is_built_from_its_target(tiny_run):
    reader = reader_of(tiny_run.data)
    assert isinstance(reader, Synthetic)
    assert (reader.num_patients, reader.source_rate_hz) == (60, 100)


def test_each_part_has_the_folds_and_labels_of_the_run(tiny_run, tiny_recordings):
    folds = tiny_recordings.store.index["fold"].to_numpy()
    assert set(folds[tiny_recordings.split.train]) == set(range(1, 9))
    assert set(folds[tiny_recordings.split.valid]) == {9}
    assert set(folds[tiny_recordings.split.test]) == {10}
    rows = tiny_recordings.split.valid
    assert np.array_equal(tiny_recordings.targets(rows), tiny_recordings.labels.targets[rows])


def test_the_classes_that_are_measured_occur_both_ways_in_validation(tiny_recordings):
    share = tiny_recordings.targets(tiny_recordings.split.valid).mean(axis=0)
    assert tiny_recordings.valid_classes.tolist() == [k for k, s in enumerate(share) if 0 < s < 1]
    assert 0 < len(tiny_recordings.valid_classes) < len(share)  # in so few records one is absent


def test_a_process_opens_the_same_recordings_once(tiny_run, tiny_store):
    first = open_recordings(tiny_run, tiny_store.path)
    assert open_recordings(with_task(tiny_run, stages="pretrain"), tiny_store.path) is first
    fewer = open_recordings(with_data(tiny_run, max_train_patients=40), tiny_store.path)
    assert len(fewer.split.train) < len(first.split.train)
    assert np.array_equal(fewer.split.test, first.split.test)


def test_the_seed_chooses_the_patients(tiny_run, tiny_store):
    some = with_data(tiny_run, max_train_patients=40)
    first, again = (open_recordings(run, tiny_store.path) for run in (some, some.model_copy(update={"seed": 1})))
    assert not np.array_equal(first.split.train, again.split.train)


def test_a_subset_of_the_classes_keeps_their_order(tiny_run, tiny_store):
    recordings = open_recordings(with_task(tiny_run, classes=["MI", "NORM"]), tiny_store.path)
    assert recordings.labels.classes == ("MI", "NORM")
    assert recordings.targets(recordings.split.train).shape[1] == 2


def test_no_class_at_all_is_not_taken_for_all_classes(tiny_run, tiny_store):
    with pytest.raises(DataError, match=r"task\.classes must name at least 1"):
        open_recordings(with_task(tiny_run, classes=[]), tiny_store.path)


def test_validation_records_on_which_nothing_can_be_measured_are_refused(tiny_run, tiny_store):
    recordings = open_recordings(tiny_run, tiny_store.path)
    name = next(name for k, name in enumerate(recordings.labels.classes) if k not in recordings.valid_classes)
    with pytest.raises(DataError, match="nothing can be measured on the 7 validation records") as caught:
        open_recordings(with_task(tiny_run, classes=[name]), tiny_store.path)
    assert "\n" not in str(caught.value)


def rows_in(recordings, data, fold):
    return rows_of_fold(recordings.store.index, recordings.labels, data, fold, seed=0)


def test_a_fold_is_valid_test_or_a_number(tiny_run, tiny_recordings):
    data, split = tiny_run.data, tiny_recordings.split
    for fold, kind, rows in (
        ("valid", "valid", split.valid),
        ("test", "test", split.test),
        (9, "valid", split.valid),
        (10, "test", split.test),
    ):
        found_kind, found = rows_in(tiny_recordings, data, fold)
        assert found_kind == kind
        assert np.array_equal(found, rows)
    kind, rows = rows_in(tiny_recordings, data, 3)
    assert kind == "valid"
    assert set(tiny_recordings.store.index["fold"].to_numpy()[rows]) == {3}


def test_a_fold_by_number_is_taken_whole_even_where_validation_is_a_part_of_it(tiny_run, tiny_store):
    part = with_data(tiny_run, max_valid_patients=3)
    recordings = open_recordings(part, tiny_store.path)
    assert np.array_equal(rows_in(recordings, part.data, "valid")[1], recordings.split.valid)
    assert len(rows_in(recordings, part.data, "valid")[1]) < len(rows_in(recordings, part.data, 9)[1])


def test_an_unknown_fold_is_refused_with_those_there_are(tiny_run, tiny_recordings):
    with pytest.raises(DataError, match=r"evaluate\.fold must be .* one of 1, 2, 3, .*, 10, got 11"):
        rows_in(tiny_recordings, tiny_run.data, 11)


def test_metrics_average_over_the_classes_that_every_fold_can_measure():
    targets = np.zeros((12, 3), np.float32)
    targets[::2, 0] = 1  # in each fold both ways
    targets[[0, 5], 1] = 1  # in the first two folds
    targets[:4, 2] = 1  # all of the first fold
    labels = Labels("heart", "multilabel", ("A", "B", "C"), targets, np.ones(12, bool))
    rows = np.arange(12)
    parts = tuple(Split(rows, rows, rows[first : first + 4], rows) for first in (0, 4, 8))
    folds = Folds(parts, tuple(part.valid for part in parts), None)
    data = SimpleNamespace(max_valid_patients=None)
    assert _measurable(labels, folds.together, folds, data) == [0]
    assert _measurable(labels, folds.together, None, data) == [0, 1, 2]
    lacking = dataclasses.replace(labels, classes=("B", "C"), targets=targets[:, 1:])
    with pytest.raises(DataError, match=r"in one of task\.folds=3; lower task\.folds, widen"):
        _measurable(lacking, folds.together, folds, data)
