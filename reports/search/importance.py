"""How much each searched parameter had to do with how a trial did: PED-ANOVA and fANOVA, at one epoch.

PED-ANOVA asks what sets the best trials apart, fANOVA what makes values differ anywhere in the space (fanova.py).

Optuna's evaluators take completed trials with their final values. Under a scheduler that stops trials early these are a
few, and the ones that it chose; so trials are compared at one epoch that nearly all of them reached
(`choices.compare`), and those that were completed by their final values beside it, where they are enough.

Shares add up to 1 even where nothing matters. Two guards stand beside each: an interval over resamples of the trials,
and how often values shuffled among the trials give the parameter as much.

Sources: PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255, as Optuna 5 computes it (its default evaluator); the
shufflings are a permutation test, whose share counts the values as they came as one of the shufflings (Phipson and
Smyth 2010, arXiv:1603.05766).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from reports.folder import Study
from reports.search.choices import Comparison, Unknown
from reports.search.fanova import NUM_TREES, fanova, missing
from reports.search.ped_anova import Grids
from reports.statistics.intervals import CONFIDENCE

BEST_SHARE = 0.2
"""A trial is among the best if it is in this share of them. Optuna's default of 0.1 leaves 3 trials of 30, where its
documentation asks for 5."""
MIN_TRIALS = 8
"""Below this many trials nothing is computed; the best fifth of 8 are 2."""
MIN_COMPLETED = 10
"""Below this many completed trials their final values are not looked at."""
FEW_TRIALS = 30
"""Below this many the page warns: the best fifth are five trials or so."""
NEGLIGIBLE = 1e-9
"""Where all parameters' figures together are below this, they are rounding errors: the best chose as all did."""
NUM_RESAMPLES = 200
NUM_SHUFFLINGS = 100

Trials = Sequence[FrozenTrial]
"""Trials with their choices, each COMPLETE with the value that it is compared by."""


def importance(study: Study, comparison: Comparison, *, seed: int) -> dict[str, Any]:
    """The importance of every searched parameter, as plain JSON values.

    Args:
        study: a study's folder, read; its journal says what each parameter was drawn from.
        comparison: the epoch to compare at.
        seed: of the resamples and the shufflings.

    Returns:
        at_epoch and completed, each with its number of trials and parameters -> share, its interval, and the share of
        the shufflings that give as much (`by_chance`), or a `reason` why there is none; fanova: the part of the
        variance that it explains, explained: what the forest behind it predicts; both None without scikit-learn.

    Raises:
        Unknown: if the journal cannot say what was drawn.
    """
    drawn = read_journal(study.journal)
    direction = StudyDirection.MAXIMIZE if study.maximizes else StudyDirection.MINIMIZE
    final = {
        trial.number: trial.value for trial in study.trials if trial.state == "COMPLETE" and trial.value is not None
    }
    return {
        "evaluator": "PED-ANOVA",
        "fanova": {"num_trees": NUM_TREES, "reason": missing()},
        "best_share": BEST_SHARE,
        "num_resamples": NUM_RESAMPLES,
        "num_shufflings": NUM_SHUFFLINGS,
        "confidence": CONFIDENCE,
        "seed": seed,
        "few_trials": FEW_TRIALS,
        "at_epoch": _block(drawn, comparison.values, direction, at_least=MIN_TRIALS, seed=seed),
        "completed": _block(drawn, final, direction, at_least=MIN_COMPLETED, seed=seed),
    }


def read_journal(path: Path | None) -> dict[int, FrozenTrial]:
    """The trials of Optuna's journal by number; the file is read and nothing is written, beside it neither.

    Raises:
        Unknown: if it is missing or damaged.
    """
    if path is None or not path.exists():
        raise Unknown("the study’s folder has no journal.log, which says what parameters were drawn from")
    try:
        storage = JournalStorage(_ReadOnly(path.read_bytes()))
        names = [study.study_name for study in storage.get_all_studies()]  # one; its name is the search's affair
        studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
        return {trial.number: trial for study in studies for trial in study.get_trials(deepcopy=False)}
    except Exception as error:  # noqa: BLE001  whatever a damaged journal does to Optuna, the report stands without it
        raise Unknown(f"journal.log cannot be read ({_said(error)}): restore it") from error


def _said(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class _ReadOnly(BaseJournalBackend):
    """What a journal held when it was read. Optuna's own backend would make a missing file, and locks beside it."""

    def __init__(self, content: bytes) -> None:
        whole = content.rfind(b"\n") + 1  # a study that still runs may be in the middle of its last line
        self._lines = content[:whole].splitlines()

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return [json.loads(line) for line in self._lines[log_number_from:]]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise AssertionError("a report writes nothing into a study's journal")


def _block(
    drawn: Mapping[int, FrozenTrial],
    values: Mapping[int, float],
    direction: StudyDirection,
    *,
    at_least: int,
    seed: int,
) -> dict[str, Any]:
    """Importances of trials compared by `values`: all of them together, then those of each branch of the space."""
    block: dict[str, Any] = {"num_trials": len(values), "needed": at_least, "parameters": {}}
    if len(values) < at_least:
        return block | {"reason": f"there are {len(values)} trials to compare and {at_least} are needed"}
    if lost := values.keys() - drawn.keys():
        raise Unknown(f"journal.log lacks trial {min(lost)}, which events.jsonl has: restore it")
    trials = [_valued(drawn[number], values[number]) for number in sorted(values)]
    _share_distributions(trials)
    for members, names in _by_trials(trials):
        block["parameters"] |= _of_group([trials[place] for place in members], names, direction, seed=seed)
    return block


def _by_trials(trials: Trials) -> Iterator[tuple[tuple[int, ...], list[str]]]:
    """The parameters grouped by the trials that have them: first those that all have, then by number and name.

    A parameter that exists for some methods only is compared among the trials that have it: held against the others it
    would be the choice of the method over again.
    """
    having: dict[str, list[int]] = {}
    for place, trial in enumerate(trials):
        for name in trial.params:
            having.setdefault(name, []).append(place)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(having):
        groups.setdefault(tuple(having[name]), []).append(name)
    yield from sorted(groups.items(), key=lambda group: (-len(group[0]), group[1]))


def _of_group(trials: Trials, names: list[str], direction: StudyDirection, *, seed: int) -> dict[str, Any]:
    """Share, interval and chance of the parameters `names`, among trials that have them all."""
    shared = sorted(set.intersection(*(set(trial.params) for trial in trials)))
    varied = [name for name in shared if len({trial.params[name] for trial in trials}) > 1]
    reasons = {name: _no_figure(trials, varied=name in varied) for name in names}
    wanted = [name for name in names if reasons[name] is None]
    figures = _figures(trials, varied, wanted, direction, seed=seed) if wanted else {}
    return {name: figures.get(name) or _nothing(trials, reasons[name]) for name in names}


def _nothing(trials: Trials, reason: str | None) -> dict[str, Any]:
    return {"share": None, "low": None, "high": None, "num_trials": len(trials), "reason": reason}


def _no_figure(trials: Trials, *, varied: bool) -> str | None:
    """Why nothing can be said of a parameter that these trials have; None where something can."""
    if len(trials) < MIN_TRIALS:
        return f"too few: {len(trials)} of the {MIN_TRIALS} trials that are needed have it"
    if _all_equal(trials):
        return f"all {len(trials)} trials came out with the same value"
    return None if varied else f"all {len(trials)} trials had the same choice"


def _figures(
    trials: Trials, names: list[str], wanted: list[str], direction: StudyDirection, *, seed: int
) -> dict[str, Any]:
    """The figures of the parameters `wanted`, their shares being among `names`, which all of these trials have."""
    found = _divergences(trials, names, direction, np.arange(len(trials))[None])[0]
    if found.sum() < NEGLIGIBLE:
        return {
            name: _nothing(trials, f"the best of the {len(trials)} trials chose as all of them did") for name in wanted
        }
    low, high = _interval(trials, names, direction, seed=seed)
    columns = [names.index(name) for name in wanted]
    by_chance = _by_chance(trials, wanted, found[columns], direction, seed=seed)
    forest = None if missing() else fanova(trials, names, seed=seed)
    return {
        name: {
            "share": float(found[column] / found.sum()),
            "low": float(low[column]),
            "high": float(high[column]),
            "num_trials": len(trials),
            "by_chance": float(chance),
            "fanova": forest.shares[name] if forest else None,
            "explained": forest.explained if forest else None,
        }
        for name, column, chance in zip(wanted, columns, by_chance, strict=True)
    }


def _all_equal(trials: Trials) -> bool:
    return len({trial.value for trial in trials}) == 1


def divergences(trials: Trials, names: list[str], direction: StudyDirection) -> NDArray[np.float64]:
    """How far the best trials' choices of each of `names` lie from all trials': PED-ANOVA's figure, not yet a share.

    `evaluate_on_local` compares with the trials as they were drawn, not with the whole space: a sampler that learns
    draws most of them where the good ones are.

    Raises:
        Unknown: if the evaluator fails.
    """
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE, region_quantile=1.0, evaluate_on_local=True)
    try:
        found = evaluator.evaluate(_AsStudy(trials, direction), params=names)
    except Exception as error:  # noqa: BLE001  whatever fails in it, the report stands without it
        raise Unknown(f"Optuna’s evaluator failed ({_said(error)})") from error
    return np.array([found[name] for name in names])


def _divergences(
    trials: Trials,
    names: list[str],
    direction: StudyDirection,
    drawn: NDArray[np.int64],
    *,
    values_of: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """(R, P) the same for resamples of the trials: all at once, or by Optuna where a parameter's range changed midway.

    Args:
        trials: n of them.
        names: P of their parameters.
        direction: of the search.
        drawn: (R, n) positions of the trials that each resample holds.
        values_of: (R, n) positions of the trials whose values they are given; their own unless given.
    """
    values_of = drawn if values_of is None else values_of
    values = np.array([trial.value for trial in trials])
    if (grids := Grids.of(trials, names)) is not None:
        sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0
        return grids.divergences(drawn, sign * values[values_of], best_share=BEST_SHARE)
    resamples = (
        [_valued(trials[place], values[of]) for place, of in zip(*row, strict=True)]
        for row in zip(drawn, values_of, strict=True)
    )
    return np.array([divergences(resample, names, direction) for resample in resamples])


class _AsStudy(optuna.Study):
    """Trials as the study that an evaluator asks for them; no storage is behind it, which would be slow to fill."""

    def __init__(self, trials: Trials, direction: StudyDirection) -> None:
        self._compared = list(trials)
        self._of_these = [direction]

    @property
    def directions(self) -> list[StudyDirection]:
        return self._of_these

    def get_trials(self, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        return self._compared


def _interval(
    trials: Trials, names: list[str], direction: StudyDirection, *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentiles of the shares over resamples of the trials, drawn with replacement.

    A resample in which all values are equal, or the best chose as all did, has no shares and is left out.
    """
    draw = np.random.default_rng([seed, len(trials)])
    drawn = np.array([draw.integers(len(trials), size=len(trials)) for _ in range(NUM_RESAMPLES)])
    values = np.array([trial.value for trial in trials])[drawn]
    drawn = drawn[values.min(axis=1) < values.max(axis=1)]
    found = _divergences(trials, names, direction, drawn)
    total = found.sum(axis=1, keepdims=True)
    shares = (found / np.maximum(total, NEGLIGIBLE))[total[:, 0] >= NEGLIGIBLE]
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high


def _by_chance(
    trials: Trials, names: list[str], found: NDArray[np.float64], direction: StudyDirection, *, seed: int
) -> NDArray[np.float64]:
    """The share of shufflings of the values among the trials that give a parameter at least what was found for it."""
    draw = np.random.default_rng([seed, len(trials), NUM_SHUFFLINGS])
    orders = np.array([draw.permutation(len(trials)) for _ in range(NUM_SHUFFLINGS - 1)])
    places = np.broadcast_to(np.arange(len(trials)), orders.shape)
    as_large = _divergences(trials, names, direction, places, values_of=orders) >= found - 1e-12
    return np.asarray((1 + as_large.sum(axis=0)) / NUM_SHUFFLINGS)  # the values as they came are one of the shufflings


def _share_distributions(trials: Trials) -> None:
    """Let equal distributions be one object: the evaluator groups trials by them, and sameness is quicker to see."""
    known: dict[BaseDistribution, BaseDistribution] = {}
    for trial in trials:
        trial.distributions = {name: known.setdefault(of, of) for name, of in trial.distributions.items()}


def _valued(trial: FrozenTrial, value: float | None) -> FrozenTrial:
    """A trial's choices with the value to compare it by, whatever became of it."""
    compared = copy.copy(trial)
    compared.state, compared.values = TrialState.COMPLETE, [value]
    return compared
