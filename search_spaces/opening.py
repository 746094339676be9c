"""What a command opens before it begins: its space, the recordings, a study and its books.

What costs a second is imported where it is needed, after the cheaper checks have passed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from search_spaces.schema import Launch, checked, tree_of

if TYPE_CHECKING:
    from data.store import Store
    from search_spaces.confirmation import Confirmation
    from search_spaces.distributions import Space
    from search_spaces.ledger import Ledger
    from trainables.recordings import Recordings
    from trainables.settings import Run
    from trainables.stored import States
    from trainables.study import StudyFolder


def checked_space(launch: Launch) -> Space:
    """The space of the launch, with every end of every range tried."""
    from search_spaces.distributions import check_space, parse

    space = parse(launch.space)
    check_space(tree_of(launch), space, launch.options)
    return space


def lint_search(launch: Launch, space: Space) -> None:
    """Refuse a search that cannot give what it seems to; imported late, after the cheaper checks have passed."""
    from search_spaces.lint import lint

    lint(launch, space)


@contextmanager
def progress_bar(text: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar under `text` in a terminal; what it gives is called with (done, total)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def open_store(launch: Launch, console: Console) -> Store:
    """The prepared recordings of the launch, prepared now where they are not."""
    from data.store import prepare as prepare_store
    from trainables.recordings import preparation_of, reader_of

    with progress_bar("preparing recordings", console) as progress:
        return prepare_store(
            reader_of(launch.data),
            preparation_of(launch.data),
            Path(launch.data.store_dir),
            name=launch.data.name,
            max_unreadable_share=launch.data.max_unreadable_share,
            progress=progress,
        )


def describe_recordings(launch: Launch, recordings: Recordings, console: Console) -> None:
    """Say who trains, who validates, who does neither, and which classes cannot be scored."""
    rows, labelled = recordings.split, recordings.labels.labelled
    folds = recordings.store.index["fold"]
    subsampled = [
        f"{part} limited to {patients} patients"
        for part, chosen, whole, patients in (
            ("training", rows.pretrain, folds.isin(launch.data.train_folds), launch.data.max_train_patients),
            ("validation", rows.valid, folds.isin(launch.data.valid_folds) & labelled, launch.data.max_valid_patients),
        )
        if len(chosen) < whole.sum()
    ]
    parts = (
        (f"{len(rows.pretrain)} pre-train, " if launch.task.stages != "finetune" else "")
        + f"{len(rows.train)} train, {len(rows.valid)} validate, {len(rows.test)} test"
        + (f" ({', '.join(subsampled)}; the test fold never is)" if subsampled else "")
    )
    if recordings.folds is not None:
        parts = recordings.folds.described()
    console.print(f"recordings: {parts}", markup=False)
    in_a_part = [*launch.data.train_folds, *launch.data.valid_folds, *launch.data.test_folds]
    if len(left_out := folds[~folds.isin(in_a_part)]):
        numbers = ", ".join(map(str, sorted(left_out.unique())))
        console.print(
            f"note: {len(left_out)} recordings are not used, their folds {numbers} are in none of data.train_folds, "
            "data.valid_folds and data.test_folds",
            markup=False,
        )
    classes = recordings.labels.classes
    if unscored := sorted(set(range(len(classes))) - set(recordings.valid_classes.tolist())):
        names = ", ".join(classes[k] for k in unscored)
        where = "validation records" + (" of one of the folds" if recordings.folds is not None else "")
        console.print(f"note: not in the {where}, so left out of its means: {names}", markup=False)


def gpus_here(launch: Launch) -> float:
    """GPUs for what this process computes itself: as each worker of a trial would have."""
    import torch

    return launch.cluster.gpus_of_worker(torch.cuda.device_count())


def check_resume(launch: Launch, study: StudyFolder) -> None:
    """Hold `resume` and the study's identity against what is in its folder."""
    from trainables.stored import configuration_of_stored
    from trainables.study import StudyError

    place, key = (str(study.path), "study_dir=DIR") if launch.storage is None else (launch.storage, "storage=URL")
    held = None if launch.storage is None else configuration_of_stored(launch.storage)
    if held is None and study.configuration.exists():
        place, held = str(study.path), study.read_configuration()
    if held is not None and launch.resume == "never":
        raise StudyError(f"{place} holds a study and resume=never: type another {key}, or resume=auto")
    if held is None and launch.resume == "must":
        raise StudyError(f"{place} holds no study and resume=must: check {key.partition('=')[0]}, or type resume=auto")
    if held is None:
        return
    from search_spaces.schema import dotted

    before = dotted(checked(held).identity())
    now = dotted(launch.identity())
    differing = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not isinstance(before.get(key, now.get(key)), dict)
    ]
    if differing:
        shown = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in differing[:8])
        more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise StudyError(f"{place} holds another study: {shown}{more}; type {key} for a new one, or the values it has")


def check_same_folds(launch: Launch, folder: Path, run: Run) -> None:
    """Refuse a checkpoint that had its recordings in other folds: what validates here may be what it is tested on.

    Raises:
        DataError: naming the folds; none where the recordings are another source than the checkpoint's.
    """
    from data.record import DataError

    if launch.data.name != run.data.name:
        return
    for key in ("train_folds", "valid_folds", "test_folds"):
        here, there = getattr(launch.data, key), getattr(run.data, key)
        if sorted(here) != sorted(there):
            raise DataError(
                f"{folder} was trained with data.{key}={there}, the records here are chosen with {here}: name only "
                "checkpoints of the same folds, one command for each choice of them, and leave data.*_folds out"
            )


def with_own_encoder(launch: Launch, study: StudyFolder) -> Launch:
    """The launch with `task.encoder` set to the study's own copy of it: what lies at the path typed may change.

    Raises:
        StudyError: if other weights are at the path now than those that the study began with.
        DataError, StorageError: if they are of another model or other recordings, or cannot be read.
    """
    if launch.task.encoder is None:
        return launch
    from trainables.checkpoint import DESCRIPTION, copy_checkpoint, weights_digest
    from trainables.loops import first_encoder
    from trainables.study import StudyError

    given = Path(launch.task.encoder)
    if not (study.encoder / DESCRIPTION).exists():
        first_encoder(launch.run, whole_history=True)  # refuses what no trial could start from
        copy_checkpoint(given, study.encoder)
    elif given.exists() and weights_digest(given) != weights_digest(study.encoder):
        raise StudyError(
            f"{study.path} was begun with other weights than those in {given} now: type study_dir=DIR for a new study, "
            f"or task.encoder={study.encoder} for those it began with"
        )
    task = launch.task.model_copy(update={"encoder": str(study.encoder)})
    return launch.model_copy(update={"task": task})


def open_books(
    launch: Launch, space: Space, study: StudyFolder, store: Store, states: States | None = None
) -> tuple[Ledger, Recordings]:
    """The study's books and its recordings; both refuse what cannot be searched."""
    from search_spaces.distributions import run_with
    from search_spaces.ledger import Ledger, TrialRecord
    from search_spaces.schedulers import make_policy
    from trainables.changes import code_changes, keep_changes
    from trainables.checkpoint import description_of
    from trainables.provenance import git_revision, hardware, versions
    from trainables.recordings import open_recordings
    from trainables.study import StudyError

    tree = tree_of(launch)
    recordings = open_recordings(launch.run, store.path)
    begun = [event for event in study.read_events() if event["event"] == "study_started"]
    for event in begun:
        if event["store"] != store.hash:
            raise StudyError(
                f"{study.path} was begun on other recordings (store {event['store'][:12]}, now {store.hash[:12]}): "
                "type study_dir=DIR for a new study, or the data.root it had"
            )

    def describe(trial: TrialRecord, run: Run) -> dict[str, Any]:
        return description_of(
            run,
            open_recordings(run, store.path),
            {"epoch": trial.best_epoch, "value": trial.value, "metrics": trial.best_metrics},
            launch.search.metric,
            trial=trial.number,
            params=trial.params,
            exploits=trial.exploits,
        )

    study.write_configuration(tree)
    study.record(
        "study_resumed" if begun else "study_started",
        store=store.hash,
        git_revision=git_revision(),
        changes=keep_changes(study, code_changes()),
        versions=versions(),
        hardware=hardware(),
    )
    ledger = Ledger(
        study,
        launch,
        space,
        make_run=functools.partial(run_with, launch),
        first_points=space.first_points(tree, launch.options),
        policy=make_policy(launch.scheduler, launch.task),
        describe=describe,
        states=states,
    )
    return ledger, recordings


def open_confirmation(launch: Launch, ledger: Ledger) -> Confirmation:
    """The books of the best trials' further trainings; there may be none."""
    from search_spaces.confirmation import Confirmation

    return Confirmation(ledger, seed=launch.seed, max_failures=launch.cluster.max_failures)
