import json
import re
import shutil

import pytest
import yaml

from reports.citations import all_citations
from reports.methods import ENCODERS, MASKED, PRETEXTS
from reports.report import build
from tests.test_reports_report import CLASSES, change_yaml, section, write_study
from trainables.components import resolve


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("study") / "runs")
    build(folder, num_resamples=20)
    return folder


@pytest.fixture
def study_dir(reported, tmp_path):
    shutil.copytree(reported, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def card(reported):
    return (reported / "report" / "model_card.md").read_text()


@pytest.fixture(scope="module")
def metrics(reported):
    return json.loads((reported / "report" / "metrics.json").read_text())


def rebuilt(study_dir):
    build(study_dir, num_resamples=20)
    return (study_dir / "report" / "model_card.md").read_text()


def test_the_card_lies_beside_the_weights_that_it_is_about(reported, card):
    assert (reported / "checkpoints" / "best_1" / "README.md").read_text() == card
    assert not (reported / "checkpoints" / "default" / "README.md").exists()


def test_the_front_matter_holds_the_test_figures(card, metrics):
    data = yaml.safe_load(card.split("---\n")[1])
    ((auroc, auprc),) = [result["metrics"] for result in data["model-index"][0]["results"]]
    assert auroc["value"] == metrics["best"]["test"]["auroc_macro"]["value"]
    assert auprc["value"] == metrics["best"]["test"]["auprc_macro"]["value"]
    assert f"{metrics['best']['test']['auroc_macro']['low']:.4f}" in auroc["name"]


def test_hugging_faces_own_reader_takes_the_card(card, metrics):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    read = hub.ModelCard(card)
    found = {result.metric_type: result for result in read.data.eval_results}
    assert found["roc_auc"].metric_value == metrics["best"]["test"]["auroc_macro"]["value"]
    assert found["roc_auc"].dataset_split == "test"
    assert read.data.library_name == "heartsweep"
    assert read.text.strip().startswith("# tiny_search on synthetic")


def test_the_card_says_what_it_is_for_and_what_not(card, metrics):
    for words in (
        "## Intended use",
        "**It is not a medical device**",
        "200 records of 90 patients",
        "opened 3 times",
        "## Limits",
        "model.mask_ratio: 0.62",
        "@inproceedings{akiba2019optuna,",
    ):
        assert words in card
    for name in CLASSES[:3]:
        low = metrics["best"]["test"]["auroc"][name]["low"]
        assert re.search(rf"\| {re.escape(name)} \| 0\.\d+ \[{low:.3f}, ", card)


def test_the_card_holds_no_record_no_patient_and_no_path(study_dir):
    change_yaml(study_dir / "study.yaml", lambda config: config.update(study_dir="/home/author/runs/a study"))
    path = study_dir / "checkpoints" / "best_1" / "checkpoint.json"
    described = json.loads(path.read_text())
    described["run"] = {
        "model": {"encoder": {"_target_": "x"}, "text_encoder": {"folder": "/home/author/text"}},
        "task": {"encoder": "/home/author/encoder"},
    }
    path.write_text(json.dumps(described))
    card = rebuilt(study_dir)
    assert "_target_: x" in card
    assert "/home/author" not in card
    assert not re.search(r"r\d{5}|patient(9|10)-\d", card)


def test_a_model_without_test_figures_has_a_card_without_results(study_dir):
    for path in (study_dir / "report").glob("*.parquet"):
        path.unlink()
    card = rebuilt(study_dir)
    assert "model-index" not in card
    assert "no figures on the test fold" in card


def test_a_leak_is_among_the_limits(study_dir):
    found = {
        "event": "data_checked",
        "split": {"all": "0" * 64},
        "records": {"train": 9, "valid": 2, "test": 2},
        "patients": {"train": 9, "valid": 2, "test": 2},
        "patients_known": True,
        "patients_in_two_parts": {"train+valid": 0, "train+test": 1, "valid+test": 0},
        "signals_in_two_parts": {"train+valid": 0, "train+test": 2, "valid+test": 0},
        "repeated_signals": {"train": 0, "valid": 0, "test": 0},
        "examples": [["a1", "b2"]],
        "pretraining": {"kind": "checkpoint", "steps": [{"data": "ptb_xl", "patients": 7, "test_patients": 3}]},
    }
    found["pretraining"]["test_patients"] = 3
    with (study_dir / "events.jsonl").open("a") as file:
        file.write(json.dumps(found) + "\n")
    card = rebuilt(study_dir)
    page = (study_dir / "report" / "index.html").read_text()
    head = page[: page.index("</header>")]
    for text in (card, head):
        assert "1 patient in two parts of the split (training and test): figures are too good." in text
        assert "2 records hold the very samples of a record in another part" in text
        assert "pre-trained on 3 patients of the test fold" in text
    told = section(page, "provenance")
    assert "1 patient in two parts (1 in training and test); 2 signals in two parts (2 in training and test)" in told
    assert "a1 and b2" in told
    assert "a checkpoint trained on ptb_xl, 7 patients; 3 patients of the test fold among them" in told


def test_uncommitted_changes_are_told_with_the_file_that_holds_them(study_dir):
    changes = {"sha256": "ab" * 32, "bytes": 9, "stat": {"launch.py": [3, 1]}, "num_files": 1, "lines_left_out": 1}
    changes |= {"untracked_sources": 2, "file": "code/changes-abababababab.diff"}
    event = {"event": "study_resumed", "git_revision": "abc124+changes", "changes": changes}
    with (study_dir / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    rebuilt(study_dir)
    told = section((study_dir / "report" / "index.html").read_text(), "provenance")
    assert "1 file, 3 lines added, 1 removed; kept in code/changes-abababababab.diff" in told
    assert "2 source files beside it that git does not know" in told
    assert "1 line left out of what is kept" in told


# -------- citations


def test_a_study_is_told_to_cite_what_it_used_and_nothing_else(study_dir):
    def of_a_search(config):
        encoder = {"_target_": "models.s4d.S4D"}
        config["model"] = {"_target_": "models.simclr.SimCLR", "encoder": encoder}
        config["data"]["name"] = "ptb_xl"

    change_yaml(study_dir / "study.yaml", of_a_search)
    rebuilt(study_dir)
    page = section((study_dir / "report" / "index.html").read_text(), "citation")
    for key in ("wagner2020ptbxl", "chen2020simclr", "gu2022s4d", "li2020asha", "bergstra2011tpe", "liaw2018tune"):
        assert f"{{{key}," in page
    assert "na2024stmem" not in page
    assert "Wagner et al. 2020: PTB-XL, a large publicly available" in page


def test_all_methods_that_were_searched_among_are_cited_and_the_card_is_of_the_best_ones(study_dir):
    masked = {name: {"_target_": MASKED, "encoder": {"_target_": target}} for target, name in ENCODERS.items()}
    options = {
        "st_mem": masked["st_mem"],
        "jepa": {"_target_": "models.jepa.JEPA", "encoder": masked["vit1d"]["encoder"]},
    }
    change_yaml(
        study_dir / "study.yaml", lambda config: config.update(model=options["jepa"], options={"model": options})
    )
    path = study_dir / "checkpoints" / "best_1" / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "run": {"model": options["jepa"]}}))
    assert "method jepa with vit1d: trial 2" in rebuilt(study_dir)  # the model's own
    path.write_text(json.dumps({**json.loads(path.read_text()), "run": {}}))
    card = rebuilt(study_dir)
    assert "method jepa and st_mem with vit1d and st_mem" in card
    for key in ("na2024stmem", "assran2023ijepa", "he2022mae", "dosovitskiy2021vit"):
        assert f"{{{key}," in card


def test_every_entry_is_whole_and_every_entry_is_called_for_by_something_that_exists():
    kinds = {"data", "pretext", "encoder", "sampler", "scheduler", "figures"}
    pretexts = {*PRETEXTS.values(), "st_mem", "mtae", "mlae", "signal_mae", "mae"}
    for entry in all_citations():
        assert {"type", "author", "title", "year"} <= entry.fields.keys()
        assert entry.bibtex.count("{") == entry.bibtex.count("}")
        assert "{" not in entry.said
        assert "\\" not in entry.said
        for use in entry.called_for_by - {"always"}:
            kind, name = use.split(" ")
            assert kind in kinds
            if kind in ("pretext", "encoder"):
                assert name in (pretexts if kind == "pretext" else set(ENCODERS.values()))
    assert len({entry.key for entry in all_citations()}) == len(all_citations())


def test_every_method_has_something_to_cite():
    called_for = {use for entry in all_citations() for use in entry.called_for_by}
    for name in {*PRETEXTS.values(), "st_mem", "mtae", "mlae", "signal_mae", "mae"}:
        assert f"pretext {name}" in called_for
    for name in ENCODERS.values():
        assert f"encoder {name}" in called_for
    for name in ("asha", "asha_promotion", "median", "pbt"):
        assert f"scheduler {name}" in called_for


def test_the_classes_that_names_are_given_to_exist():
    for target in (*PRETEXTS, *ENCODERS, MASKED):
        assert resolve(target).__name__ == target.rpartition(".")[2]


def test_a_card_is_the_same_to_the_byte_when_it_is_made_again(study_dir, card):
    assert rebuilt(study_dir) == card
