"""Is pre-training worth it? Every method, from several seeds, against its own untrained encoder under the same probe.

Each method pre-trains on the training records of `scale=laptop` for the same number of epochs; before and after, a
linear probe is fitted on the labelled training records and asked about the whole validation fold (never the test fold).
A gain is the difference of the two macro AUROCs, both of the same seed, averaged over the seeds. Its 95 % interval is
that of a paired bootstrap over patients and over seeds; of three seeds that is rough, so each one's gain stands beside
it. A gain whose interval holds 0 is not told apart from none.

An untrained encoder is probed as it is initialised: the statistics of a batch norm are then 0 and 1, and part of a gain
may be that pre-training has measured them.

python benchmarks/pretraining_gain.py --data-root PTB_XL [--epochs 3] [--seeds 3] [--methods st_mem jepa] [--json FILE]
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from figures import Figure, parse_arguments, publish

NUM_RESAMPLES = 500
SETTINGS: dict[str, tuple[str, ...]] = {
    "simclr": ("task.pretrain.batch_size=32",),
    "byol": ("task.pretrain.batch_size=32",),
    "clocs": ("task.pretrain.batch_size=32",),
    "meclip": ("task.pretrain.batch_size=32",),
}
"""What is typed for a method beside its model: what contrasts records needs more of them in a batch."""


@dataclass(frozen=True)
class Seed:
    """One method from one seed."""

    method: str
    seed: int
    untrained: Any  # (n, K) probabilities of the probe before
    trained: Any  # and after pre-training
    targets: Any  # (n, K)
    patients: Any  # (n,)
    seconds: float
    collapsed: str | None


def methods() -> list[str]:
    """The models that have a pretext task, by the names that are typed."""
    files = (Path(__file__).parents[1] / "search_spaces" / "model").glob("[!_]*.yaml")
    return sorted(path.stem for path in files if path.stem != "supervised")


def run_of(method: str, seed: int, arguments: Any) -> Any:
    """The run of one method from one seed."""
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked

    root = () if arguments.data_root is None else (f"data.root={arguments.data_root}",)
    source = "data=ptb_xl" if root else "data=synthetic"
    shared = (f"model={method}", "task=pretrain", "space=none", "scale=laptop", source, *root)
    typed = (*shared, f"task.pretrain.num_epochs={arguments.epochs}", *SETTINGS.get(method, ()), *arguments.typed)
    whole = ("data.max_valid_patients=null", "data.eval_crops=1")
    return checked(compose_choices(["command=train", *typed, *whole, f"seed={seed}"]).tree).run


def recordings_of(run: Any) -> Any:
    """The recordings of a run, prepared now where they are not."""
    from data.store import prepare
    from trainables.recordings import open_recordings, preparation_of, reader_of

    store = prepare(
        reader_of(run.data),
        preparation_of(run.data),
        Path(run.data.store_dir),
        name=run.data.name,
        max_unreadable_share=run.data.max_unreadable_share,
    )
    return open_recordings(run, store.path)


def measure(method: str, seed: int, arguments: Any) -> Seed:
    """Probe, pre-train, probe again; in a process of its own."""
    import time

    import torch

    from trainables.collapse import CollapsedError
    from trainables.predict import predict
    from trainables.pretrain import enter_pretrain, fresh_encoder, pretrain, probed
    from trainables.state import TrainState
    from trainables.workers import Workers

    torch.set_num_threads(1)
    run, alone = run_of(method, seed, arguments), Workers()
    recordings = recordings_of(run)
    rows, classes = recordings.split.valid, recordings.valid_classes

    def answers(encoder: Any) -> Any:
        classifier = probed(run, encoder, recordings, alone)
        kind = recordings.labels.kind
        return predict(classifier, recordings.store, rows, run.data, alone, kind=kind)[:, classes]

    untrained = answers(fresh_encoder(run))
    state, collapsed = TrainState("val/auroc", maximize=True), None
    enter_pretrain(run, state, alone)
    pretext = state.model
    started = time.perf_counter()
    try:
        for _ in pretrain(run, state, recordings, alone):
            pass
    except CollapsedError as error:
        collapsed = str(error)
    seconds = time.perf_counter() - started
    patients = recordings.store.index["patient_id"].to_numpy()[rows]
    targets = recordings.targets(rows)[:, classes]
    return Seed(method, seed, untrained, answers(pretext.encoder), targets, patients, seconds, collapsed)


@dataclass(frozen=True)
class Gain:
    """What pre-training by one method was worth."""

    method: str
    untrained: float
    trained: float
    low: float
    high: float
    of_seeds: list[float]
    seconds: float
    collapsed: list[str]

    @property
    def value(self) -> float:
        """The mean difference of the seeds."""
        return self.trained - self.untrained

    @property
    def verdict(self) -> str:
        """What the interval says, and no more than it says."""
        if self.low > 0:
            return "better than untrained"
        return "worse than untrained" if self.high < 0 else "not told apart"


def gain_of(method: str, seeds: list[Seed]) -> Gain:
    """The gain over all seeds of a method."""
    import numpy as np

    from reports.statistics.discrimination import auroc
    from reports.statistics.intervals import bootstrap

    def resampled(seed: Seed, scores: Any) -> Any:
        return bootstrap(seed.targets, scores, seed.patients, num_resamples=NUM_RESAMPLES, seed=0).macro[0]

    def macro(seed: Seed, scores: Any) -> float:
        return float(np.mean([auroc(seed.targets[:, k], scores[:, k]) for k in range(scores.shape[1])]))

    of_seed = np.stack([resampled(one, one.trained) - resampled(one, one.untrained) for one in seeds])  # (S, R)
    drawn = np.random.default_rng(0).integers(len(seeds), size=of_seed.shape)  # seeds, too
    differences = np.take_along_axis(of_seed, drawn, axis=0).mean(axis=0)
    low, high = np.quantile(differences, [0.025, 0.975])
    pairs = [(macro(one, one.untrained), macro(one, one.trained)) for one in seeds]
    return Gain(
        method,
        untrained=float(np.mean([before for before, _ in pairs])),
        trained=float(np.mean([after for _, after in pairs])),
        low=float(low),
        high=float(high),
        of_seeds=[after - before for before, after in pairs],
        seconds=float(np.mean([one.seconds for one in seeds])),
        collapsed=[one.collapsed for one in seeds if one.collapsed],
    )


def row(gain: Gain) -> str:
    """A line of the table."""
    seeds = ", ".join(f"{value:+.4f}" for value in gain.of_seeds)
    interval = f"[{gain.low:+.4f}, {gain.high:+.4f}]"
    told = gain.verdict + (f"; collapsed in {len(gain.collapsed)}" if gain.collapsed else "")
    return (
        f"{gain.method:<11} {gain.untrained:.4f}    {gain.trained:.4f}  {gain.value:+.4f} {interval}  "
        f"{seeds:<27} {gain.seconds:4.0f} s  {told}"
    )


def main() -> None:
    """Measure every method from every seed, two at a time, and print the table."""
    arguments = parse_arguments(
        __doc__ or "",
        ("--data-root", {"type": Path, "metavar": "DIR", "help": "PTB-XL as published; generated records without it"}),
        ("--epochs", {"type": int, "default": 3, "help": "of pre-training, for every method (3)"}),
        ("--seeds", {"type": int, "default": 3, "help": "of each method (3)"}),
        ("--methods", {"nargs": "+", "default": methods(), "metavar": "MODEL", "help": "options of model= (all)"}),
        ("--typed", {"nargs": "*", "default": [], "metavar": "KEY=VALUE", "help": "typed for every method"}),
    )
    recordings_of(run_of(arguments.methods[0], 0, arguments))  # before two processes ask for them
    gains = []
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        running = {
            method: [pool.submit(measure, method, seed, arguments) for seed in range(arguments.seeds)]
            for method in arguments.methods
        }
        print("method      untrained  trained  gain [95 % interval]       of each seed                time")
        for method, seeds in running.items():
            gains.append(gain_of(method, [seed.result() for seed in seeds]))
            print(row(gains[-1]), flush=True)
    figures = []
    for gain in gains:
        figures.append(Figure(f"{gain.method}_auroc", gain.trained, "AUROC", baseline=gain.untrained))
        for name in ("value", "low", "high"):
            figures.append(Figure(f"{gain.method}_gain_{name}", getattr(gain, name), "AUROC"))
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
