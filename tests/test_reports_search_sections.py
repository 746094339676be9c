"""What the page shows of the search itself, in words and numbers that a reader can check."""

import json
import re

import pandas as pd
import pytest
import yaml

from reports.report import build

VALUES = [  # of trials in the order of their numbers: the objective after each epoch, how it ended
    ([0.60, 0.64, 0.70], "COMPLETE", None),
    ([0.66, 0.70, 0.78], "COMPLETE", None),
    ([0.68, 0.72, 0.76], "COMPLETE", None),
    ([0.50], "PRUNED", "scheduler"),
    ([0.52], "PRUNED", "scheduler"),
    ([], "PRUNED", "non_finite: train/loss was nan at step 12"),
    ([], "FAIL", "RuntimeError: <no> record"),
]


def write_study(folder, *, scheduler="asha", times=True, **config):
    (folder / "report").mkdir(parents=True)
    tree = {
        "search": {"name": "s", "metric": "val/auroc", "direction": "maximize"},
        "task": {"stages": "pretrain", "pretrain": {"num_epochs": 3}},
        "scheduler": {"name": scheduler, "grace_epochs": 1, "reduction_factor": 3},
        "space": {"lr": {"log_uniform": [1e-4, 1e-2]}},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(tree | config))
    events, rows, now = [{"event": "study_started"}], [], 0
    for number, (values, state, reason) in enumerate(VALUES):
        params = {"lr": 10 ** (-4 + number / 4)}
        events.append({"event": "trial_started", "trial": number, "params": params})
        for epoch, value in enumerate(values, start=1):
            said = {"trial": number, "epoch": epoch, "stage": "pretrain", "seconds": 600.0, "nodes": ["n"]}
            events.append({"event": "epoch", "metrics": {"val/auroc": value}} | said)
        events.append({"event": "trial_ended", "trial": number})
        row = {"number": number, "state": state, "value": values[-1] if values else None, "epochs": len(values)}
        rows.append(row | {"seconds": 600.0 * len(values), "reason": reason} | params)
    for event in events:
        now += 600 * (event["event"] == "epoch")
        if times:
            event["time"] = f"2026-01-01T{now // 3600:02d}:{now // 60 % 60:02d}:00+00:00"
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    pd.DataFrame(rows).to_parquet(folder / "trials.parquet")
    return folder


def shown(folder, **settings):
    page = build(folder, num_resamples=5, **settings).read_text()
    found = re.finditer(r'<section id="(\w+)".*?</section>', page, re.DOTALL)
    return {section.group(1): " ".join(section.group(0).split()) for section in found}


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    return shown(write_study(tmp_path_factory.mktemp("study") / "s"))


def test_the_history_names_the_best_and_can_be_seen_by_three_quantities(sections):
    assert "The best value, 0.7800, is trial 1’s; 5 trials after it did not get past it." in sections["history"]
    assert re.findall(r'<label for="history-(\w+)">', sections["history"]) == ["number", "ended_hours", "device_hours"]
    assert sections["history"].count(" checked") == 1
    assert sections["history"].count("<circle") == 3 * 5
    assert "trial 3, pruned: 0.5000" in sections["history"]


def test_the_rungs_are_counted_and_what_was_saved_is_said(sections):
    row = re.search(r'<th scope="row" class="num">1</th>(.*?)</tr>', sections["rungs"]).group(1)
    assert re.findall(r">([^<>]+)</td>", row) == ["5", "3", "2", "0.6800", "0.6800"]
    assert "The 2 stopped trials had 4 epochs left, about 40.0 min of device time: 27 % of what" in sections["rungs"]
    assert "<dt>after epoch 1</dt><dd>3, 4</dd>" in sections["rungs"]


def test_with_promotion_it_is_said_who_waited_and_who_went_on_when(tmp_path):
    folder = write_study(tmp_path / "s", scheduler="asha_promotion")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    told = []
    for event in events:
        told.append(event)
        if event["event"] == "epoch" and event["epoch"] == 1 and event["trial"] in (2, 3, 4):
            told.append(event | {"event": "trial_paused"})
        if event["event"] == "epoch" and event["epoch"] == 1 and event["trial"] == 2:
            told.append(event | {"event": "trial_promoted"})
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in told))
    sections = shown(folder)
    row = re.search(r'<th scope="row" class="num">1</th>(.*?)</tr>', sections["rungs"]).group(1)
    assert re.findall(r">([^<>]+)</td>", row) == ["5", "3", "2", "0.6800", "0.6800"]
    went_on = "<dt>after 70.0 min of running time</dt><dd>trial 2, which had waited after epoch 1</dd>"
    assert went_on in sections["rungs"]
    assert "at each rung a trial waits" in sections["rungs"]
    assert "trial 2, 10.0 min, then paused" in sections["timeline"]


def test_failures_stand_with_their_reason_and_message(sections):
    assert "2 of 7 trials ended for a reason other than the scheduler’s." in sections["failures"]
    assert (
        "the loss or the searched metric was not a number<small>non_finite: train/loss was nan" in sections["failures"]
    )
    assert "RuntimeError: &lt;no&gt; record" in sections["failures"]


def test_the_cost_has_no_money_without_a_price_and_a_price_may_be_given_to_the_report_alone(sections, tmp_path):
    assert "<b>1.83 device-hours</b>." in sections["cost"]
    assert "EUR" not in sections["cost"]
    price = {"cost_per_device_hour": 3.0, "currency": "EUR"}
    assert "<b>5.50 EUR</b> at 3 EUR a device-hour" in shown(write_study(tmp_path / "s"), evaluate=price)["cost"]


def test_the_timeline_says_how_the_time_was_used(sections):
    assert "one trial at a time. Of that time, <b>100 %</b> went into epochs" in sections["timeline"]
    assert sections["timeline"].count("<rect") == 5  # two trials held nothing
    assert "node 1" in sections["timeline"]


def test_without_times_the_rest_is_shown(tmp_path):
    found = shown(write_study(tmp_path / "s", times=False))
    assert "timeline" not in found
    assert re.findall(r'<label for="history-(\w+)">', found["history"]) == ["number"]
    assert {"rungs", "failures", "cost", "space"} <= found.keys()


def test_a_search_in_which_nobody_could_be_stopped_has_no_section_of_that(tmp_path):
    folder = write_study(tmp_path / "s", scheduler="fifo")
    table = pd.read_parquet(folder / "trials.parquet")
    table["reason"] = table["reason"].replace("scheduler", "non_finite: loss")
    table.to_parquet(folder / "trials.parquet")
    assert "rungs" not in shown(folder)


def test_the_same_folder_gives_the_same_page(tmp_path):
    folder = write_study(tmp_path / "s")
    first = build(folder, num_resamples=5).read_bytes()
    assert build(folder, num_resamples=5).read_bytes() == first
