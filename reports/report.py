"""The report of a study: metrics.json, index.html and the model's card, made from what its folder holds.

Nothing is evaluated here and no fold is opened, so a report can be made again at any time, on any machine, from a copy
of the folder. The same folder gives the same files, byte for byte, on one machine with the same versions; on another
processor the last digits of a figure may round otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reports.earlier import with_earlier
from reports.folder import read_study
from reports.html import render
from reports.metrics import figures
from reports.model_card import NAME, model_card


def build(
    study_dir: Path, *, num_resamples: int = 1000, seed: int = 0, evaluate: Mapping[str, Any] | None = None
) -> Path:
    """Make the report of a study.

    Args:
        study_dir: the study's folder; its predictions, where it has any, lie in report/.
        num_resamples: bootstrap resamples: of the bias of an AUPRC, of calibration and of subgroups' differences.
        seed: of the resamples.
        evaluate: settings of the report (`evaluate.*`) that take the place of the study's own.

    Returns:
        report/index.html in the study's folder; metrics.json and model_card.md lie beside it, and the card once more
        beside the best checkpoint.

    Raises:
        ValueError: if the folder is no study's; what is damaged in one is left out, and the page says so.
        OSError: if the report cannot be written.
    """
    study = read_study(study_dir)
    settings = {**(study.setting("evaluate") or {}), **(evaluate or {})}
    study = with_earlier(replace(study, config={**study.config, "evaluate": settings}))
    metrics = figures(study, num_resamples=num_resamples, seed=seed)
    page = render(study, metrics)
    folder = study_dir / "report"
    folder.mkdir(exist_ok=True)
    put(folder / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    put(folder / "index.html", page)
    card = model_card(study, metrics)
    put(folder / "model_card.md", card)
    if study.best:  # beside its weights, and goes with them when they are copied
        put(study_dir / "checkpoints" / "best_1" / NAME, card)
    return folder / "index.html"


def put(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all: a browser may be reading it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
