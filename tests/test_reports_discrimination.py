import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from reports.statistics.discrimination import Ranking, auroc, average_precision


@st.composite
def records(draw):
    """Targets with both kinds, scores with many ties, and weights of which some are zero."""
    size = draw(st.integers(2, 40))
    targets = np.array(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)))
    targets[:2] = [0, 1]
    scores = np.array(draw(st.lists(st.integers(0, draw(st.integers(1, 50))), min_size=size, max_size=size))) / 7
    weights = np.array(draw(st.lists(st.integers(0, 4), min_size=size, max_size=size)), dtype=float)
    weights[:2] += 1
    return targets, scores, weights


@settings(max_examples=150, deadline=None)
@given(records())
def test_both_areas_are_those_of_scikit_learn(case):
    targets, scores, weights = case
    assert auroc(targets, scores) == pytest.approx(roc_auc_score(targets, scores), abs=1e-12)
    assert average_precision(targets, scores) == pytest.approx(average_precision_score(targets, scores), abs=1e-12)
    weighted = roc_auc_score(targets, scores, sample_weight=weights)
    assert auroc(targets, scores, weights) == pytest.approx(weighted, abs=1e-12)
    weighted = average_precision_score(targets, scores, sample_weight=weights)
    assert average_precision(targets, scores, weights) == pytest.approx(weighted, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(records())
def test_a_whole_weight_counts_as_that_many_copies_of_the_record(case):
    targets, scores, weights = case
    copied = np.repeat(np.arange(len(targets)), weights.astype(int))
    assert auroc(targets, scores, weights) == pytest.approx(auroc(targets[copied], scores[copied]), abs=1e-12)
    assert average_precision(targets, scores, weights) == pytest.approx(
        average_precision(targets[copied], scores[copied]), abs=1e-12
    )


@settings(max_examples=50, deadline=None)
@given(records())
def test_reversed_scores_turn_the_area_around(case):
    targets, scores, weights = case
    assert auroc(targets, scores, weights) + auroc(targets, -scores, weights) == pytest.approx(1, abs=1e-12)


def test_many_weightings_at_once_give_what_each_gives_alone():
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, 90), np.round(rng.normal(size=90), 1)
    weights = rng.integers(0, 3, (90, 17)).astype(float)
    together = Ranking.of(targets, scores).auroc_and_auprc(weights)
    alone = [(auroc(targets, scores, column), average_precision(targets, scores, column)) for column in weights.T]
    np.testing.assert_allclose(together, np.array(alone).T, rtol=0, atol=1e-14)


def test_equal_scores_for_all_are_worth_a_half_and_the_prevalence():
    targets = np.array([1, 0, 0, 0, 1, 0, 0, 0])
    assert auroc(targets, np.ones(8)) == 0.5
    assert average_precision(targets, np.ones(8)) == 0.25


@pytest.mark.parametrize(("targets", "weights"), [([1, 1], [1, 1]), ([0, 0], [1, 1]), ([0, 1], [1, 0])])
def test_a_class_of_one_kind_only_is_refused(targets, weights):
    with pytest.raises(ValueError, match="needs a positive and a negative record"):
        auroc(np.array(targets), np.array([0.1, 0.2]), np.array(weights))
