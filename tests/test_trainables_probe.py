import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from data.loaders import Window, eval_batches
from models.classifier import Classifier
from trainables.pretrain import fresh_encoder
from trainables.probe import embed, fit, probe_head
from trainables.workers import Workers

ALONE = Workers()
L2 = 1e-2


@pytest.fixture(scope="module")
def features():
    """(120, 6) embeddings that are correlated and lie far from 0, as real ones do; one is constant."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(120, 6)) @ rng.normal(size=(6, 6)) * [0.1, 1, 1, 5, 20, 1] + 3
    mixed[:, 5] = 1.5
    return torch.from_numpy(mixed).float()


def standardised(features):
    values = features.double().numpy()
    std = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(std > 0, std, 1)


def reference(features, target):
    """Scikit-learn's optimum of the same loss: it adds up the records' losses, ours takes their mean."""
    model = LogisticRegression(C=1 / (len(features) * L2), tol=1e-12, max_iter=10_000)
    return model.fit(standardised(features), target)


def test_the_probe_of_several_labels_is_the_optimum_that_scikit_learn_finds(features):
    rng = np.random.default_rng(1)
    targets = (rng.random((120, 3)) < [0.5, 0.2, 0.9]) | (features[:, :3].numpy() > 4)
    weight, bias = fit(features, torch.from_numpy(targets).float(), kind="multilabel", l2=L2)
    ours = F.linear(features, weight, bias).sigmoid().numpy()
    for label in range(3):
        theirs = reference(features, targets[:, label]).predict_proba(standardised(features))[:, 1]
        np.testing.assert_allclose(ours[:, label], theirs, atol=1e-4)


def test_the_probe_of_one_label_is_the_optimum_that_scikit_learn_finds(features):
    target = np.random.default_rng(2).integers(0, 3, 120)
    target[features[:, 1].numpy() > 4] = 2
    weight, bias = fit(features, F.one_hot(torch.from_numpy(target), 3).float(), kind="single_label", l2=L2)
    ours = F.linear(features, weight, bias).softmax(dim=1).numpy()
    theirs = reference(features, target).predict_proba(standardised(features))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", ["multilabel", "single_label"])
def test_the_probe_does_not_depend_on_the_scale_of_the_embeddings(features, kind):
    targets = F.one_hot(torch.arange(120) % 3, 3).float()
    weight, bias = fit(features, targets, kind=kind, l2=L2)
    scaled = features * 8 + 16
    other_weight, other_bias = fit(scaled, targets, kind=kind, l2=L2)
    expected = F.linear(features, weight, bias)
    torch.testing.assert_close(F.linear(scaled, other_weight, other_bias), expected, atol=1e-3, rtol=1e-3)


def test_a_label_that_nobody_in_the_sample_carries_has_a_small_probability(features):
    targets = torch.zeros(120, 1)
    weight, bias = fit(features, targets, kind="multilabel", l2=L2)
    assert F.linear(features, weight, bias).sigmoid().max() < 1e-3


def test_an_embedding_is_that_of_the_middle_crop_in_evaluation_mode(tiny_run, tiny_recordings):
    encoder = fresh_encoder(tiny_run).train()
    rows = tiny_recordings.split.valid
    window = Window(num_samples=120, standardize="record", num_crops=1)
    ((crops, _),) = eval_batches(tiny_recordings.store, rows, window=window, batch_size=99, device=ALONE.device)
    with torch.no_grad():
        expected = encoder.eval()(crops[:, 0])
    encoder.train()
    found = embed(encoder, tiny_recordings.store, rows, tiny_run.data, ALONE)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert encoder.training


@pytest.fixture
def classifier(tiny_run, tiny_recordings):
    return Classifier(
        fresh_encoder(tiny_run), len(tiny_recordings.labels.classes), drop_path=0.1, head_init_std=0.0
    ).train()


def test_the_head_becomes_the_probe_of_the_training_records(tiny_run, tiny_recordings, classifier):
    before = {name: tensor.clone() for name, tensor in classifier.encoder.state_dict().items()}
    probe_head(classifier, tiny_recordings, tiny_run.data, tiny_run.task.probe, ALONE)
    rows = tiny_recordings.split.train
    features = embed(classifier.encoder, tiny_recordings.store, rows, tiny_run.data, ALONE)
    targets = torch.from_numpy(tiny_recordings.targets(rows))
    weight, bias = fit(features, targets, kind="multilabel", l2=tiny_run.task.probe.l2)
    assert torch.equal(classifier.head.weight, weight)
    assert torch.equal(classifier.head.bias, bias)
    torch.testing.assert_close(dict(classifier.encoder.state_dict()), before, rtol=0, atol=0)


def test_a_probe_on_fewer_records_takes_them_equally_spaced(tiny_run, tiny_recordings, classifier, monkeypatch):
    seen = []

    def embed_some(encoder, store, rows, data, workers):
        seen.append(rows)
        return embed(encoder, store, rows, data, workers)

    monkeypatch.setattr("trainables.probe.embed", embed_some)
    settings = tiny_run.task.probe.model_copy(update={"max_train_records": 14})
    probe_head(classifier, tiny_recordings, tiny_run.data, settings, ALONE)
    rows = tiny_recordings.split.train
    assert len(rows) == 53
    assert seen[0].tolist() == rows[::4].tolist()


def test_embeddings_that_are_not_finite_are_no_probe(tiny_run, tiny_recordings, classifier):
    torch.nn.init.constant_(classifier.encoder.norm.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="embeddings are not finite"):
        probe_head(classifier, tiny_recordings, tiny_run.data, tiny_run.task.probe, ALONE)


def test_a_probe_of_single_labels_fits_a_softmax(tiny_run, tiny_recordings, classifier):
    single = dataclasses.replace(
        tiny_recordings,
        labels=dataclasses.replace(
            tiny_recordings.labels,
            kind="single_label",
            targets=np.eye(5, dtype=np.float32)[np.arange(len(tiny_recordings.store.index)) % 5],
        ),
    )
    probe_head(classifier, single, tiny_run.data, tiny_run.task.probe, ALONE)
    rows = single.split.train
    features = embed(classifier.encoder, single.store, rows, tiny_run.data, ALONE)
    with torch.no_grad():
        probabilities = classifier.head(features).softmax(dim=1).numpy()
    # at the optimum the mean probability of a class is its share, as the biases are not penalised
    np.testing.assert_allclose(probabilities.mean(axis=0), single.targets(rows).mean(axis=0), atol=1e-4)
