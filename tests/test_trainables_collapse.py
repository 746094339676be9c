"""An encoder that tells no records apart is noticed, whatever its loss."""

import math

import numpy as np
import pytest
import torch

from trainables.collapse import EFFECTIVE_RANK, FEATURE_STD, MEAN_COSINE, CollapsedError, refuse_collapsed, spread
from trainables.settings import Collapse
from trainables.state import SavedState
from trainables.trial import Assignment, epochs
from trainables.workers import Workers

NEVER = Collapse(min_feature_std=None, min_effective_rank=None)


@pytest.fixture
def embeddings():
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + torch.arange(6)


def test_the_measures_are_their_formulas_in_plain_loops(embeddings):
    rows = embeddings.double().numpy()
    centred = rows - rows.mean(axis=0)
    shares = np.linalg.svd(centred, compute_uv=False)
    shares = shares / shares.sum()
    cosines = [
        first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        for i, first in enumerate(rows)
        for j, second in enumerate(rows)
        if i != j
    ]
    found = spread(embeddings)
    assert found[FEATURE_STD] == pytest.approx(math.sqrt((centred**2).mean() / (rows**2).mean()))
    assert found[EFFECTIVE_RANK] == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))
    assert found[MEAN_COSINE] == pytest.approx(np.mean(cosines))


def test_records_that_are_all_alike_have_no_spread():
    found = spread(torch.ones(5, 3))
    assert found[FEATURE_STD] == 0
    assert found[MEAN_COSINE] == pytest.approx(1)
    assert math.isfinite(found[EFFECTIVE_RANK])


def test_records_on_a_line_have_rank_one_and_in_all_directions_the_width():
    line = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([1.0, 2.0, 3.0])
    assert spread(line)[EFFECTIVE_RANK] == pytest.approx(1)
    assert spread(torch.cat([torch.eye(4), -torch.eye(4)]))[EFFECTIVE_RANK] == pytest.approx(4)


def test_neither_the_scale_nor_the_order_matters(embeddings):
    for changed in (7 * embeddings, embeddings.flip(0)):
        assert spread(changed) == pytest.approx(spread(embeddings))


def test_what_lies_below_its_least_is_named_with_the_key(embeddings):
    metrics = spread(embeddings)
    refuse_collapsed(metrics, NEVER, num_records=40)
    with pytest.raises(CollapsedError, match=r"val/effective_rank is 5\.\d+, below task.collapse.min_effective_rank=7"):
        refuse_collapsed(metrics, Collapse(min_feature_std=0.01, min_effective_rank=7.0), num_records=40)
    with pytest.raises(CollapsedError, match="below task.collapse.min_feature_std=0.9"):
        refuse_collapsed(metrics, Collapse(min_feature_std=0.9, min_effective_rank=None), num_records=40)


def test_the_rank_of_a_few_records_tells_nothing():
    few = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    strict = Collapse(min_feature_std=0.01, min_effective_rank=2.5)
    assert spread(few)[EFFECTIVE_RANK] < 2.5
    refuse_collapsed(spread(few), strict, num_records=3)
    with pytest.raises(CollapsedError):
        refuse_collapsed(spread(few), strict, num_records=300)


@pytest.mark.parametrize("number", [16, 100])
def test_random_embeddings_of_enough_records_are_far_from_collapsed(number):
    found = spread(torch.randn(number, 64, generator=torch.Generator().manual_seed(0)))
    assert found[EFFECTIVE_RANK] > 10


@pytest.fixture
def strict(compose_run):
    """Composes runs whose encoder counts as collapsed after any epoch."""
    return lambda *typed: compose_run("task.collapse.min_feature_std=2", *typed)


def results_of(run, store, folder):
    assignment = Assignment(
        number=0,
        run=run,
        folder=folder,
        store=store.path,
        metric="val/auroc",
        maximize=True,
        num_gpus=0,
        cpus_per_worker=1,
    )
    return list(epochs(assignment, Workers()))


@pytest.mark.parametrize("stages", ["joint", "pretrain"])
@pytest.mark.parametrize("num_epochs", [1, 2])
def test_a_collapsed_trial_reports_its_epoch_and_why_it_ends(strict, tiny_store, tmp_path, stages, num_epochs):
    run = strict(f"task.stages={stages}", f"task.pretrain.num_epochs={num_epochs}")
    (result,) = results_of(run, tiny_store, tmp_path)
    assert (result["epoch"], result["stage"], result["finished"]) == (1, "pretrain", True)
    assert result["metrics"].keys() >= {"val/auroc", FEATURE_STD, EFFECTIVE_RANK, MEAN_COSINE}
    assert result["reason"].startswith("collapsed: val/feature_std is ")
    assert result["value"] is None  # what has collapsed is not worth keeping
    assert SavedState.load(tmp_path) is None


def test_a_healthy_trial_says_nothing_of_it(compose_run, tiny_store, tmp_path):
    results = results_of(compose_run("task.stages=pretrain"), tiny_store, tmp_path)
    assert [result["reason"] for result in results] == [None, None]
