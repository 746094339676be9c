"""Where a study comes from, as its events tell it: code, data, split, leaks, and what its encoder had seen before.

Whatever an older version did not write down is said to be unknown, never taken for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.folder import Study
from reports.words import counted, listed

NOT_CHECKED = "the study was made by a version that did not look"


def provenance(study: Study) -> dict[str, Any]:
    """Code, data, pre-training and what they mean for the figures, as plain JSON values.

    Returns:
        code: revisions in the order of the starts, and what had been changed beside them; versions and hardware of the
        last start; store; data: the last `data_checked` of the study without its pre-training, or a reason;
        pretraining: the same of the encoder; cautions: sentences for the head of the page.
    """
    starts = [event for event in study.events if event.get("event") in ("study_started", "study_resumed")]
    last: Mapping[str, Any] = starts[-1] if starts else {}
    checks = [event for event in study.of_event("data_checked") if isinstance(event.get("patients_in_two_parts"), dict)]
    checked = {key: value for key, value in checks[-1].items() if key not in ("time", "event")} if checks else {}
    pretraining = checked.pop("pretraining", None) or {"kind": "unknown", "test_patients": None, "reason": NOT_CHECKED}
    content = {
        "starts": len(starts),
        "revisions": list(dict.fromkeys(str(start.get("git_revision") or "unknown") for start in starts)),
        "changes": _changes(starts),
        "versions": last.get("versions") or {},
        "hardware": last.get("hardware") or {},
        "store": last.get("store"),
        "data": checked or {"reason": NOT_CHECKED},
        "pretraining": pretraining,
    }
    return content | {"cautions": _cautions(checked, pretraining)}


def _changes(starts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What had been changed at each start, the same thing once."""
    found: dict[Any, dict[str, Any]] = {}
    for start in starts:
        changes = start.get("changes")
        if isinstance(changes, dict):
            found.setdefault(changes.get("sha256"), changes)
    return list(found.values())


def _cautions(checked: Mapping[str, Any], pretraining: Mapping[str, Any]) -> list[str]:
    found = []
    for pair, number in (checked.get("patients_in_two_parts") or {}).items():
        if number:
            found.append(
                f"{counted(number, 'patient')} in two parts of the split ({words_of(pair)}): figures are too good."
            )
    pairs = {pair: number for pair, number in (checked.get("signals_in_two_parts") or {}).items() if number}
    if pairs:
        said = listed(f"{number} in {words_of(pair)}" for pair, number in pairs.items())
        found.append(
            f"{counted(sum(pairs.values()), 'record')} hold the very samples of a record in another part of the split"
            f" ({said}): figures are too good by them."
        )
    if checked and checked.get("patients_known") is False:
        found.append(
            "Each record has a patient of its own: where the source does not tell patients apart, the same one may be"
            " in two parts of the split."
        )
    if pretraining.get("test_patients"):
        patients = counted(pretraining["test_patients"], "patient")
        found.append(
            f"The encoder had been pre-trained on {patients} of the test fold: the figures are not those of unseen"
            " patients."
        )
    elif pretraining["kind"] in ("checkpoint", "imported") and pretraining.get("test_patients") is None:
        found.append(
            "Whether the encoder had been pre-trained on patients of the test fold is not known"
            f" ({_reason(pretraining)})."
        )
    return found


def words_of(pair: str) -> str:
    """Two parts of a split: "train+test" as it is read."""
    return listed({"train": "training", "valid": "validation"}.get(part, part) for part in pair.split("+"))


def _reason(pretraining: Mapping[str, Any]) -> str:
    steps = pretraining.get("steps") or []
    return next((str(step["reason"]) for step in steps if step.get("reason")), NOT_CHECKED)


def of_pretraining(pretraining: Mapping[str, Any]) -> str:
    """In words, what an encoder had learnt from."""
    kind = pretraining.get("kind")
    if kind == "none":
        return "none: every trial's encoder starts from its initialisation"
    if kind == "this study":
        return "the training patients of this study, in every trial; none of them is in validation or test"
    if kind not in ("checkpoint", "imported"):
        return f"not known: {pretraining.get('reason', NOT_CHECKED)}"
    return "; which began from ".join(_of_step(step) for step in pretraining.get("steps") or []) or "not known"


def _of_step(step: Mapping[str, Any]) -> str:
    data = step.get("data") or "recordings that are not declared"
    seen = step.get("test_patients")
    told = f"{counted(seen, 'patient')} of the test fold among them" if seen is not None else str(step.get("reason"))
    if "source" in step:
        return f"imported weights ({step['source']}), pre-trained on {data}; {told}"
    patients = f", {counted(step['patients'], 'patient')}" if "patients" in step else ""
    return f"a checkpoint trained on {data}{patients}; {told}"


def of_changes(changes: Mapping[str, Any]) -> str:
    """In words, what had been changed beside a commit and where it is kept."""
    stat = changes.get("stat") or {}
    added, removed = (sum(lines[place] for lines in stat.values()) for place in (0, 1))
    said = []
    if stat:
        said.append(
            f"{counted(int(changes.get('num_files', len(stat))), 'file')}, {added} lines added, {removed} removed"
        )
    if changes.get("file"):
        said.append(f"kept in {changes['file']}, sha256 {str(changes.get('sha256'))[:16]}")
    if changes.get("lines_left_out"):
        said.append(f"{counted(changes['lines_left_out'], 'line')} left out of what is kept, as secrets or for length")
    if changes.get("untracked_sources"):
        said.append(f"{counted(changes['untracked_sources'], 'source file')} beside it that git does not know")
    return "; ".join(said)
