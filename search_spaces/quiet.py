"""Keep what Ray and its processes write off the terminal: it goes to a file while our own lines stay."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from trainables.files import storage_error


@contextmanager
def quiet(console: Console, log: Path) -> Iterator[Console]:
    """Send the process's standard output and error, and its children's, to the end of `log`.

    Args:
        console: where the user looks.
        log: grows.

    Yields:
        A console that still writes where `console` does.

    Raises:
        StorageError: if `log` cannot be written.
    """
    if console.file is not sys.stdout:  # a caller's own stream, e.g. a test's: descriptors are not touched
        yield console
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    except OSError as error:
        raise storage_error(error, log) from error
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with file, os.fdopen(os.dup(1), "w", buffering=1) as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield Console(file=terminal, highlight=False, soft_wrap=True)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in zip((1, 2), kept, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
