"""What a trial on two workers costs before it learns anything, and what its start consists of.

One trial at a time, Ray already up, loops empty (one result and the end). Figures:

    nested   seconds a trial of Ray Train inside Tune as the documentation of Ray 2.60 has it: a function trainable that
             runs a TorchTrainer of two workers, whose reports come back through TuneReportCallback. 4 trials.
    gang     seconds a trial of search=stmem_ptbxl with cluster.workers_per_trial=2, its books written as ever; only the
             epochs are empty. 8 trials. Its ratio is nested / gang. Target: half of nested.
    first    of these, seconds from the first trial's entry in the books to its first result: it alone starts a process
             of Tune's and one that guards the gangs' places, which later trials use again.

and the parts of the other gangs' trials in their order, from the entry in the books, in seconds, each the median:

    actor            until Tune's process has ended the gang before, and begins to set the trial up
    mailbox          until Train runs, and what the gang reports to has been asked for
    placement_group  until the gang has its place
    workers          until both workers' processes are up
    process_group    until they have imported what they run, and torch.distributed connects them
    first_epoch      until the first result is there
    end              until the gang is gone: it ends while the next trial begins

    python benchmarks/gang_start.py --json FILE
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

import trial_start
from figures import Figure, parse_arguments, publish
from ray import cloudpickle
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from trial_start import last_epoch, nested_trial, our_seconds_per_trial, seconds_per_trial

from trainables.gang import GangTrial
from trainables.trial import Assignment, Engine
from trainables.workers import Workers

NUM_NESTED_TRIALS = 4
NUM_GANGS = 8
PARTS = ("actor", "mailbox", "placement_group", "workers", "process_group", "first_epoch", "end")


class EmptyGangTrial(GangTrial):
    """Our trial on two workers without its computation, which says when each part of its start was over."""

    def start_engine(self, assignment: Assignment) -> Engine:
        """Start the gang."""
        self.over = {"actor": time.time()}
        for owner, method, part in (
            (DefaultPlacementGroupHandle, "wait", "placement_group"),
            (WorkerGroup, "_create_workers", "workers"),
            (_TorchBackend, "on_start", "process_group"),
        ):
            function = getattr(owner, method)
            setattr(owner, method, self.timed(getattr(function, "__wrapped__", function), part))
        engine = super().start_engine(assignment)
        self.over["mailbox"] = time.time()
        return engine

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """`function`, after whose end the part is over."""

        @wraps(function)
        def and_say_when(*args: Any, **settings: Any) -> Any:
            value = function(*args, **settings)
            self.over.setdefault(part, time.time())
            return value

        return and_say_when

    @staticmethod
    def loop(assignment: Assignment, workers: Workers) -> Iterator[dict[str, Any]]:
        """One result."""
        yield last_epoch(assignment)

    def step(self) -> dict[str, Any]:
        """The first epoch, which is the last."""
        result = super().step()
        self.over.setdefault("first_epoch", time.time())
        return result

    def release(self) -> None:
        """End the gang, and leave what has been noted where the benchmark looks for it."""
        super().release()
        self.over.setdefault("end", time.time())
        place = self.assignment.store / f"{self.assignment.number}.json"
        place.write_text(json.dumps(self.over))


def seconds_of_parts(events: list[dict[str, Any]], notes: Path) -> list[dict[str, float]]:
    """The seconds of each trial's parts."""
    found = []
    for event in events:
        if event["event"] == "trial_started":
            over = json.loads((notes / f"{event['trial']}.json").read_text(encoding="utf-8"))
            times = [datetime.fromisoformat(event["time"]).timestamp(), *(over[part] for part in PARTS)]
            found.append({part: times[i + 1] - times[i] for i, part in enumerate(PARTS)})
    return found


def main() -> None:
    """Measure both and publish them."""
    assert __doc__ is not None
    arguments = parse_arguments(__doc__)
    cloudpickle.register_pickle_by_value(trial_start)  # else workers would import it, and what drives a search with it
    # a nested trial takes three CPUs: Tune gives its driver one and Train its workers one each
    nested = seconds_per_trial(nested_trial, NUM_NESTED_TRIALS, cpus_per_trial=3, concurrent_trials=1, num_workers=2)
    with tempfile.TemporaryDirectory() as folder:
        gang, events = our_seconds_per_trial(
            "cluster.workers_per_trial=2",
            f"search.num_trials={NUM_GANGS}",
            trainable=EmptyGangTrial,
            store=Path(folder),
            num_cpus=2,
        )
        parts = seconds_of_parts(events, Path(folder))
    target = nested / 2
    figures = [
        Figure("nested", nested, "s/trial"),
        Figure("gang", gang, "s/trial", baseline=nested, ratio=nested / gang, target=target, bound="at most"),
        Figure("first", sum(parts[0][part] for part in PARTS[:-1]), "s"),
        *(Figure(part, statistics.median(trial[part] for trial in parts[1:]), "s") for part in PARTS),
    ]
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
