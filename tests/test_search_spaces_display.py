"""What a user sees of a search: a live table in a terminal, plain lines elsewhere, nothing of other programs' noise."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from search_spaces.confirmation import SeedRun
from search_spaces.display import MAX_ROWS, Display, chosen, duration
from search_spaces.ledger import TrialRecord
from search_spaces.quiet import quiet
from trainables.files import StorageError

METRIC = "val/auroc"


class Books:
    """What a display reads of a ledger."""

    things = "trials"

    def __init__(self, num_trials=4):
        self.trials, self.num_trials, self.device_seconds = {}, num_trials, 0.0
        self.search = SimpleNamespace(metric=METRIC, max_hours=None, max_device_hours=None)
        self.wall_seconds = 0.0

    @property
    def num_ended(self):
        return sum(trial.state != "RUNNING" for trial in self.trials.values())

    @property
    def best(self):
        complete = [trial for trial in self.trials.values() if trial.state == "COMPLETE"]
        return max(complete, key=lambda trial: trial.value, default=None)

    def start(self, number, **params):
        self.trials[number] = TrialRecord(number, params)

    def change(self, number, **values):
        for name, value in values.items():
            setattr(self.trials[number], name, value)


@pytest.fixture
def books():
    books = Books()
    books.start(0, **{"task.pretrain.lr": 1e-3})
    return books


def terminal(width=120):
    return Console(force_terminal=True, file=io.StringIO(), width=width, height=40, color_system=None)


def plain():
    return Console(file=io.StringIO(), width=60, soft_wrap=True, highlight=False)


def shown(console):
    return console.file.getvalue()


def test_without_a_terminal_each_change_is_one_plain_line(books):
    console = plain()
    with Display(console, books, 6) as display:
        books.start(1, **{"model.mask_ratio": 0.7123, "data.leads": ["I", "[/red]"]})
        display()
        books.change(1, epoch=1, metrics={METRIC: 0.61234, "train/loss": 1.0})
        display()
        display()
        books.change(1, epoch=2, metrics={METRIC: 0.6}, state="PRUNED", reason="scheduler")
        books.device_seconds = 360.0
        display()
    assert shown(console).splitlines() == [
        "trial 1  started  mask_ratio 0.712  leads ['I', '[/red]']",
        "trial 1  epoch 1/6  val/auroc 0.6123  |  0/4 trials, 0.00 device-hours",
        shown(console).splitlines()[2],
    ]
    assert re.fullmatch(
        r"trial 1  epoch 2/6  val/auroc 0.6000  PRUNED \(scheduler\)  \|  1/4 trials, about .* left, 0.10 device-hours",
        shown(console).splitlines()[2],
    )


def test_a_paused_trial_is_said_to_be_and_counts_as_done_until_it_goes_on():
    books, console = Books(num_trials=3), plain()
    with Display(console, books, 6) as display:
        books.start(1)
        books.change(1, epoch=1, metrics={METRIC: 0.6}, decision="pause")
        display()
        assert "about" in display.summary()
        books.change(1, decision="go_on")
        assert "about" not in display.summary()
    line = shown(console).splitlines()[1]
    assert line.startswith("trial 1  epoch 1/6  val/auroc 0.6000  paused  |  0/3 trials, about")


def test_a_trial_whose_first_epoch_is_over_already_is_still_said_to_have_started(books):
    console = plain()
    with Display(console, books, 6) as display:
        books.start(1, lr=0.1)
        books.change(1, epoch=1, metrics={METRIC: 0.6})
        display()
    first, second = shown(console).splitlines()
    assert first == "trial 1  started  lr 0.1"
    assert second.startswith("trial 1  epoch 1/6  val/auroc 0.6000")


def test_what_was_there_before_is_not_said_again(books):
    books.change(0, state="COMPLETE", epoch=6, value=0.8)
    console = plain()
    with Display(console, books, 6) as display:
        display()
    assert shown(console) == ""
    assert display.summary() == "1/4 trials, best 0.8000 (trial 0), 0.00 device-hours"
    books.search.max_hours, books.search.max_device_hours = 2.0, 5
    books.device_seconds, books.wall_seconds = 1800.0, 900.0
    used = "0.50 of 5 device-hours, 0.25 of 2 hours"
    assert display.summary() == f"1/4 trials, best 0.8000 (trial 0), {used}"


def test_in_a_terminal_there_is_one_table_with_all_trials(books):
    console = terminal()
    with Display(console, books, 6) as display:
        books.start(1, **{"data.leads": ["I", "[/red]"]})
        books.change(0, epoch=4, stage="finetune", metrics={METRIC: 0.7}, value=0.71, seconds=12.0)
        books.change(1, epoch=1, state="PRUNED", reason="non_finite: [nan]")
        display()
    last = shown(console)
    assert re.search(r"0 +RUNNING +4/6 +finetune +0\.7000 +0\.7100 +12 +lr 0\.001", last)
    assert re.search(r"1 +PRUNED \(non_finite: \[nan\]\) +1/6", last)
    assert "leads ['I', '[/red]']" in last
    assert "1/4 trials" in last
    assert "epoch 4/6" not in last


def test_a_long_search_shows_what_runs_and_the_latest_others():
    books = Books(num_trials=90)
    for number in range(50):
        books.start(number, lr=0.1)
        books.change(number, state="RUNNING" if number == 3 else "COMPLETE", value=0.5)
    console = terminal()
    with Display(console, books, 6):
        pass
    numbers = {
        int(line.split()[0]) for line in shown(console).splitlines() if re.match(r"\d+ +(RUNNING|COMPLETE)", line)
    }
    assert numbers == {3, *range(50 - MAX_ROWS + 1, 50)}


def test_an_error_leaves_the_terminal_as_it_was(books):
    console = terminal()
    with pytest.raises(RuntimeError, match="no table is left open"), Display(console, books, 6):
        raise RuntimeError("no table is left open")
    assert shown(console).count("\x1b[?25l") == shown(console).count("\x1b[?25h") == 1  # the cursor came back


def test_the_time_left_follows_from_the_trials_that_ended_in_this_session(books, monkeypatch):
    now = 100.0
    monkeypatch.setattr("search_spaces.display.time.monotonic", lambda: now)
    books.change(0, state="COMPLETE", value=0.9)
    with Display(plain(), books, 6) as display:
        books.start(1)
        books.change(1, state="FAIL")
        now += 60
        assert display.summary() == "2/4 trials, best 0.9000 (trial 0), about 2 min left, 0.00 device-hours"


@pytest.mark.parametrize(("seconds", "said"), [(45, "45 s"), (720, "12 min"), (12_240, "3.4 h")])
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_choices_are_short():
    assert chosen({"task.pretrain.lr": 0.00123456, "model.size": "tiny"}) == "lr 0.00123  size tiny"


# -------- everything else goes to a file

NOISY = """
import os, sys
from pathlib import Path
from rich.console import Console
from search_spaces.quiet import quiet

try:
    with quiet(Console(soft_wrap=True), Path(sys.argv[1])) as console:
        print("a print")
        print("an error", file=sys.stderr)
        os.system("echo a child")
        console.print("our own line")
        raise RuntimeError("it broke")
finally:
    print("after")
"""


def test_only_our_own_lines_reach_the_terminal_while_a_search_runs(tmp_path):
    log = tmp_path / "study" / "ray.log"
    ran = subprocess.run(
        [sys.executable, "-c", NOISY, str(log)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert ran.stdout == "our own line\nafter\n"
    assert ran.stderr.splitlines()[-1] == "RuntimeError: it broke"
    assert "an error" not in ran.stderr
    assert sorted(log.read_text().splitlines()) == ["a child", "a print", "an error"]


def test_a_callers_own_console_is_left_alone(tmp_path):
    console = plain()
    with quiet(console, tmp_path / "log") as same:
        assert same is console
    assert not (tmp_path / "log").exists()


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="ray.log cannot be written"),
        quiet(Console(), tmp_path / "file" / "ray.log"),
    ):
        pass


def test_runs_of_a_confirmation_are_called_by_their_trial_and_seed():
    assert TrialRecord(3, {}).name == "trial 3"
    assert SeedRun(2_000_003, {}, trial=3, index=2, seed=77).name == "trial 3, seed 2"
