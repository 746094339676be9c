import contextlib
import io
import logging

import pytest
from rich.console import Console

from search_spaces.logs import configure
from search_spaces.schema import Debug
from trainables.files import StorageError

USUAL = Debug(enabled=False, log_level="INFO")
DEBUG = Debug(enabled=True, log_level="DEBUG")
OURS = ("data.store", "models.vit", "reports.report", "search_spaces.tracking", "trainables.trial")


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), width=40)


def said_by_all(level=logging.INFO):
    for name in (*OURS, "ray.tune", "optuna.study"):
        logging.getLogger(name).log(level, "%s says [red]a line of many words, longer than the terminal is wide", name)


def test_our_lines_are_in_the_file_and_not_on_the_terminal(terminal, tmp_path):
    log = tmp_path / "study" / "ray.log"
    with configure(USUAL, terminal, log):
        said_by_all()
        said_by_all(logging.DEBUG)
    lines = log.read_text().splitlines()
    assert [line.partition(" INFO ")[2].partition(":")[0] for line in lines] == list(OURS)
    assert terminal.file.getvalue() == ""


def test_a_warning_is_shown_in_one_plain_line_and_kept(terminal, tmp_path):
    log = tmp_path / "ray.log"
    with configure(USUAL, terminal, log):
        logging.getLogger("search_spaces.tracking").warning("tracking [stopped]: %s", "word " * 20)
    assert terminal.file.getvalue() == f"warning: tracking [stopped]: {'word ' * 20}\n"
    assert "WARNING search_spaces.tracking: tracking [stopped]" in log.read_text()


def test_debugging_shows_all_that_is_kept_and_the_libraries_lines(terminal, tmp_path):
    log = tmp_path / "ray.log"
    with configure(DEBUG, terminal, log):
        said_by_all(logging.DEBUG)
    shown = terminal.file.getvalue()
    assert [line.partition(" DEBUG ")[2].partition(":")[0] for line in shown.splitlines()] == [
        *OURS,
        "ray.tune",
        "optuna.study",
    ]
    assert set(log.read_text().splitlines()) < set(shown.splitlines())


def test_without_a_file_libraries_are_left_to_standard_error(terminal):
    with configure(DEBUG, terminal):
        said_by_all(logging.DEBUG)
    assert "trainables.trial says" in terminal.file.getvalue()
    assert "ray.tune says" not in terminal.file.getvalue()


def test_what_is_less_than_the_level_that_was_typed_is_nowhere(terminal, tmp_path):
    log = tmp_path / "ray.log"
    with configure(Debug(enabled=True, log_level="ERROR"), terminal, log):
        said_by_all(logging.WARNING)
    assert terminal.file.getvalue() == log.read_text() == ""


def test_a_search_inside_a_command_says_everything_once(terminal, tmp_path):
    log, outside = tmp_path / "ray.log", Console(file=io.StringIO())
    with configure(USUAL, outside):
        with configure(USUAL, terminal, log):
            logging.getLogger("trainables").warning("inside")
        logging.getLogger("trainables").warning("after")
    assert terminal.file.getvalue() == "warning: inside\n"
    assert outside.file.getvalue() == "warning: after\n"
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.parametrize("interrupted", [False, True])
def test_loggers_are_as_before_afterwards(terminal, tmp_path, interrupted):
    loggers = [logging.getLogger(name) for name in ("data", "trainables", "ray", "optuna")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    with contextlib.suppress(KeyboardInterrupt), configure(DEBUG, terminal, tmp_path / "ray.log"):
        assert all((logger.level, logger.handlers) != kept for logger, kept in zip(loggers, before, strict=True))
        if interrupted:
            raise KeyboardInterrupt
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before


def test_a_log_that_cannot_be_written_is_named(terminal, tmp_path):
    (tmp_path / "study").write_text("a file")
    with (
        pytest.raises(StorageError, match=r"study.ray\.log cannot be written: its folder is a file"),
        configure(USUAL, terminal, tmp_path / "study" / "ray.log"),
    ):
        pass
