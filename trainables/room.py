"""A folder whose entries are kept while there is room: what was not used for longest goes first.

An entry is a folder with files that are whole or not there. Whoever uses one says so by `used`; several processes, on
several nodes, may use, put and delete entries at the same moment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def used(entry: Path) -> None:
    """Take note that an entry was used now, if it is still there."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(entry)


def files_of(entry: Path) -> list[Path]:
    """The files of an entry by name, those that are being written left out; none where it is gone."""
    try:
        return sorted(entry / name for name in os.listdir(entry) if not name.startswith("."))
    except FileNotFoundError:  # also where another process deletes it now, which Path.glob does not take
        return []


def make_room(folder: Path, max_bytes: float) -> None:
    """Delete entries, those that were not used for longest first, until no more than `max_bytes` are kept."""
    sizes = {entry: _size(entry) for entry in folder.iterdir() if entry.is_dir()}
    total = sum(sizes.values())
    for entry in sorted(sizes, key=_last_used):
        if total <= max_bytes:
            return
        total -= sizes[entry]
        for file in files_of(entry):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another process is putting something there
            entry.rmdir()


def _size(entry: Path) -> int:
    return sum(size for file in files_of(entry) for size in _sizes(file))


def _sizes(file: Path) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError):
        yield file.stat().st_size


def _last_used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0
