"""Published figures for the task of a study, kept apart from its own: which compare, and what stands in the way.

A figure is shown only where data set, label protocol and kind of labels are those of the study. ST-MEM's 0.933 and its
0.901 on PTB-XL's superclasses, for one, are of two tasks: the first keeps only records with exactly one superclass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from reports.folder import Study

TABLE = Path(__file__).with_name("published.yaml")
PUBLISHED_TRAIN_FOLDS = list(range(1, 9))
PUBLISHED_VALID_FOLDS = [9]


def published(study: Study) -> dict[str, Any]:
    """The published rows of a study's task, and what differs between their protocol and the study's.

    Returns:
        `rows`, best first, each with its source, protocol and interval; `differs`, sentences, empty where the folds are
        those published, nothing was subsampled and one model answered. {"rows": [], "reason"} where nothing is known of
        the task.
    """
    data, labels, kind = study.setting("data.name"), study.setting("task.labels"), label_kind(study)
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    found = [task for task in content["tasks"] if (task["data"], task["labels"], task["kind"]) == (data, labels, kind)]
    if not found:
        return {"rows": [], "differs": [], "reason": f"no published figure is known for {labels} of {data}"}
    rows = [_row(row, content["sources"][row["source"]]) for task in found for row in task["rows"]]
    rows.sort(key=lambda row: -row["value"])
    return {
        "rows": rows,
        "differs": [sentence for task in found for sentence in _differs(study, task)],
        "task": {"data": data, "labels": labels, "kind": kind},
    }


def label_kind(study: Study) -> str:
    """`multilabel` or `single_label`, as the best trial's checkpoint says; the protocol's name where there is none."""
    told = (study.best.get("contract") or {}).get("label_kind")
    return str(told or ("single_label" if str(study.setting("task.labels")).endswith("_single") else "multilabel"))


def _row(row: dict[str, Any], source: dict[str, str]) -> dict[str, Any]:
    """A row with its bounds; half-widths become bounds, a standard deviation stays one, as it is no interval."""
    half = row.get("half")
    low = round(row["value"] - half, 4) if half else row.get("low")
    high = round(row["value"] + half, 4) if half else row.get("high")
    return {
        "model": row["model"],
        "value": row["value"],
        "low": low,
        "high": high,
        "sd": row.get("sd"),
        "cite": source["cite"],
        "protocol": source["protocol"],
    }


def _differs(study: Study, task: dict[str, Any]) -> list[str]:
    """What in the study's data is not as published."""
    said = []
    if task["test_folds"] is None:
        said.append("The published figures are from a split of their authors’ own, so the test records differ.")
    elif list(study.setting("data.test_folds", [])) != task["test_folds"]:
        said.append(
            f"The study’s test folds are {study.setting('data.test_folds')}, the published ones"
            f" {task['test_folds']}: the test records differ, so the numbers do not compare."
        )
    limits = {split: study.setting(f"data.max_{split}_patients") for split in ("train", "valid")}
    if any(limits.values()):
        cut = ", ".join(f"{split} to {limit} patients" for split, limit in limits.items() if limit)
        said.append(f"The study was subsampled ({cut}); the published models were trained on all of them.")
    folds = [list(study.setting(f"data.{split}_folds", [])) for split in ("train", "valid")]
    if folds != [PUBLISHED_TRAIN_FOLDS, PUBLISHED_VALID_FOLDS] and task["test_folds"] is not None:
        said.append(f"The study trained on folds {folds[0]} and validated on {folds[1]}; published: 1 to 8 and 9.")
    if (num_folds := study.setting("task.folds")) and num_folds > 1:
        said.append(
            f"The study’s answer on the test fold is the mean of {num_folds} models, which between them were trained on"
            " the training and the validation folds; a published figure is one model’s, trained on the training folds."
        )
    if study.setting("task.classes"):
        said.append("The study keeps some of the protocol’s classes only: its mean is over other classes.")
    return said
