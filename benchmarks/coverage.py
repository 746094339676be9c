"""How often the report's 95 % intervals hold the truth, in simulated test folds whose truth is known.

Draws folds of patients with one to three records each and 20 classes: 5, 10, 20, 50 or 200 positive patients are
expected in a class, its AUROC is 0.7, 0.85, 0.93 or 0.97. Scores are binormal; a patient's records share half of their
variance, and classes share some of it too. The true AUROC is known from the distance of the two normals, the true AUPRC
from an integral over them at the class's share of positives. For every number of positives it tells in how many of the
folds the interval of intervals.py held the truth, for AUROC and AUPRC, per class and for means over classes
(macro), and beside it the same of the percentile interval. The lowest coverage of the cells with 20 positives or more
is held against 0.93, the highest against 0.97. Folds with ten classes of two positives each come last: there the mean's
interval is compared with percentiles over resamples in which a lacking class counts as 0.5, as in published code.

Folds are independent, so they are shared out among processes; the figures follow from the seed alone.

With --pairs it looks at differences of two models instead: how often p is at most 0.05 between equally good ones, and
how often the interval holds a true difference.

python benchmarks/coverage.py [--short] [--pairs] [--folds N] [--resamples 1000] [--workers 2] [--seed 0] [--json FILE]
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

from figures import Figure, parse_arguments, publish

NUM_POSITIVE = (5, 10, 20, 50, 200)
AREAS = (0.7, 0.85, 0.93, 0.97)
ENOUGH = 20
"""Positive patients from which on the coverage is promised."""
PROMISED = (0.93, 0.97)
NUM_PATIENTS = 500
ALSO_POSITIVE = 0.8
"""The share of a positive patient's records, after the first, that are positive."""
OF_PATIENT, OF_CLASS = 0.2, 0.3
"""Shares of a score's variance that a patient's records have in common: in all classes, and in one."""
METRICS = ("auroc", "auprc")
RARE = tuple([(2, 0.95)] * 10 + [(50, 0.95)] * 10)
"""Classes as in PTB-XL's 71 statements, of which a test fold holds some once or twice."""
MEAN_WITH_RARE = "macro with ten classes of 2"
Held = Counter[tuple[str, str, str, float, bool]]
"""(method, metric, "class" or a mean's name, expected positives or 0, held) -> folds."""


@dataclass(frozen=True)
class Fold:
    """A simulated test fold: n records, K classes."""

    targets: Any
    """(n, K)"""
    scores: Any
    """(n, K)"""
    patients: Any
    """(n,)"""


def simulated(seed: int, cells: Sequence[tuple[int, float]], num_patients: int = NUM_PATIENTS) -> Fold:
    """A fold with a class for each (expected positive patients, AUROC)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 4, num_patients))
    first = np.r_[True, patients[1:] != patients[:-1]][:, None]
    shape = (len(patients), len(cells))
    chances = np.array([num_positive / num_patients for num_positive, _ in cells])
    positive = rng.random((num_patients, len(cells))) < chances
    targets = positive[patients] & (first | (rng.random(shape) < ALSO_POSITIVE))
    scores = math.sqrt(OF_PATIENT) * rng.normal(size=(num_patients, 1))[patients]
    scores = scores + math.sqrt(OF_CLASS) * rng.normal(size=(num_patients, len(cells)))[patients]
    scores += math.sqrt(1 - OF_PATIENT - OF_CLASS) * rng.normal(size=shape)
    gaps = np.array([math.sqrt(2) * NormalDist().inv_cdf(area) for _, area in cells])
    return Fold(targets.astype(np.float64), scores + gaps * targets, patients)


def true_values(num_positive: int, area: float, num_patients: int = NUM_PATIENTS) -> tuple[float, float]:
    """The AUROC and the AUPRC of a class in the whole population."""
    import numpy as np
    from scipy.special import ndtr

    share = num_positive / num_patients * (1 + ALSO_POSITIVE + 1 + 2 * ALSO_POSITIVE + 1) / 3 / 2
    gap = math.sqrt(2) * NormalDist().inv_cdf(area)
    level = np.linspace(-9, 9 + gap, 40_001)
    density = np.exp(-((level - gap) ** 2) / 2) / math.sqrt(2 * math.pi)
    true, false = share * ndtr(gap - level), (1 - share) * ndtr(-level)
    return area, float(np.trapezoid(density * true / (true + false), level))


def held_in(seeds: Iterable[int], num_resamples: int, cells: Sequence[tuple[int, float]], num_patients: int) -> Held:
    """What held the truth, in the folds of some seeds."""
    import numpy as np

    from reports.statistics.intervals import bootstrap

    truths = np.array([true_values(*cell, num_patients) for cell in cells])
    held: Held = Counter()
    for seed in seeds:
        fold = simulated(seed, cells, num_patients)
        kept = np.flatnonzero(fold.targets.any(axis=0))  # the report leaves out a class without a positive
        found = bootstrap(
            fold.targets[:, kept], fold.scores[:, kept], fold.patients, num_resamples=num_resamples, seed=seed
        )
        count_classes(held, found, [cells[index] for index in kept], truths[kept])
        expected = np.array([cells[index][0] for index in kept])
        for name, least in (("macro of all", 0), (f"macro from {ENOUGH}", ENOUGH)):
            chosen = np.flatnonzero(expected >= least)
            if chosen.size:
                count_mean(held, found, name, chosen, truths[kept])
    return held


def held_with_rare(seeds: Iterable[int], num_resamples: int, num_patients: int) -> Held:
    """What held the true mean AUROC in folds with rare classes: our interval, and the one that counts 0.5."""
    import numpy as np

    from reports.statistics.intervals import bootstrap

    held: Held = Counter()
    for seed in seeds:
        fold = simulated(seed, RARE, num_patients)
        kept = np.flatnonzero(fold.targets.any(axis=0))
        targets, scores = fold.targets[:, kept], fold.scores[:, kept]
        found = bootstrap(targets, scores, fold.patients, num_resamples=1, seed=seed)
        truth = float(np.mean([RARE[index][1] for index in kept]))
        value = float(np.mean([one.values[0] for one in found.influences]))
        low, high = one_half_interval(targets, scores, fold.patients, num_resamples=num_resamples, seed=seed)
        ours = found.of_macro("auroc", value)
        held["ours", "auroc", MEAN_WITH_RARE, 0, bool(ours.low <= truth <= ours.high)] += 1
        held["one_half", "auroc", MEAN_WITH_RARE, 0, bool(low <= truth <= high)] += 1
    return held


def one_half_interval(
    targets: Any, scores: Any, patients: Any, *, num_resamples: int, seed: int
) -> tuple[float, float]:
    """Percentiles of the mean AUROC over resamples of the patients, a class that a resample lacks counting as 0.5."""
    import numpy as np

    from reports.statistics.discrimination import Ranking

    rng = np.random.default_rng(seed)
    num_patients = int(patients.max()) + 1
    drawn = rng.multinomial(num_patients, np.full(num_patients, 1 / num_patients), size=num_resamples).T
    weights = drawn[patients].astype(np.float64)
    rankings = [Ranking.of(*columns) for columns in zip(targets.T, scores.T, strict=True)]
    areas = np.array([ranking.auroc_and_auprc(weights)[0] for ranking in rankings])
    low, high = np.quantile(np.where(np.isnan(areas), 0.5, areas).mean(axis=0), [0.025, 0.975])
    return float(low), float(high)


def count_classes(held: Held, found: Any, cells: Sequence[tuple[int, float]], truths: Any) -> None:
    """Look at every class's intervals."""
    for index, (num_positive, area) in enumerate(cells):
        for row, metric in enumerate(METRICS):
            value = float(found.influences[index].values[row])
            intervals = {
                "ours": found.of_class(metric, index, value),
                "percentile": found.percentiles_of_class(metric, index, value),
            }
            for method, interval in intervals.items():
                if interval.low is not None:
                    inside = interval.low <= truths[index, row] <= interval.high
                    held[method, metric, f"class {area}", num_positive, bool(inside)] += 1


def count_mean(held: Held, found: Any, name: str, chosen: Any, truths: Any) -> None:
    """Look at the intervals of a mean over some classes."""
    import numpy as np

    part = replace(
        found,
        per_class=found.per_class[:, chosen],
        macro=found.per_class[:, chosen].mean(axis=1),
        num_valid=found.num_valid[chosen],
        influences=tuple(found.influences[index] for index in chosen),
    )
    for row, metric in enumerate(METRICS):
        value = float(np.mean([one.values[row] for one in part.influences]))
        truth = truths[chosen, row].mean()
        for method, interval in (("ours", part.of_macro(metric, value)), ("percentile", percentiles(part, row))):
            held[method, metric, name, 0, bool(interval.low <= truth <= interval.high)] += 1


def percentiles(part: Any, row: int) -> Any:
    """The percentile interval of a mean, each class in its own valid resamples."""
    from reports.statistics.intervals import percentile_interval

    return percentile_interval(math.nan, part.macro[row])


def coverage(held: Held, method: str, metric: str, name: str, num_positive: float) -> tuple[float, int]:
    """The share of folds whose interval held the truth, and how many folds that is of."""
    inside, outside = (held[method, metric, name, num_positive, state] for state in (True, False))
    return inside / max(inside + outside, 1), inside + outside


def measured(
    num_folds: int,
    num_resamples: int,
    *,
    num_workers: int,
    seed: int,
    cells: Sequence[tuple[int, float]],
    num_patients: int = NUM_PATIENTS,
) -> Held:
    """All folds, shared out among processes."""
    first = seed * 1_000_003
    parts = [range(first + worker, first + num_folds, num_workers) for worker in range(num_workers)]
    held: Held = Counter()
    with ProcessPoolExecutor(num_workers) as pool:
        jobs = [pool.submit(held_in, part, num_resamples, cells, num_patients) for part in parts]
        jobs += [pool.submit(held_with_rare, part, num_resamples, num_patients) for part in parts]
        for job in jobs:
            held.update(job.result())
    return held


def figures_of(held: Held, cells: Sequence[tuple[int, float]]) -> list[Figure]:
    """A figure for every cell, with the percentile interval's coverage as its baseline."""
    rows = [(f"class {area}", float(num_positive)) for num_positive, area in cells]
    rows += [("macro of all", 0.0), (f"macro from {ENOUGH}", 0.0)]
    figures, promised = [], []
    for metric in METRICS:
        for name, num_positive in rows:
            value, num_folds = coverage(held, "ours", metric, name, num_positive)
            if not num_folds:
                continue
            usual, _ = coverage(held, "percentile", metric, name, num_positive)
            of = f", {num_positive:.0f} positive" if num_positive else ""
            figures.append(Figure(f"{metric}, {name}{of}", value, "of folds", baseline=usual, target=0.95))
            if num_positive >= ENOUGH or name == f"macro from {ENOUGH}":
                promised.append(value)
    value, num_folds = coverage(held, "ours", "auroc", MEAN_WITH_RARE, 0)
    if num_folds:
        half, _ = coverage(held, "one_half", "auroc", MEAN_WITH_RARE, 0)
        figures.append(Figure(f"auroc, {MEAN_WITH_RARE}", value, "of folds", baseline=half, target=0.95))
    if promised:
        lowest, highest = min(promised), max(promised)
        figures.append(Figure("lowest promised", lowest, "of folds", target=PROMISED[0], bound="at least"))
        figures.append(Figure("highest promised", highest, "of folds", target=PROMISED[1], bound="at most"))
    return figures


# -------- differences of two models


def pair(rng: Any, num_classes: int, num_positive: int, gaps: tuple[float, float]) -> tuple[Any, Any]:
    """Two models on one fold of 300 patients, each with its influences; `gaps` part their positives and negatives."""
    import numpy as np

    from reports.statistics.influence import influence
    from reports.statistics.intervals import Bootstrap

    patients = np.repeat(np.arange(300), rng.integers(1, 4, 300))
    kinds = np.zeros((300, num_classes))
    for index in range(num_classes):
        kinds[rng.choice(300, num_positive, replace=False), index] = 1
    targets = kinds[patients]
    shared = 0.6 * rng.normal(size=kinds.shape)[patients] + 0.4 * rng.normal(size=targets.shape)
    models = []
    for gap in gaps:
        own = 0.7 * rng.normal(size=kinds.shape)[patients] + 0.7 * rng.normal(size=targets.shape)
        scores = shared + 0.7 * own + gap * targets
        found = tuple(influence(*columns, patients) for columns in zip(targets.T, scores.T, strict=True))
        models.append(
            Bootstrap(np.zeros((2, num_classes, 1)), np.zeros((2, 1)), np.ones(num_classes, int), 1, 0, found)
        )
    return models[0], models[1]


def paired_folds(num_folds: int, num_classes: int, num_positive: int) -> tuple[float, float, float]:
    """Shares of folds: p <= 0.05 between equally good models (AUROC, AUPRC), and a true difference in AUROC held."""
    import numpy as np

    spread = math.sqrt(2 * (0.36 + 0.16 + 0.49 * 0.98))
    better, worse = 2.0, 1.4
    truth = NormalDist().cdf(better / spread) - NormalDist().cdf(worse / spread)
    rejected, held = np.zeros(2), 0
    for fold in range(num_folds):
        rng = np.random.default_rng([fold, num_classes, num_positive])
        one, other = pair(rng, num_classes, num_positive, (1.5, 1.5))
        for row, metric in enumerate(METRICS):
            _, p = one.of_difference(other, metric)
            rejected[row] += p is not None and p <= 0.05
        one, other = pair(rng, num_classes, num_positive, (better, worse))
        found, _ = one.of_difference(other, "auroc")
        held += found.low is not None and found.low <= truth <= found.high
    return float(rejected[0] / num_folds), float(rejected[1] / num_folds), held / num_folds


def figures_of_pairs(num_folds: int) -> list[Figure]:
    """The table of docs/statistics.md."""
    figures = []
    for num_classes in (1, 5):
        for num_positive in (2, 5, 10, 20, 50):
            auroc, auprc, held = paired_folds(num_folds, num_classes, num_positive)
            of = f"{num_classes} x {num_positive} positive"
            figures.append(Figure(f"p <= 0.05, auroc, {of}", auroc, "of folds", target=0.05))
            figures.append(Figure(f"p <= 0.05, auprc, {of}", auprc, "of folds", target=0.05))
            figures.append(Figure(f"true difference held, {of}", held, "of folds", target=0.95))
    return figures


def main() -> None:
    """Simulate, and tell the coverage of every cell."""
    arguments = parse_arguments(
        __doc__ or "",
        ("--short", {"action": "store_true", "help": "100 folds, 100 resamples: a look, not a measurement"}),
        ("--pairs", {"action": "store_true", "help": "differences of two models instead"}),
        ("--folds", {"type": int, "default": 2000, "metavar": "N", "help": "simulated folds (2000)"}),
        ("--resamples", {"type": int, "default": 1000, "metavar": "R", "help": "bootstrap resamples of each (1000)"}),
        ("--workers", {"type": int, "default": os.cpu_count() or 1, "metavar": "N", "help": "processes"}),
        ("--seed", {"type": int, "default": 0, "help": "of the first fold"}),
    )
    num_folds, num_resamples = (100, 100) if arguments.short else (arguments.folds, arguments.resamples)
    if arguments.pairs:
        publish(figures_of_pairs(num_folds), arguments.json)
        return
    cells = [(num_positive, area) for num_positive in NUM_POSITIVE for area in AREAS]
    held = measured(num_folds, num_resamples, num_workers=arguments.workers, seed=arguments.seed, cells=cells)
    publish(figures_of(held, cells), arguments.json)


if __name__ == "__main__":
    main()
