"""benchmarks/report.py: the study that it makes is one that a report can be made of, whole or stopped."""

import importlib
import json
from pathlib import Path

import pytest

from reports.report import build

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark, imported as it is when it is run: from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.syspath_prepend(BENCHMARKS.parent)
        specification = importlib.util.spec_from_file_location("benchmarks_report", BENCHMARKS / "report.py")
        module = importlib.util.module_from_spec(specification)
        patch.setitem(__import__("sys").modules, "benchmarks_report", module)
        specification.loader.exec_module(module)
        yield module


def test_the_made_up_study_holds_what_the_report_of_a_search_needs(benchmark, tmp_path):
    search = benchmark.write_study(tmp_path / "s", num_trials=40, num_classes=2, stopped=True)
    build(tmp_path / "s", num_resamples=5)
    found = json.loads((tmp_path / "s" / "report" / "metrics.json").read_text())
    assert found["search"]["num_trials"] == 40 == len(search.trials)
    assert found["importance"]["at_epoch"]["parameters"]["task.finetune.lr"]["share"] > 0.3
    assert [rung["epoch"] for rung in found["scheduling"]["rungs"]] == list(benchmark.RUNGS)
    assert found["timeline"]["slots"] == len(benchmark.SLOTS)
    assert found["timeline"]["nodes"] == 2


def test_a_search_without_a_scheduler_stops_nobody(benchmark):
    search = benchmark.Search(30, benchmark.NoStopping())
    search.run()
    complete = [trial for trial in search.trials if trial.state == "COMPLETE"]
    assert len(complete) > 20
    assert {trial.epoch for trial in complete} == {benchmark.NUM_EPOCHS}
    assert all(trial.reason != "scheduler" for trial in search.trials)


def test_what_is_measured_is_a_whole_report(benchmark, tmp_path):
    benchmark.write_study(tmp_path / "s", num_trials=8, num_classes=1, stopped=False)
    found = benchmark.measure(tmp_path / "s")
    assert found.keys() >= benchmark.TARGETS.keys()
    assert found["page_mb"] == pytest.approx((tmp_path / "s" / "report" / "index.html").stat().st_size / 1e6)
    assert found["seconds"] > 0
    assert 0.05 < found["peak_gib"] < 4
