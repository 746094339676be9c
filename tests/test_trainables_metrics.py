import numpy as np
import pytest
from sklearn import metrics as reference

from trainables.metrics import compute, metric_key, metric_names

NUM_RECORDS, NUM_CLASSES = 200, 4


def answers(kind, seed=0):
    """Made-up probabilities and targets that have something to do with each other; ties occur."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(NUM_RECORDS, NUM_CLASSES)).round(1)
    if kind == "multilabel":
        targets = rng.random((NUM_RECORDS, NUM_CLASSES)) < 0.4
        probabilities = 1 / (1 + np.exp(-(logits + targets)))
    else:
        targets = np.eye(NUM_CLASSES)[rng.integers(0, NUM_CLASSES, NUM_RECORDS)]
        exponential = np.exp(logits + targets)
        probabilities = exponential / exponential.sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), targets.astype(np.float32)


def macro_of_labels(score, truth, decided):
    return np.mean([score(truth[:, k], decided[:, k]) for k in range(NUM_CLASSES)])


def specificity(truth, decided):
    return reference.recall_score(1 - truth, 1 - decided)


def expected(kind, probabilities, targets):
    if kind == "multilabel":
        decided = (probabilities > 0.5).astype(np.float32)
    else:
        decided = np.eye(NUM_CLASSES)[probabilities.argmax(axis=1)]
    # the accuracy of a class among several is the share of its records that are recognised
    accuracy = reference.accuracy_score if kind == "multilabel" else reference.recall_score
    return {
        "val/auroc": reference.roc_auc_score(targets, probabilities, average="macro"),
        "val/average_precision": reference.average_precision_score(targets, probabilities, average="macro"),
        "val/accuracy": macro_of_labels(accuracy, targets, decided),
        "val/f1_score": macro_of_labels(reference.f1_score, targets, decided),
        "val/precision": macro_of_labels(reference.precision_score, targets, decided),
        "val/recall": macro_of_labels(reference.recall_score, targets, decided),
        "val/specificity": macro_of_labels(specificity, targets, decided),
    }


@pytest.mark.parametrize("kind", ["multilabel", "single_label"])
def test_all_metrics_are_those_of_scikit_learn(kind):
    probabilities, targets = answers(kind)
    found = compute(metric_names(), kind, probabilities, targets, split="val")
    assert found == pytest.approx(expected(kind, probabilities, targets), abs=2e-6)  # torchmetrics sums in float32


@pytest.mark.parametrize(
    ("name", "key"),
    [("AUROC", "auroc"), ("AveragePrecision", "average_precision"), ("F1Score", "f1_score"), ("Recall", "recall")],
)
def test_a_metric_is_logged_in_small_words(name, key):
    assert metric_key(name) == key


def test_only_what_is_asked_for_is_computed():
    probabilities, targets = answers("multilabel")
    assert set(compute(["AUROC"], "multilabel", probabilities, targets, split="test")) == {"test/auroc"}
