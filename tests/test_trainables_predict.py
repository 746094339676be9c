import dataclasses

import numpy as np
import pytest
import torch

from data.loaders import Window, eval_batches
from models.classifier import Classifier
from trainables.metrics import compute
from trainables.predict import predict, probabilities_of, validate
from trainables.pretrain import fresh_encoder
from trainables.probe import crop_embeddings
from trainables.recordings import window_of
from trainables.workers import Workers

ALONE = Workers()


@pytest.fixture
def classifier(tiny_run, tiny_recordings):
    torch.manual_seed(0)
    return Classifier(fresh_encoder(tiny_run), len(tiny_recordings.labels.classes), drop_path=0.5, head_init_std=1.0)


@pytest.mark.parametrize("kind", ["multilabel", "single_label"])
def test_a_records_probabilities_are_the_mean_over_its_crops(tiny_run, tiny_recordings, classifier, kind):
    rows = tiny_recordings.split.valid[::-1].copy()
    window = Window(num_samples=120, standardize="record", num_crops=2)
    classifier.eval()
    expected = []
    for crops, _ in eval_batches(tiny_recordings.store, rows, window=window, batch_size=1, device=ALONE.device):
        with torch.no_grad():
            logits = classifier(crops[0])
        expected.append(logits.sigmoid() if kind == "multilabel" else logits.softmax(dim=1))
    classifier.train()
    found = predict(classifier, tiny_recordings.store, rows, tiny_run.data, ALONE, kind=kind)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.stack(expected).mean(dim=1).numpy(), rtol=1e-4, atol=1e-6)
    assert classifier.training
    assert classifier.encoder.training


def test_no_rows_have_no_probabilities(tiny_run, tiny_recordings, classifier):
    none = np.empty(0, np.int64)
    assert predict(classifier, tiny_recordings.store, none, tiny_run.data, ALONE, kind="multilabel").shape == (0, 5)


def test_a_single_labels_probabilities_sum_to_one():
    logits = torch.randn(4, 3, 5)
    torch.testing.assert_close(probabilities_of(logits, "single_label").sum(dim=-1), torch.ones(4, 3))
    torch.testing.assert_close(probabilities_of(logits, "multilabel"), 1 / (1 + torch.exp(-logits)))


def test_metrics_leave_out_the_classes_that_validation_lacks(tiny_run, tiny_recordings, classifier):
    recordings = dataclasses.replace(tiny_recordings, valid_classes=np.array([0, 3]))
    rows = recordings.split.valid
    probabilities = predict(classifier, recordings.store, rows, tiny_run.data, ALONE, kind="multilabel")
    expected = compute(
        tiny_run.task.metrics, "multilabel", probabilities[:, [0, 3]], recordings.targets(rows)[:, [0, 3]], split="val"
    )
    found = validate(classifier, recordings, tiny_run.data, tiny_run.task, ALONE)
    assert found == expected
    assert set(found) == {"val/auroc", "val/average_precision"}


def test_embeddings_made_before_give_the_same_metrics_to_the_bit(tiny_run, tiny_recordings, classifier):
    window, rows = window_of(tiny_run.data), tiny_recordings.split.valid
    before = list(crop_embeddings(classifier.encoder, tiny_recordings.store, rows, window, ALONE))
    assert [crops.shape for crops in before] == [(len(rows), 2, classifier.encoder.width)]
    anew = validate(classifier, tiny_recordings, tiny_run.data, tiny_run.task, ALONE)
    assert validate(classifier, tiny_recordings, tiny_run.data, tiny_run.task, ALONE, embeddings=before) == anew


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_probabilities_that_are_not_finite_are_an_error(tiny_run, tiny_recordings, classifier, value):
    torch.nn.init.constant_(classifier.encoder.norm.bias, value)
    with pytest.raises(FloatingPointError, match="validation probabilities are not finite"):
        validate(classifier, tiny_recordings, tiny_run.data, tiny_run.task, ALONE)
