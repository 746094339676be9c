import errno
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import average_precision_score, roc_auc_score

from reports.folder import MADE_BY, PREDICTIONS
from reports.report import build

CLASSES = ("NORM", "MI", "<b>odd & name</b>", "RARE")
SPACE = {
    "model.mask_ratio": {"uniform": [0.3, 0.9]},
    "model.size": {"choice": ["tiny", "small"]},
    "task.pretrain.lr": {"log_uniform": [1e-4, 1e-2]},
}
TRIALS = [
    (0, "COMPLETE", None, 4, {"model.mask_ratio": 0.75, "model.size": "tiny", "task.pretrain.lr": 1e-3}),
    (1, "PRUNED", "scheduler", 2, {"model.mask_ratio": 0.35, "model.size": "small", "task.pretrain.lr": 9e-3}),
    (2, "COMPLETE", None, 4, {"model.mask_ratio": 0.62, "model.size": "tiny", "task.pretrain.lr": 2e-3}),
    (
        3,
        "PRUNED",
        "non_finite: the loss is nan",
        1,
        {"model.mask_ratio": 0.5, "model.size": "tiny", "task.pretrain.lr": 1e-2},
    ),
]


def predictions(gap, *, num_records=400, seed=0):
    """Records of two folds, all but RARE with positives in both; labels do not depend on `gap`, scores do."""
    rng = np.random.default_rng(seed)
    folds = np.where(np.arange(num_records) < num_records // 2, 9, 10)
    targets = (rng.random((num_records, len(CLASSES))) < 0.3).astype(np.float32)
    targets[:, 3] = np.arange(num_records) == 0  # a single positive, on validation
    scores = 1 / (1 + np.exp(-(rng.normal(size=targets.shape) + gap * targets)))
    return pd.DataFrame(
        {"record_id": [f"r{row:05d}" for row in range(num_records)]}
        | {"patient_id": [f"patient{fold}-{row % 90}" for row, fold in enumerate(folds)]}
        | {"fold": folds, "split": np.where(folds == 10, "test", "valid")}
        | described(num_records)
        | {f"y_{name}": targets[:, column] for column, name in enumerate(CLASSES)}
        | {f"p_{name}": scores[:, column].astype(np.float32) for column, name in enumerate(CLASSES)}
    )


def described(num_records):
    """Whose recordings they are: many sites of few records, and a device whose name is odd."""
    rng = np.random.default_rng(1)
    return {
        "age": np.where(rng.random(num_records) < 0.1, np.nan, rng.integers(5, 95, num_records)),
        "sex": rng.choice(["male", "female"], num_records),
        "device": rng.choice(["often", "<i>seldom & odd</i>"], num_records, p=[0.97, 0.03]),
        "site": rng.integers(40, size=num_records).astype(str),
        "quality": [["static_noise"] * bool(noisy) for noisy in rng.random(num_records) < 0.2],
    }


def write_study(folder):
    """A finished study of four trials as the search leaves it, but for the weights."""
    config = {
        "study_dir": "runs/a study",
        "seed": 7,
        "search": {"name": "tiny_search", "metric": "val/auroc", "direction": "maximize", "num_trials": 4},
        "data": {"name": "synthetic", "train_folds": [1, 2, 3], "valid_folds": [9], "test_folds": [10]}
        | {"max_train_patients": 1500, "max_valid_patients": None},
        "task": {"labels": "superdiagnostic", "stages": "joint"},
        "sampler": {"name": "tpe"},
        "scheduler": {"name": "asha"},
        "cluster": {"workers_per_trial": 2},
        "space": SPACE,
    }
    (folder / "report").mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    versions = {"versions": {"torch": "2.13.0"}, "hardware": {"cpus": 2}, "git_revision": "abc123"}
    events = [{"time": "2026-01-01T00:00:00+00:00", "event": "study_started"} | versions]
    rows = []
    for number, state, reason, num_epochs, params in TRIALS:
        events.append({"event": "trial_started", "trial": number, "params": params})
        values = [0.6 + 0.01 * number + 0.02 * epoch for epoch in range(num_epochs)]
        for epoch, value in enumerate(values, start=1):
            stage = "pretrain" if epoch <= 2 else "finetune"
            metrics = {"train/loss": 1.0, "val/auroc": value}
            events.append({"event": "epoch", "trial": number, "epoch": epoch, "stage": stage, "metrics": metrics})
        shared = {"number": number, "state": state, "value": values[-1], "epochs": num_epochs}
        rows.append(shared | {"seconds": 10.0, "reason": reason} | params)
    makers = {"best": 2, "random_encoder": None, "default_configuration": 0}
    for model, trial in makers.items():
        opening = {"time": "2026-01-01T01:00:00+00:00", "event": "test_fold_opened"}
        events.append(opening | {"model": model, "trial": trial, "records": 200})
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    pd.DataFrame(rows).to_parquet(folder / "trials.parquet")
    for name, number in (("best_1", 2), ("default", 0)):
        content = {"trial": number, "params": TRIALS[number][4], "value": rows[number]["value"], "classes": CLASSES}
        (folder / "checkpoints" / name).mkdir(parents=True)
        described = {"contract": {"label_kind": "multilabel", "leads": ["I", "II"]}, "run": config}
        (folder / "checkpoints" / name / "checkpoint.json").write_text(json.dumps(content | described))
    for (model, trial), gap in zip(makers.items(), (1.6, 0.6, 1.5), strict=True):
        made_by = {"trial": trial, "digest": f"of {model}"}
        write_predictions(folder / "report" / PREDICTIONS[model], predictions(gap), made_by)
    return folder


def write_predictions(path, table, made_by):
    """As the evaluation writes them, which needs torch for other reasons."""
    content = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(
        content.replace_schema_metadata({**content.schema.metadata, MADE_BY: json.dumps(made_by).encode()}), path
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("study") / "runs")
    build(folder, num_resamples=100)
    return folder


@pytest.fixture
def study_dir(tmp_path, finished):
    """A copy to change; its report is not made yet."""
    shutil.copytree(finished, tmp_path / "runs")
    for name in ("index.html", "metrics.json"):
        (tmp_path / "runs" / "report" / name).unlink()
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def metrics(finished):
    return json.loads((finished / "report" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def page(finished):
    return (finished / "report" / "index.html").read_text()


def rebuilt(study_dir, **settings):
    index = build(study_dir, num_resamples=20, **settings)
    return json.loads((study_dir / "report" / "metrics.json").read_text()), index.read_text()


def section(page, name):
    """One section of the page, up to its end."""
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


def change_yaml(path, change):
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_page_says_how_the_study_ran(study_dir, page):
    assert '<section id="operation"' not in page  # nothing is known of it
    lost = {"event": "trial_interrupted", "trial": 1, "cause": "node_lost", "counts": False}
    left = {"event": "released", "stops": 4, "gone": 9, "longest_s": 0.4, "left": ["actor <a1>"]}
    with (study_dir / "events.jsonl").open("a") as file:
        file.write("".join(f"{json.dumps(event)}\n" for event in (lost, left)))
    told = section(rebuilt(study_dir)[1], "operation")
    assert "a machine was lost" in told
    assert "actor &lt;a1&gt;" in told


def test_the_figures_agree_with_scikit_learn_on_the_saved_predictions(finished, metrics):
    saved = pd.read_parquet(finished / "report" / "predictions.parquet")
    test = saved[saved["split"] == "test"]
    areas = {name: roc_auc_score(test[f"y_{name}"], test[f"p_{name}"]) for name in CLASSES[:3]}
    precisions = {name: average_precision_score(test[f"y_{name}"], test[f"p_{name}"]) for name in CLASSES[:3]}
    found = metrics["best"]["test"]
    assert found["auroc_macro"]["value"] == pytest.approx(np.mean(list(areas.values())), abs=1e-6)
    assert found["auprc_macro"]["value"] == pytest.approx(np.mean(list(precisions.values())), abs=1e-6)
    for name in CLASSES[:3]:
        assert found["auroc"][name]["value"] == pytest.approx(areas[name], abs=1e-6)
        assert found["auroc"][name]["num_positive"] == test[f"y_{name}"].sum()


def test_the_figures_have_the_shape_that_others_rely_on(metrics):
    blocks = [metrics["best"]["test"], metrics["best"]["valid"]]
    blocks += [metrics["baselines"][model]["test"] for model in ("random_encoder", "default_configuration")]
    for block in blocks:
        for metric in ("auroc", "auprc"):
            assert (
                block[f"{metric}_macro"]["low"] < block[f"{metric}_macro"]["value"] < block[f"{metric}_macro"]["high"]
            )
            assert set(block[metric]["MI"]) == {"value", "low", "high", "num_positive", "num_positive_patients"}
    assert metrics["best"]["test"]["num_records"] == 200
    assert metrics["best"]["test"]["num_patients"] == 90
    assert metrics["test_fold_openings"] == len(metrics["openings"]) == 3
    assert metrics["protocol"]["labels"] == "superdiagnostic"
    assert metrics["protocol"]["bootstrap"]["unit"] == "patient"


def test_the_difference_to_a_baseline_is_that_of_the_values_and_has_its_own_interval(metrics):
    for model in ("random_encoder", "default_configuration"):
        found = metrics["differences"][model]["test"]["auroc_macro"]
        best, other = metrics["best"]["test"], metrics["baselines"][model]["test"]
        assert found["value"] == pytest.approx(best["auroc_macro"]["value"] - other["auroc_macro"]["value"], abs=1e-12)
        assert found["low"] < found["value"] < found["high"]


def test_only_the_test_fold_has_p_values_as_validation_chose_the_best(metrics):
    for splits in metrics["differences"].values():
        assert all(0 < found["p_value"] <= 1 for found in splits["test"].values())
        assert all("p_value" not in found for found in splits["valid"].values())


def test_no_figure_of_the_main_table_is_said_to_be_of_the_bootstrap(finished, page):
    card = (finished / "report" / "model_card.md").read_text()
    assert "with 95 % intervals over patients (t intervals on the logit scale)" in card
    assert "bootstrap" not in card
    table = page.split('id="models"')[1].split("</section>")[0]
    assert "resample" not in table
    assert "percentile" not in table
    assert "88–91 %" in page.split('id="methods"')[1]


def test_a_class_without_a_positive_is_named_and_left_out_of_that_split_only(metrics, page):
    assert metrics["protocol"]["classes_left_out"] == {"test": ["RARE"], "valid": []}
    assert "RARE" not in metrics["best"]["test"]["auroc"]
    assert "RARE" in metrics["best"]["valid"]["auroc"]
    assert "Left out of the test figures" in page


def test_the_search_is_counted_by_how_its_trials_ended(metrics):
    assert metrics["search"]["states"] == {"COMPLETE": 2, "PRUNED": 2}
    assert metrics["search"]["num_non_finite"] == 1
    assert metrics["search"]["best_trial"] == 2
    assert metrics["search"]["trial_seconds"] == 40.0
    assert metrics["search"]["device_seconds"] == 80.0


def test_the_first_lines_say_what_was_subsampled_and_how_often_the_test_fold_was_opened(page):
    first = page[: page.index("</header>")]
    for words in (
        "tiny_search on synthetic",
        "model.mask_ratio, model.size and task.pretrain.lr, for the largest val/auroc, by tpe with asha",
        "4: 2 complete, 1 pruned and 1 diverged",
        "subsampled to at most 1500 patients",
        "all patients of fold 9",
        "never subsampled: 200 records of 90 patients",
        "superdiagnostic, multi-label, 4 classes",
        "3 times: by the best trial; a random encoder; the default configuration",
    ):
        assert words in first


def test_the_page_says_whether_the_probabilities_are_right(page, metrics):
    told = section(page, "calibration")
    temperature = metrics["calibration"]["models"]["best"]["temperature"]["value"]
    assert f"<b>{temperature:.3f}</b>" in told
    assert "sigmoid(logit(p) / T)" in told
    assert told.count('<figure class="panel">') == len(CLASSES)
    assert "no record is positive" in told  # RARE, on test
    assert "No validation record is positive" not in told
    assert "Random encoder" in told


def test_calibration_without_validation_records_is_shown_as_answered(study_dir):
    for path in (study_dir / "report").glob("*.parquet"):
        saved = pd.read_parquet(path)
        saved[saved["split"] == "test"].to_parquet(path)
    told = section(rebuilt(study_dir)[1], "calibration")
    assert "No temperature could be fitted on validation: there are no validation records" in told
    assert "Brier score" in told
    assert "With the temperature" not in told


def test_the_page_has_every_group_and_marks_the_small_ones(page):
    told = section(page, "subgroups")
    for name in ("male", "female", "under 18", "85 and over", "unknown", "static noise", "no flag"):
        assert f'data-value="{name}"' in told
    assert sum(f'<th scope="row" data-value="{number}"' in told for number in range(40)) > 35
    assert "<i>" not in told
    assert "&lt;i&gt;seldom &amp; odd&lt;/i&gt;" in told
    assert "too few to compare" in told
    assert "Many looks" in told


def test_predictions_that_do_not_say_whose_they_are_leave_the_rest_of_the_page_whole(study_dir):
    for path in (study_dir / "report").glob("*.parquet"):
        pd.read_parquet(path).drop(columns=["age", "sex", "device", "site", "quality"]).to_parquet(path)
    page = rebuilt(study_dir)[1]
    assert "Subgroups are not shown: the saved predictions do not say whose recordings they are" in page
    assert 'id="calibration"' in page


def test_a_single_test_record_is_shown_with_reasons(study_dir):
    for path in (study_dir / "report").glob("*.parquet"):
        saved = pd.read_parquet(path)
        pd.concat([saved[saved["split"] == "valid"], saved[saved["split"] == "test"].iloc[:1]]).to_parquet(path)
    page = rebuilt(study_dir)[1]
    assert "1 record of 1 patient" in " ".join(section(page, "calibration").split())
    assert "no class has both a positive and a negative record" in section(page, "subgroups")


def test_a_rebuilt_report_is_the_same_to_the_byte_and_opens_nothing(study_dir):
    events = (study_dir / "events.jsonl").read_bytes()
    assert rebuilt(study_dir) == rebuilt(study_dir)
    assert (study_dir / "events.jsonl").read_bytes() == events


def test_the_page_asks_the_network_for_nothing(page):
    assert not re.search(r"https?:|//cdn|@import|url\(|<link|<img|\bsrc=|\bfetch\(", page)


def test_names_from_the_data_are_text_on_the_page_and_never_markup(page):
    assert "<b>odd" not in page
    assert "&lt;b&gt;odd &amp; name&lt;/b&gt;" in page


def test_without_drawn_mistakes_neither_the_page_nor_the_figures_name_a_record_or_a_patient(page, metrics):
    for text in (page, json.dumps(metrics)):
        assert not re.search(r"r\d{5}|patient(9|10)-\d", text)


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_the_page_has_no_path_of_the_machine_that_searched(study_dir, with_checkpoint):
    at = "/home/author"
    places = {"root": f"{at}/ptb-xl", "store_dir": f"{at}/stores", "download": {"to": f"{at}/d"}, "novelty": f"{at}/n"}
    model = {"mask_ratio": 0.75, "text_encoder": {"folder": "text/of author"}}

    def placed(config):
        config["data"] |= places
        config["task"] |= {"encoder": "runs/of author/best_1"}
        config["cluster"] |= {"address": "author.example:6379"}
        config |= {"model": model, "study_dir": f"{at}/runs/a study"}

    change_yaml(study_dir / "study.yaml", placed)
    run = yaml.safe_load((study_dir / "study.yaml").read_text())
    change_json(study_dir / "checkpoints" / "best_1" / "checkpoint.json", run=run)
    if not with_checkpoint:
        shutil.rmtree(study_dir / "checkpoints")
    page = rebuilt(study_dir)[1]
    shown = section(page, "configuration")
    assert "mask_ratio: 0.75" in shown
    assert "max_train_patients: 1500" in shown
    for text in (at, "of author", "author.example"):
        assert text not in shown
    assert at not in page


def test_every_element_of_the_page_is_closed_where_it_should_be(page):
    class Balance(html.parser.HTMLParser):
        open_tags: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br"):
                self.open_tags.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    checked = Balance()
    checked.feed(page)
    assert checked.open_tags == []


def test_all_trials_and_all_curves_are_on_the_page(page):
    rows = re.findall(r'<tr data-trial="(\d+)"', page)
    curves = re.findall(r'<g class="curve (\w+)" data-trial="(\d+)"', page)
    assert rows == ["0", "1", "2", "3"]
    assert set(curves) == {("default", "0"), ("pruned", "1"), ("best", "2"), ("diverged", "3")}


def test_the_commands_call_the_folder_by_a_name_that_no_move_makes_wrong(page):
    commands = section(page, "reproduce")
    for line in (
        "python launch.py command=train study_dir=STUDY trial=2<",
        "python launch.py command=report study_dir=STUDY<",
        "python launch.py command=evaluate checkpoint=STUDY/checkpoints/best_1<",
        'load("STUDY/checkpoints/best_1")',
        "<code>STUDY</code> is this study’s folder.",
    ):
        assert line in commands


def test_a_copy_of_the_folder_has_the_same_page_without_the_path_it_was_made_at(study_dir, tmp_path):
    def made_elsewhere(config):
        config["study_dir"] = "/home/author/runs/a study"
        del config["search"]["name"]

    change_yaml(study_dir / "study.yaml", made_elsewhere)
    shutil.copytree(study_dir, tmp_path / "copied" / "under another name")
    metrics, page = rebuilt(study_dir)
    assert (metrics, page) == rebuilt(tmp_path / "copied" / "under another name")
    assert "/home/author" not in page
    assert "<h1>a study on synthetic</h1>" in page


def test_a_trial_of_one_process_is_promised_bit_for_bit_and_one_of_a_gang_up_to_rounding(study_dir):
    rounding = "in one process where the study had 2, so the figures are equal only up to float rounding"
    exact = "with the same versions and <code>cluster.cpus_per_worker</code>, the same figures bit for bit"
    of_gang = section(rebuilt(study_dir)[1], "reproduce")
    change_yaml(study_dir / "study.yaml", lambda config: config["cluster"].update(workers_per_trial=1))
    of_one = section(rebuilt(study_dir)[1], "reproduce")
    assert [rounding in text for text in (of_gang, of_one)] == [True, False]
    assert [exact in text for text in (of_gang, of_one)] == [False, True]


def test_a_trial_on_other_trials_weights_is_not_said_to_be_repeatable_alone(study_dir):
    exploit = {"epoch": 1, "donor": 0, "params": {}}
    events = study_dir / "events.jsonl"
    before = events.read_text()
    change_json(study_dir / "checkpoints" / "best_1" / "checkpoint.json", exploits=[exploit])
    by_checkpoint = rebuilt(study_dir)[1]
    change_json(study_dir / "checkpoints" / "best_1" / "checkpoint.json", exploits=[])
    events.write_text(before + json.dumps({"event": "exploit", "trial": 2} | exploit) + "\n")
    by_event = rebuilt(study_dir)[1]
    for page in (by_checkpoint, by_event):
        assert "command=train" not in section(page, "reproduce")
        assert "Trial 2 cannot be repeated alone" in page
    assert "since it last took over another trial’s weights" in section(by_event, "curves")
    events.write_text(before + json.dumps({"event": "exploit", "trial": 1} | exploit) + "\n")
    assert "command=train study_dir=STUDY trial=2" in rebuilt(study_dir)[1]


def test_the_best_is_said_to_be_the_best_of_the_trials_that_were_completed(page):
    assert "the best on validation of the 2 completed trials of 4" in page[: page.index("</header>")]
    assert "the largest of the 2 completed trials of 4" in section(page, "models")
    assert "the largest val/auroc of the 2 completed trials of 4" in section(page, "methods")


def test_what_a_trials_value_is_is_said_under_the_curves_and_the_table(page):
    assert "the best of its fine-tuning epochs, or of all its epochs where there is one stage only" in page
    assert "took over" not in page
    assert "of a stopped one the last value that was reported" in section(page, "trials")


def test_a_report_needs_neither_torch_nor_ray():
    check = "import sys, reports.report; print({'torch', 'ray', 'hydra', 'optuna'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"


def test_a_study_that_was_never_evaluated_has_a_report_that_says_so(study_dir):
    for path in (study_dir / "report").glob("*.parquet"):
        path.unlink()
    lines = [line for line in (study_dir / "events.jsonl").read_text().splitlines() if "test_fold_opened" not in line]
    (study_dir / "events.jsonl").write_text("\n".join(lines))
    metrics, page = rebuilt(study_dir)
    assert (metrics["best"], metrics["baselines"], metrics["test_fold_openings"]) == ({}, {}, 0)
    assert "no model of this study has been evaluated on it" in page
    assert "Learning curves" in page


def test_a_search_that_has_only_begun_has_a_report(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"search": {"name": "s"}}))
    metrics, page = rebuilt(tmp_path)
    assert metrics["search"]["num_trials"] == 0
    assert "none yet" in page


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda table: table.iloc[:-1], "must hold the same records, 1 are in one only"),
        (lambda table: table.assign(y_MI=1 - table["y_MI"]), "must give each record the same patient and labels"),
        (lambda table: table.assign(patient_id="x"), "must give each record the same patient and labels"),
        (lambda table: table.drop(columns=["y_MI", "p_MI"]), "must hold the same classes"),
    ],
)
def test_models_evaluated_on_different_records_or_labels_are_not_compared(study_dir, change, complaint):
    path = study_dir / "report" / "predictions_random_encoder.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    metrics, page = rebuilt(study_dir)
    assert complaint in metrics["problems"][0]
    assert "predictions_random_encoder.parquet is left out" in page
    assert set(metrics["baselines"]) == set(metrics["differences"]) == {"default_configuration"}
    assert metrics["best"]["test"]["auroc_macro"]["value"] > 0.5


def test_baselines_without_the_best_model_are_shown_and_not_compared(study_dir):
    (study_dir / "report" / "predictions.parquet").unlink()
    metrics, page = rebuilt(study_dir)
    assert metrics["differences"] == {}
    assert metrics["baselines"]["random_encoder"]["test"]["auroc_macro"]["value"] > 0.5
    assert "The best trial has not been evaluated on the test fold" in page
    assert "the best trial has not been evaluated on it" in page
    assert "no model of this study" not in page


def test_a_test_fold_on_which_no_class_can_be_scored_is_not_called_unopened(study_dir):
    for path in (study_dir / "report").glob("*.parquet"):
        saved = pd.read_parquet(path)
        saved.loc[saved["split"] == "test", [f"y_{name}" for name in CLASSES]] = 0
        saved.to_parquet(path)
    metrics, page = rebuilt(study_dir)
    assert metrics["best"]["test"]["auroc_macro"]["value"] is None
    said = "the best trial has been evaluated on it, but no class has both a positive and a negative record"
    assert said in page
    assert "none yet" not in page
    assert "no model of this study" not in page


def test_more_openings_than_models_are_pointed_out(study_dir):
    with (study_dir / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "test_fold_opened", "model": "best", "records": 200}) + "\n")
    metrics, page = rebuilt(study_dir)
    assert metrics["test_fold_openings"] == 4
    assert "The test fold was opened 4 times for 3 models" in page
    assert "the best trial, 2 times" in page


def test_a_validation_value_that_cannot_be_recomputed_is_pointed_out(page):
    assert "The saved validation predictions give a macro AUROC of" in page


def test_a_full_disk_leaves_the_old_report_whole_and_nothing_beside_it(study_dir, monkeypatch):
    rebuilt(study_dir)
    before = {path.name: path.read_bytes() for path in (study_dir / "report").iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("reports.report.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        build(study_dir, num_resamples=10)
    assert {path.name: path.read_bytes() for path in (study_dir / "report").iterdir()} == before
