"""Which code, libraries, machine and recordings made the study, and whether its test fold was untouched."""

from __future__ import annotations

from typing import Any

from reports.folder import Study
from reports.provenance import of_changes, of_pretraining, words_of
from reports.words import MODELS, counted, listed


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """Names with their values."""
    return {"provenance": provenance(study, metrics["provenance"]), "names": MODELS}


def provenance(study: Study, found: dict[str, Any]) -> list[tuple[str, str]]:
    """Which code, libraries, machine and recordings made the study: (what, which)."""
    rows = [("Code", ", ".join(found["revisions"]) or "unknown")]
    rows += [("Uncommitted", of_changes(changes)) for changes in found["changes"]]
    if found["starts"] > 1:
        rows.append(("Started", f"{found['starts']} times; libraries and machine are those of the last"))
    for key, name in (("versions", "Libraries"), ("hardware", "Machine")):
        if found[key]:
            rows.append((name, ", ".join(f"{part} {value}" for part, value in found[key].items())))
    if found["store"]:
        content = found["data"].get("content") or {}
        whole = (
            f"; sha256 of its manifest {content['manifest']}, of all samples {content['signals']}" if content else ""
        )
        rows.append(("Recordings", f"store {found['store']}{whole}"))
    rows += of_data(found["data"])
    rows.append(("Pre-training", of_pretraining(found["pretraining"])))
    if study.events:
        rows.append(("Events", f"{study.events[0].get('time')} to {study.events[-1].get('time')}"))
    rows.append(("Seed", str(study.setting("seed", "unknown"))))
    return rows


def of_data(data: dict[str, Any]) -> list[tuple[str, str]]:
    """The split and what is on both sides of it."""
    if "reason" in data:
        return [("Leakage", f"not looked for: {data['reason']}")]
    parts = [
        f"{words_of(part)} {counted(number, 'record')} of {counted(data['patients'][part], 'patient')}"
        for part, number in data["records"].items()
    ]
    split = f"{listed(parts)}; sha256 of the record ids {data['split']['all']}"
    return [
        ("Split", split),
        ("Leakage", f"{_shared(data, 'patients', 'patient')}; {_shared(data, 'signals', 'signal')}"),
    ]


def _shared(data: dict[str, Any], key: str, noun: str) -> str:
    """How many of something are in two parts of the split."""
    pairs = {pair: number for pair, number in data[f"{key}_in_two_parts"].items() if number}
    if not pairs:
        return f"no {noun} in two parts"
    said = f"{counted(sum(pairs.values()), noun)} in two parts ("
    return said + listed(f"{number} in {words_of(pair)}" for pair, number in pairs.items()) + ")"
