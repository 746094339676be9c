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
            Figure("in_process", 0.25, "s/trial", baseline=15.0, ratio=60.0, target=0.5, met=True),
            Figure("mib", 3, "MiB"),
        ],
        file,
    )
    written = json.loads(file.read_text(encoding="utf-8"))
    assert set(written) == {"machine", "figures"}
    assert written["figures"] == [
        {
            "name": "in_process",
            "value": 0.25,
            "unit": "s/trial",
            "baseline": 15.0,
            "ratio": 60.0,
            "target": 0.5,
            "met": True,
        },
        {"name": "mib", "value": 3, "unit": "MiB", "baseline": None, "ratio": None, "target": None, "met": None},
    ]
    assert capsys.readouterr().out.splitlines() == [
        "in_process: 0.25 s/trial (baseline 15, ratio 60, target 0.5, met)",
        "mib: 3 MiB",
    ]


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
    publish([Figure("speed", 2.5, "1/s", baseline=5, ratio=0.5, target=1, met=False)], tmp_path / "one.json")
    publish([Figure("peak", 1234.0, "MiB")], tmp_path / "two.json")
    rows = rows_of([tmp_path / "one.json", tmp_path / "two.json"])
    assert rows[1:] == [
        ("one: speed", "2.5", "1/s", "5", "0.5", "1", "MISSED"),
        ("two: peak", "1234", "MiB", "", "", "", ""),
    ]
    lines = table_of(rows).splitlines()
    assert lines[0].split() == ["figure", "value", "unit", "baseline", "ratio", "target"]
    ends = [line.index(text) + len(text) for line, text in zip(lines, ("value", "2.5", "1234"), strict=True)]
    assert len(set(ends)) == 1


def test_figures_of_two_machines_are_not_put_into_one_table(tmp_path):
    publish([Figure("mib", 3, "MiB")], tmp_path / "one.json")
    document = json.loads((tmp_path / "one.json").read_text())
    document["machine"]["cores"] += 1
    (tmp_path / "two.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="must be of one machine"):
        rows_of([tmp_path / "one.json", tmp_path / "two.json"])
