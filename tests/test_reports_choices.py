"""Options side by side: at one epoch that nearly all trials reached, as probes, and against untrained encoders."""

import json
import re

import pandas as pd
import pytest
import yaml

from reports.folder import UNTRAINED, read_study
from reports.report import build
from reports.search.choices import Unknown, compare, probed_trials, tables

METHODS = {"choice": ["mae", "simclr", "jepa"]}
TRIALS = [  # method, state, the objective after each epoch: two of pre-training, then fine-tuning
    ("mae", "COMPLETE", [0.60, 0.66, 0.70, 0.72]),
    ("simclr", "COMPLETE", [0.58, 0.71, 0.69, 0.74]),
    ("mae", "PRUNED", [0.62, 0.64, 0.65]),
    ("simclr", "PRUNED", [0.55, 0.57]),
    ("mae", "PRUNED", [0.50]),
    ("simclr", "PRUNED", []),
]


def write_study(folder, trials=TRIALS, *, space=None, name="model", direction="maximize", num_pretrain=2, events=()):
    """A study whose trials chose one thing each."""
    (folder / "report").mkdir(parents=True, exist_ok=True)
    search = {"name": "methods", "metric": "val/auroc", "direction": direction}
    config = {"search": search, "task": {"stages": "joint"}, "space": space or {name: METHODS}}
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    lines, rows = list(events), []
    for number, (option, state, values) in enumerate(trials):
        params = option if isinstance(option, dict) else {name: option}
        lines.append({"event": "trial_started", "trial": number, "params": params})
        for epoch, value in enumerate(values, start=1):
            stage = "pretrain" if epoch <= num_pretrain else "finetune"
            metrics = {"val/auroc": value}
            lines.append({"event": "epoch", "trial": number, "epoch": epoch, "stage": stage, "metrics": metrics})
        end = values[-1] if values else None
        row = {"number": number, "state": state, "value": end, "epochs": len(values), "seconds": 1.0}
        rows.append(row | {key: str(value) for key, value in params.items()})
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    pd.DataFrame(rows).to_parquet(folder / "trials.parquet")
    return folder


def write_untrained(folder, probes, *, name="model"):
    """Option -> the trial whose encoder was probed, and what the probe gave."""
    content = {
        option: {"trial": trial, "digest": "d", "metrics": {"val/auroc": value}}
        for option, (trial, value) in probes.items()
    }
    (folder / "report" / UNTRAINED).write_text(json.dumps({name: content}))


def table_of(folder, name="model"):
    study = read_study(folder)
    return {row["option"]: row for row in tables(study, compare(study))[name]}


def section(page, name):
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


@pytest.mark.parametrize(
    ("num_epochs", "epoch", "num_there"),
    [
        ([4, 4, 4, 4, 4], 4, 5),
        ([1, 2, 3, 3, 4], 2, 4),  # four of five are 80 %
        ([1, 1, 3, 3, 4], 1, 5),
        ([1, 2] + [9] * 8, 9, 8),
        ([0, 1, 2, 3, 3, 4], 2, 4),  # who has no value is not counted
    ],
)
def test_trials_are_compared_at_the_last_epoch_that_four_in_five_of_them_reached(
    tmp_path, num_epochs, epoch, num_there
):
    found = compare(read_study(write_study(tmp_path, [("mae", "PRUNED", [0.5] * num) for num in num_epochs])))
    assert (found.epoch, len(found.values)) == (epoch, num_there)
    assert found.num_with_value == sum(num > 0 for num in num_epochs)
    assert found.num_with_value + found.num_without_value == len(num_epochs)


def test_a_table_of_options_has_the_numbers_that_the_trials_have(tmp_path):
    found = table_of(write_study(tmp_path))  # at epoch 2, which four of five reached
    assert list(found) == ["simclr", "mae", "jepa"]
    assert found["mae"] == {
        "option": "mae",
        "num_trials": 3,
        "num_completed": 1,
        "num_at_epoch": 2,
        "best_at_epoch": 0.66,
        "median_at_epoch": pytest.approx(0.65),
        "best_probe": {"value": 0.66, "trial": 0, "epoch": 2},
        "untrained": None,
        "best_less_untrained": None,
        "best_completed": {"value": 0.72, "trial": 0},
    }
    assert found["simclr"]["num_trials"] == 3
    assert found["simclr"]["median_at_epoch"] == pytest.approx(0.64)
    assert found["simclr"]["best_probe"] == {"value": 0.71, "trial": 1, "epoch": 2}
    assert found["simclr"]["best_completed"] == {"value": 0.74, "trial": 1}


def test_an_option_that_no_trial_took_is_in_the_table_and_comes_last(tmp_path):
    row = table_of(write_study(tmp_path))["jepa"]
    assert (row["num_trials"], row["best_at_epoch"], row["best_probe"]) == (0, None, None)


def test_a_metric_that_should_be_small_has_its_smallest_as_the_best(tmp_path):
    found = table_of(write_study(tmp_path, direction="minimize"))
    assert list(found) == ["simclr", "mae", "jepa"]
    assert found["simclr"]["best_at_epoch"] == 0.57
    assert found["mae"]["best_probe"] == {"value": 0.50, "trial": 4, "epoch": 1}
    assert found["mae"]["best_completed"] == {"value": 0.72, "trial": 0}


def test_options_of_any_kind_are_told_apart_as_they_are_typed(tmp_path):
    options = [None, True, 1.5, [0, 0.9], "text"]
    trials = [({"a": option}, "COMPLETE", [0.5]) for option in [*options, [0.0, 0.9]]]
    found = table_of(write_study(tmp_path, trials, space={"a": {"choice": options}}), "a")
    assert {option: row["num_trials"] for option, row in found.items()} == {
        "null": 1,
        "true": 1,
        "1.5": 1,
        "[0, 0.9]": 2,
        "text": 1,
    }


def test_one_and_true_are_two_options(tmp_path):
    trials = [({"a": True}, "COMPLETE", [0.5]), ({"a": 1}, "COMPLETE", [0.6])]
    found = table_of(write_study(tmp_path, trials, space={"a": {"choice": [1.0, 2.0]}}), "a")
    assert {option: row["num_trials"] for option, row in found.items()} == {"1.0": 1, "true": 1, "2.0": 0}


def test_a_choice_that_some_methods_lack_counts_the_trials_that_have_it(tmp_path):
    trials = [({"model": "mae", "model.norm": True}, "COMPLETE", [0.5]), ({"model": "simclr"}, "COMPLETE", [0.6])]
    space = {"model.norm": {"choice": [True, False], "when": {"model": "mae"}}, "model": METHODS}
    study = read_study(write_study(tmp_path, trials, space=space))
    found = tables(study, compare(study))
    assert list(found) == ["model", "model.norm"]
    assert [row["num_trials"] for row in found["model.norm"]] == [1, 0]


def test_ranges_have_no_table_of_options(tmp_path):
    trials = [({"lr": 0.1}, "COMPLETE", [0.5])]
    study = read_study(write_study(tmp_path, trials, space={"lr": {"log_uniform": [0.01, 1.0]}}))
    assert tables(study, compare(study)) == {}


def test_a_method_is_held_against_the_untrained_encoder_of_the_trial_with_its_best_probe(tmp_path):
    write_untrained(write_study(tmp_path), {"mae": (0, 0.56), "simclr": (1, 0.61)})
    found = table_of(tmp_path)
    assert found["mae"]["untrained"] == 0.56
    assert found["mae"]["best_less_untrained"] == pytest.approx(0.10)
    assert found["simclr"]["best_less_untrained"] == pytest.approx(0.10)
    page = section(build(tmp_path, num_resamples=5).read_text(), "choices")
    assert "on the validation fold, on which the search chose, so the best is optimistic" in page
    for words in ("+0.100", "0.560", "trial 1, epoch 2", "Untrained encoder"):
        assert words in page
    assert "will be probed" not in page


def test_another_trials_untrained_encoder_is_not_held_against_the_best_probe(tmp_path):
    write_untrained(write_study(tmp_path), {"mae": (0, 0.56), "simclr": (3, 0.61)})  # trial 1 has become the best
    found = table_of(tmp_path)
    assert (found["simclr"]["untrained"], found["simclr"]["best_less_untrained"]) == (None, None)
    page = section(build(tmp_path, num_resamples=5).read_text(), "choices")
    assert "An untrained encoder that is missing here will be probed" in page


def test_before_any_untrained_encoder_was_probed_the_page_says_when_they_will_be(tmp_path):
    page = section(build(write_study(tmp_path), num_resamples=5).read_text(), "choices")
    assert "The untrained encoders will be probed when the search ends" in page
    assert "Difference" not in page


def test_damaged_probes_of_untrained_encoders_are_left_out_by_name(tmp_path):
    (write_study(tmp_path) / "report" / UNTRAINED).write_text('{"model": ')
    study = read_study(tmp_path)
    assert study.untrained == {}
    assert re.search(r"report/untrained\.json is not readable JSON .*: restore it, or delete it", study.problems[0])


def test_the_best_trial_of_each_method_is_the_one_to_probe_untrained(tmp_path):
    study = write_study(tmp_path / "a")
    assert probed_trials(read_study(study)) == {"model": {"simclr": 1, "mae": 0}}
    only_finetuned = write_study(tmp_path / "b", num_pretrain=0)
    assert probed_trials(read_study(only_finetuned)) == {}
    other = write_study(tmp_path / "c", name="task.pretrain.optimizer.name")
    assert probed_trials(read_study(other)) == {}
    encoders = write_study(tmp_path / "d", name="model.encoder")
    assert probed_trials(read_study(encoders)) == {"model.encoder": {"simclr": 1, "mae": 0}}


def test_a_study_without_pre_training_has_no_column_for_probes(tmp_path):
    page = section(build(write_study(tmp_path, num_pretrain=0), num_resamples=5).read_text(), "choices")
    assert "Best probe" not in page
    assert "Best completed" in page
    assert "probed" not in page


def test_the_tables_can_be_sorted_and_name_every_option(tmp_path):
    page = section(build(write_study(tmp_path), num_resamples=5).read_text(), "choices")
    assert '<table class="choices" data-sortable>' in page
    for option, best in (("simclr", 0.71), ("mae", 0.66), ("jepa", "")):
        assert f'<th scope="row" data-value="{option}">{option}</th>' in page
        assert f'data-label="Best at epoch 2" data-value="{best}"' in page
    assert "epoch 2, in pre-training, the last that at least 80 % of the trials with a value reached (4 of 5)" in page


def test_the_figures_are_in_the_json_too(tmp_path):
    write_untrained(write_study(tmp_path), {"mae": (0, 0.56)})
    build(tmp_path, num_resamples=5)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["comparison"] == {
        "epoch": 2,
        "stage": "pretrain",
        "num_trials": 4,
        "num_with_value": 5,
        "num_without_value": 1,
        "needed_share": 0.8,
    }
    assert {row["option"]: row["untrained"] for row in metrics["choices"]["model"]} == {
        "simclr": None,
        "mae": 0.56,
        "jepa": None,
    }


def test_trials_on_other_trials_weights_are_not_compared_by_their_choices(tmp_path):
    exploit = {"event": "exploit", "trial": 1, "donor": 0, "epoch": 1, "params": {}}
    study = read_study(write_study(tmp_path, events=[exploit]))
    with pytest.raises(Unknown, match="population-based training"):
        compare(study)
    assert probed_trials(study) == {}
    page = build(tmp_path, num_resamples=5).read_text()
    assert '<section id="choices"' not in page
    assert "so that no value follows from one choice" in page


def test_a_search_in_which_nothing_was_reported_yet_has_a_report(tmp_path):
    build(write_study(tmp_path, [("mae", "RUNNING", [])]), num_resamples=5)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["comparison"] == {"reason": "no trial has reported val/auroc yet"}
    assert metrics["choices"] == {}
