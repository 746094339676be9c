"""An encoder that tells no records apart is noticed, whatever its loss."""

import math

import numpy as np
import pytest
import torch

from trainables.collapse import EFFECTIVE_RANK, FEATURE_STD, MEAN_COSINE, CollapsedError, refuse_collapsed, spread
from trainables.pretrain import enter_pretrain, pretrain
from trainables.settings import Collapse
from trainables.state import SavedState, TrainState
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
    refuse_collapsed(metrics, NEVER)
    refuse_collapsed({}, Collapse(min_feature_std=1.0, min_effective_rank=99.0))  # before the first epoch
    with pytest.raises(CollapsedError, match=r"val/effective_rank is 5\.\d+, below task.collapse.min_effective_rank=7"):
        refuse_collapsed(metrics, Collapse(min_feature_std=0.01, min_effective_rank=7.0))
    with pytest.raises(CollapsedError, match="below task.collapse.min_feature_std=0.9"):
        refuse_collapsed(metrics, Collapse(min_feature_std=0.9, min_effective_rank=None))


@pytest.fixture
def strict(compose_run):
    """A run whose encoder counts as collapsed whatever it does."""
    return compose_run("task.collapse.min_effective_rank=1000")


def test_a_collapsed_trial_reports_its_epoch_and_then_says_why_it_ends(strict, tiny_store, tmp_path):
    assignment = Assignment(
        number=0,
        run=strict,
        folder=tmp_path,
        store=tiny_store.path,
        metric="val/auroc",
        maximize=True,
        num_gpus=0,
        cpus_per_worker=1,
    )
    first, second = list(epochs(assignment, Workers()))
    assert (first["reason"], first["finished"]) == (None, False)
    assert first["metrics"].keys() >= {"val/auroc", FEATURE_STD, EFFECTIVE_RANK, MEAN_COSINE}
    assert second["finished"]
    assert second["metrics"] == {}
    assert second["reason"].startswith("collapsed: val/effective_rank is ")
    (again,) = list(epochs(assignment, Workers()))  # resumed, it ends at once for the same reason
    assert again["reason"] == second["reason"]


def test_a_stage_that_collapses_in_its_last_epoch_is_not_fine_tuned(compose_run, tiny_recordings, tmp_path):
    run = compose_run("task.collapse.min_effective_rank=1000", "task.pretrain.num_epochs=1")
    state = TrainState("val/auroc", maximize=True)
    enter_pretrain(run, state, Workers())
    stage = pretrain(run, state, tiny_recordings, Workers())
    next(stage)
    with pytest.raises(CollapsedError):
        next(stage)
    assert SavedState.load(tmp_path) is None
