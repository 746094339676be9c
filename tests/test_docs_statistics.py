"""docs/statistics.md: its script computes what the report says, its coverage table keeps what the page promises."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from reports.report import build
from reports.statistics.intervals import ENOUGH_PATIENTS, RARE_COVERAGE

METHODS = (Path(__file__).parents[1] / "reports" / "sections" / "methods.html").read_text(encoding="utf-8")
PAGE = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 3)) < 0.3).astype(float)
    scores = 1 / (1 + np.exp(-(rng.normal(size=targets.shape) + targets)))
    table = {"record_id": [f"r{row:03d}" for row in range(300)], "patient_id": [f"p{row % 170}" for row in range(300)]}
    table |= {"fold": [9, 10] * 150, "split": ["valid", "test"] * 150}
    for column, name in enumerate(("MI", "CD", "RARE")):
        table |= {f"y_{name}": targets[:, column], f"p_{name}": scores[:, column]}
    table["y_RARE"] = np.arange(300) == 0  # on validation alone: left out of the test figures
    (folder / "report").mkdir()
    pd.DataFrame(table).to_parquet(folder / "report" / "predictions.parquet")
    config = {"data": {"name": "synthetic", "test_folds": [10]}, "task": {"labels": "mine"}}
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    build(folder, num_resamples=20)
    return folder


def test_the_ten_lines_of_the_page_compute_five_numbers_of_the_report_again(study_dir, tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len([line for line in script.splitlines() if line.strip()]) == 10
    path = tmp_path / "again.py"
    path.write_text(script)
    run = subprocess.run([sys.executable, path, study_dir / "report"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = [re.match(r"(\w+) (\S+) (.*)", line).groups() for line in run.stdout.splitlines()]
    assert [name for name, _, _ in lines] == [
        "num_records",
        "num_patients",
        "auroc_macro",
        "auroc_micro",
        "auprc_macro",
    ]
    for _, again, told in lines:
        value = re.search(r"'value': ([\d.]+)", told)
        assert float(again) == pytest.approx(float(value[1] if value else told), abs=1e-6)


def coverage_table():
    """(metric, expected positives) -> our coverage in each column, in percent."""
    table = PAGE.split("<!-- coverage -->")[1].split("\n\n")[1]
    found = {}
    for line in table.strip().splitlines()[2:]:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        metric, which = name.split(", ")
        found[metric.lower(), which] = [float(cell.split()[0]) for cell in cells if cell]
    return found


def test_the_coverage_table_keeps_what_the_page_promises():
    table = coverage_table()
    for metric, limits in RARE_COVERAGE.items():
        rare = [value for (of, number), values in table.items() if of == metric and number in ("5", "10")
                for value in values]  # fmt: skip
        assert (round(min(rare)) / 100, round(max(rare)) / 100) == limits
        for number in map(str, (20, 50, 200)):
            assert all(93 <= value <= 97 for value in table[metric, number])
        assert all(93 <= value <= 97 for value in table[metric, f"macro from {ENOUGH_PATIENTS}"])


def test_the_table_of_pairs_keeps_what_the_methods_promise():
    lines = PAGE.split("<!-- pairs -->")[1].split("\n\n")[1].strip().splitlines()[2:]
    rows = {}
    for line in lines:
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[tuple(map(int, name.split(", ")))] = list(map(float, cells))
    assert set(rows) == {(num_classes, number) for num_classes in (1, 5) for number in (2, 5, 10, 20, 50)}
    alarms = [share for (_, number), cells in rows.items() if number > 2 for share in cells[:2]]
    promised = f"{round(min(alarms))}–{round(max(alarms))} %"
    assert f"p was at most 0.05 in {promised} where 5 to 50 patients" in METHODS
    assert all(cells[2] >= 94 for (_, number), cells in rows.items() if number >= 20)
