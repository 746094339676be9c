"""The page: a study and its figures as one HTML file that needs no network, no library and no script to be read.

Each section is a template of its own; this module prepares what they show and words what depends on the figures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from reports import charts
from reports.charts import Axis
from reports.choices import METHODS
from reports.folder import Study
from reports.operation import operation

MODELS = {
    "best": "Best trial",
    "default_configuration": "Default configuration",
    "random_encoder": "Random encoder + linear probe",
}
NAMES_IN_TEXT = {
    "best": "the best trial",
    "default_configuration": "the default configuration",
    "random_encoder": "a random encoder",
}
FEW_PATIENTS = 10
"""Below this many positive patients a percentile interval is known to be too narrow; the page marks the class."""
CHANCE = 0.05
"""A parameter to which shuffled values give as much importance more often than this is said to have it by chance."""
STAGES = {"pretrain": "pre-training", "finetune": "fine-tuning"}
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


def render(study: Study, metrics: dict[str, Any]) -> str:
    """The whole page.

    Args:
        study: a study's folder, read.
        metrics: its figures, as `reports.metrics.figures` returns them.

    Returns:
        HTML with styles and script inside; the same text for the same study, whenever it is made.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure,
        "estimate": estimate,
        "difference": difference,
        "signed": _signed,
        "share": share,
        "verdict": verdict,
        "count": count,
        "duration": duration,
        "short": short,
        "yaml": as_yaml,
        "sortable": sortable,
    }
    return environment.get_template("page.html").render(
        study=study,
        metrics=metrics,
        title=title(study),
        facts=facts(study, metrics),
        rows=model_rows(metrics),
        classes=class_rows(metrics),
        choices=choice_tables(metrics),
        importance=importance_rows(metrics),
        parameters=parameter_rows(study),
        curves=[_curves(study, metrics, *size) for size in ((1040, 420), (400, 330))],
        curve_data=curve_data(study),
        trials=trial_rows(study),
        outcomes=outcomes(study),
        operation=operation(study),
        compared=compared(metrics),
        repeatable=repeatable(study),
        workers=int(study.setting("cluster.workers_per_trial", 1) or 1),
        provenance=provenance(study),
        cautions=cautions(study, metrics),
        few_patients=FEW_PATIENTS,
        chance=CHANCE,
        names=MODELS,
        names_in_text=NAMES_IN_TEXT,
    )


# Words and numbers


def figure(value: float | None, digits: int = 3) -> str:
    """A metric as text."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", MINUS)


def estimate(interval: dict[str, Any]) -> Markup:
    """A value and the interval around it; why there is none, where there is none."""
    if interval["low"] is None:
        reason = escape(interval.get("reason", ""))
        return Markup(f'<b>{figure(interval["value"])}</b> <span class="ci" title="{reason}">no interval</span>')
    bounds = f"{figure(interval['low'])}{DASH}{figure(interval['high'])}"
    return Markup(f'<b>{figure(interval["value"])}</b> <span class="ci">{bounds}</span>')


def difference(interval: dict[str, Any]) -> Markup:
    """A signed difference and its interval."""
    if interval["low"] is None:
        return Markup(f'<b>{_signed(interval["value"])}</b> <span class="ci">no interval</span>')
    bounds = f"{_signed(interval['low'])} to {_signed(interval['high'])}"
    return Markup(f'<b>{_signed(interval["value"])}</b> <span class="ci">{bounds}</span>')


def share(interval: dict[str, Any]) -> Markup:
    """A part of 1 with its interval, in two digits: it is not known to more."""
    if interval["value"] is None:
        return Markup('<span class="why">{}</span>').format(interval["reason"])
    bounds = f"{figure(interval['low'], 2)}{DASH}{figure(interval['high'], 2)}"
    return Markup(f'<b>{figure(interval["value"], 2)}</b> <span class="ci">{bounds}</span>')


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.3f}".replace("-", MINUS)


def verdict(interval: dict[str, Any]) -> str:
    """What a difference's interval says, and no more than it says."""
    if interval["low"] is None:
        return "no interval"
    if interval["low"] > 0:
        return "best is higher"
    return "best is lower" if interval["high"] < 0 else "not told apart"


def count(number: int) -> str:
    """A number of things, thousands apart."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if number >= 10_000 else str(number)


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not one."""
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float | None) -> str:
    """A span of time in the unit that suits it."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def short(value: Any) -> str:
    """A parameter's value in at most a few digits."""
    return f"{value:.4g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def sortable(value: Any) -> str:
    """What a table is sorted by: full digits, empty where there is nothing."""
    return "" if value is None else repr(value) if isinstance(value, int | float) else str(value)


def as_yaml(tree: Any) -> str:
    """A configuration as it would be typed into a file."""
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)).strip()


def listed(names: Iterable[Any]) -> str:
    """Names in a row, the last one after "and"."""
    words = [str(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# What the sections show


def title(study: Study) -> str:
    """Search and data set."""
    name = study.setting("search.name", Path(study.name).name)  # a whole path would be its author's
    return f"{name} on {study.setting('data.name', 'unnamed data')}"


def facts(study: Study, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader must know before any figure: (what, how it was)."""
    names = sorted({name for trial in study.trials for name in trial.params})
    by = " with ".join(filter(None, (str(study.setting(f"{group}.name", "")) for group in ("sampler", "scheduler"))))
    aim = f"for the {'largest' if study.maximizes else 'smallest'} {study.metric}{f', by {by}' if by else ''}"
    return [
        ("Searched", f"{listed(names)}, {aim}" if names else f"nothing; trials compared {aim}"),
        ("Trials", f"{len(study.trials)}: " + listed(f"{number} {name}" for name, number in outcomes(study).items())),
        ("Training", _part(study, "train")),
        ("Validation", _part(study, "valid")),
        ("Test", _test_part(study, metrics)),
        ("Labels", _labels(study, metrics)),
        ("Test fold opened", _opened(metrics)),
    ]


def outcomes(study: Study) -> dict[str, int]:
    """How many trials ended in which way, the usual ways first."""
    found = Counter(charts.outcome(trial) for trial in study.trials)
    usual = [name for name in ("complete", "pruned", "diverged", "collapsed", "failed", "running") if name in found]
    return {name: found[name] for name in [*usual, *sorted(found.keys() - set(usual))]}


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


def model_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The main table, best first: each model's blocks, its difference and the place of its interval."""
    blocks = {"best": metrics["best"], **metrics["baselines"]}
    shown = {model: blocks[model]["test"] for model in MODELS if "test" in blocks.get(model, {})}
    axis = _interval_axis([block["auroc_macro"] for block in shown.values()])
    return [
        {
            "model": model,
            "name": MODELS[model],
            "test": block,
            "valid": blocks[model].get("valid"),
            "difference": metrics["differences"].get(model, {}).get("test"),
            "axis": axis,
        }
        for model, block in shown.items()
    ]


def class_rows(metrics: dict[str, Any]) -> dict[str, Any]:
    """Per-class figures on the test fold with one axis for all intervals of a metric."""
    best = metrics["best"].get("test")
    if best is None:
        return {"rows": [], "axes": {}}
    others = {model: metrics["baselines"].get(model, {}).get("test", {}) for model in MODELS if model != "best"}
    rows = [
        {
            "name": name,
            "num_positive": found["num_positive"],
            "num_positive_patients": found["num_positive_patients"],
            "prevalence": found["num_positive"] / best["num_records"],
            "few": found["num_positive_patients"] < FEW_PATIENTS,
            "figures": {metric: best[metric][name] for metric in ("auroc", "auprc")},
            "others": {
                metric: {model: block[metric][name]["value"] for model, block in others.items() if block}
                for metric in ("auroc", "auprc")
            },
        }
        for name, found in best["auroc"].items()
    ]
    compared = [{"value": value} for row in rows for value in row["others"]["auroc"].values()]
    axes = {
        "auroc": _interval_axis([*best["auroc"].values(), *compared]),
        "auprc": Axis.around([0.0, 1.0], num_ticks=4),
    }
    return {"rows": rows, "axes": axes}


def _interval_axis(intervals: Iterable[dict[str, Any]]) -> Axis:
    ends = [interval.get(end) for interval in intervals for end in ("value", "low", "high")]
    return Axis.around([end for end in ends if end is not None], num_ticks=3, least=0.0, most=1.0)


def _where(metrics: dict[str, Any]) -> str:
    """The epoch at which trials are compared, in words."""
    comparison = metrics["comparison"]
    stage = STAGES.get(comparison["stage"])
    return f"epoch {comparison['epoch']}" + (f", in {stage}" if stage else "")


def choice_tables(metrics: dict[str, Any]) -> dict[str, Any]:
    """One table for every searched choice; those of what learns with a drawing of best and untrained probes."""
    tables = []
    for name, rows in metrics["choices"].items():
        probes = [row["best_probe"]["value"] for row in rows if row["best_probe"]]
        untrained = [row["untrained"] for row in rows if row["untrained"] is not None]
        tables.append(
            {
                "name": name,
                "rows": rows,
                "probed": bool(probes),
                "against_untrained": bool(untrained),
                "awaits_untrained": name in METHODS and bool(probes) and len(untrained) < len(probes),
                "axis": Axis.around([*probes, *untrained], num_ticks=2),
            }
        )
    return {"tables": tables, "where": _where(metrics) if tables else ""}


def importance_rows(metrics: dict[str, Any]) -> dict[str, Any]:
    """The table of importances: first what all compared trials have, then what some have, the largest first."""
    found = metrics["importance"]
    reason = found.get("reason") or found["at_epoch"].get("reason")
    if reason:
        return {"reason": reason, "rows": []}
    at_epoch, completed = found["at_epoch"], found["completed"]
    rows = [
        {
            "name": name,
            "num_trials": entry["num_trials"],
            "conditional": entry["num_trials"] < at_epoch["num_trials"],
            "few": entry["share"] is not None and entry["num_trials"] < found["few_trials"],
            "at_epoch": _interval_of(entry),
            "completed": _interval_of(completed["parameters"].get(name)),
        }
        for name, entry in at_epoch["parameters"].items()
    ]
    return {
        "reason": None,
        "where": _where(metrics),
        "few": at_epoch["num_trials"] < found["few_trials"],
        "rows": sorted(rows, key=lambda row: (row["conditional"], -(row["at_epoch"]["value"] or 0.0), row["name"])),
        "axis": Axis.around([0.0, 1.0], num_ticks=2),
    }


def _interval_of(entry: dict[str, Any] | None) -> dict[str, Any]:
    """A share as the drawings and `share` take it, with what the shufflings say of it in words."""
    if entry is None:
        return {"value": None, "low": None, "high": None, "reason": "no trial has it", "verdict": ""}
    verdict = ""
    if entry["share"] is not None:
        chance = "could be chance" if entry["by_chance"] > CHANCE else "hardly chance"
        verdict = f"{chance} ({entry['by_chance']:.0%})".replace("%", " %")
    return {
        "value": entry["share"],
        "low": entry["low"],
        "high": entry["high"],
        "reason": entry.get("reason", ""),
        "verdict": verdict,
    }


def parameter_rows(study: Study) -> list[dict[str, Any]]:
    """Every searched parameter: default, best, where it was drawn from, where the trials lay."""
    best = study.best.get("params") or (study.best_trial.params if study.best_trial else {})
    default = study.default_params
    return [
        {
            "name": name,
            "default": default.get(name),
            "best": best.get(name),
            "changed": default.get(name) != best.get(name),
            "range": charts.distribution(study, name),
            "strip": charts.parameter_strip(study, name),
        }
        for name in sorted({name for trial in study.trials for name in trial.params} | best.keys())
    ]


def _curves(study: Study, metrics: dict[str, Any], width: int, height: int) -> charts.Curves | None:
    probe = metrics["baselines"].get("random_encoder", {}).get("valid")
    comparable = probe and study.metric == "val/auroc"
    reference = probe["auroc_macro"]["value"] if comparable else None
    return charts.learning_curves(study, width=width, height=height, reference=reference)


def curve_data(study: Study) -> list[dict[str, Any]]:
    """What the page's script shows under the pointer."""
    return [
        {
            "trial": trial.number,
            "outcome": charts.outcome(trial),
            "points": [[point.epoch, round(point.value, 6), point.stage] for point in trial.curve],
        }
        for trial in study.trials
        if trial.curve
    ]


def trial_rows(study: Study) -> dict[str, Any]:
    """The table of all trials: the parameters that any of them has are its last columns."""
    names = sorted({name for trial in study.trials for name in trial.params})
    marks = {0: "default"} | ({study.best_trial.number: "best"} if study.best_trial else {})
    rows = [
        {"trial": trial, "outcome": charts.outcome(trial), "mark": marks.get(trial.number)} for trial in study.trials
    ]
    return {"names": names, "short_names": _short_names(names), "rows": rows}


def _short_names(names: list[str]) -> list[str]:
    """Dotted names without their first parts, as far as they stay distinct."""
    parts = [name.split(".") for name in names]
    for num in range(1, max(map(len, parts), default=1) + 1):
        shortened = [".".join(part[-num:]) for part in parts]
        if len(set(shortened)) == len(names):
            return shortened
    return names


def compared(metrics: dict[str, Any]) -> str:
    """Which trials the best one is the best of: only those that ran to their end take part."""
    search = metrics["search"]
    return f"the {counted(search['states'].get('COMPLETE', 0), 'completed trial')} of {search['num_trials']}"


def repeatable(study: Study) -> bool:
    """Whether the best trial, or trial 0 where there is none, can be trained alone: on no other trial's weights."""
    taken_over = {event.get("trial") for event in study.of_event("exploit")}
    if study.best.get("exploits"):
        taken_over.add(study.best.get("trial"))
    return (study.best_trial.number if study.best_trial else 0) not in taken_over


def provenance(study: Study) -> list[tuple[str, str]]:
    """Which code, libraries and machine made the study: (what, which)."""
    starts = [event for event in study.events if event.get("event") in ("study_started", "study_resumed")]
    revisions = dict.fromkeys(str(start.get("git_revision") or "unknown") for start in starts)
    rows = [("Code", ", ".join(revisions) or "unknown")]
    if len(starts) > 1:
        rows.append(("Started", f"{len(starts)} times; libraries and machine are those of the last"))
    for key, name in (("versions", "Libraries"), ("hardware", "Machine")):
        known = (starts[-1].get(key) if starts else None) or {}
        if known:
            rows.append((name, ", ".join(f"{part} {value}" for part, value in known.items())))
    if starts and starts[-1].get("store"):
        rows.append(("Recordings", f"store {starts[-1]['store']}"))
    if study.events:
        rows.append(("Events", f"{study.events[0].get('time')} to {study.events[-1].get('time')}"))
    rows.append(("Seed", str(study.setting("seed", "unknown"))))
    return rows


def cautions(study: Study, metrics: dict[str, Any]) -> list[str]:
    """What in this study limits what its figures mean; only what applies."""
    found = []
    if study.outdated is not None:
        found.append(
            f"Trial {study.best['trial']} has become the best since trial {study.outdated} was evaluated on the test"
            " fold, whose figures are not shown for it: the line that searched, typed again, evaluates it."
        )
    elif "test" not in metrics["best"]:
        found.append("The best trial has not been evaluated on the test fold: there is no figure to quote yet.")
    # the best trial may be the default configuration: two files by one model
    num_models = len({of.made_by.get("digest", name) for name, of in study.predictions.items()})
    if metrics["test_fold_openings"] > num_models > 0:
        found.append(
            f"The test fold was opened {metrics['test_fold_openings']} times for {counted(num_models, 'model')}:"
            " figures seen before a choice was made are no longer untouched by it."
        )
    recomputed = metrics["best"].get("valid", {}).get("auroc_macro", {}).get("value")
    searched = metrics["search"]["best_value"]
    if study.metric == "val/auroc" and None not in (recomputed, searched) and abs(recomputed - searched) > 1e-3:
        found.append(
            f"The saved validation predictions give a macro AUROC of {figure(recomputed, 4)}, the search recorded"
            f" {figure(searched, 4)}: they should agree."
        )
    if paths := metrics["intervals_excluding_value"]:
        found.append(f"Intervals that do not hold their own value, for want of positives: {listed(paths)}.")
    if study.num_unreadable_events:
        found.append(f"{counted(study.num_unreadable_events, 'line')} of events.jsonl could not be read.")
    if study.best_trial and study.best_trial.number == 0:
        found.append("No trial did better on validation than the default configuration: the search gained nothing.")
    return found
