"""All studies of a folder on one page: what each searched, how far it is, its best trial, its test figure.

A study's line comes from its configuration, its table of trials, its events and the figures of its report. A folder
that cannot be read is listed with the reason, never left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reports.folder import Study, at_path, is_made_by, read_study
from reports.html import templates
from reports.methods import method_of
from reports.metrics import openings_of
from reports.report import put
from reports.sections.trials import outcomes

SIGNS = ("study.yaml", "events.jsonl", "journal.log")
"""A folder with one of these is a study's."""
MAX_DEPTH = 3
"""Folders within folders that are looked into; not into a study's own."""
MARK = '<meta name="generator" content="heartsweep index">'
"""Tells our page from a user's of the same name."""


def build(folder: Path) -> tuple[Path, int]:
    """Write index.html and studies.json of all studies in a folder.

    Args:
        folder: that holds studies, or folders of them.

    Returns:
        The page, and how many studies are on it.

    Raises:
        ValueError: if there is no such folder, it is a study's own, or its index.html is not ours.
        OSError: if it cannot be written.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: type study_dir=DIR with the folder that holds the studies")
    if any((folder / sign).exists() for sign in SIGNS):
        raise ValueError(f"{folder} is itself a study's: type study_dir=DIR with the folder that holds it")
    page = folder / "index.html"
    if page.exists() and not is_ours(page):
        raise ValueError(f"{page} is not a page of this command and is left as it is: move it, or index another folder")
    studies = sorted((row_of(path, folder) for path in studies_in(folder)), key=lambda row: row["path"])
    studies.sort(key=lambda row: str(row["last"] or ""), reverse=True)  # ISO times in UTC; the damaged come last
    put(folder / "studies.json", json.dumps(studies, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    put(page, templates().get_template("index.html").render(studies=studies, mark=MARK))
    return page, len(studies)


def refresh(folder: Path) -> None:
    """Write the page of a folder again, where the folder has one; a folder without is left without.

    Raises:
        OSError: if it cannot be written.
    """
    if is_ours(folder / "index.html"):
        build(folder)


def is_ours(page: Path) -> bool:
    """Whether a file is there and has been written by `build`."""
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            return MARK in file.read(2000)
    except OSError:
        return False


def studies_in(folder: Path) -> Iterator[Path]:
    """The folders of studies in a folder, down to MAX_DEPTH."""
    for path, folders, files in os.walk(folder):
        depth = len(Path(path).relative_to(folder).parts)
        if depth and not set(SIGNS).isdisjoint(files):
            folders.clear()
            yield Path(path)
        folders[:] = [name for name in sorted(folders) if depth < MAX_DEPTH and not name.startswith(".")]


def row_of(path: Path, folder: Path) -> dict[str, Any]:
    """One study's line, as plain JSON values; of one that cannot be read, its name and `reason`."""
    name = path.relative_to(folder).as_posix()
    try:
        study = read_study(path, with_predictions=False)
    except (ValueError, OSError) as error:
        said = str(error).replace(f"{path}{os.sep}", "").replace(str(path), "it")
        return {"path": name, "last": None, "reason": " ".join(said.split())}
    best = study.best_trial
    times = [str(event["time"]) for event in study.events if isinstance(event.get("time"), str)]
    return {
        "path": name,
        "search": str(study.setting("search.name", path.name)),
        "data": str(study.setting("data.name", "unknown")),
        "labels": str(study.setting("task.labels", "unknown")),
        "method": method_of(study),
        "status": status_of(study),
        "outcomes": outcomes(study),
        "metric": study.metric,
        "best_trial": best.number if best else None,
        "best_value": best.value if best else None,
        "test": _test_figure(path, study),
        "test_fold_openings": openings_of(study)["test_fold_openings"],
        "first": min(times, default=None),
        "last": max(times, default=None),
        "report": f"{quote(name)}/report/index.html" if (path / "report" / "index.html").exists() else None,
        "problems": list(study.problems),
    }


def status_of(study: Study) -> str:
    """How far a study is, as its events tell it: they do not tell a search that runs from one that was killed."""
    words = {
        "study_started": "running, or killed",
        "study_resumed": "running, or killed",
        "study_interrupted": "interrupted",
        "study_finished": "finished",
    }
    told = [words[event["event"]] for event in study.events if str(event.get("event")) in words]
    return told[-1] if told else "not begun"


def _test_figure(path: Path, study: Study) -> dict[str, Any] | None:
    """The macro AUROC of the study's report with its interval; None where the report is not of the best model now."""
    try:
        metrics = json.loads((path / "report" / "metrics.json").read_bytes())
    except (OSError, ValueError):
        return None
    found = at_path(metrics, "best.test.auroc_macro")
    if not isinstance(found, dict) or not _is_of_best(metrics, study):
        return None
    figure = {key: found.get(key) for key in ("value", "low", "high")}
    return figure if isinstance(figure["value"], float) else None


def _is_of_best(metrics: Any, study: Study) -> bool:
    """Whether figures are of the trial, and of the seed where it was confirmed, that is the best one now."""
    best = study.best_trial
    if at_path(metrics, "search.best_trial") != (best.number if best else None):
        return False
    index = at_path(metrics, "confirmation.chosen.index")  # of a report of a version that did not say whose it is
    told = {"trial": at_path(metrics, "search.best_trial")} | ({} if index is None else {"index": index})
    return is_made_by(at_path(metrics, "made_by.best") or told, study.best)
