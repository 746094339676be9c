"""The memory that a trial takes at most, measured on a short piece of it: its own loops on a few of its recordings.

A process cannot be asked what it will need. So a fresh one goes through all that a trial does, with whole batches: two
optimiser steps of each stage, the probe, a batch of validation, saved states. What grows with the number of recordings
is added by its size.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from data.labels import Labels
from data.splits import Rows, Split, absent_classes
from models.encoder import Encoder
from trainables.folds import new_state, train_unit
from trainables.metrics import metric_key
from trainables.pretrain import fresh_encoder
from trainables.probe import EVAL_BATCH_SIZE
from trainables.recordings import Recordings, open_recordings
from trainables.settings import Run, Stage
from trainables.workers import Workers

STEPS = 2
"""Of each stage: from the second on, an optimiser's state lies beside the gradients."""
PROBED_BYTES = 4 + 3 * 8
"""Of an embedding's number while a probe is fitted: as it came, and in double precision as it is, scaled, squared."""
KEPT_BYTES = 2 * 4
"""Of a validation embedding's number: in its batch's list, and once more where they are brought together."""


@dataclass(frozen=True)
class Need:
    """What the worker of a trial takes at most.

    Attributes:
        memory: bytes of main memory that are the process's own.
        gpu_memory: bytes of the GPU, those of its context among them; 0 without one.
        gpu_total: bytes of the GPU that it was measured on.
    """

    memory: int
    gpu_memory: int = 0
    gpu_total: int = 0


def measure(run: Run, store: Path, *, num_gpus: float, num_threads: int) -> Need:
    """Go through a piece of a run in this process, which must be fresh, and say what that took.

    Args:
        run: the largest of the study's trials.
        store: its prepared recordings.
        num_gpus: of a worker.
        num_threads: of a worker.

    Raises:
        DataError: if the recordings cannot serve the run.
    """
    torch.set_num_threads(num_threads)
    workers = Workers.of_this_process(num_gpus=num_gpus)
    recordings = open_recordings(run, store)
    own, before = psutil.Process().memory_full_info().uss, peak_from_now()
    go_through(run, recordings, workers)
    of_all = bytes_of_recordings(fresh_encoder(run), recordings)
    memory = own + max(0, peak() - before) + of_all
    if workers.device.type != "cuda":
        return Need(memory)
    free, total = torch.cuda.mem_get_info(workers.device)
    # the context, and whatever else is on this GPU: it would be there beside the trials, too
    beside = total - free - torch.cuda.memory_reserved(workers.device)
    return Need(memory, torch.cuda.max_memory_reserved(workers.device) + beside + of_all, total)


def go_through(run: Run, recordings: Recordings, workers: Workers) -> None:
    """A piece of a run: an epoch of `STEPS` steps of each stage, whose state is saved after each."""
    short = shortened(run)
    state = new_state(short, f"val/{metric_key(run.task.metrics[0])}", maximize=True)
    # a rate at the end of its range may diverge within two steps, which take the same memory
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(FloatingPointError):
        for _ in train_unit(short, state, few_of(short, recordings), workers):
            state.save(Path(folder))


def shortened(run: Run) -> Run:
    """The run with one epoch a stage, at most two batches a step, and nothing that ends it early."""

    def short(stage: Stage) -> Stage:
        # more than two add up in the same gradients
        return stage.model_copy(update={"num_epochs": 1, "accumulation_steps": min(2, stage.accumulation_steps)})

    task = run.task
    never = task.collapse.model_copy(update={"min_feature_std": None, "min_effective_rank": None})
    changed = {"pretrain": short(task.pretrain), "finetune": short(task.finetune), "collapse": never}
    return run.model_copy(update={"task": task.model_copy(update=changed)})


def few_of(run: Run, recordings: Recordings) -> Recordings:
    """As few of the recordings as `STEPS` steps of each stage and a batch of validation take.

    Their targets are drawn, so that each class is there and absent among so few.
    """
    stages = {"pretrain": run.task.pretrain, "train": run.task.finetune}
    numbers = {name: STEPS * stage.accumulation_steps * stage.batch_size for name, stage in stages.items()}

    def few(split: Split) -> Split:
        return replace(
            split,
            pretrain=split.pretrain[: numbers["pretrain"]],
            train=split.train[: numbers["train"]],
            valid=split.valid[:EVAL_BATCH_SIZE],
        )

    labels = recordings.labels
    drawn = replace(labels, targets=_drawn(labels))
    folds = recordings.folds
    if folds is not None:
        folds = replace(folds, splits=tuple(few(split) for split in folds.splits))
    splits = (few(recordings.split),) if folds is None else folds.splits
    absent = {name for split in splits for name in absent_classes(drawn, split.valid)}
    present = [position for position, name in enumerate(labels.classes) if name not in absent]
    return replace(recordings, labels=drawn, split=few(recordings.split), folds=folds, valid_classes=np.array(present))


def _drawn(labels: Labels) -> NDArray[np.float32]:
    """(n, K) targets of the labels' kind, at random."""
    generator = np.random.default_rng(0)
    if labels.kind == "multilabel":
        return generator.integers(0, 2, labels.targets.shape).astype(np.float32)
    num_classes = labels.targets.shape[1]
    return np.eye(num_classes, dtype=np.float32)[generator.integers(0, num_classes, len(labels.targets))]


def bytes_of_recordings(encoder: Encoder, recordings: Recordings) -> int:
    """What a trial holds of all its recordings at once, which a few of them do not show."""

    def largest(part: str) -> int:
        rows: list[Rows] = [getattr(split, part) for split in recordings.splits]
        return max(map(len, rows))

    return encoder.width * (largest("train") * PROBED_BYTES + largest("valid") * KEPT_BYTES)


def peak_from_now() -> int:
    """Let the peak of this process begin anew; bytes that it holds now."""
    with contextlib.suppress(OSError):  # not on Linux, or it is not allowed: the peak is then that of its whole life
        Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Bytes that this process has held at most since `peak_from_now`."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux
