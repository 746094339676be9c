"""Trials, and then the trainings of a confirmation, on Ray, with what a user sees meanwhile."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from rich.console import Console

from search_spaces.schema import Launch

if TYPE_CHECKING:
    from data.store import Store
    from search_spaces.confirmation import Confirmation
    from search_spaces.ledger import Ledger
    from trainables.study import StudyFolder


def run_search(launch: Launch, ledger: Ledger, confirmation: Confirmation, store: Store, console: Console) -> bool:
    """Run trials on Ray, then confirm the best, with a live table in a terminal and Ray's own noise in a file.

    Returns:
        whether it ended because of SIGTERM, which is then in the study's events.
    """
    from search_spaces.display import Display
    from search_spaces.logs import configure
    from search_spaces.preflight import ready_cluster
    from search_spaces.quiet import quiet
    from search_spaces.reuse import said_of_pretrainings, shared_by
    from search_spaces.stopping import ending_on_sigterm
    from search_spaces.tracking import make_tracker
    from search_spaces.tuning import run_trials

    console.print(f"study: {ledger.folder.path}", markup=False)
    if (said := said_of_pretrainings(launch)) is not None:
        console.print(said, markup=False)
    with (
        quiet(console, ledger.folder.log) as terminal,
        configure(launch.debug, terminal, ledger.folder.log),
        # before the cluster, which is then given back before what the tracker still has to take in
        make_tracker(launch.tracking, ledger.folder, maximize=launch.search.direction == "maximize") as track,
        ready_cluster(launch, ledger.folder, store.path, terminal, **seen_by_nodes(launch)),
        ending_on_sigterm(lambda: say_interrupted(ledger.folder, terminal)) as to_end,
        configure(launch.debug, terminal, ledger.folder.log),  # again after Ray, which sets its own level
    ):
        cluster = launch.cluster
        if cluster.packing == "measured":
            from search_spaces.packing import packed

            cluster, said = packed(launch, store.path)
            terminal.print(said, markup=False)
        for books in (ledger, confirmation):
            if books.is_over or to_end():
                continue
            with Display(terminal, books, launch.task.num_epochs) as display:

                def show_change(display: Display = display) -> None:
                    display()
                    track()

                run_trials(
                    books,
                    cluster,
                    store=store.path,
                    metric=launch.search.metric,
                    maximize=launch.search.direction == "maximize",
                    on_change=show_change,
                    scheduler=launch.scheduler,
                    to_end=to_end,
                    shared=shared_by(launch, confirming=books is confirmation),
                )
    return to_end()


def say_interrupted(study: StudyFolder, terminal: Console) -> None:
    """Record that the study is interrupted while there is time: SIGKILL may follow."""
    study.record("study_interrupted")
    terminal.print("stopping; what ran is saved up to its last epoch", markup=False)


def seen_by_nodes(launch: Launch) -> dict[str, Any]:
    """What the pre-flight has every node try: the study's folder, or the object store that takes its place."""
    if launch.storage is None:
        return {}
    from trainables.remote import try_from_here

    return {"shared": False, "probes": {"storage": functools.partial(try_from_here, launch.storage)}}
