"""Published figures for the same task, apart from the study's own."""

from __future__ import annotations

from typing import Any

from reports.folder import Study
from reports.words import MODELS

KINDS = {"multilabel": "multi-label", "single_label": "single-label"}


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The table of published figures, the sources they are from, and the study's own under the named protocol."""
    found = metrics.get("published") or {"rows": [], "differs": []}
    sources: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        sources.setdefault(f"{row['cite']} {row['protocol']}", {"number": len(sources) + 1, **row})
    rows = [row | {"number": sources[f"{row['cite']} {row['protocol']}"]["number"]} for row in found["rows"]]
    named = metrics.get("named_protocol")
    own = [(MODELS[model], named["models"][model]) for model in MODELS if model in named["models"]] if named else []
    return {
        "published_rows": rows,
        "sources": list(sources.values()),
        "differs": found["differs"],
        "own": own,
        "named": named,
        "own_macro": (metrics["best"].get("test") or {}).get("auroc_macro"),
        "kind": KINDS.get((found.get("task") or {}).get("kind", ""), ""),
    }
