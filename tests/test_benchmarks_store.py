"""benchmarks/store.py in miniature: every figure is there, and both ways of reading do the same work."""

import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from data.loaders import TrainBatches, Window

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NUM_PATIENTS = 30


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark, imported as it is when it is run: from its own folder."""
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wfdb 4.3 uses what pandas 3 deprecates
        importlib.import_module("wfdb")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("store")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(benchmark, tmp_path_factory):
    return benchmark.generated(tmp_path_factory.mktemp("source"), NUM_PATIENTS)


def test_a_miniature_gives_every_figure(benchmark, root, tmp_path, capsys):
    figures = {figure.name: figure for figure in benchmark.measured(root, tmp_path, num_rounds=2, num_usual_records=8)}
    assert {name: figure.unit for name, figure in figures.items()} == {
        "records_per_second": "records/s",
        "second_process_mib": "MiB",
        "second_process_percent": "% of the store",
        "build_seconds": "s",
        "build_processor_seconds": "s",
        "build_peak_mib": "MiB",
        "build_resident_mib": "MiB",
    }
    rate, added = figures["records_per_second"], figures["second_process_mib"]
    assert rate.target == 50
    assert rate.ratio == rate.value / rate.baseline > 1
    assert added.target == pytest.approx(added.baseline / 20)
    assert figures["second_process_percent"].value == pytest.approx(100 * added.value / added.baseline)
    assert figures["build_seconds"].value > 0
    assert figures["build_resident_mib"].value > figures["build_peak_mib"].value
    assert capsys.readouterr().out.startswith("records_per_second of 2 rounds: ")


def test_the_usual_way_delivers_what_the_store_does(benchmark, root, tmp_path):
    settings = benchmark.data_settings(root, tmp_path).model_copy(update={"window_s": 10.0})
    store, _ = benchmark.build(settings)
    usual = benchmark.FilteredAtEveryRead(store.index, settings)
    (ours,) = TrainBatches(
        store,
        np.arange(4),
        targets=None,
        window=Window(num_samples=1000, standardize="record", num_crops=1),
        batch_size=4,
        transforms=(),
        seed=0,
        device=torch.device("cpu"),
    ).epoch(0)
    theirs = torch.stack([usual[int(row)] for row in ours.rows])
    # Whole records, so that crops are equal. The store runs both filters in one pass and usually they are two, so the
    # slow waves that start at the ends differ a little.
    for one, other in zip(ours.signal.flatten(0, 1), theirs.flatten(0, 1), strict=True):
        assert np.corrcoef(one[200:-200], other[200:-200])[0, 1] > 0.99
    np.testing.assert_allclose(theirs.std(dim=(1, 2), correction=0), 1, atol=1e-5)


def test_a_folder_without_recordings_ends_in_one_line(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["store.py", "--data-root", str(tmp_path / "nothing")])
    assert benchmark.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: data.root must be the folder of PTB-XL")


def test_memory_that_a_block_holds_for_a_while_is_part_of_its_peak(benchmark):
    with benchmark.watched() as cost:
        held = np.ones(64 * 2**20, dtype=np.uint8)
        for _ in range(1000):  # seconds; the watcher looks five times in one
            if cost.private_mib > 32:
                break
            held += 1
        del held
    assert 32 < cost.private_mib < 96
    assert cost.private_mib < cost.resident_mib
    assert 0 < cost.processor_seconds <= cost.seconds * 1.5
