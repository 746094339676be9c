"""How soon is a good model found? A search of ours beside full trainings at random, one after another, on real records.

Both search the space of record_curves.py, on four times its records of PTB-XL, and have as many trials.

    random  every trial trained to its end on both cores, one after another. Its trials are recorded once, in
            `curves/ptb_xl_sequential.parquet`, with `--record`; in what order they come is a matter of luck, so the
            order is drawn anew a thousand times. Only the epochs count, not what lies between them.
    ours    `python launch.py search=supervised_ptbxl` as it is shipped, from the moment at which it is typed, the
            start of Ray and all else included, from several seeds; each ends once it has reached what random has found.

What random has found is the largest value on the validation fold that any epoch of its trials has reached; both sides
have it at the end of the first epoch that reaches it, and need not finish that trial. Figures: seconds until then; of
random the median over the orders, and the whole of its trials; of ours the median over the seeds. Target: the ratio of
the medians is at least 4.

    python benchmarks/end_to_end.py --data-root PTB_XL [--record] [--trials 24] [--seeds 5] [--json FILE]
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from figures import Figure, parse_arguments, publish
from numpy.typing import NDArray
from record_curves import CURVES, TYPED, curve_of, launch_of, store_of, write_table

LAUNCH = Path(__file__).resolve().parents[1] / "launch.py"
NAME = "ptb_xl_sequential"
PATIENTS = "data.max_train_patients"
LARGER = (
    *(word for word in TYPED if not word.startswith(PATIENTS)),
    f"{PATIENTS}=1600",
    "data.subsample_seed=0",  # the same patients for every seed of a search
)
"""A trial takes half a minute: where it took seconds, the start of Python and Ray would be most of what is measured."""
FIRST = 1000
"""Numbers of the configurations that are drawn; those of the other table are smaller."""
NUM_ORDERS = 1000
TARGET_RATIO = 4.0
LOOK_EVERY_S = 0.2


def record(data_root: Path, num_trials: int) -> None:
    """Train trials at random, one after the other, on both cores."""
    launch = launch_of(data_root, LARGER)
    store, cores = store_of(launch), os.cpu_count() or 1
    curves = []
    for number in range(num_trials):
        curves.append(curve_of(data_root, FIRST + number, store, threads=cores, typed=LARGER))
        seconds = sum(epoch["seconds"] for epoch in curves[-1]["epochs"])
        print(f"{number:3d}  {curves[-1]['epochs'][-1]['value']:.4f}  {seconds:6.1f} s", flush=True)
    write_table(curves, launch, data_root, processes=1, name=NAME, typed=LARGER)


def seconds_of_random(values: NDArray[np.float64], seconds: NDArray[np.float64], draw: np.random.Generator) -> float:
    """Until the best of all epochs, in an order of the trials that is drawn; of values and seconds (trials, epochs)."""
    order = draw.permutation(len(values))
    return float(np.cumsum(seconds[order])[np.argmax(values[order].ravel() >= np.nanmax(values))])


def seconds_of_ours(data_root: Path, seed: int, level: float, num_trials: int) -> float | None:
    """From the start of launch.py until a trial has reported `level`; None if none ever does.

    Raises:
        RuntimeError: if the search fails.
    """
    typed = [word for word in LARGER if not word.startswith("command=")]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        study = Path(folder, "study")
        line = [*typed, f"data.root={data_root}", f"search.num_trials={num_trials}", f"seed={seed}"]
        began = time.time()
        with subprocess.Popen(
            [sys.executable, str(LAUNCH), *line, f"study_dir={study}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as search:
            while search.poll() is None and moment_of(study / "events.jsonl", level) is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    search.wait(LOOK_EVERY_S)
            if search.poll() is None:
                search.send_signal(signal.SIGTERM)
            said = search.communicate(timeout=300)[0]
        reached = moment_of(study / "events.jsonl", level)
        if reached is None and search.returncode:
            raise RuntimeError(f"the search must end without an error, got {said.decode()[-2000:]}")
    return None if reached is None else reached - began


def moment_of(events: Path, level: float) -> float | None:
    """When a trial first reported `level`, in seconds since 1970; None while none has."""
    if not events.exists():
        return None
    for line in events.read_text(encoding="utf-8").splitlines():
        event = json.loads(line) if line.endswith("}") else {}
        if event.get("event") == "epoch" and event["metrics"].get("val/auroc", 0.0) >= level:
            return datetime.fromisoformat(event["time"]).timestamp()
    return None


def main() -> None:
    """Record what random finds, or find it again with ours and publish both."""
    arguments = parse_arguments(
        __doc__ or "",
        ("--data-root", {"type": Path, "required": True, "metavar": "DIR", "help": "PTB-XL as published"}),
        ("--record", {"action": "store_true", "help": "train the random trials, which takes minutes, and end"}),
        ("--trials", {"type": int, "default": 24, "help": "of each search (24)"}),
        ("--seeds", {"type": int, "default": 5, "help": "of ours (5)"}),
    )
    if arguments.record:
        record(arguments.data_root, arguments.trials)
        return
    table = pd.read_parquet(CURVES / f"{NAME}.parquet")
    if table["configuration"].nunique() != arguments.trials:
        raise SystemExit(f"{NAME}.parquet holds {table['configuration'].nunique()} trials: type --record first")
    epochs = table.pivot(index="configuration", columns="epoch", values=["value", "seconds"])
    values, seconds = epochs["value"].to_numpy(), epochs["seconds"].fillna(0.0).to_numpy()
    level, draw = float(np.nanmax(values)), np.random.default_rng(0)
    orders = [seconds_of_random(values, seconds, draw) for _ in range(NUM_ORDERS)]
    ours = []
    for seed in range(arguments.seeds):
        found = seconds_of_ours(arguments.data_root, seed, level, arguments.trials)
        print(f"seed {seed}: {'never' if found is None else f'{found:.1f} s'}", flush=True)
        ours.append(math.inf if found is None else found)
    figures = [
        Figure("level", level, "AUROC"),
        Figure("random_all_trials", float(seconds.sum()), "s"),
        Figure("random_until_level", median(orders), "s"),
        Figure("ours_that_reach_level", sum(map(math.isfinite, ours)), f"of {len(ours)} seeds"),
    ]
    if math.isfinite(median(ours)):
        ratio = median(orders) / median(ours)
        figures.append(
            Figure(
                "ours_until_level",
                median(ours),
                "s",
                baseline=median(orders),
                ratio=ratio,
                target=TARGET_RATIO,
                bound="ratio at least",
            )
        )
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
