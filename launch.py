"""Type `python launch.py search=stmem_ptbxl`: composes the configuration, checks it and hands it to one command.

Nothing here runs on a worker. Everything that costs a second (torch, Ray, the recordings) is imported and opened only
after what was typed has been found to be runnable.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from search_spaces.compose import (
    Composed,
    Line,
    compose_line,
    compose_to_read,
    help_text,
    read_line,
    recompose,
    recompose_to_read,
)
from search_spaces.opening import (
    check_resume,
    check_same_folds,
    checked_space,
    describe_recordings,
    gpus_here,
    lint_search,
    open_books,
    open_confirmation,
    open_store,
    progress_bar,
    with_own_encoder,
)
from search_spaces.running import run_search, seen_by_nodes
from search_spaces.schema import OF_A_CHECKPOINT, ChoiceError, Launch, checked, tree_of
from search_spaces.stopping import INTERRUPTED, typed_again
from search_spaces.training import train
from trainables.components import ComponentError

if TYPE_CHECKING:
    from data.store import Store
    from search_spaces.confirmation import Confirmation
    from search_spaces.ledger import Ledger
    from trainables.settings import Run
    from trainables.study import StudyFolder

USERS_MISTAKE = 2  # exit code
TO_READ = ("report", "dashboard")
"""Commands that look at a study and run nothing of it, so that it may be another version's."""
TO_GATHER = {"compare": "runs/comparison", "index": "runs"}
"""Commands that look at several studies, with the folder that their page goes to."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; a user's mistake ends in one line on standard error and exit code 2."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        return run(sys.argv[1:] if arguments is None else arguments, console)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ChoiceError, ComponentError) as error:
        return complain(str(error))
    except (OSError, ValueError) as error:
        if isinstance(error, _user_errors()):
            return complain(str(error))
        if isinstance(error, OSError):  # of a disk or a file; our own readers and writers say more
            return complain(f"{error.filename or 'a file'}: {error.strerror or error}")
        raise


def complain(message: str) -> int:
    """Say in one line what is wrong."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {message}", markup=False)
    return USERS_MISTAKE


def _user_errors() -> tuple[type[Exception], ...]:
    """The errors of what has been imported so far whose message is for the user."""
    names = (("data.record", "DataError"), ("trainables.study", "StudyError"), ("trainables.files", "StorageError"))
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


def run(arguments: Sequence[str], console: Console) -> int:
    """Read, compose, check, and call the command."""
    line = read_line(arguments)
    if line.wants_help:
        console.print(help_text(line.config_dir), markup=False)
        return 0
    composed = configuration_of(line)
    launch = checked(composed.tree)
    if line.wants_configuration:
        console.print(as_yaml(launch), markup=False)
        return 0
    for note in composed.notes:
        console.print(f"note: {note}", markup=False)
    commands: dict[str, Callable[[Launch, Console], int]] = {
        "search": search,
        "train": train,
        "evaluate": evaluate,
        "artifacts": artifacts,
        "export": export,
        "report": report,
        "prepare": prepare,
        "show": show,
        "preflight": preflight,
        "import": import_weights,
        "compare": compare,
        "index": index,
        "dashboard": dashboard,
    }
    from search_spaces.logs import configure

    with configure(launch.debug, Console(stderr=True)):
        if launch.cluster.submit and launch.command == "search":
            return submit(launch, arguments, line.config_dir, console)
        return commands[launch.command](launch, console)


def configuration_of(line: Line) -> Composed:
    """What was typed, over the defaults or over what a study or a checkpoint holds."""
    command = line.get("command", "search")
    if command in OF_A_CHECKPOINT and line.get("checkpoint"):
        from trainables.checkpoint import read_description

        first, *_ = [given] if isinstance(given := line.get("checkpoint"), str) else given
        return recompose(line, read_description(Path(first))["run"])
    if command in TO_READ or (command == "train" and line.get("trial") is not None):
        from trainables.study import StudyFolder

        if line.get("storage"):
            stored = copied_from_store(line)
        elif not line.get("study_dir"):
            raise ChoiceError(f"command={command} needs study_dir=DIR, the folder of a study")
        else:
            stored = StudyFolder(Path(line.get("study_dir"))).read_configuration() | {"storage": None}
        return recompose_to_read(line, stored) if command in TO_READ else recompose(line, stored)
    if command in TO_GATHER:
        return compose_to_read(line, TO_GATHER[command])
    if command in OF_A_CHECKPOINT:
        raise ChoiceError(f"command={command} needs checkpoint=DIR, e.g. STUDY/checkpoints/best_1")
    return compose_line(line)


def copied_from_store(line: Line) -> dict[str, Any]:
    """The configuration of the study in the object store that is typed; study_dir is then an up-to-date copy of it."""
    from trainables.remote_url import parts_of, problem_of
    from trainables.stored import copy_of_stored
    from trainables.study import StudyFolder

    url = line.get("storage")
    if (problem := problem_of(url)) is not None:
        raise ChoiceError(f"storage: {problem}")
    name = "".join(parts_of(url)).strip("/").rpartition("/")[2]
    study = StudyFolder(Path(line.get("study_dir") or f"runs/{name}").absolute())
    return copy_of_stored(study, url) | {"storage": url, "study_dir": str(study.path)}


def as_yaml(launch: Launch) -> str:
    """The resolved configuration as it is typed."""
    import yaml

    text: str = yaml.safe_dump(tree_of(launch), sort_keys=False, allow_unicode=True)
    return text


# -------- search


def search(launch: Launch, console: Console) -> int:
    """Search, evaluate the best trial once on the test fold, and write the report."""
    from search_spaces.tracking import make_tracker
    from trainables.data_check import check_data, warnings_of
    from trainables.stored import stored_study
    from trainables.study import StudyFolder

    space = checked_space(launch)
    lint_search(launch, space)
    study = StudyFolder(Path(launch.study_dir))
    check_resume(launch, study)
    show_token(launch, console)
    with ExitStack() as stack:
        stack.enter_context(study.locked())
        say = functools.partial(console.print, markup=False)
        study, states = stack.enter_context(stored_study(study, launch.storage, say))
        launch = with_own_encoder(launch, study)
        states.push(study.encoder)
        store = open_store(launch, console)
        ledger, recordings = open_books(launch, space, study, store, states)
        states.push(study.code)
        confirmation = open_confirmation(launch, ledger)
        describe_recordings(launch, recordings, console)
        for warning in warnings_of(check_data(study, launch.run, recordings)):
            console.print(f"warning: {warning}", markup=False)
        if not (ledger.is_over and confirmation.is_over):
            terminated = run_search(launch, ledger, confirmation, store, console)
            unfinished = not (ledger.is_over and confirmation.is_over)  # Tune takes Ctrl-C and ends
            if unfinished and not terminated:
                study.record("study_interrupted")
            if unfinished or terminated:
                console.print(
                    f"stopped; what ran is saved up to its last epoch. To go on:\n  {typed_again()}", markup=False
                )
                return INTERRUPTED
        else:
            with make_tracker(launch.tracking, study, maximize=launch.search.direction == "maximize"):
                pass  # it was down, or is switched on now
            if ledger.num_ended >= ledger.num_trials:
                console.print(
                    f"{study.path}: finished with {ledger.num_ended} trials; type search.num_trials=N with a larger N "
                    "to go further",
                    markup=False,
                )
        if ledger.used_up and (ledger.num_ended < ledger.num_trials or confirmation.num_left):
            console.print(f"{ledger.used_up}: type a larger value to go on", markup=False)
        return finish(launch, ledger, confirmation, study, store, console)


def submit(launch: Launch, arguments: Sequence[str], config_dir: Path | None, console: Console) -> int:
    """Have the search run as a job on a cluster, and follow it."""
    checked_space(launch)  # a mistake is answered here and not in the job's log
    show_token(launch, console)
    from search_spaces.submission import run_as_job

    return run_as_job(launch, arguments, config_dir, console)


def show_token(launch: Launch, console: Console) -> None:
    """See that the token of the cluster is there before anything is prepared."""
    from search_spaces.authentication import authenticate

    for note in authenticate(launch.cluster.address):
        console.print(f"note: {note}", markup=False)


def finish(
    launch: Launch, ledger: Ledger, confirmation: Confirmation, study: StudyFolder, store: Store, console: Console
) -> int:
    """Evaluate and report what there is, and say where the report is."""
    from reports.checkpoints.error_sheets import draw_mistakes
    from reports.evaluate import evaluate_study, probe_untrained
    from reports.index import refresh
    from reports.report import build
    from reports.search.operation import reuse_of, said_of_reuse
    from search_spaces.no_choice import why_closed
    from trainables.workers import Workers

    if ledger.best is None:
        console.print("no trial was completed, so there is nothing to report yet", markup=False)
        if ledger.num_ended >= ledger.num_trials:
            console.print(
                f"{study.trials} says why each of them ended; type search.num_trials=N with a larger N to try more",
                markup=False,
            )
        else:
            console.print(f"To go on:\n  {typed_again()}", markup=False)
        return 1
    workers = Workers.of_this_process(num_gpus=gpus_here(launch))
    if launch.search.confirm.top_k and not confirmation.choose():
        page = build(study.path, num_resamples=launch.evaluate.num_resamples, seed=launch.seed)
        console.print(f"{why_closed(ledger, confirmation)}\nreport: {page}", markup=False)
        return 0 if ledger.used_up else 1
    opened = evaluate_study(study, store.path, workers)
    draw_mistakes(study, store.path, workers, num_mistakes=launch.evaluate.num_mistakes)
    probe_untrained(study, store.path, lambda number: ledger.make_run(ledger.trials[number].params), workers)
    finished_with = [event["trials"] for event in study.read_events() if event["event"] == "study_finished"]
    if ledger.num_ended >= ledger.num_trials and ledger.num_ended not in finished_with:
        study.record("study_finished", trials=ledger.num_ended)
    settings = launch.evaluate.model_dump()
    page = build(study.path, num_resamples=launch.evaluate.num_resamples, seed=launch.seed, evaluate=settings)
    refresh(study.path.parent)
    if (found := reuse_of(list(study.read_events()))) is not None:
        console.print(f"reuse: {said_of_reuse(found)}", markup=False)
    console.print(f"best: {said_of_best(ledger, confirmation)}", markup=False)
    console.print(f"test fold opened {opened} times now", markup=False)
    console.print(f"report: {page}", markup=False)
    return 0


def said_of_best(ledger: Ledger, confirmation: Confirmation) -> str:
    """Which model is delivered, and by what it was chosen."""
    metric, chosen, best = ledger.search.metric, confirmation.chosen, ledger.best
    if chosen is not None:
        of_seeds = f"of {chosen['seeds']} seeds (search: {chosen['estimate']:.4f})"
        return (
            f"trial {chosen['trial']}, seed {chosen['index']}, confirmed: mean {metric} {chosen['mean']:.4f} {of_seeds}"
        )
    assert best is not None
    return f"trial {best.number}, {metric} {best.value:.4f}"


# -------- the other commands


def evaluate(launch: Launch, console: Console) -> int:
    """Evaluate one checkpoint on the validation fold, the test fold or a fold by its number."""
    from reports.evaluate import evaluate_checkpoint, write_predictions
    from reports.folder import read_predictions
    from reports.metrics import figures_of_split
    from trainables.checkpoint import load
    from trainables.ensemble import digest_at, is_ensemble, load_ensemble
    from trainables.files import write_atomically
    from trainables.recordings import rows_of_fold
    from trainables.workers import Workers

    (folder,) = launch.checkpoints
    checkpoint = load_ensemble(folder) if is_ensemble(folder) else load(folder)
    check_same_folds(launch, folder, checkpoint.run)
    store = open_store(launch, console)
    labels = checkpoint.labels_in(store, launch.task.labels)
    split, rows = rows_of_fold(store.index, labels, launch.data, launch.evaluate.fold, seed=launch.seed)
    workers = Workers.of_this_process(num_gpus=gpus_here(launch))
    predictions = evaluate_checkpoint(checkpoint, folder, store, labels, rows, split, workers)
    name = f"{launch.data.name}_{launch.evaluate.fold}"
    saved = folder / "evaluations" / f"{name}.parquet"
    made_by = {"trial": checkpoint.description.get("trial"), "digest": digest_at(folder)}
    write_predictions(saved, predictions, made_by)
    found = figures_of_split(
        read_predictions(saved, launch.data.test_folds),
        split,
        num_resamples=launch.evaluate.num_resamples,
        seed=launch.seed,
    )
    path = folder / "evaluations" / f"{name}.json"
    write_atomically(path, json.dumps(found, indent=2).encode() + b"\n")
    for metric in ("auroc_macro", "auprc_macro"):
        interval = found[metric]
        if interval["value"] is None:
            console.print(f"{name} {metric}: none, {interval['reason']}", markup=False)
            continue
        bounds = "" if interval["low"] is None else f" [{interval['low']:.4f}, {interval['high']:.4f}]"
        console.print(f"{name} {metric} {interval['value']:.4f}{bounds}", markup=False)
    console.print(f"figures: {path}", markup=False)
    return 0


def artifacts(launch: Launch, console: Console) -> int:
    """Embeddings, their map, saliency and reconstructions of one or several checkpoints, on one page."""
    from reports.checkpoints.artifacts import Source, make_artifacts
    from trainables.ensemble import load_as_one
    from trainables.recordings import rows_of_fold
    from trainables.workers import Workers

    sources = []
    for folder in launch.checkpoints:
        checkpoint = load_as_one(folder)
        check_same_folds(launch, folder, checkpoint.run)
        own = as_the_model_asks(launch, checkpoint.run)
        store = open_store(own, console)
        labels = checkpoint.labels_in(store, launch.task.labels)
        split, rows = rows_of_fold(store.index, labels, own.data, launch.evaluate.fold, seed=launch.seed)
        sources.append(Source(folder, checkpoint, store, labels, split, rows))
    page = make_artifacts(
        sources,
        name=f"{launch.data.name}_{launch.evaluate.fold}",
        num_records=launch.artifacts.num_records,
        workers=Workers.of_this_process(num_gpus=gpus_here(launch)),
    )
    console.print(f"artifacts: {page}", markup=False)
    return 0


def as_the_model_asks(launch: Launch, run: Run) -> Launch:
    """The launch with its recordings prepared for another checkpoint than the first."""
    from search_spaces.compose import PREPARATION

    data = launch.data.model_copy(update={key: getattr(run.data, key) for key in PREPARATION})
    return launch.model_copy(update={"data": data})


def export(launch: Launch, console: Console) -> int:
    """Write a checkpoint as ONNX with all that must be done before and after it, checked against PyTorch on a fold."""
    from reports.checkpoints.export import check_packages, rows_to_check
    from reports.checkpoints.export import export as export_checkpoint
    from reports.evaluate import evaluate_checkpoint
    from trainables.ensemble import load_as_one
    from trainables.recordings import rows_of_fold
    from trainables.workers import Workers

    check_packages()
    (folder,) = launch.checkpoints
    checkpoint = load_as_one(folder)
    check_same_folds(launch, folder, checkpoint.run)
    store = open_store(launch, console)
    labels = checkpoint.labels_in(store, launch.task.labels)
    split, rows = rows_of_fold(store.index, labels, launch.data, launch.evaluate.fold, seed=launch.seed)
    rows = rows_to_check(rows)
    predictions = evaluate_checkpoint(checkpoint, folder, store, labels, rows, split, Workers(), together=True)
    described = export_checkpoint(checkpoint, folder, folder / "export", store, predictions, rows)
    difference = described["checked"]["max_abs_difference_of_probabilities"]
    console.print(f"checked on {len(rows)} records: probabilities differ by {difference:.1e} at most", markup=False)
    console.print(f"export: {folder / 'export'}", markup=False)
    return 0


def show(launch: Launch, console: Console) -> int:
    """Print what would run: the configuration, the space, trial 0, and what it may cost."""
    from search_spaces.display import duration
    from search_spaces.estimate import estimate
    from search_spaces.reuse import said_of_pretrainings

    space = checked_space(launch)
    lint_search(launch, space)
    console.print(as_yaml(launch), markup=False)
    console.print("space:" if space.leaves else "space: nothing is searched")
    for leaf in space.leaves:
        condition = f", when {dict(leaf.when)}" if leaf.when else ""
        console.print(f"  {leaf.key}: {leaf.text}{condition}", markup=False)
    console.print("trial 0, the default configuration, never stopped early:")
    default, *others = space.first_points(tree_of(launch), launch.options)
    for key, value in space.values(default).items():
        console.print(f"  {key}: {value}", markup=False)
    if others:
        console.print(f"trials 1 to {len(others)}: the defaults of the other {' and '.join(launch.options)} options")
    if (said := said_of_pretrainings(launch)) is not None:
        console.print(said, markup=False)
    cost = estimate(launch)
    if cost is None:
        console.print("estimate: none before the recordings can be read (data.root)", markup=False)
        return 0
    console.print(
        f"estimate, if no trial were stopped early: {cost.num_records} training records"
        f"{f' for each of {launch.task.folds} folds' if launch.task.folds > 1 else ''}, "
        f"{duration(cost.trial_seconds)} a trial, {duration(cost.search_seconds)} for {cost.runs} "
        f"{cost.at_a_time} at a time, {cost.device_hours:.2f} device-hours (timed on this machine)",
        markup=False,
    )
    return 0


def preflight(launch: Launch, console: Console) -> int:
    """Look at the cluster as a search would before its first trial, and say what was found; nothing is trained."""
    from search_spaces.preflight import ready_cluster
    from search_spaces.quiet import quiet
    from search_spaces.reuse import said_of_pretrainings
    from trainables.loops import first_encoder
    from trainables.recordings import open_recordings
    from trainables.study import StudyFolder

    space = checked_space(launch)
    lint_search(launch, space)
    study = StudyFolder(Path(launch.study_dir))
    check_resume(launch, study)
    if launch.task.encoder is not None:
        first_encoder(launch.run, whole_history=True)  # refuses what no trial could start from
    with study.locked():
        store = open_store(launch, console)
        describe_recordings(launch, open_recordings(launch.run, store.path), console)
        with (
            quiet(console, study.log) as terminal,
            ready_cluster(launch, study, store.path, terminal, say_all=True, **seen_by_nodes(launch)),
        ):
            if (said := said_of_pretrainings(launch)) is not None:
                terminal.print(said, markup=False)
    return 0


def import_weights(launch: Launch, console: Console) -> int:
    """Make a checkpoint of a published encoder, for `task.encoder` to start from."""
    from search_spaces.distributions import check_space, parse
    from trainables.foreign import import_encoder

    check_space(tree_of(launch), parse({}), {})
    assert launch.weights is not None
    assert launch.mapping is not None
    imported = import_encoder(launch.run, Path(launch.weights), Path(launch.mapping), Path(launch.study_dir))
    console.print(f"taken: {len(imported.taken)} tensors", markup=False)
    console.print(f"of the file, not used: {', '.join(imported.unused) or 'none'}", markup=False)
    console.print(f"of the encoder, kept as initialised: {', '.join(imported.kept) or 'none'}", markup=False)
    console.print(f"checkpoint: {launch.study_dir}; start from it with task.encoder={launch.study_dir}", markup=False)
    return 0


def prepare(launch: Launch, console: Console) -> int:
    """Make the store of the launch's recordings; fetch them first with data.download=true."""
    if launch.data.download:
        fetch(launch, console)
    store = open_store(launch, console)
    console.print(f"store: {store.path} ({len(store.index)} recordings)", markup=False)
    return 0


def fetch(launch: Launch, console: Console) -> None:
    """Download PTB-XL to data.root; what is there and whole is not fetched again."""
    from data.download import PTB_XL_URL, download

    if launch.data.name != "ptb_xl" or launch.data.root is None:
        raise ChoiceError("data.download=true fetches PTB-XL: it needs data=ptb_xl and data.root=DIR to put it in")
    with progress_bar("downloading PTB-XL", console) as progress:
        download(PTB_XL_URL, Path(launch.data.root), rates=[launch.data.source_rate_hz], progress=progress)


def report(launch: Launch, console: Console) -> int:
    """Build a study's report again from its saved predictions: no cluster, no model, no opening of the test fold."""
    from reports.report import build

    try:
        page = build(
            Path(launch.study_dir),
            num_resamples=launch.evaluate.num_resamples,
            seed=launch.seed,
            evaluate=launch.evaluate.model_dump(),
        )
    except ValueError as error:  # no folder of a study: its message is for the user
        return complain(" ".join(str(error).split()))
    for problem in json.loads((page.parent / "metrics.json").read_bytes())["problems"]:
        console.print(f"left out: {problem}", markup=False)
    console.print(f"report: {page}", markup=False)
    return 0


def compare(launch: Launch, console: Console) -> int:
    """Put studies side by side on one page, from what their folders hold."""
    from reports.compare import build

    assert launch.study_dirs is not None
    try:
        page = build(
            [Path(folder).expanduser() for folder in launch.study_dirs],
            Path(launch.study_dir),
            num_resamples=launch.evaluate.num_resamples,
            seed=launch.seed,
        )
    except ValueError as error:  # a folder that is no study's
        return complain(" ".join(str(error).split()))
    console.print(f"comparison: {page}", markup=False)
    return 0


def index(launch: Launch, console: Console) -> int:
    """List all studies of a folder on one page."""
    from reports.index import build

    try:
        page, num_studies = build(Path(launch.study_dir))
    except ValueError as error:
        return complain(" ".join(str(error).split()))
    console.print(f"index of {num_studies} studies: {page}", markup=False)
    return 0


def dashboard(launch: Launch, console: Console) -> int:
    """Show a study in optuna-dashboard until Ctrl-C; nothing of the study can be changed there."""
    from reports.dashboard import serving

    for number in (signal.SIGINT, signal.SIGTERM):  # a shell that starts it in the background has SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        with serving(Path(launch.study_dir) / "journal.log", launch.port) as server:
            console.print(
                f"dashboard: http://127.0.0.1:{server.server_port}/ (read-only; Ctrl-C ends it)", markup=False
            )
            server.serve_forever()
    except ValueError as error:
        return complain(" ".join(str(error).split()))
    except KeyboardInterrupt:
        console.print("dashboard ended", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
