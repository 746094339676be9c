"""What the engine and the display ask of a study's books: the search's, and those of its confirmation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from search_spaces.ledger import TrialRecord
from search_spaces.schema import Search
from trainables.failures import InterruptedTrial
from trainables.settings import Run
from trainables.stored import States
from trainables.study import StudyFolder


class Books(Protocol):
    """Hands out runs and takes in their results; see search_spaces.ledger.Ledger, whose words these are."""

    things: str
    folder: StudyFolder
    states: States
    search: Search

    @property
    def trials(self) -> Mapping[int, TrialRecord]:
        """By number."""

    @property
    def num_trials(self) -> int:
        """How many there are to be."""

    @property
    def num_ended(self) -> int:
        """How many of them have ended."""

    @property
    def num_running(self) -> int:
        """How many are being computed."""

    @property
    def is_over(self) -> bool:
        """Whether nothing will be handed out any more."""

    @property
    def best(self) -> TrialRecord | None:
        """The best one that completed."""

    @property
    def device_seconds(self) -> float:
        """Of all workers."""

    @property
    def wall_seconds(self) -> float:
        """In which a driver ran the study."""

    @property
    def used_up(self) -> str | None:
        """Which budget is."""

    def next_trial(self) -> tuple[TrialRecord, Run] | None:
        """What to start now."""

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Take in an epoch; say whether it goes on."""

    def end(self, number: int, state: str, reason: str | None) -> None:
        """Write down how it ended."""

    def interrupt(self, number: int, interruption: InterruptedTrial) -> None:
        """Take in that what it ran on has failed."""

    def write_table(self) -> None:
        """What follows from the books, for a reader without them."""
