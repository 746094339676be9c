"""benchmarks/sharding.py in miniature: gangs that share a model out hold their part of it, and say so."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for peaks of memory")


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark, imported as it is when it is run: from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setenv("PYTHONPATH", str(BENCHMARKS))  # of the gang's processes
        yield importlib.import_module("sharding")


def test_a_worker_of_two_holds_half_of_what_it_holds_whole(benchmark):
    run_json = benchmark.run_of("laptop").model_dump_json(by_alias=True)
    whole, shared = (benchmark.measured(2, sharding, run_json) for sharding in ("none", "full"))
    assert shared["held"] / whole["held"] == pytest.approx(0.5, abs=0.02)
    assert all(figures[name] > 0 for figures in (whole, shared) for name in ("held", "peak", "seconds"))
