"""Folders that are either whole or not there, whatever kills the process that fills them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from data.record import DataError

_CURES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EROFS: "the file system is read-only: use a folder you may write to",
    errno.EACCES: "permission is denied: use a folder you may write to",
    errno.EPERM: "permission is denied: use a folder you may write to",
    errno.ENOTDIR: "a part of the path is a file: use a folder",
    errno.EEXIST: "it is a file: use a folder",
}


def build_folder(path: Path, build: Callable[[Path], None], *, key: str) -> None:
    """Make the folder `path`, unless it is there already, by letting `build` fill one that then takes its name.

    Of two processes that ask for the same folder at once, the second waits for the first. What a killed process
    left behind is removed by the next one.

    Args:
        path: the folder to make.
        build: fills the empty folder that it is given; it must turn errors of what it reads into DataErrors.
        key: the configuration key that an error tells the user to change.

    Raises:
        DataError: if the disk is full or the folder cannot be written to.
    """
    if path.is_dir():
        return
    with writing_to(path.parent, key=key), _lock(path):
        if path.is_dir():
            return
        beginning = f".{path.name}.{platform.node()}."
        for stale in path.parent.glob(f"{beginning}*.partial"):
            shutil.rmtree(stale, ignore_errors=True)  # we hold the lock: whoever wrote this is gone
        partial = path.parent / f"{beginning}{uuid.uuid4().hex[:8]}.partial"
        partial.mkdir()
        try:
            build(partial)
            _take_name(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def writing_to(folder: Path, *, key: str) -> Iterator[None]:
    """Make `folder`; what keeps the block from writing there ends in one line that names `key`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in _CURES:
            raise
        raise DataError(f"{folder} cannot be written to, {_CURES[error.errno]}, or set {key}=DIR") from error


@contextlib.contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk, not only in a cache, when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the right to build `path`; a process that dies gives it up by dying."""
    with path.with_name(f".{path.name}.lock").open("wb") as file:
        # a file system without locks leaves two builders to race, and _take_name lets either win
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _take_name(partial: Path, path: Path) -> None:
    try:
        partial.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        # another machine, whose lock this one cannot see, was first: its folder is as good
