"""Files that are either whole or not there, whatever kills the process that writes them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class StorageError(OSError):
    """A folder of the user's cannot be written or a file in it cannot be read; the message is one line."""


def write_atomically(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Put `content` at `path` so that a reader sees the old file or the new one, never a part.

    Args:
        path: where.
        content: what.
        flush: whether it must be on the disk on return; what can be made again need not.

    Raises:
        StorageError: on a full or read-only disk, with the file named and what to do.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing_to(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                if flush:
                    os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def copy_atomically(source: Path, target: Path) -> None:
    """Put a copy of the file `source` at `target`, whole or not at all.

    Raises:
        StorageError: if the one cannot be read or the other cannot be written.
    """
    write_atomically(target, read_bytes(source))


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        StorageError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses while `path` is written into a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error


def storage_error(error: OSError, path: Path) -> StorageError:
    """`error` in one line a user can act on."""
    cures = {
        errno.ENOSPC: "the disk is full: free some space, then type the same line again to go on",
        errno.EDQUOT: "the quota is used up: free some space, then type the same line again to go on",
        errno.EROFS: "the file system is read-only: choose another folder with study_dir=DIR",
        errno.EACCES: "permission denied: choose another folder with study_dir=DIR",
        errno.EPERM: "permission denied: choose another folder with study_dir=DIR",
        errno.ENOTDIR: "a part of its path is a file: choose another folder with study_dir=DIR",
        errno.EEXIST: "its folder is a file: choose another folder with study_dir=DIR",
    }
    cure = cures.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"{path} cannot be written: {cure}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; `metadata` travels in its header."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(whole, metadata=dict(metadata)))


def read_metadata(path: Path) -> dict[str, str]:
    """What travels in a safetensors file's header; no tensor is read.

    Raises:
        StorageError: if the file is missing or damaged.
    """
    return _read(path, tensors=False)[1]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        StorageError: if it is missing or damaged.
    """
    return _read(path, tensors=True)


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys()) if tensors else []
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be read as safetensors ({error}): restore it or delete it") from error
