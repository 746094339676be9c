"""What a study saves whose trials share what is equal among them: seconds of computing, with and without.

Trials of the laptop scale on generated recordings, or on those of PTB-XL, computed in this process one after the other;
each is computed alone and sharing, in turns. All figures are of the same numbers: that a trial reports the same either
way is checked here, too.

    joint        seconds of NUM_TRIALS joint trials with one pre-training, which differ in their fine-tuning alone;
                 beside them the same trials that each compute it. A study whose trials have P different pre-trainings
                 saves as much on each of them.
    linear_probe seconds of one trial that trains a head on a frozen encoder, after the first of its study; beside it
                 one that embeds all records itself.
    first_head   the same of a trial that fine-tunes from a checkpoint, whose head begins as the linear probe.
    kept         seconds that an epoch takes longer because its state is kept for others.

    python benchmarks/reuse.py [--data-root DIR] [--patients N] [--json FILE]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import Figure, parse_arguments, publish

if TYPE_CHECKING:
    from trainables.settings import Run

NUM_TRIALS = 4
RATES = (1e-3, 5e-4, 2e-3, 2e-4)
REPEATS = 3


@dataclass(frozen=True)
class Study:
    """Where trials are computed.

    Attributes:
        folder: for their states and what they share.
        store: the prepared recordings.
        typed: what chooses recordings and scale.
    """

    folder: Path
    store: Path
    typed: tuple[str, ...]

    def run(self, *typed: str) -> Run:
        """A run of this study."""
        return _composed(*self.typed, *typed).run


def _composed(*typed: str) -> Any:
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked

    return checked(compose_choices(["command=train", "search=stmem_ptbxl", "scale=laptop", *typed]).tree)


def opened(folder: Path, data_root: str | None, patients: int, *typed: str) -> Study:
    """A study on recordings that are prepared now.

    Args:
        folder: for all that is written.
        data_root: of PTB-XL; recordings are generated where None.
        patients: of all parts together.
        typed: what else would be typed for it.
    """
    from data.store import prepare
    from trainables.recordings import preparation_of, reader_of

    source = ["data=synthetic", f"data.reader.num_patients={patients}"]
    if data_root is not None:
        source = ["data=ptb_xl", f"data.root={data_root}"]
    limits = [f"data.max_train_patients={int(0.7 * patients)}", f"data.max_valid_patients={int(0.2 * patients)}"]
    typed = (*source, *limits, *typed)
    data = _composed(*typed).run.data
    share = 1.0 - 1e-9  # of unreadable records: an unpacked part of PTB-XL will do
    store = prepare(reader_of(data), preparation_of(data), folder / "stores", name="bench", max_unreadable_share=share)
    return Study(folder, store.path, typed)


def trial(study: Study, run: Run, name: str, shared: Path | None) -> tuple[float, list[dict[str, Any]]]:
    """Compute a whole trial.

    Args:
        study: it belongs to.
        run: what it trains.
        name: of its folder.
        shared: what it shares with others lies under it; None where it shares nothing.

    Returns:
        Its seconds, and what it reported of each epoch but the time.
    """
    from trainables.trial import Assignment, epochs
    from trainables.workers import Workers

    assignment = Assignment(
        number=0,
        run=run,
        folder=study.folder / name,
        store=study.store,
        metric="val/auroc",
        maximize=True,
        num_gpus=0.0,
        cpus_per_worker=1,
        pretrained=None if shared is None else shared / "pretrained",
        embeddings=None if shared is None else shared / "embeddings",
        max_kept_bytes=1e12,
    )
    began = time.perf_counter()
    told = [{key: result[key] for key in ("epoch", "metrics", "value")} for result in epochs(assignment, Workers())]
    return time.perf_counter() - began, told


def both_ways(study: Study, runs: list[Run], name: str) -> tuple[list[float], list[float]]:
    """Seconds of some trials, each sharing and each alone, in turns.

    Raises:
        RuntimeError: if a trial reports other numbers when it shares, for then its seconds mean nothing.
    """
    sharing, alone = [], []
    for number, run in enumerate(runs):
        shared_s, shared_told = trial(study, run, f"{name}-{number}-sharing", study.folder / f"{name}-shared")
        alone_s, alone_told = trial(study, run, f"{name}-{number}-alone", None)
        if shared_told != alone_told:
            raise RuntimeError(f"trial {number} of {name} must report the same whether it shares or not")
        sharing.append(shared_s)
        alone.append(alone_s)
    return sharing, alone


def measured(study: Study) -> list[Figure]:
    """All figures of a study."""
    import torch

    torch.set_num_threads(1)
    trial(study, study.run("task.pretrain.num_epochs=1", "task.finetune.num_epochs=1"), "warm", None)
    joint = [study.run(f"task.finetune.lr={rate}") for rate in RATES[:NUM_TRIALS]]
    sharing, alone = both_ways(study, joint, "joint")
    figures = [Figure("joint", sum(sharing), "s", baseline=sum(alone), ratio=sum(alone) / sum(sharing))]
    checkpoint = checkpoint_of(study, joint[0])
    for name, mode in (("linear_probe", "linprobe"), ("first_head", "finetune")):
        typed = ("task=finetune", f"task.encoder={checkpoint}", f"task.finetune.mode={mode}")
        runs = [study.run(*typed, f"task.finetune.lr={rate}") for rate in RATES]
        sharing, alone = both_ways(study, runs, name)
        later, usual = min(sharing[1:]), min(alone[1:])
        figures.append(Figure(name, later, "s/trial", baseline=usual, ratio=usual / later))
    return [*figures, Figure("kept", seconds_to_keep(study), "s/epoch")]


def checkpoint_of(study: Study, run: Run) -> Path:
    """A checkpoint of the first joint trial."""
    from trainables.checkpoint import copy_weights, describe, description_of
    from trainables.recordings import open_recordings
    from trainables.state import best_path, read_place

    trained = study.folder / "joint-0-alone"
    place = read_place(trained)
    assert place is not None
    folder = study.folder / "checkpoint"
    copy_weights(best_path(trained, place["best"]["epoch"]), folder)
    describe(folder, description_of(run, open_recordings(run, study.store), place["best"], "val/auroc", trial=0))
    return folder


def seconds_to_keep(study: Study) -> float:
    """What it takes to keep a state of the first joint trial under the digest of its pre-training."""
    from trainables.pretrained import Shelf
    from trainables.state import LAST

    took = []
    for epoch in range(1, REPEATS + 1):
        began = time.perf_counter()
        shelf = Shelf(study.folder / "joint-shared" / "pretrained", "kept", 1e12)
        shelf.put(study.folder / "joint-0-alone" / LAST, epoch)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def main() -> None:
    """Measure and publish."""
    assert __doc__ is not None
    arguments = parse_arguments(
        __doc__,
        ("--data-root", {"metavar": "DIR", "help": "of PTB-XL with its records100; generated recordings without it"}),
        ("--patients", {"type": int, "default": 300, "help": "of all parts together"}),
    )
    with tempfile.TemporaryDirectory() as folder:
        publish(measured(opened(Path(folder), arguments.data_root, arguments.patients)), arguments.json)


if __name__ == "__main__":
    main()
