"""The winner's curse, measured: what the best trials' values became under seeds that the search had not seen.

All follows from the study's events. A trial's value in the search is the best of many noisy ones, so it flatters the
trial; the mean of trainings that nothing was chosen by does not. What the two differ by is the shrinkage.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from reports.folder import Study


def confirmation(study: Study) -> dict[str, Any]:
    """The figures of the confirmation.

    Returns:
        asked: top_k and seeds, as the study's last launch had them.
        chosen: trial, index and seed of the delivered model, mean and sd of its trial, how many seeds; None without.
        rows: one for each trial that was confirmed, the best mean first: see `_row`.
        shrinkage: the mean over the rows of what their values lost; None without a row that has a mean.
        seconds: computed by confirmation runs.
        extended: whether the search has completed trials since the choice.
    """
    asked = study.setting("search.confirm") or {}
    chosen = study.of_event("confirmation_chosen")[-1:]
    choice = chosen[0] if chosen else None
    num_seeds = int(choice["seeds"] if choice else asked.get("seeds") or 0)
    sign = -1 if study.maximizes else 1
    rows = [_row(study, trial, choice, num_seeds) for trial in _trials(study, choice)]
    rows.sort(key=lambda row: (row["mean"] is None, sign * (row["mean"] or 0.0), row["trial"]))
    lost = [row["shrinkage"] for row in rows if row["shrinkage"] is not None]
    # a run that began anew has an end for each beginning, the last one with the seconds of all
    last_ends = {(event["trial"], event["index"]): event for event in study.of_event("confirmation_ended")}
    return {
        "asked": {"top_k": int(asked.get("top_k") or 0), "seeds": int(asked.get("seeds") or 0)},
        "chosen": None
        if choice is None
        else {key: choice.get(key) for key in ("trial", "index", "seed", "mean", "sd", "seeds", "value", "estimate")},
        "rows": rows,
        "shrinkage": math.fsum(lost) / len(lost) if lost else None,
        "seconds": math.fsum(event.get("seconds") or 0.0 for event in last_ends.values()),
        "extended": choice is not None and _extended(study),
    }


def _trials(study: Study, choice: Mapping[str, Any] | None) -> list[int]:
    """The candidates of the choice that stands; before there is one, all of which a run has begun."""
    if choice is not None:
        return [row["trial"] for row in _ranking(choice)]
    return sorted({event["trial"] for event in study.of_event("confirmation_started")})


def _ranking(choice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The candidates of a choice, the best first; what does not name a trial is another version's."""
    return [row for row in choice["ranking"] if isinstance(row, Mapping) and isinstance(row.get("trial"), int)]


def _row(study: Study, trial: int, choice: Mapping[str, Any] | None, num_seeds: int) -> dict[str, Any]:
    """One confirmed trial.

    Returns:
        trial, estimate (its value in the search), seeds (index, seed, state, value and reason of each run), mean, sd,
        low and high (None where a run is missing or failed), shrinkage (estimate less mean), index (of the seed that
        would be, or is, delivered) and chosen.
    """
    seeds = _seeds(study, trial, num_seeds)
    values = [run["value"] for run in seeds if run["value"] is not None]
    whole = len(values) == num_seeds > 0
    estimate = next((known.value for known in study.trials if known.number == trial), None)
    mean = math.fsum(values) / len(values) if whole else None
    ranking = {row["trial"]: row for row in (_ranking(choice) if choice else ())}
    return {
        "trial": trial,
        "estimate": estimate,
        "seeds": seeds,
        "mean": mean,
        "sd": statistics.stdev(values) if whole and len(values) > 1 else None,
        "low": min(values) if whole else None,
        "high": max(values) if whole else None,
        "shrinkage": None if mean is None or estimate is None else estimate - mean,
        "index": ranking.get(trial, {}).get("index"),
        "chosen": choice is not None and choice["trial"] == trial,
    }


def _seeds(study: Study, trial: int, num_seeds: int) -> list[dict[str, Any]]:
    begun = {e["index"]: e for e in study.of_event("confirmation_started") if e["trial"] == trial}
    ended = {e["index"]: e for e in study.of_event("confirmation_ended") if e["trial"] == trial}
    return [
        {
            "index": index,
            "seed": begun[index].get("seed"),
            "state": ended.get(index, {}).get("state", "RUNNING"),
            "value": ended.get(index, {}).get("value"),
            "reason": ended.get(index, {}).get("reason"),
        }
        for index in sorted(begun)
        if index <= num_seeds
    ]


def _extended(study: Study) -> bool:
    """Whether a trial has completed since the choice that stands."""
    kinds = [event.get("event") for event in study.events]
    last = len(kinds) - 1 - kinds[::-1].index("confirmation_chosen")
    return any(
        event.get("event") == "trial_ended" and event.get("state") == "COMPLETE" for event in study.events[last + 1 :]
    )


def how_chosen(metrics: Mapping[str, Any], otherwise: str) -> str:
    """How the delivered model was chosen, in a few words.

    Args:
        metrics: of the report.
        otherwise: what is said where nothing was confirmed.
    """
    found = metrics.get("confirmation") or {}
    chosen = found.get("chosen")
    if chosen is None:
        return otherwise
    trials = len(found["rows"])
    among = f"the best mean of {trials} trials" if trials > 1 else "the one trial that was"
    each = f"{chosen['seeds']} new seed{'s' * (chosen['seeds'] != 1)} each"
    return f"confirmed: {among}, {each}; seed {chosen['index']}, its median"


def cautions(study: Study, metrics: Mapping[str, Any]) -> list[str]:
    """What a reader of the headline must know about how its model was chosen."""
    found = metrics["confirmation"]
    completed = metrics["search"]["states"].get("COMPLETE", 0)
    if found["chosen"] is None:
        if found["asked"]["top_k"] and completed:
            return [
                "Confirmation was asked for and no choice follows from it yet: see how the best trials were confirmed."
            ]
        if completed > 1:
            return [
                f"Not confirmed: the best trial was chosen among {completed} by one training of each, so its validation"
                " value flatters it. search.confirm.top_k=3, typed with the same line, trains the best again with new"
                " seeds and says by how much."
            ]
        return []
    if found["extended"]:
        return [
            f"Trials have completed since trial {found['chosen']['trial']} was confirmed and chosen: they took no part"
            " in the choice. The line that searched, typed again with search.confirm.top_k, confirms them too."
        ]
    return []
