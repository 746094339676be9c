"""What is said where a confirmation was asked for and nothing could be chosen, so that the test fold stays closed."""

from __future__ import annotations

from search_spaces.confirmation import Confirmation
from search_spaces.ledger import Ledger


def why_closed(ledger: Ledger, confirmation: Confirmation) -> str:
    """Why there is no choice, what to type to come to one, and what is evaluated without, in a line each."""
    return f"{_why(ledger, confirmation)}\nsearch.confirm.top_k=0 evaluates {_without(ledger, confirmation)}"


def _why(ledger: Ledger, confirmation: Confirmation) -> str:
    closed = "so the test fold stays closed"
    budget = (ledger.used_up or "the budget").partition("=")[0]
    if ledger.num_ended < ledger.num_trials:
        said = (
            f"{ledger.num_ended} of {ledger.num_trials} trials have ended and none is confirmed before all have, "
            f"{closed}: type a larger {budget} to go on"
        )
        if ledger.has_fixed_points:
            return said
        return f"{said}, or search.num_trials={ledger.num_ended} and a larger {budget} to confirm those that have ended"
    if confirmation.num_left:
        done = f"{confirmation.num_ended} of {confirmation.num_trials} confirmation runs have ended"
        return f"{done}, {closed}: type a larger {budget} to go on"
    failed = [run for run in confirmation.wanted_runs if run.state == "FAIL"]
    said = f"of each confirmed trial a run has failed ({failed[0].name}: {failed[0].reason}), {closed}"
    if any(run.gave_way for run in failed):
        return f"{said}: type the same line again to train anew what was interrupted too often"
    return f"{said}: type a larger search.confirm.top_k to confirm more trials"


def _without(ledger: Ledger, confirmation: Confirmation) -> str:
    chosen, best = confirmation.chosen, ledger.best
    if chosen is not None:
        return f"trial {chosen['trial']}, seed {chosen['index']}, which an earlier confirmation chose"
    assert best is not None
    return f"the search's best trial, {best.number}, unconfirmed"
