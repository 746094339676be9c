"""benchmarks/packing.py in miniature: trials that are computed at once are counted together."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark, imported as it is when it is run: from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setenv("PYTHONPATH", str(BENCHMARKS))  # of the processes that it starts
        yield importlib.import_module("packing")


def test_two_trials_at_once_are_begun_together_and_counted_together(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "EPOCHS", 1)
    spans = iter([(10.0, 14.0), (11.0, 18.0)])
    store = benchmark.prepared(tmp_path)
    assert benchmark.epochs_per_second("laptop", store, 2, 1) > 0

    class Started:
        """A process that is over at once."""

        def __init__(self, target, args):
            *_, times = args
            times.put(next(spans))

        def start(self):
            """Nothing runs."""

        join = start

    monkeypatch.setattr(benchmark.multiprocessing.get_context("spawn"), "Process", Started)
    assert benchmark.epochs_per_second("laptop", store, 2, 1) == 2 / 8.0  # from the first that began to the last


def test_without_a_gpu_its_table_is_said_not_to_be_measured(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert benchmark.on_a_gpu("small", tmp_path) == []
    assert benchmark.unless_on_gpu("trials that share a GPU") == ("trials that share a GPU: there is no GPU",)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert benchmark.unless_on_gpu("trials that share a GPU") == ()
