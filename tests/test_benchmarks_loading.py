"""benchmarks/loading.py in miniature: both sides do the same work, and what waits is what is counted."""

import numpy as np
import pytest
import torch

from data.loaders import TrainBatches, Window


def test_a_miniature_gives_every_figure(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(benchmark, "NUM_PUBLISHED_RECORDS", 16)
    monkeypatch.setattr(benchmark, "write_arrays", write_arrays_here(benchmark))
    found = benchmark.pipelines(tmp_path, 1, num_patients=30, num_rounds=1)
    figures = {figure.name: figure for figure in found}
    stages = [f"{stage}_{kind}" for stage in ("pretrain", "finetune") for kind in KINDS]
    assert list(figures) == [*stages, "preparation_seconds", "agreement"]
    for name in stages:
        figure = figures[name]
        assert figure.target == (30 if name.endswith("per_second") else None)
        assert figure.ratio == figure.value / figure.baseline
    for stage in ("pretrain", "finetune"):
        rates = [figures[f"{stage}_{kind}"].value for kind in KINDS]
        assert rates == sorted(rates, reverse=True)  # the fewer epochs, the more the preparation weighs
    assert figures["agreement"].value > 0.98


KINDS = ("records_per_second", "whole_stage", "first_epoch")


def write_arrays_here(benchmark):
    """As `write_arrays`, without a process of its own."""

    def write(reader, folder, num_processes):
        folder.mkdir()
        rows = reader.table().to_dict("records")
        files = [folder / f"{row['record_id']}.npy" for row in rows]
        for row, file in zip(rows, files, strict=True):
            benchmark._write_array(reader, row, file)
        return files

    return write


def test_the_published_side_augments_as_the_shipped_configuration_says(benchmark, tmp_path):
    run = benchmark.composed(tmp_path, *benchmark.AS_SHIPPED, num_patients=30)
    (augment,) = run.task.finetune.transforms
    assert augment.arguments["operations"] == benchmark.OPERATIONS
    assert augment.arguments["level"] == benchmark.rand_augment.__kwdefaults__["level"]
    assert augment.arguments["num_layers"] == benchmark.rand_augment.__kwdefaults__["num_layers"]
    assert augment.arguments["probability"] == 0.5
    assert run.data.source_rate_hz == 500
    assert run.data.window_samples == 2250
    assert (run.task.pretrain.batch_size, run.task.finetune.batch_size) == (32, 16)
    assert (run.task.pretrain.num_epochs, run.task.finetune.num_epochs) == (100, 30)


@pytest.mark.parametrize(
    ("name", "is_changed_so"),
    [
        ("cutout", lambda old, new: np.array_equal(new == 0, np.tile((new == 0)[:1], (3, 1)))),
        ("drop", lambda old, new: np.array_equal(new == 0, np.tile((new == 0)[:1], (3, 1)))),
        ("flip", lambda old, new: np.array_equal(new, -old)),
        ("erase", lambda old, new: (new == 0).all(axis=1).sum() == 1),
        ("sine", lambda old, new: abs(np.abs(new - old).max() - 0.3) < 0.01),
        ("partial_sine", lambda old, new: 0 < (new != old).any(axis=0).sum() <= 60),
        ("partial_white_noise", lambda old, new: 0 < (new != old).any(axis=0).sum() <= 60),
        ("shift", lambda old, new: 0 < (new == 0).all(axis=0).sum() <= 60),
    ],
)
def test_each_operation_of_the_published_side_does_what_it_says(benchmark, name, is_changed_so):
    signal = np.random.default_rng(1).standard_normal((3, 200))
    before = signal.copy()
    changed = benchmark.changed(name, signal, 0.3, 0.5, np.random.default_rng(2))
    assert np.array_equal(signal, before)
    assert not np.array_equal(changed, signal)
    assert is_changed_so(signal, changed)


def test_what_a_loop_waits_for_is_counted_and_its_steps_are_not(benchmark, tiny_store, monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 6.0, 9.5, 10.0])  # before and after each of two batches, and the end of the epoch
    monkeypatch.setattr(benchmark, "stamped", lambda device: next(clock))
    shares = []
    batches = benchmark.timed(shares)(
        tiny_store,
        np.arange(9),
        targets=None,
        window=Window(num_samples=100, standardize="record", num_crops=1),
        batch_size=4,
        transforms=(),
        seed=0,
        device=torch.device("cpu"),
    )
    assert isinstance(batches, TrainBatches)
    assert len(list(batches.epoch(0))) == 2
    assert shares == [pytest.approx(0.25)]


def test_the_real_loops_are_timed(benchmark, tiny_run, tmp_path):
    found = benchmark.wait_percents(tiny_run, tmp_path, torch.device("cpu"), 1)
    assert list(found) == ["pretrain", "finetune"]
    assert all(0 < value < 100 for value in found.values())
