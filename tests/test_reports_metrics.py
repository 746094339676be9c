import json

import numpy as np
import pytest

from reports.folder import Predictions, Study
from reports.html import render
from reports.metrics import figures, openings_of


def predictions(seed, of_model, num_records, num_classes):
    """A handful of records: labels and patients follow from the seed alone, scores from the model too."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_records, num_classes)) < 0.5).astype(float)
    patients = rng.integers(0, num_records // 2 + 1, num_records).astype(str)
    splits = np.where(rng.random(num_records) < 0.5, "valid", "test")
    scores = np.round(np.random.default_rng((seed, of_model)).random(targets.shape), 1)
    ids = np.array([f"r{row}" for row in range(num_records)])
    return Predictions(tuple(f"c{k}" for k in range(num_classes)), ids, patients, splits, targets, scores)


@pytest.mark.parametrize(
    ("starts", "counted"),
    [
        ([{"event": "study_started"}], 3),  # of an earlier version
        ([{"event": "study_started", "store": "a"}], 2),
        ([{"event": "study_started"}, {"event": "study_resumed", "store": "a"}], 2),
        ([{"event": "study_started", "store": "a"}, {"event": "study_resumed", "store": "b"}], 3),
        ([], 3),
    ],
)
def test_a_pass_counts_unless_it_was_over_recordings_that_are_known_to_be_others(starts, counted):
    passes = [{"event": "test_fold_opened", "model": "best"} | of for of in ({}, {"store": "a"}, {"store": "b"})]
    found = openings_of(Study("s", {}, (*starts, *passes), 0, (), {}, {}, {}))
    assert found["test_fold_openings"] == len(found["openings"]) == counted


@pytest.mark.parametrize("seed", range(12))
def test_a_handful_of_records_gives_figures_or_reasons_and_a_page(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 9)), int(rng.integers(1, 4))
    models = {"best": predictions(seed, 0, *size)} | (
        {"random_encoder": predictions(seed, 1, *size)} if seed % 2 else {}
    )
    evaluate = {"protocol": "ptb_xl_benchmark", "beta": 2.0, "threshold": ("f1", "youden", "sensitivity")[seed % 3]}
    config = {"evaluate": evaluate, "data": {"name": "ptb_xl", "test_folds": [10]}, "task": {"labels": "all"}}
    study = Study("s", config, (), 0, (), {}, {}, models)
    metrics = figures(study, num_resamples=8, seed=0)
    json.dumps(metrics, allow_nan=False)
    assert "<h1>" in render(study, metrics)
