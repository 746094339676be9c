import html.parser
import json
import shutil

import pytest

from reports.index import build, refresh, studies_in
from reports.report import build as build_report
from tests.test_reports_report import change_json, write_study


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    """A reported study, a later one without a report in a folder of its own, and a damaged one."""
    folder = tmp_path_factory.mktemp("runs")
    build_report(write_study(folder / "a & b").joinpath(), num_resamples=20)
    later = write_study(folder / "group" / "later")
    with (later / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": "2026-03-01T00:00:00+00:00", "event": "study_finished"}) + "\n")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "study.yaml").write_text("a: [1\nb: {")
    (folder / "lost").mkdir()
    (folder / "lost" / "events.jsonl").write_text("")
    (folder / "stores" / "x-1").mkdir(parents=True)
    build(folder)
    return folder


@pytest.fixture(scope="module")
def page(gathered):
    return (gathered / "index.html").read_text()


@pytest.fixture(scope="module")
def rows(gathered):
    return json.loads((gathered / "studies.json").read_text())


def test_all_studies_are_listed_newest_first_and_the_damaged_last(rows):
    assert [row["path"] for row in rows] == ["group/later", "a & b", "damaged", "lost"]


def test_a_line_has_the_figures_of_its_study(rows, gathered):
    later, reported = rows[:2]
    metrics = json.loads((gathered / "a & b" / "report" / "metrics.json").read_text())
    assert reported["test"] == {key: metrics["best"]["test"]["auroc_macro"][key] for key in ("value", "low", "high")}
    assert reported["outcomes"] == {"complete": 2, "pruned": 1, "diverged": 1}
    assert (reported["best_trial"], reported["test_fold_openings"]) == (2, 3)
    assert (reported["status"], later["status"]) == ("running, or killed", "finished")
    assert later["test"] is None


def test_a_look_with_its_checkpoint_at_other_recordings_is_none_at_its_test_fold(tmp_path):
    study = write_study(tmp_path / "runs" / "one")
    events = (study / "events.jsonl").read_text().splitlines()
    first = json.dumps(json.loads(events[0]) | {"store": "own"})
    other = json.dumps({"event": "test_fold_opened", "model": "best_1", "store": "other"})
    (study / "events.jsonl").write_text("\n".join([first, *events[1:], other, ""]))
    build(tmp_path / "runs")
    assert json.loads((tmp_path / "runs" / "studies.json").read_text())[0]["test_fold_openings"] == 3


def test_a_figure_of_another_seed_of_the_best_trial_is_not_its_test_figure(tmp_path):
    study = write_study(tmp_path / "runs" / "one")
    build_report(study, num_resamples=10)
    build(tmp_path / "runs")
    assert json.loads((tmp_path / "runs" / "studies.json").read_text())[0]["test"] is not None
    change_json(study / "checkpoints" / "best_1" / "checkpoint.json", confirmed={"index": 2})
    build(tmp_path / "runs")
    assert json.loads((tmp_path / "runs" / "studies.json").read_text())[0]["test"] is None


def test_a_report_is_linked_by_a_path_that_moves_with_the_folder(page, rows):
    assert '<a href="a%20%26%20b/report/index.html">a &amp; b</a>' in page
    assert rows[0]["report"] is None


def test_a_damaged_study_is_listed_with_its_reason(page):
    assert "study.yaml is not readable YAML" in page
    assert "it lacks study.yaml" in page


def test_the_page_asks_for_nothing_and_closes_what_it_opens(page, gathered):
    assert str(gathered) not in page
    assert "http" not in page
    assert "<script" not in page

    class Balance(html.parser.HTMLParser):
        open_tags: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag != "meta":
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    checked = Balance()
    checked.feed(page)
    assert checked.open_tags == []


def test_the_same_folder_gives_the_same_page_wherever_it_lies(gathered, tmp_path, page):
    shutil.copytree(gathered, tmp_path / "copy")
    build(tmp_path / "copy")
    assert (tmp_path / "copy" / "index.html").read_text() == page


def test_a_report_of_another_best_trial_lends_no_figure(gathered, tmp_path):
    shutil.copytree(gathered / "a & b", tmp_path / "runs" / "s")
    path = tmp_path / "runs" / "s" / "report" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["search"]["best_trial"] = 0
    path.write_text(json.dumps(metrics))
    build(tmp_path / "runs")
    assert json.loads((tmp_path / "runs" / "studies.json").read_text())[0]["test"] is None


def test_a_study_is_no_folder_of_studies(gathered):
    with pytest.raises(ValueError, match="is itself a study's"):
        build(gathered / "a & b")
    assert [path.name for path in studies_in(gathered / "group")] == ["later"]


def test_a_page_of_the_users_own_is_left_alone(tmp_path):
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(ValueError, match="left as it is"):
        build(tmp_path)
    refresh(tmp_path)
    assert (tmp_path / "index.html").read_text() == "<h1>mine</h1>"


def test_only_a_folder_that_has_the_page_gets_it_refreshed(tmp_path):
    refresh(tmp_path)
    assert list(tmp_path.iterdir()) == []
    build(tmp_path)
    write_study(tmp_path / "new")
    refresh(tmp_path)
    assert "new" in (tmp_path / "index.html").read_text()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        build(tmp_path / "nowhere")
