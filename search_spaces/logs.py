"""Where the log lines of our packages, Ray and Optuna go: the study's log file, and the terminal where they matter."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from search_spaces.schema import Debug
from trainables.files import storage_error

OURS = ("data", "models", "reports", "search_spaces", "trainables")
LIBRARIES = ("ray", "optuna")  # each writes to standard error by a handler of its own
WHOLE_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextlib.contextmanager
def configure(debug: Debug, terminal: Console, log: Path | None = None) -> Iterator[None]:
    """Send what is logged in the block where it belongs; as before afterwards.

    Our packages log at `debug.log_level` into `log`, and warnings are shown on the terminal too. With `debug.enabled`
    the libraries log at that level as well, and all of it is shown. What libraries write to standard error reaches
    `log` only where standard error does (see search_spaces.quiet).

    Args:
        debug: how much is said.
        terminal: where the user looks.
        log: grows; None where standard error is the user's own, and libraries write there.

    Raises:
        StorageError: if `log` cannot be written.
    """
    shown = TerminalHandler(terminal, whole=debug.enabled)
    shown.setLevel(debug.log_level if debug.enabled else logging.WARNING)
    with contextlib.ExitStack() as stack:
        ours: list[logging.Handler] = [shown]
        if log is not None:
            ours.append(stack.enter_context(contextlib.closing(_file_handler(log))))
        for name in OURS:
            logger = logging.getLogger(name)
            stack.enter_context(_changed(logger, debug.log_level, less=list(logger.handlers), more=ours))
        for name in LIBRARIES if debug.enabled else ():
            shows_too = [] if log is None else [shown]
            stack.enter_context(_changed(logging.getLogger(name), debug.log_level, less=[], more=shows_too))
        yield


class TerminalHandler(logging.Handler):
    """Shows log lines on a console, above its live table if it has one.

    Args:
        terminal: the console.
        whole: with time and name; else as a user reads a warning.
    """

    def __init__(self, terminal: Console, *, whole: bool) -> None:
        super().__init__()
        self._terminal = terminal
        self._whole = whole
        self.setFormatter(logging.Formatter(WHOLE_LINE if whole else "%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        line = self.format(record)
        shown = line if self._whole else f"{record.levelname.lower()}: {line}"
        try:
            self._terminal.print(shown, markup=False, highlight=False, soft_wrap=True)
        except OSError:  # the terminal is gone, e.g. a closed pipe
            self.handleError(record)


def _file_handler(log: Path) -> logging.FileHandler:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(log, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, log) from error
    handler.setFormatter(logging.Formatter(WHOLE_LINE))
    return handler


@contextlib.contextmanager
def _changed(
    logger: logging.Logger, level: str, *, less: Iterable[logging.Handler], more: Iterable[logging.Handler]
) -> Iterator[None]:
    """The logger at this level, with some handlers less and some more; then as it was."""
    before = logger.level
    logger.setLevel(level)
    for handler in less:
        logger.removeHandler(handler)
    for handler in more:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in more:
            logger.removeHandler(handler)
        for handler in less:
            logger.addHandler(handler)
        logger.setLevel(before)
