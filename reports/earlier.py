"""The best model of earlier studies as one more to beat, where they were tested on the same records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from reports.folder import PREDICTIONS, Predictions, Study, read_study, why_not_comparable
from reports.statistics.calibration import scorable
from reports.statistics.discrimination import auroc

EARLIER = "earlier"
"""Its key among a study's predictions; there is no file of that name in the study's folder."""


def with_earlier(study: Study) -> Study:
    """A study with the best model of `evaluate.earlier_studies` among its predictions.

    Of the models that hold the very records and labels of this study's best one, the one with the largest macro AUROC
    on validation is taken: the test fold takes no part in the choice. Why another one is left out is a problem of the
    study.
    """
    folders = study.setting("evaluate.earlier_studies") or []
    if not folders or "best" not in study.predictions:
        return study
    best, problems = study.predictions["best"], list(study.problems)
    found: dict[str, Predictions] = {}
    for folder in map(Path, folders):
        name = folder.name  # a whole path would be its author's
        try:
            earlier = read_study(folder)
        except ValueError as error:
            problems.append(f"the earlier study {name}: {str(error).replace(f'{folder.parent}/', '')}")
            continue
        if (other := earlier.predictions.get("best")) is None:
            problems.append(f"the earlier study {name} has no predictions of its best trial: search there to its end")
        elif reason := why_not_comparable(best, other, names=(PREDICTIONS["best"], f"{name}'s")):
            problems.append(f"the earlier study {name} is left out: {reason}")
        else:
            found[name] = other
    if not found:
        return replace(study, problems=tuple(problems))
    chosen = max(found, key=lambda name: _on_validation(found[name]))
    made_by = found[chosen].made_by | {"study": chosen}
    predictions = study.predictions | {EARLIER: replace(found[chosen], made_by=made_by)}
    return replace(study, predictions=predictions, problems=tuple(problems))


def _on_validation(predictions: Predictions) -> float:
    """The macro AUROC on validation; less than any where there is none."""
    valid = predictions.of_split("valid")
    values = [auroc(valid.targets[:, k], valid.scores[:, k]) for k in scorable(valid)]
    return float(np.mean(values)) if values else -1.0
