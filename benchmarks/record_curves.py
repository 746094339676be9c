"""Record real learning curves: many configurations, each trained to its end, for policies to be tried on in simulation.

Configurations are drawn at random from the space of `search=supervised_ptbxl` at the scale of a laptop, with the kinds
of encoder that are quick, and the batch size besides. Each is trained as a trial is, in a process of one thread,
`--processes` at a time; what is written down of each epoch is what a trial reports. The test fold stays closed.

`curves/ptb_xl_supervised.parquet` holds what was recorded, one row an epoch: `configuration` (a number), `epoch` (from
1), `value` (macro AUROC on the validation fold; missing where the loss was not finite), `seconds` (of that epoch), and
a column for every searched key. `curves/ptb_xl_supervised.json` says what was typed, searched and run on.

    python benchmarks/record_curves.py --data-root PTB_XL [--configurations 210] [--processes 2]

A table stays as it is while another is recorded; the same line goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from figures import machine, parse_arguments

CURVES = Path(__file__).resolve().parent / "curves"
NAME = "ptb_xl_supervised"
TYPED = (
    "command=show",
    "search=supervised_ptbxl",
    "scale=laptop",
    "data.max_train_patients=400",
    "data.max_valid_patients=300",
    "data.eval_crops=1",
    "task.finetune.num_epochs=18",
    "space.model.encoder={choice: [resnet1d, vit1d, mtae]}",
    "space.task.finetune.batch_size={choice: [8, 16, 32, 64]}",
    "space.task.finetune.lr={log_uniform: [3.0e-5, 3.0e-2]}",
)
"""What is searched at random; the rest of the space is as shipped."""


def launch_of(data_root: Path, typed: Sequence[str] = TYPED) -> Any:
    """The search whose trials are recorded."""
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked

    return checked(compose_choices([*typed, f"data.root={data_root}"]).tree)


def choices_of(launch: Any, number: int) -> dict[str, Any]:
    """The choices of configuration `number`, drawn at random; the default configuration's for number 0."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    from search_spaces.distributions import parse
    from search_spaces.samplers import make_sampler
    from search_spaces.schema import PlainSampler

    space = parse(launch.space)
    study = optuna.create_study(sampler=make_sampler(PlainSampler(name="random"), seed=launch.seed, number=number))
    if number == 0:
        study.enqueue_trial(space.defaults(launch.model_dump(mode="json", by_alias=True)))
    return space.ask(study.ask())


def store_of(launch: Any) -> Path:
    """The prepared recordings of the search, prepared now where they are not."""
    from data.store import prepare
    from trainables.recordings import preparation_of, reader_of

    data = launch.data
    reader, folder = reader_of(data), Path(data.store_dir)
    share = data.max_unreadable_share
    return Path(prepare(reader, preparation_of(data), folder, name=data.name, max_unreadable_share=share).path)


def curve_of(
    data_root: Path, number: int, store: Path, *, threads: int = 1, typed: Sequence[str] = TYPED
) -> dict[str, Any]:
    """Train one configuration to its end."""
    from search_spaces.distributions import run_with
    from trainables.trial import Assignment, epochs
    from trainables.workers import Workers

    launch = launch_of(data_root, typed)
    choices = choices_of(launch, number)
    metric = launch.search.metric
    with tempfile.TemporaryDirectory() as folder:
        assignment = Assignment(
            number=number,
            run=run_with(launch, choices),
            folder=Path(folder, "trial"),
            store=store,
            metric=metric,
            maximize=True,
            num_gpus=0,
            cpus_per_worker=threads,
        )
        results = [
            {"value": result["metrics"].get(metric, math.nan), "seconds": round(result["seconds"], 4)}
            for result in epochs(assignment, Workers())
        ]
    return {"configuration": number, "choices": choices, "epochs": results}


def write_table(
    curves: list[dict[str, Any]],
    launch: Any,
    data_root: Path,
    processes: int,
    *,
    name: str = NAME,
    typed: Sequence[str] = TYPED,
) -> None:
    """Put all curves into one table, and beside it what it is of."""
    import pandas as pd

    rows = [
        {"configuration": curve["configuration"], "epoch": epoch, **result, **curve["choices"]}
        for curve in sorted(curves, key=lambda curve: curve["configuration"])
        for epoch, result in enumerate(curve["epochs"], start=1)
    ]
    pd.DataFrame(rows).to_parquet(CURVES / f"{name}.parquet", index=False)
    told = {
        "typed": [*typed, f"data.root={data_root.name}"],
        "space": launch.space,
        "configurations": len(curves),
        "epochs": launch.task.num_epochs,
        "processes": processes,
        "machine": machine(),
    }
    (CURVES / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Record what is missing, some at a time, and write the table once all are there."""
    arguments = parse_arguments(
        __doc__ or "",
        ("--data-root", {"type": Path, "required": True, "metavar": "DIR", "help": "PTB-XL as published"}),
        ("--configurations", {"type": int, "default": 210, "help": "how many in all (210)"}),
        ("--processes", {"type": int, "default": 2, "help": "of one thread each (2)"}),
    )
    root = arguments.data_root
    launch = launch_of(root)
    store = store_of(launch)
    CURVES.mkdir(exist_ok=True)
    parts = CURVES / f"{NAME}.jsonl"
    curves = [json.loads(line) for line in parts.read_text().splitlines()] if parts.exists() else []
    missing = sorted(set(range(arguments.configurations)) - {curve["configuration"] for curve in curves})
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool, parts.open("a") as file:
        for future in [pool.submit(curve_of, root, number, store) for number in missing]:
            curve = future.result()
            curves.append(curve)
            file.write(json.dumps(curve) + "\n")
            file.flush()
            last = curve["epochs"][-1]
            seconds = sum(epoch["seconds"] for epoch in curve["epochs"])
            print(f"{curve['configuration']:4d}  {last['value']:.4f}  {seconds:6.1f} s  {curve['choices']}", flush=True)
    write_table(curves, launch, root, arguments.processes)
    parts.unlink()


if __name__ == "__main__":
    main()
