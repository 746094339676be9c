import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from reports.folder import Predictions, Study
from reports.statistics.intervals import _resamples
from reports.statistics.protocols import named_protocol, ptb_xl_benchmark


def fold(num_rare=2):
    rng = np.random.default_rng(0)
    targets = (rng.random((90, 3)) < 0.4).astype(float)
    targets[:, 2] = np.arange(90) < num_rare
    patients = np.repeat(np.arange(30), 3).astype(str)
    ids = np.array([f"r{row:03d}" for row in range(90)])
    return Predictions(("a", "b", "c"), ids, patients, np.full(90, "test"), targets, rng.random((90, 3)) + targets)


def test_the_ptb_xl_benchmark_rejects_resamples_of_records_that_lack_a_class():
    predictions = fold()
    found = ptb_xl_benchmark(predictions, num_resamples=60, seed=3)
    areas = []
    for weights in _resamples(np.arange(90), num_resamples=60, seed=3):  # records, not patients
        for column in weights.T:
            drawn = predictions.targets * column[:, None]
            if len(areas) < 60 and (drawn.sum(axis=0) > 0).all():
                of = [roc_auc_score(predictions.targets[:, k], predictions.scores[:, k], sample_weight=column)
                      for k in range(3)]  # fmt: skip
                areas.append(np.mean(of))
    assert found["value"] == pytest.approx(
        roc_auc_score(predictions.targets, predictions.scores, average="macro"), abs=1e-6
    )
    assert found["low"] == pytest.approx(np.percentile(areas, 5), abs=1e-6)
    assert found["high"] == pytest.approx(np.percentile(areas, 95), abs=1e-6)
    assert found["mean"] == pytest.approx(np.mean(areas), abs=1e-6)


def test_a_class_without_a_positive_is_left_out_and_none_left_gives_no_figure():
    predictions = fold(num_rare=0)
    found = ptb_xl_benchmark(predictions, num_resamples=20, seed=0)
    assert found["value"] == pytest.approx(
        roc_auc_score(predictions.targets[:, :2], predictions.scores[:, :2], average="macro"), abs=1e-6
    )
    predictions.targets[:] = 0
    assert ptb_xl_benchmark(predictions, num_resamples=20, seed=0)["value"] is None


def test_a_protocol_is_shown_for_every_model_where_it_is_asked_for():
    def study(protocol):
        return Study("s", {"evaluate": {"protocol": protocol}}, (), 0, (), {}, {}, {"best": fold(), "default": fold()})

    assert named_protocol(study(None), num_resamples=20, seed=0) is None
    found = named_protocol(study("ptb_xl_benchmark"), num_resamples=20, seed=0)
    assert list(found["models"]) == ["best", "default"]
    assert (found["confidence"], found["unit"]) == (0.9, "record")
    unknown = named_protocol(study("mine"), num_resamples=20, seed=0)
    assert unknown["models"] == {}
    assert unknown["reason"] == "this version does not know evaluate.protocol=mine, only ptb_xl_benchmark"
