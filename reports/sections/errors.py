"""Where the best trial is wrong and sure of it: sheets that the evaluation drew, shown here without torch."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from reports.folder import Study

MOST_BYTES = 5_000_000
"""Of all sheets that the page holds; the others are linked."""


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The classes with their mistakes; the first sheets of every class and kind are the last to be left out."""
    listed = study.errors.get("mistakes") or []
    inside = _embedded(study.folder, listed)
    counts = metrics.get("mistakes", {}).get("classes", {})
    groups = [
        {
            "name": name,
            "counts": counts[name],
            "mistakes": [m | {"image": inside.get(m["file"])} for m in listed if m["class"] == name],
        }
        for name in counts
    ]
    return {
        "groups": [group for group in groups if group["mistakes"]],
        "without": [group["name"] for group in groups if not group["mistakes"]],
        "reason": study.errors.get("reason"),
        "num_linked": sum(m["file"] not in inside for m in listed),
        "num_mistakes": study.errors.get("num_mistakes"),
    }


def _embedded(folder: Path | None, listed: list[dict[str, Any]]) -> dict[str, str]:
    """File -> data URI, in the order of ranks for as long as MOST_BYTES lasts.

    An image, not a part of the page: a sheet in a folder that came from elsewhere can then run no script, and its
    styles stay its own.
    """
    found: dict[str, str] = {}
    left = MOST_BYTES
    for mistake in sorted(listed, key=lambda m: m["rank"]):
        path = None if folder is None else folder / "report" / "errors" / Path(mistake["file"]).name
        if path is None or not path.exists():
            continue
        content = base64.b64encode(path.read_bytes()).decode("ascii")
        left -= len(content)
        if left < 0:
            break
        found[mistake["file"]] = f"data:image/svg+xml;base64,{content}"
    return found
