"""What a user sees while a search runs: one live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search_spaces.books import Books
from search_spaces.ledger import TrialRecord

MAX_ROWS = 20  # of the live table: the running trials and the latest others


class Display(AbstractContextManager["Display"]):
    """Shows a ledger; call it after every change.

    Args:
        console: where; a live table if it is a terminal.
        ledger: what.
        num_epochs: of a whole trial.
    """

    def __init__(self, console: Console, ledger: Books, num_epochs: int) -> None:
        self._console = console
        self._ledger = ledger
        self._num_epochs = num_epochs
        self._done_before = self._num_done
        self._started = time.monotonic()
        self._live: Live | None = None
        self._seen: dict[int, tuple[str, int]] = {n: (t.state, t.epoch) for n, t in ledger.trials.items()}

    @property
    def _num_done(self) -> int:
        """Trials that have ended, and those that are paused, of which a few will go on."""
        return self._ledger.num_ended + sum(trial.is_paused for trial in self._ledger.trials.values())

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # standard output and error belong to the log file while this lives: do not bring them back
            self._live = Live(
                self._table(),
                console=self._console,
                refresh_per_second=2,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._table())
            self._live.stop()

    def __call__(self) -> None:
        """Show what has changed."""
        if self._live is not None:
            self._live.update(self._table())
            return
        for number, trial in self._ledger.trials.items():
            now = (trial.state, trial.epoch)
            if number not in self._seen:  # also when its first epoch is over already
                self._print(f"{trial.name}  started  {chosen(trial.params)}".rstrip())
                self._seen[number] = ("RUNNING", 0)
            if self._seen[number] != now:
                self._seen[number] = now
                self._print(self._line(trial))

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self, trial: TrialRecord) -> str:
        metric = self._ledger.search.metric
        shown = trial.metrics.get(metric)
        value = "" if shown is None else f"  {metric} {shown:.4f}"
        end = "" if _is_running(trial) else f"  {_state(trial)}" + (f" ({trial.reason})" if trial.reason else "")
        return f"{trial.name}  epoch {trial.epoch}/{self._num_epochs}{value}{end}  |  {self.summary()}"

    def summary(self) -> str:
        """Trials ended, the best so far, the time left, what is used of the budgets: one line."""
        ledger = self._ledger
        best = ledger.best
        parts = [f"{ledger.num_ended}/{ledger.num_trials} {ledger.things}"]
        if best is not None:
            parts.append(f"best {best.value:.4f} ({best.name})")
        num_done = self._num_done
        done = num_done - self._done_before
        if done > 0 and num_done < ledger.num_trials:
            seconds = (time.monotonic() - self._started) / done * (ledger.num_trials - num_done)
            parts.append(f"about {duration(seconds)} left")
        budget = ledger.search
        of_devices = "" if budget.max_device_hours is None else f" of {budget.max_device_hours:g}"
        parts.append(f"{ledger.device_seconds / 3600:.2f}{of_devices} device-hours")
        if budget.max_hours is not None:
            parts.append(f"{ledger.wall_seconds / 3600:.2f} of {budget.max_hours:g} hours")
        return ", ".join(parts)

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for heading in ("trial", "state", "epoch", "stage", self._ledger.search.metric, "best", "seconds", "chosen"):
            table.add_column(heading, no_wrap=heading != "chosen")
        for trial in self._rows():
            shown = trial.metrics.get(self._ledger.search.metric)
            cells = (
                trial.name.removeprefix("trial "),
                _state(trial) if trial.reason is None else f"{_state(trial)} ({trial.reason[:24]})",
                f"{trial.epoch}/{self._num_epochs}",
                trial.stage or "",
                "" if shown is None else f"{shown:.4f}",
                "" if trial.value is None else f"{trial.value:.4f}",
                f"{trial.seconds:.0f}",
                chosen(trial.params),
            )
            # as Text: rich would read the brackets of a list or a reason as markup
            table.add_row(*map(Text, cells), style="dim" if _state(trial) in ("paused", "PRUNED", "FAIL") else None)
        return Group(table, Text(self.summary()))

    def _rows(self) -> list[TrialRecord]:
        trials = self._ledger.trials.values()
        latest = sorted(trials, key=lambda trial: (_is_running(trial), trial.number))[-MAX_ROWS:]
        return sorted(latest, key=lambda trial: trial.number)


def _is_running(trial: TrialRecord) -> bool:
    return _state(trial) == "RUNNING"


def _state(trial: TrialRecord) -> str:
    return "paused" if trial.is_paused else trial.state


def chosen(params: Mapping[str, object]) -> str:
    """Choices in short: each value with the last part of its name, or the last two where the last alone is shared."""
    lasts = [name.rpartition(".")[2] for name in params]
    shown = []
    for (name, value), last in zip(params.items(), lasts, strict=True):
        short = last if lasts.count(last) == 1 else ".".join(name.split(".")[-2:])
        shown.append(f"{short} {value:.3g}" if isinstance(value, float) else f"{short} {value}")
    return "  ".join(shown)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
