"""benchmarks/training_step.py: the plain version computes what ours does, and FLOPs are those that torch counts."""

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark, imported as it is when it is run: from its own folder; on two records of a shallow model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        module = importlib.import_module("training_step")
        patch.setattr(module, "NUM_RECORDS", 2)
        yield module


def gradients_of(found, dtype):
    """The loss, and the gradients by name."""
    found.module.to(dtype)
    found.signal = found.signal.to(dtype)
    draws = found.drawn
    found.drawn = (
        draws.to(dtype) if isinstance(draws, torch.Tensor) else {key: draw.to(dtype) for key, draw in draws.items()}
    )
    loss = found.loss()
    loss.backward()
    return loss.item(), {name: value.grad for name, value in found.module.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("case", ["pretraining", "finetuning"])
# a loss is computed in float32 whatever the model is, and its gradient with it
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 2e-8), (torch.float32, 2e-5)])
def test_loss_and_gradients_are_those_of_the_plain_version(benchmark, case, dtype, tolerance):
    (ours, found), (plain, wanted) = (
        gradients_of(benchmark.prepared(side, case, CPU), dtype) for side in ("ours", "plain")
    )
    assert ours == pytest.approx(plain, rel=1e-6)
    assert found.keys() == wanted.keys()
    scale = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("case", ["pretraining", "finetuning"])
def test_flops_are_what_torch_counts_of_the_plain_version(benchmark, case):
    formula = {"pretraining": benchmark.pretraining_flops, "finetuning": benchmark.finetuning_flops}[case](2)
    counted = benchmark.counted_flops(benchmark.prepared("plain", case, CPU).loss)
    assert counted == pytest.approx(formula, rel=0.01)
    # ours reconstructs the hidden patches alone, embeds the kept ones alone
    assert benchmark.counted_flops(benchmark.prepared("ours", case, CPU).loss) == pytest.approx(formula, rel=0.01)


@pytest.mark.parametrize("side", ["plain", "ours"])
def test_a_step_lowers_its_loss(benchmark, side):
    prepared = benchmark.prepared(side, "pretraining", CPU)
    before = prepared.loss().item()
    for _ in range(3):
        prepared.step()
    assert prepared.loss().item() < before


def test_figures_compare_ours_with_the_plain_version(benchmark):
    seconds = {("plain", "pretraining"): [3.0, 2.0], ("ours", "pretraining"): [1.0, 0.5], ("ours", "mtae"): [0.1, 0.2]}
    figures = {figure.name: figure for figure in benchmark.figures_of("cpu", seconds, (100.0, 200.0))}
    assert figures["cpu_ours_pretraining"].value == 500
    assert figures["cpu_ours_pretraining"].ratio == 4
    assert figures["cpu_ours_pretraining_median"].ratio == pytest.approx(2.5 / 0.75)
    share = benchmark.pretraining_flops() / 0.5 / 1e9 / 100
    assert figures["cpu_ours_pretraining_of_torch_mm"].value == pytest.approx(share)
    assert figures["cpu_ours_pretraining_of_matrix_rate"].value == pytest.approx(share / 2)
    assert figures["cpu_ours_mtae"].baseline is None
