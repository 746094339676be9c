"""The head of the page: the figure to quote, what a reader must know before it, and what limits it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from reports import folds
from reports.earlier import EARLIER
from reports.folder import Study
from reports.search import confirmation
from reports.search.confirmation import how_chosen
from reports.sections.models import model_rows
from reports.sections.trials import outcomes
from reports.words import DASH, NAMES_IN_TEXT, compared, counted, figure, listed


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the head of the page shows."""
    return {
        "title": title(study),
        "facts": facts(study, metrics),
        "rows": model_rows(metrics),
        "cautions": cautions(study, metrics),
        "how_chosen": how_chosen(metrics, f"the best on validation of {compared(metrics)}"),
        "names_in_text": NAMES_IN_TEXT,
    }


def title(study: Study) -> str:
    """Search and data set."""
    name = study.setting("search.name", Path(study.name).name)  # a whole path would be its author's
    return f"{name} on {study.setting('data.name', 'unnamed data')}"


def facts(study: Study, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader must know before any figure: (what, how it was)."""
    names = sorted({name for trial in study.trials for name in trial.params})
    by = " with ".join(filter(None, (str(study.setting(f"{group}.name", "")) for group in ("sampler", "scheduler"))))
    aim = f"for the {'largest' if study.maximizes else 'smallest'} {study.metric}{f', by {by}' if by else ''}"
    of_folds = folds.facts(study, metrics)
    return [
        ("Searched", f"{listed(names)}, {aim}" if names else f"nothing; trials compared {aim}"),
        ("Trials", f"{len(study.trials)}: " + listed(f"{number} {name}" for name, number in outcomes(study).items())),
        ("Training", of_folds.get("Training") or _part(study, "train")),
        ("Validation", of_folds.get("Validation") or _part(study, "valid")),
        ("Test", _test_part(study, metrics)),
        ("Labels", _labels(study, metrics)),
        ("Test fold opened", _opened(metrics)),
    ]


def _folds(study: Study, split: str) -> str:
    folds = study.setting(f"data.{split}_folds", [])
    if len(folds) > 2 and folds == list(range(folds[0], folds[-1] + 1)):
        return f"folds {folds[0]}{DASH}{folds[-1]}"
    return f"fold{'s' * (len(folds) != 1)} {listed(folds)}"


def _part(study: Study, split: str) -> str:
    most = study.setting(f"data.max_{split}_patients")
    if most is None:
        return f"all patients of {_folds(study, split)}"
    return f"subsampled to at most {counted(int(most), 'patient')} of {_folds(study, split)}"


def _test_part(study: Study, metrics: dict[str, Any]) -> str:
    block = metrics["best"].get("test")
    size = (
        f": {counted(block['num_records'], 'record')} of {counted(block['num_patients'], 'patient')}" if block else ""
    )
    return f"{_folds(study, 'test')}, whole, never subsampled{size}"


def _labels(study: Study, metrics: dict[str, Any]) -> str:
    protocol = metrics["protocol"]
    kind = {"multilabel": "multi-label, ", "single_label": "single-label, "}.get(
        str((study.best.get("contract") or {}).get("label_kind")), ""
    )
    left_out = [
        f"{listed(names)} left out of {split} figures" for split, names in protocol["classes_left_out"].items() if names
    ]
    num_classes = len(protocol["classes"])
    return "; ".join([f"{protocol['labels']}, {kind}{num_classes} class{'es' * (num_classes != 1)}", *left_out])


def _opened(metrics: dict[str, Any]) -> str:
    by_model = Counter(str(opening["model"]) for opening in metrics["openings"])
    times = "once" if metrics["test_fold_openings"] == 1 else f"{metrics['test_fold_openings']} times"
    models = [NAMES_IN_TEXT.get(name, name) + f", {number} times" * (number > 1) for name, number in by_model.items()]
    return f"{times}: by {'; '.join(models)}" if models else "never"


def passed_models(study: Study) -> set[str]:
    """The models whose predictions are there, by the digests of their weights; of an ensemble its members."""
    members = {member["digest"] for member in study.ensemble.get("members") or ()}
    single = {
        of.made_by.get("digest", name) for name, of in study.predictions.items() if name not in ("ensemble", EARLIER)
    }
    return single | (members if "ensemble" in study.predictions else set())


def _of_whom(study: Study) -> list[str]:
    """What must be said where it is not certain that the figures are the best model's."""
    if "best" not in study.predictions:
        return []
    trial = study.predictions["best"].made_by.get("trial")
    if study.best and trial is not None:
        return []
    if study.best:
        return [
            f"Neither the saved predictions nor the events say which trial the figures are of: they are shown as trial"
            f" {study.best.get('trial')}’s, which is the best one now."
        ]
    shown = "the saved predictions, which do not say whose they are" if trial is None else f"trial {trial}’s"
    return [
        "Which model is the best cannot be read, as checkpoints/best_1/checkpoint.json is missing or damaged: the"
        f" figures are {shown}."
    ]


def cautions(study: Study, metrics: dict[str, Any]) -> list[str]:
    """What in this study limits what its figures mean; only what applies."""
    found = []
    if study.outdated is not None and study.outdated == study.best.get("trial"):
        found.append(
            f"Another seed of trial {study.outdated} has been chosen since one of it was evaluated on the test fold,"
            " whose figures are not shown for it: the line that searched, typed again, evaluates it."
        )
    elif study.outdated is not None:
        found.append(
            f"Trial {study.best.get('trial')} has become the best since trial {study.outdated} was evaluated on the"
            " test fold, whose figures are not shown for it: the line that searched, typed again, evaluates it."
        )
    elif "test" not in metrics["best"] and "best" not in study.refused:
        found.append("The best trial has not been evaluated on the test fold: there is no figure to quote yet.")
    found += _of_whom(study)
    # the best trial may be the default configuration: two files by one model
    num_models = len(passed_models(study))
    if metrics["test_fold_openings"] > num_models > 0:
        found.append(
            f"The test fold was opened {metrics['test_fold_openings']} times for {counted(num_models, 'model')}:"
            " figures seen before a choice was made are no longer untouched by it."
        )
    recomputed = metrics["best"].get("valid", {}).get("auroc_macro", {}).get("value")
    if of_folds := metrics.get("folds"):  # the search followed their mean, not the pooled predictions
        recomputed = (of_folds["mean"] or {}).get("auroc_macro")
    searched = study.best.get("value") if metrics["confirmation"]["chosen"] else metrics["search"]["best_value"]
    if study.metric == "val/auroc" and None not in (recomputed, searched) and abs(recomputed - searched) > 1e-3:
        found.append(
            f"The saved validation predictions give a macro AUROC of {figure(recomputed, 4)}, the search recorded"
            f" {figure(searched, 4)}: they should agree."
        )
    if paths := metrics["intervals_excluding_value"]:
        found.append(f"Intervals that do not hold their own value, for want of positives: {listed(paths)}.")
    if study.num_unreadable_events:
        found.append(f"{counted(study.num_unreadable_events, 'line')} of events.jsonl could not be read.")
    found += [f"Left out of this report: {problem}." for problem in study.problems]
    found += metrics["provenance"]["cautions"]
    found += confirmation.cautions(study, metrics)
    if study.best_trial and study.best_trial.number == 0:
        found.append("No trial did better on validation than the default configuration: the search gained nothing.")
    return found
