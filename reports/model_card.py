"""The card of a study's best model, in the format of Hugging Face: YAML for machines, then text for people.

Everything in it is taken from the study's folder and its figures; what the folder does not say is left to be written by
whoever publishes the model, and the card says where.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from reports.citations import citations_of
from reports.folder import Study, at_path
from reports.methods import in_words, names_of, pretexts_and_encoders
from reports.places import without_places
from reports.provenance import of_pretraining
from reports.words import as_yaml, counted, listed

NAME = "README.md"
SHOWN_CLASSES = 100


def model_card(study: Study, metrics: dict[str, Any]) -> str:
    """The whole card.

    Args:
        study: a study's folder, read.
        metrics: its figures, as `reports.metrics.figures` returns them.
    """
    parts = [
        f"---\n{_front_matter(study, metrics)}---",
        f"# {_title(study)}",
        _about(study, metrics),
        _intended_use(study),
        _data(study, metrics),
        _figures(metrics),
        _limits(metrics),
        _training(study, metrics),
        _how_to_use(),
        _citation(study, metrics),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(study: Study) -> str:
    return f"{study.setting('search.name', Path(study.name).name)} on {study.setting('data.name', 'unnamed data')}"


def _front_matter(study: Study, metrics: dict[str, Any]) -> str:
    """The metadata that the hub and its tools read; numbers as they are in metrics.json."""
    names = dict.fromkeys([name for names in _methods(study) for name in names])
    data: dict[str, Any] = {
        "library_name": "heartsweep",
        "tags": ["ecg", "electrocardiogram", "time-series-classification", *names],
        "metrics": ["roc_auc", "average_precision"],
    }
    if results := _results(study, metrics):
        data["model-index"] = [{"name": _title(study), "results": results}]
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def _methods(study: Study) -> tuple[list[str], list[str]]:
    """The pretext task and the encoder of the best trial's model; where nothing tells, those searched among."""
    model = at_path(study.best, "run.model")
    if not isinstance(model, dict):
        return pretexts_and_encoders(study)
    pretext, encoder = names_of(model)
    return [pretext], [encoder]


def _results(study: Study, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """One result: the test fold's macro figures, intervals in the names, as the format has no place for them."""
    test = metrics["best"].get("test")
    if not test:
        return []
    measured = []
    for key, kind, word in (("auroc_macro", "roc_auc", "AUROC"), ("auprc_macro", "average_precision", "AUPRC")):
        found = test[key]
        if found["value"] is not None:
            bounds = "" if found["low"] is None else f", 95 % interval {found['low']:.4f} to {found['high']:.4f}"
            measured.append({"type": kind, "value": found["value"], "name": f"macro {word}{bounds}"})
    if not measured:
        return []
    name = str(study.setting("data.name", "unknown"))
    dataset = {"name": name, "type": name, "config": str(study.setting("task.labels", "unknown")), "split": "test"}
    return [{"task": {"type": "time-series-classification"}, "dataset": dataset, "metrics": measured}]


def _about(study: Study, metrics: dict[str, Any]) -> str:
    search, protocol = metrics["search"], metrics["protocol"]
    kind = {"multilabel": "multi-label", "single_label": "single-label"}.get(
        str(at_path(study.best, "contract.label_kind")), "unknown kind of"
    )
    return (
        f"A classifier of electrocardiograms, method {in_words(*_methods(study))}: trial {search['best_trial']} of "
        f"{counted(search['num_trials'], 'trial')}, chosen for its validation {study.metric}. {kind.capitalize()} "
        f"labels “{protocol['labels']}”: {listed(protocol['classes'][:SHOWN_CLASSES]) or 'unknown'}."
    )


def _intended_use(study: Study) -> str:
    contract = study.best.get("contract") or {}
    leads = ", ".join(map(str, contract.get("leads", []))) or "unknown"
    return (
        "## Intended use\n\nResearch on methods. The model ranks recordings by how likely they carry a label; its "
        "thresholds have been chosen for nobody’s clinic. **It is not a medical device**: it must not be used to "
        "diagnose, to treat or to leave anything out.\n\n"
        f"It answers recordings with the leads {leads}, at least {contract.get('window_s', 'unknown')} s long, "
        f"prepared at {contract.get('sampling_rate_hz', 'unknown')} Hz, {contract.get('highpass_hz', 'unknown')} to "
        f"{contract.get('lowpass_hz', 'unknown')} Hz, in mV; `checkpoint.json` holds the whole contract, and `predict` "
        "applies it to raw recordings."
    )


def _data(study: Study, metrics: dict[str, Any]) -> str:
    source = metrics["provenance"]
    lines = [f"- Data set: {study.setting('data.name', 'unknown')}, labels {study.setting('task.labels', 'unknown')}"]
    for part in ("train", "valid", "test"):
        folds = study.setting(f"data.{part}_folds", [])
        size = ""
        if "reason" not in source["data"]:
            records, patients = source["data"]["records"][part], source["data"]["patients"][part]
            size = f": {counted(records, 'record')} of {counted(patients, 'patient')}"
        lines.append(f"- {part}: folds {listed(folds) or 'unknown'}{size}")
    if "reason" not in source["data"]:
        shared = sum(source["data"]["patients_in_two_parts"].values())
        same = sum(source["data"]["signals_in_two_parts"].values())
        lines.append(f"- In two parts of the split: {counted(shared, 'patient')}, {counted(same, 'signal')}")
    lines.append(f"- Pre-training: {of_pretraining(source['pretraining'])}")
    return "## Data\n\n" + "\n".join(lines)


def _figures(metrics: dict[str, Any]) -> str:
    test = metrics["best"].get("test")
    if not test:
        return "## Figures\n\nThe model has no figures on the test fold."
    lines = [
        "## Figures",
        "",
        f"On the test fold, {counted(test['num_records'], 'record')} of {counted(test['num_patients'], 'patient')}, "
        "with 95 % intervals over patients (t intervals on the logit scale). The test fold of the "
        f"study was opened {metrics['test_fold_openings']} times, by all models together.",
        "",
        "| | AUROC | AUPRC | positive records |",
        "|---|---|---|---|",
        f"| macro mean | {_with_interval(test['auroc_macro'])} | {_with_interval(test['auprc_macro'])} | |",
    ]
    for name, found in list(test["auroc"].items())[:SHOWN_CLASSES]:
        cell = str(name).replace("|", "\\|")
        shown = f"{_with_interval(found)} | {_with_interval(test['auprc'][name])}"
        lines.append(f"| {cell} | {shown} | {found['num_positive']} |")
    return "\n".join([*lines, *_further(metrics)])


def _further(metrics: dict[str, Any]) -> list[str]:
    """Which other figures the report has of the model, where it has them."""
    parts = [part for part in ("calibration", "subgroups", "ensemble", "confirmation") if metrics.get(part)]
    return ["", f"The report of the study (`metrics.json`) also has its {listed(parts)}."] if parts else []


def _with_interval(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return "none"
    bounds = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['value']:.3f}{bounds}"


def _limits(metrics: dict[str, Any]) -> str:
    cautions = [
        *metrics["provenance"]["cautions"],
        *(f"Left out of the report: {said}." for said in metrics["problems"]),
    ]
    lines = [
        "The intervals hold the trained model fixed; another seed, split or hospital moves the figures, too.",
        "The validation figures chose the model and flatter it.",
        "Recordings of other devices, age groups or prevalences than those of the data set have not been tried.",
        *cautions,
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _training(study: Study, metrics: dict[str, Any]) -> str:
    source = metrics["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in source["versions"].items()) or "unknown"
    run = {key: without_places(at_path(study.best, f"run.{key}"), key) for key in ("model", "task")}
    config = f"\n\n```yaml\n{as_yaml(run)}\n```" if run["model"] else ""
    chosen = (
        as_yaml(without_places({"space": study.best["params"]})["space"])
        if study.best.get("params")
        else "nothing was searched"
    )
    return (
        f"## Training\n\nCode: heartsweep {(source['revisions'] or ['unknown'])[-1]}; {versions}. What the search "
        f"chose:\n\n```yaml\n{chosen}\n```{config}"
    )


def _how_to_use() -> str:
    return (
        "## How to use it\n\n```python\nfrom trainables.checkpoint import load\n\n"
        'model = load("FOLDER OF THIS FILE")\nprobabilities = model.predict(signal_mv, sampling_rate_hz, leads)\n```'
    )


def _citation(study: Study, metrics: dict[str, Any]) -> str:
    entries = "\n\n".join(entry.bibtex for entry in citations_of(study, metrics))
    return f"## Citation\n\n```bibtex\n{entries}\n```"
