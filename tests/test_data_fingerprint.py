"""Two copies of a store have one fingerprint, and another store has another, however large they are."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import fingerprint as fingerprint_module
from data.fingerprint import NUM_PAGES, PAGE_BYTES, fingerprint

SIZES = (0, 1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 5 * PAGE_BYTES)


def store(folder, *, signals=b"signals", index=b"index", manifest=b"{}"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "signals.int16").write_bytes(signals)
    (folder / "index.parquet").write_bytes(index)
    (folder / "manifest.json").write_bytes(manifest)
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_copies_agree_and_one_more_byte_does_not(tmp_path, size):
    content = os.urandom(size)
    one, copy = store(tmp_path / "a", signals=content), store(tmp_path / "b", signals=content)
    longer = store(tmp_path / "c", signals=content + b"x")
    assert fingerprint(one, seed=3) == fingerprint(copy, seed=3)
    assert fingerprint(one, seed=3) != fingerprint(longer, seed=3)


@pytest.mark.parametrize("part", ["signals", "index", "manifest"])
def test_another_content_of_the_same_length_shows_in_each_file(tmp_path, part):
    one, other = store(tmp_path / "a", **{part: b"abc"}), store(tmp_path / "b", **{part: b"abd"})
    assert fingerprint(one, seed=0) != fingerprint(other, seed=0)


@given(seed=st.integers(0, 2**32 - 1), at_end=st.booleans())
def test_the_ends_are_always_looked_at(tmp_path_factory, seed, at_end):
    folder = tmp_path_factory.mktemp("stores")
    content = bytes(40 * PAGE_BYTES)
    changed = content[:-1] + b"x" if at_end else b"x" + content[1:]
    assert fingerprint(store(folder / "a", signals=content), seed=seed) != fingerprint(
        store(folder / "b", signals=changed), seed=seed
    )


def test_few_pages_are_read_of_a_large_file(tmp_path, monkeypatch):
    folder = store(tmp_path, signals=b"")
    os.truncate(folder / "signals.int16", 2**36)  # 64 GiB of nothing
    hashed = []
    real = fingerprint_module.hashlib.sha256

    class Counting:
        def __init__(self, content=b""):
            self._real = real(content)

        def update(self, content):
            hashed.append(len(content))
            self._real.update(content)

        def hexdigest(self):
            return self._real.hexdigest()

    monkeypatch.setattr(fingerprint_module.hashlib, "sha256", Counting)
    assert fingerprint(folder, seed=1)["signals.int16"].startswith(f"{2**36} bytes")
    assert 0 < sum(hashed) <= (NUM_PAGES + 2) * PAGE_BYTES + len(b"index")


def test_a_store_that_is_not_there_cannot_be_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "none", seed=0)
