"""The file that every benchmark writes."""

import json
import platform
import sys

import pytest

from benchmarks.figures import Figure, machine, parse_arguments, publish
from benchmarks.table import rows_of, table_of


def test_the_file_holds_the_machine_and_every_figure_with_all_its_fields(tmp_path, capsys):
    file = tmp_path / "not there yet" / "figures.json"
    publish(
        [
            Figure("in_process", 0.25, "s/trial", baseline=15.0, ratio=60.0, target=0.5, bound="at most"),
            Figure("mib", 3, "MiB"),
        ],
        file,
        not_measured=["a GPU (there is none)"],
    )
    written = json.loads(file.read_text(encoding="utf-8"))
    assert set(written) == {"machine", "figures", "not_measured"}
    assert written["figures"] == [
        {
            "name": "in_process",
            "value": 0.25,
            "unit": "s/trial",
            "baseline": 15.0,
            "ratio": 60.0,
            "target": 0.5,
            "bound": "at most",
            "met": True,
        },
        {"name": "mib", "value": 3, "unit": "MiB"} | dict.fromkeys(["baseline", "ratio", "target", "bound", "met"]),
    ]
    assert written["not_measured"] == ["a GPU (there is none)"]
    assert capsys.readouterr().out.splitlines() == [
        "in_process: 0.25 s/trial (baseline 15, ratio 60, target 0.5, met)",
        "mib: 3 MiB",
        "not measured: a GPU (there is none)",
    ]


@pytest.mark.parametrize(
    ("bound", "target", "met"),
    [
        ("at least", 2.0, True),
        ("at least", 2.1, False),
        ("at most", 2.0, True),
        ("at most", 1.9, False),
        ("ratio at least", 3.0, True),
        ("ratio at least", 3.1, False),
        (None, 1.0, None),
        ("at least", None, None),
    ],
)
def test_a_target_is_met_or_missed_as_its_bound_says(bound, target, met):
    assert Figure("x", 2.0, "s", baseline=6.0, ratio=3.0, target=target, bound=bound).met is met


def test_a_ratio_that_there_is_not_misses_its_target():
    assert Figure("x", 2.0, "s", target=1.0, bound="ratio at least").met is False


def test_a_figure_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish([Figure("auroc", float("nan"), "")], tmp_path / "figures.json")
    assert list(tmp_path.iterdir()) == []


def test_the_machine_is_described_by_its_parts_and_not_by_its_name():
    described = machine()
    parts = {"cpu", "cores", "memory_gib", "gpu", "num_gpus", "system", "python", "torch", "ray", "optuna"}
    assert parts <= set(described)
    assert platform.node() not in described.values()
    assert described["cores"] >= 1
    assert described["memory_gib"] > 0
    assert described["python"] == platform.python_version()


def test_every_benchmark_takes_a_json_file_and_its_own_options(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["store.py", "--json", str(tmp_path / "f.json"), "--num-records", "3"])
    arguments = parse_arguments("What a store costs.", ("--num-records", {"type": int}))
    assert arguments.json == tmp_path / "f.json"
    assert arguments.num_records == 3


def test_a_table_holds_every_figure_of_every_file_in_columns(tmp_path):
    publish([Figure("speed", 2.5, "1/s", baseline=5, ratio=0.5, target=1, bound="at least")], tmp_path / "one.json")
    publish([Figure("peak", 1234.0, "MiB")], tmp_path / "two.json", not_measured=["a GPU"])
    rows = rows_of([tmp_path / "one.json", tmp_path / "two.json"])
    assert rows[1:] == [
        ("one: speed", "2.5", "1/s", "5", "0.5", "1", "met"),
        ("two: peak", "1234", "MiB", "", "", "", ""),
        ("two: a GPU", "", "", "", "", "", "not measured"),
    ]
    lines = table_of(rows).splitlines()
    assert lines[0].split() == ["figure", "value", "unit", "baseline", "ratio", "target"]
    ends = [line.index(text) + len(text) for line, text in zip(lines[:3], ("value", "2.5", "1234"), strict=True)]
    assert len(set(ends)) == 1


def test_figures_of_two_machines_are_not_put_into_one_table(tmp_path):
    publish([Figure("mib", 3, "MiB")], tmp_path / "one.json")
    document = json.loads((tmp_path / "one.json").read_text())
    document["machine"]["cores"] += 1
    (tmp_path / "two.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="must be of one machine"):
        rows_of([tmp_path / "one.json", tmp_path / "two.json"])
