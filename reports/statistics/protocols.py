"""Published protocols of evaluation, by name, so that a figure stands beside those that were made the same way."""

from __future__ import annotations

from typing import Any

import numpy as np

from reports.folder import Predictions, Study
from reports.statistics.intervals import bootstrap

PTB_XL_BENCHMARK = "ptb_xl_benchmark"
CONFIDENCE = 0.9
PAPER_RESAMPLES = 100


def named_protocol(study: Study, *, num_resamples: int, seed: int) -> dict[str, Any] | None:
    """The figures of every evaluated model under `evaluate.protocol`; None where none is asked for.

    A protocol of another version has no `models`, and a `reason`.
    """
    name = study.setting("evaluate.protocol")
    if name is None:
        return None
    if name != PTB_XL_BENCHMARK:
        reason = f"this version does not know evaluate.protocol={name}, only {PTB_XL_BENCHMARK}"
        return {"name": str(name), "models": {}, "reason": reason}
    tests = {model: predictions.of_split("test") for model, predictions in study.predictions.items()}
    return {
        "name": name,
        "unit": "record",
        "confidence": CONFIDENCE,
        "num_resamples": num_resamples,
        "paper_resamples": PAPER_RESAMPLES,
        "models": {
            model: ptb_xl_benchmark(test, num_resamples=num_resamples, seed=seed)
            for model, test in tests.items()
            if test.record_ids.size
        },
    }


def ptb_xl_benchmark(predictions: Predictions, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """Macro AUROC with the 5th and 95th percentile over resamples of records (Strodthoff et al. 2021).

    Records are drawn with replacement as if they were of different patients, a resample that lacks a class is rejected,
    and 90 % of the macro AUROCs lie between the bounds. The paper draws 100; the percentiles of more are the same ones,
    known better.

    Args:
        predictions: of the test records; classes without a positive or a negative are left out.
        num_resamples: R.
        seed: of the resamples.
    """
    num_positive = predictions.targets.sum(axis=0)
    kept = np.flatnonzero((num_positive > 0) & (num_positive < len(predictions.targets)))
    if not kept.size:
        return {"value": None, "low": None, "high": None, "reason": "no class has both kinds of records"}
    found = bootstrap(
        predictions.targets[:, kept],
        predictions.scores[:, kept],
        np.arange(len(predictions.targets)),
        num_resamples=num_resamples,
        seed=seed,
    )
    value = float(np.mean([of_class.values[0] for of_class in found.influences]))
    if found.num_macro < num_resamples:
        return {"value": value, "low": None, "high": None, "reason": "too few resamples hold every class"}
    low, high = np.quantile(found.macro[0], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"value": value, "low": float(low), "high": float(high), "mean": float(found.macro[0].mean())}
