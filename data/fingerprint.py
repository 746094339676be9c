"""Whether a prepared store is the same one on another machine, told from a few of its pages.

The standard library alone: the check runs on every node of a cluster before anything else is imported there.
"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

FILES = ("signals.int16", "index.parquet")
PAGE_BYTES = 64 * 1024
NUM_PAGES = 8  # of each file, drawn, beside the first and the last


def fingerprint(store: Path, *, seed: int) -> dict[str, str]:
    """What a store's files are like: the same for two copies, and read in an instant however large they are.

    Args:
        store: the store's folder.
        seed: draws the pages that are looked at; only fingerprints of one seed can be compared.

    Returns:
        by file: a digest of manifest.json; of the others their size and a digest of some pages.

    Raises:
        OSError: if one of them cannot be read.
    """
    manifest = (store / "manifest.json").read_bytes()
    found = {"manifest.json": hashlib.sha256(manifest).hexdigest()}
    return found | {name: _pages(store / name, seed) for name in FILES}


def _pages(path: Path, seed: int) -> str:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        last = max(0, (size - 1) // PAGE_BYTES)
        draw = random.Random(seed)
        digest = hashlib.sha256()
        for page in sorted({0, last, *(draw.randint(0, last) for _ in range(NUM_PAGES))}):
            file.seek(page * PAGE_BYTES)
            digest.update(file.read(PAGE_BYTES))
    return f"{size} bytes, pages {digest.hexdigest()}"
