"""The memory that a trial takes, measured on a piece of it: in processes of their own, as only those can tell."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from trainables.folds import new_state, train_unit
from trainables.peak import STEPS, bytes_of_recordings, few_of, go_through, measure, peak, peak_from_now, shortened
from trainables.pretrain import fresh_encoder
from trainables.recordings import open_recordings
from trainables.workers import Workers


def in_fresh_process(function, *given):
    """What a function gives in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, given)


def measured(run, store):
    return measure(run, store, num_gpus=0, num_threads=1)


def grown(run, store):
    """Bytes by which the peak of a process grows that trains the whole run."""
    torch.set_num_threads(1)
    recordings = open_recordings(run, store)
    before = peak_from_now()
    for _ in train_unit(run, new_state(run, "val/auroc", maximize=True), recordings, Workers()):
        pass
    return peak() - before


def test_a_whole_run_takes_no_more_than_was_measured_on_a_piece_and_a_larger_model_takes_more(compose_run, tiny_store):
    typed = ("data.max_train_patients=9", "task.pretrain.num_epochs=1", "task.finetune.num_epochs=1")
    laptop, small = (compose_run(*typed, f"model.encoder.size={size}") for size in ("laptop", "small"))
    needs = [in_fresh_process(measured, run, tiny_store.path) for run in (laptop, small)]
    assert needs[0].gpu_memory == needs[0].gpu_total == 0
    assert needs[1].memory > needs[0].memory + 300e6  # 22 million weights instead of one
    assert needs[1].memory > in_fresh_process(grown, small, tiny_store.path) > 300e6


def test_the_peak_begins_anew():
    first = peak_from_now()
    filled = np.ones(20_000_000)
    assert peak() - first > 140e6
    del filled
    assert peak_from_now() < peak() + 10e6 < first + 100e6


@pytest.mark.parametrize("typed", [(), ("task.folds=2",), ("task.pretrain.accumulation_steps=5",)])
def test_a_piece_has_two_steps_of_whole_batches_and_every_class_both_ways(compose_run, tiny_store, typed):
    run = compose_run("task.pretrain.batch_size=6", "task.finetune.batch_size=5", *typed)
    short = shortened(run)
    recordings = open_recordings(run, tiny_store.path)
    few = few_of(short, recordings)
    accumulation = min(2, run.task.pretrain.accumulation_steps)
    for split in few.splits:
        assert (len(split.pretrain), len(split.train)) == (STEPS * accumulation * 6, STEPS * 5)
    assert short.task.num_epochs == 2
    assert len(few.valid_classes) == len(recordings.labels.classes)
    go_through(run, recordings, Workers())


def test_drawn_targets_are_of_the_labels_kind(tiny_run, tiny_recordings):
    single = replace(tiny_recordings, labels=replace(tiny_recordings.labels, kind="single_label"))
    assert set(few_of(tiny_run, single).labels.targets.sum(axis=1)) == {1.0}


def test_what_grows_with_the_recordings_is_added(tiny_run, tiny_recordings):
    encoder = fresh_encoder(tiny_run)
    split = tiny_recordings.split
    twice = replace(tiny_recordings, split=replace(split, train=np.tile(split.train, 2), valid=np.tile(split.valid, 2)))
    assert bytes_of_recordings(encoder, twice) == 2 * bytes_of_recordings(encoder, tiny_recordings) > 0


def test_a_run_that_diverges_at_once_is_measured_all_the_same(compose_run, tiny_recordings):
    go_through(compose_run("task.pretrain.lr=1e30", "task.pretrain.warmup_share=0.0"), tiny_recordings, Workers())
