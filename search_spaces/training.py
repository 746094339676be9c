"""command=train: one run without a search, or one of a study's again, in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from search_spaces.opening import checked_space, describe_recordings, gpus_here, open_store, with_own_encoder
from search_spaces.schema import Launch
from search_spaces.stopping import INTERRUPTED, typed_again

if TYPE_CHECKING:
    from trainables.settings import Run
    from trainables.study import StudyFolder


def train(launch: Launch, console: Console) -> int:
    """One run without a search, or one trial of a study again; the same line goes on where it stopped."""
    from search_spaces.lint import check_objective, kind_of_labels
    from trainables.loops import first_encoder
    from trainables.study import StudyFolder

    study = StudyFolder(Path(launch.study_dir))
    if launch.trial is None:
        checked_space(launch)  # the run's own values, too
        check_objective(launch)
        kind_of_labels(launch)
        if launch.task.encoder is not None:
            first_encoder(launch.run, whole_history=True)
        if launch.space:
            console.print("note: command=train runs the configuration's own values; nothing is searched", markup=False)
        return train_once(launch, launch.run, study.path / "train", 0, console)[0]
    number = launch.trial
    if study.encoder.exists():
        launch = with_own_encoder(launch, study)
    run, recorded = recorded_trial(launch, study, number)
    of_seed = "" if launch.trial_seed is None else f"_seed_{launch.trial_seed}"
    folder = study.path / "again" / f"trial_{number:04d}{of_seed}"
    if (folder / "checkpoint").exists():  # finished before: again means computed again
        shutil.rmtree(folder)
    code, history = train_once(launch, run, folder, number, console)
    differing = [epoch for epoch, metrics in recorded.items() if epoch in history and history[epoch] != metrics]
    if code == 0:
        metric = launch.search.metric
        most = max((abs(history[epoch][metric] - recorded[epoch][metric]) for epoch in differing), default=0.0)
        console.print(
            f"trial {number} again: "
            + (
                f"epochs {differing} differ from the study's, {metric} by {most:.1e} at most"
                if differing
                else "the study's figures, bit for bit"
            )
        )
    return code


def recorded_trial(launch: Launch, study: StudyFolder, number: int) -> tuple[Run, dict[int, dict[str, float]]]:
    """A trial's run, and the metrics of each of its epochs, from its study's events."""
    from search_spaces.distributions import run_with
    from trainables.study import StudyError

    events = [event for event in study.read_events() if event.get("trial") == number]
    started = [event for event in events if event["event"] == "trial_started"]
    if not started:
        raise StudyError(f"{study.path} has no trial {number}: its trials.parquet lists those it has")
    if any(event["event"] == "exploit" for event in events):
        raise StudyError(
            f"trial {number} went on from other trials' weights (scheduler=pbt): it cannot be trained again alone; "
            "its checkpoint.json lists the exploits"
        )
    run = run_with(launch, started[0]["params"])
    if launch.trial_seed is None:
        return run, {event["epoch"]: event["metrics"] for event in events if event["event"] == "epoch"}
    from search_spaces.confirmation import under_seed

    events = [event for event in events if event.get("index") == launch.trial_seed]
    begun = [event for event in events if event["event"] == "confirmation_started"]
    if not begun:
        raise StudyError(f"{study.path} has not confirmed trial {number} with a seed {launch.trial_seed}")
    recorded = {event["epoch"]: event["metrics"] for event in events if event["event"] == "confirmation_epoch"}
    return under_seed(run, begun[0]["seed"]), recorded


def train_once(
    launch: Launch, run: Run, folder: Path, number: int, console: Console
) -> tuple[int, dict[int, dict[str, float]]]:
    """Train one run in this process; its best weights end in `folder`/checkpoint."""
    from trainables.checkpoint import keep_run
    from trainables.recordings import open_recordings
    from trainables.state import read_place
    from trainables.study import StudyFolder
    from trainables.trial import Assignment, epochs
    from trainables.workers import Workers

    with StudyFolder(folder).locked():
        store = open_store(launch, console)
        check_same_run(folder, launch, run, store.hash)
        recordings = open_recordings(run, store.path)
        describe_recordings(launch, recordings, console)
        num_gpus = gpus_here(launch)
        assignment = Assignment(
            number=number,
            run=run,
            folder=folder,
            store=store.path,
            metric=launch.search.metric,
            maximize=launch.search.direction == "maximize",
            num_gpus=num_gpus,
            cpus_per_worker=launch.cluster.cpus_per_worker,
        )
        try:
            for result in epochs(assignment, Workers.of_this_process(num_gpus=num_gpus)):
                if result["reason"] is not None:
                    console.print(f"ended: {result['reason']}", markup=False)
                    return 1, {}
                figures = "  ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
                console.print(f"epoch {result['epoch']}/{run.task.num_epochs}  {result['stage']}  {figures}")
        except KeyboardInterrupt:
            console.print(f"stopped; saved up to the last epoch. To go on:\n  {typed_again()}", markup=False)
            return INTERRUPTED, {}
        place = read_place(folder)
        assert place is not None
        kept = keep_run(folder, run, recordings, place["best"], launch.search.metric)
        console.print(f"best: epoch {place['best']['epoch']}, {launch.search.metric} {place['best']['value']:.4f}")
        console.print(f"checkpoint: {kept}", markup=False)
        return 0, {entry["epoch"]: entry["metrics"] for entry in place["history"]}


def check_same_run(folder: Path, launch: Launch, run: Run, store_hash: str) -> None:
    """Refuse to go on in a folder where another run was trained; write down which one is trained there."""
    from search_spaces.schema import dotted, without_places
    from trainables.files import write_atomically
    from trainables.study import StudyError

    tree = run.model_dump(mode="json", by_alias=True)
    search = {"metric": launch.search.metric, "direction": launch.search.direction}
    now = {**tree, **without_places(run), "search": search, "store": store_hash}
    path = folder / "run.json"
    if path.exists():
        before, after = (
            {key: value for key, value in dotted(held).items() if not isinstance(value, dict)}
            for held in (json.loads(path.read_bytes()), now)
        )
        differing = [key for key, value in after.items() if before.get(key) != value]
        if differing or before.keys() != after.keys():
            raise StudyError(
                f"{folder} holds a run with another configuration (run.json: "
                f"{', '.join(differing[:3]) or 'other keys'}): type another study_dir=DIR"
            )
    write_atomically(path, json.dumps(now, indent=2).encode() + b"\n")
