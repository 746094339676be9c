"""Which code, libraries, machine and recordings made the study."""

from __future__ import annotations

from typing import Any

from reports.folder import Study
from reports.words import MODELS


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """Names with their values."""
    return {"provenance": provenance(study), "names": MODELS}


def provenance(study: Study) -> list[tuple[str, str]]:
    """Which code, libraries and machine made the study: (what, which)."""
    starts = [event for event in study.events if event.get("event") in ("study_started", "study_resumed")]
    revisions = dict.fromkeys(str(start.get("git_revision") or "unknown") for start in starts)
    rows = [("Code", ", ".join(revisions) or "unknown")]
    if len(starts) > 1:
        rows.append(("Started", f"{len(starts)} times; libraries and machine are those of the last"))
    for key, name in (("versions", "Libraries"), ("hardware", "Machine")):
        known = (starts[-1].get(key) if starts else None) or {}
        if known:
            rows.append((name, ", ".join(f"{part} {value}" for part, value in known.items())))
    if starts and starts[-1].get("store"):
        rows.append(("Recordings", f"store {starts[-1]['store']}"))
    if study.events:
        rows.append(("Events", f"{study.events[0].get('time')} to {study.events[-1].get('time')}"))
    rows.append(("Seed", str(study.setting("seed", "unknown"))))
    return rows
