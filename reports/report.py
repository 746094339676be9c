"""The report of a study: metrics.json and index.html, made from what its folder holds.

Nothing is evaluated here and no fold is opened, so a report can be made again at any time, on any machine, from a copy
of the folder; the same folder gives the same two files, byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reports.folder import read_study
from reports.html import render
from reports.metrics import figures


def build(
    study_dir: Path, *, num_resamples: int = 1000, seed: int = 0, evaluate: Mapping[str, Any] | None = None
) -> Path:
    """Make the report of a study.

    Args:
        study_dir: the study's folder; its predictions, where it has any, lie in report/.
        num_resamples: bootstrap resamples of every interval.
        seed: of the resamples.
        evaluate: settings of the report (`evaluate.*`) that take the place of the study's own.

    Returns:
        report/index.html in the study's folder; metrics.json lies beside it.

    Raises:
        ValueError: if the folder is no study's, or a file in it is damaged or does not fit the others.
        OSError: if the report cannot be written.
    """
    study = read_study(study_dir)
    settings = {**(study.setting("evaluate") or {}), **(evaluate or {})}
    study = replace(study, config={**study.config, "evaluate": settings})
    metrics = figures(study, num_resamples=num_resamples, seed=seed)
    page = render(study, metrics)
    folder = study_dir / "report"
    folder.mkdir(exist_ok=True)
    _replace(folder / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    _replace(folder / "index.html", page)
    return folder / "index.html"


def _replace(path: Path, text: str) -> None:
    """Put `text` at `path` whole or not at all: a browser may be reading it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
