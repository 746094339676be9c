"""How the page says numbers, intervals and lists of names; what the templates call as filters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml
from markupsafe import Markup, escape

MODELS = {
    "best": "Best trial",
    "ensemble": "Ensemble",
    "earlier": "Best of earlier studies",
    "default_configuration": "Default configuration",
    "random_encoder": "Random encoder + linear probe",
}
NAMES_IN_TEXT = {
    "best": "the best trial",
    "ensemble": "the ensemble",
    "ensemble_member": "a member of the ensemble",
    "earlier": "the best of earlier studies",
    "default_configuration": "the default configuration",
    "random_encoder": "a random encoder",
}
STAGES = {"pretrain": "pre-training", "finetune": "fine-tuning"}
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


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


def difference(interval: dict[str, Any], digits: int = 3) -> Markup:
    """A signed difference and its interval."""
    value = signed(interval["value"], digits)
    if interval["low"] is None:
        reason = escape(interval.get("reason", ""))
        return Markup(f'<b>{value}</b> <span class="ci" title="{reason}">no interval</span>')
    bounds = f"{signed(interval['low'], digits)} to {signed(interval['high'], digits)}"
    return Markup(f'<b>{value}</b> <span class="ci">{bounds}</span>')


def share(interval: dict[str, Any]) -> Markup:
    """A part of 1 with its interval, in two digits: it is not known to more."""
    if interval["value"] is None:
        return Markup('<span class="why">{}</span>').format(interval["reason"])
    bounds = f"{figure(interval['low'], 2)}{DASH}{figure(interval['high'], 2)}"
    return Markup(f'<b>{figure(interval["value"], 2)}</b> <span class="ci">{bounds}</span>')


def signed(value: float | None, digits: int = 3) -> str:
    """A difference as text."""
    return "n/a" if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def chance(p_value: float | None) -> str:
    """A p-value as text: three digits."""
    if p_value is None:
        return ""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def verdict(interval: dict[str, Any]) -> str:
    """What a difference's interval says, and no more than it says."""
    if interval["low"] is None:
        return str(interval.get("reason", "no interval"))
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


def epoch_compared(metrics: Mapping[str, Any]) -> str:
    """The epoch at which trials are compared."""
    comparison = metrics["comparison"]
    stage = STAGES.get(comparison["stage"])
    return f"epoch {comparison['epoch']}" + (f", in {stage}" if stage else "")


def compared(metrics: dict[str, Any]) -> str:
    """Which trials the best one is the best of: only those that ran to their end take part."""
    search = metrics["search"]
    return f"the {counted(search['states'].get('COMPLETE', 0), 'completed trial')} of {search['num_trials']}"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "figure": figure,
    "estimate": estimate,
    "difference": difference,
    "signed": signed,
    "share": share,
    "verdict": verdict,
    "chance": chance,
    "count": count,
    "duration": duration,
    "short": short,
    "yaml": as_yaml,
    "sortable": sortable,
}
