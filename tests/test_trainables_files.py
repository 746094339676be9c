import errno
import os
from pathlib import Path

import pytest
import torch

from trainables.files import (
    StorageError,
    copy_atomically,
    read_metadata,
    read_tensors,
    write_atomically,
    write_tensors,
    writing_to,
)

TENSORS = {"weight": torch.arange(6.0).view(2, 3), "step": torch.tensor(3.0), "half": torch.ones(2).bfloat16()}


def refused(function, *arguments):
    with pytest.raises(StorageError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_replaces_what_was_there(tmp_path):
    path = tmp_path / "new folder" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    write_atomically(path, b"one")

    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
    assert "Input/output error" in refused(write_atomically, path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device that is always full, here")
def test_a_full_disk_is_said_in_one_line(tmp_path):
    path = tmp_path / "file"
    (tmp_path / f".file.{os.getpid()}.partial").symlink_to("/dev/full")
    assert refused(write_atomically, path, b"x") == (
        f"{path} cannot be written: the disk is full: free some space, then type the same line again to go on"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.EROFS, "the file system is read-only: choose another folder with study_dir=DIR"),
        (errno.EACCES, "permission denied: choose another folder with study_dir=DIR"),
        (errno.EDQUOT, "the quota is used up: free some space"),
        (errno.ENAMETOOLONG, "File name too long"),
    ],
)
def test_a_disk_that_refuses_everything_is_said_in_one_line(tmp_path, monkeypatch, code, cure):
    def refuse(*arguments, **keywords):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)  # as a read-only file system does, even where there is no file
    assert cure in refused(write_atomically, tmp_path / "file", b"x")


def test_a_path_through_a_file_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert "is a file: choose another folder" in refused(write_atomically, tmp_path / "file" / "below", b"x")
    assert "is a file: choose another folder" in refused(write_atomically, tmp_path / "file" / "a" / "b", b"x")


def test_an_error_is_told_once(tmp_path):
    with pytest.raises(StorageError, match="^inner$"), writing_to(tmp_path):
        raise StorageError("inner")


def test_tensors_come_back_with_their_types_and_metadata(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS | {"view": TENSORS["weight"].T}, {"state": '{"ä": 1}'})
    tensors, metadata = read_tensors(path)
    assert metadata == read_metadata(path) == {"state": '{"ä": 1}'}
    torch.testing.assert_close(tensors, TENSORS | {"view": TENSORS["weight"].T}, rtol=0, atol=0)


def test_tensors_that_were_read_may_be_changed_and_replaced(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {})
    tensors, _ = read_tensors(path)
    tensors["weight"].add_(1)
    assert torch.equal(read_tensors(path)[0]["weight"], TENSORS["weight"])
    write_tensors(path, {"weight": torch.zeros(1)}, {})
    assert torch.equal(tensors["weight"], TENSORS["weight"] + 1)


@pytest.mark.parametrize("size", [0, 5, 60, -1])
@pytest.mark.parametrize("read", [read_tensors, read_metadata])
def test_a_truncated_file_is_refused(tmp_path, size, read):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {"state": "x"})
    path.write_bytes(path.read_bytes()[:size])
    assert f"{path} cannot be read as safetensors" in refused(read, path)


@pytest.mark.parametrize("content", [b"not a tensor in it, but long enough for a header", b"\xff" * 64])
def test_another_files_content_is_refused(tmp_path, content):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    assert "restore it or delete it" in refused(read_tensors, path)


def test_a_missing_file_is_named(tmp_path):
    assert "missing.safetensors" in refused(read_tensors, tmp_path / "missing.safetensors")


def test_a_copy_is_whole_and_says_which_end_failed(tmp_path):
    (tmp_path / "from").write_bytes(b"content")
    copy_atomically(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == b"content"
    assert refused(copy_atomically, tmp_path / "none", tmp_path / "to") == (
        f"{tmp_path / 'none'} cannot be read: No such file or directory"
    )
    assert "to cannot be written" in refused(copy_atomically, tmp_path / "from", tmp_path / "from" / "to")
