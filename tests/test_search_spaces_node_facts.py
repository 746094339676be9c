"""What a node finds: the driver's file or none, its own view of the disks, the source it runs."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from search_spaces import node_facts
from search_spaces.node_facts import (
    DRIVERS_FILE,
    Request,
    answer_of,
    answer_to,
    fingerprint_or_error,
    listing,
    met,
    other_listing,
    usage_of,
)
from trainables import source


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch):
    """Nothing here changes while it is waited for."""
    monkeypatch.setattr(node_facts, "VISIBLE_AFTER_S", 0.0)


@pytest.fixture
def request_(tmp_path):
    meeting = tmp_path / "study" / ".preflight-1"
    meeting.mkdir(parents=True)
    (meeting / DRIVERS_FILE).write_text("secret")
    return Request(meeting, meeting.parent, "secret", tmp_path / "store", 0)


def test_a_node_that_reads_the_drivers_file_leaves_one_that_shows_it(request_):
    assert met(request_, "n1") == "same"
    assert (request_.meeting / "n1").read_text() == answer_to("secret", "n1") != answer_to("other", "n1")


def test_a_node_is_not_asked_for_a_folder_that_is_the_drivers_alone(request_):
    assert met(replace(request_, meeting=None, study_dir=Path("/nowhere")), "n1") == "same"


def test_a_node_that_sees_another_folder_says_so_and_writes_nothing(request_):
    shutil.rmtree(request_.meeting)
    assert met(request_, "n1") == "another folder"
    assert list(request_.meeting.parent.iterdir()) == []
    request_.meeting.parent.rmdir()
    assert met(request_, "n1") == "absent"
    assert not request_.meeting.parent.exists()


def test_a_node_that_reads_something_else_says_so_and_writes_nothing(request_):
    (request_.meeting / DRIVERS_FILE).write_text("of another day")
    assert met(request_, "n1") == "another content"
    assert [path.name for path in request_.meeting.iterdir()] == [DRIVERS_FILE]


def test_a_file_that_comes_late_is_waited_for(request_, monkeypatch):
    monkeypatch.setattr(node_facts, "VISIBLE_AFTER_S", 60.0)
    (request_.meeting / DRIVERS_FILE).unlink()
    looks = []

    def comes_with_the_second_look(folder):
        looks.append(folder)
        if len(looks) == 2:
            (request_.meeting / DRIVERS_FILE).write_text("secret")

    monkeypatch.setattr(node_facts, "listed", comes_with_the_second_look)
    assert met(request_, "n1") == "same"
    assert len(looks) == 2


def test_a_folder_that_cannot_be_written_is_told_in_the_systems_words(request_, monkeypatch):
    (request_.meeting / "n1").mkdir()
    assert met(request_, "n1") == "cannot write: Is a directory"


def test_space_is_found_above_a_folder_that_is_not_there_yet(tmp_path):
    assert usage_of(tmp_path / "not" / "yet")[0] == shutil.disk_usage(tmp_path).total


def test_a_store_is_said_to_be_missing_by_what_is_missing(tmp_path, tiny_store):
    assert fingerprint_or_error(tmp_path / "none", 0) == {"error": f"there is no {tmp_path / 'none'}"}
    copy = tmp_path / "copy"
    shutil.copytree(tiny_store.path, copy)
    assert fingerprint_or_error(copy, 5) == fingerprint_or_error(tiny_store.path, 5)
    (copy / "index.parquet").unlink()
    assert fingerprint_or_error(copy, 0) == {"error": f"there is no {copy / 'index.parquet'}"}


def test_another_copy_of_a_folder_is_told_by_its_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    wanted = listing(tmp_path)
    assert other_listing(tmp_path, wanted) is None
    (tmp_path / "config.json").write_text("{ }")
    assert "config.json differ" in other_listing(tmp_path, wanted)
    assert "config.json differ" in other_listing(tmp_path / "none", wanted)


def test_versions_are_those_of_this_process():
    found = node_facts.versions_here()
    assert found["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(found[name] != "not installed" for name in ("ray", "torch", "numpy", "optuna"))


def test_one_changed_line_of_our_source_is_another_code(tmp_path, monkeypatch):
    root = node_facts.Path(node_facts.__file__).parent.parent
    for package in node_facts.OF_A_WORKER:
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    here = source.source_digest(node_facts.OF_A_WORKER)
    monkeypatch.setattr(source, "__file__", str(tmp_path / "trainables" / "source.py"))
    assert source.source_digest(node_facts.OF_A_WORKER) == here
    with (tmp_path / "models" / "losses.py").open("a") as file:
        file.write("# another\n")
    assert source.source_digest(node_facts.OF_A_WORKER) != here


def test_a_further_check_that_fails_says_so():
    def broken():
        raise PermissionError(13, os.strerror(13))

    assert answer_of(lambda: None) is None
    assert answer_of(lambda: "403") == "403"
    assert answer_of(broken) == "PermissionError: Permission denied"
