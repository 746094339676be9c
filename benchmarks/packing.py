"""How many trials at a time one machine computes fastest, and how true the memory is that they are packed by.

ST-MEM's pre-training on the generated recordings of a few patients, in batches of 8, with probe and validation: so many
processes at once, each with so many threads, all begun together after an epoch that warms up.

    SIZE_TRIALSxTHREADS   epochs a second of all of them together; the baseline is one trial with as many threads as
                          the machine has processors, which is what a search has that runs its trials one by one.
    SIZE_gpu_TRIALS       the same of 1, 2, 4 and 8 trials on one GPU; where there is none they are not measured.
    SIZE_memory           GB that trainables.peak measures on a piece of a trial; the baseline is what the process of a
                          whole trial took at most, so that the ratio must be at most 1.

    python benchmarks/packing.py [--sizes laptop small] [--json FILE]
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import Figure, parse_arguments, publish, unless_on_gpu

if TYPE_CHECKING:
    from trainables.settings import Run

BATCH_SIZE = 8
EPOCHS = 3
ON_A_GPU = (1, 2, 4, 8)
PATIENCE_S = 1800.0


def run_of(size: str, num_epochs: int) -> Run:
    """The run whose epochs are timed."""
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked

    typed = ["command=train", "search=stmem_ptbxl_pretrain", "data=synthetic", "data.reader.num_patients=200"]
    typed += ["data.max_train_patients=24", "data.max_valid_patients=12"]
    stage = [f"task.pretrain.batch_size={BATCH_SIZE}", f"task.pretrain.num_epochs={num_epochs}"]
    return checked(compose_choices([*typed, *stage, f"model.encoder.size={size}"]).tree).run


def prepared(folder: Path) -> Path:
    """The store of all runs."""
    from data.store import prepare
    from trainables.recordings import preparation_of, reader_of

    data = run_of("laptop", 1).data
    return prepare(reader_of(data), preparation_of(data), folder, name="bench", max_unreadable_share=0.0).path


def timed(run_json: str, store: Path, num_threads: int, num_gpus: float, begin: Any, times: Any) -> None:
    """One of the trials that are computed at once: leaves when its epochs began and ended."""
    import torch

    from trainables.folds import new_state, train_unit
    from trainables.recordings import open_recordings
    from trainables.settings import Run
    from trainables.workers import Workers

    torch.set_num_threads(num_threads)
    run = Run.model_validate_json(run_json)
    workers = Workers.of_this_process(num_gpus=num_gpus)
    recordings = open_recordings(run, store)
    epochs = train_unit(run, new_state(run, "val/auroc", maximize=True), recordings, workers)
    next(epochs)  # warms up
    begin.wait(PATIENCE_S)
    began = time.perf_counter()
    for _ in epochs:
        pass
    times.put((began, time.perf_counter()))


def epochs_per_second(size: str, store: Path, num_trials: int, num_threads: int, *, num_gpus: float = 0.0) -> float:
    """Epochs that so many trials at once compute in a second, all together."""
    context = multiprocessing.get_context("spawn")
    begin, times = context.Barrier(num_trials), context.Queue()
    run_json = run_of(size, EPOCHS + 1).model_dump_json(by_alias=True)
    given = (run_json, store, num_threads, num_gpus, begin, times)
    trials = [context.Process(target=timed, args=given) for _ in range(num_trials)]
    for trial in trials:
        trial.start()
    spans = [times.get(timeout=PATIENCE_S) for _ in trials]
    for trial in trials:
        trial.join()
    return num_trials * EPOCHS / (max(ended for _, ended in spans) - min(began for began, _ in spans))


def needed(run_json: str, store: Path, measure_it: bool) -> int:
    """Bytes of this process at most: measured on a piece of a run, or taken by the whole of it."""
    import psutil
    import torch

    from trainables.folds import new_state, train_unit
    from trainables.peak import measure, peak, peak_from_now
    from trainables.recordings import open_recordings
    from trainables.settings import Run
    from trainables.workers import Workers

    run = Run.model_validate_json(run_json)
    if measure_it:
        return measure(run, store, num_gpus=0.0, num_threads=1).memory
    torch.set_num_threads(1)
    recordings = open_recordings(run, store)
    own, before = psutil.Process().memory_full_info().uss, peak_from_now()
    state = new_state(run, "val/auroc", maximize=True)
    with tempfile.TemporaryDirectory() as folder:
        for _ in train_unit(run, state, recordings, Workers()):
            state.save(Path(folder))
    return own + peak() - before


def in_fresh_process(function: Any, *given: Any) -> Any:
    """What a function gives in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, given)


def on_cpus(size: str, store: Path, num_cpus: int) -> list[Figure]:
    """Trials at a time times threads, up to twice as many threads as there are processors."""
    alone = epochs_per_second(size, store, 1, num_cpus)
    figures = [Figure(f"{size}_1x{num_cpus}", alone, "epochs/s")]
    for num_trials, num_threads in ((1, 1), (num_cpus, 1), (num_cpus, num_cpus)):
        if (num_trials, num_threads) == (1, num_cpus):
            continue
        together = epochs_per_second(size, store, num_trials, num_threads)
        name = f"{size}_{num_trials}x{num_threads}"
        figures.append(Figure(name, together, "epochs/s", baseline=alone, ratio=together / alone))
    return figures


def on_a_gpu(size: str, store: Path) -> list[Figure]:
    """Trials at a time on the first GPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    rates = {number: epochs_per_second(size, store, number, 1, num_gpus=1 / number) for number in ON_A_GPU}
    return [
        Figure(f"{size}_gpu_{number}", rate, "epochs/s", baseline=rates[1], ratio=rate / rates[1])
        for number, rate in rates.items()
    ]


def memory(size: str, store: Path) -> Figure:
    """What is measured on a piece of a trial, beside what a whole one takes."""
    run_json = run_of(size, 2).model_dump_json(by_alias=True)
    measured, taken = (in_fresh_process(needed, run_json, store, measure_it) / 1e9 for measure_it in (True, False))
    return Figure(f"{size}_memory", measured, "GB", baseline=taken, ratio=taken / measured)


def main() -> None:
    """Measure and publish."""
    assert __doc__ is not None
    arguments = parse_arguments(__doc__, ("--sizes", {"nargs": "+", "default": ["laptop", "small"]}))
    num_cpus = len(os.sched_getaffinity(0))
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        store = prepared(Path(folder))
        for size in arguments.sizes:
            figures += [*on_cpus(size, store, num_cpus), *on_a_gpu(size, store), memory(size, store)]
    publish(figures, arguments.json, not_measured=unless_on_gpu("trials that share a GPU"))


if __name__ == "__main__":
    main()
