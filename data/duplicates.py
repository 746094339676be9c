"""Whether the same patient or the same signal is in two parts of a split, and a digest of who is in which.

A signal counts as the same where all its samples in all leads are: a copied file, or one exported twice. A record that
was cut, filtered or rescaled once more is not found; nothing here looks for near duplicates.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data.splits import Split
from data.store import Store

DIGESTS = "signals.blake2b"
"""Beside a store's signals: 16 bytes a record, in the order of the index."""
DIGEST_BYTES = 16
MAX_EXAMPLES = 20
PARTS = ("train", "valid", "test")
Digests = NDArray[np.void]


def parts_of(split: Split) -> dict[str, NDArray[np.int64]]:
    """The rows of each part; whatever is trained on counts as train, labelled or not."""
    return {"train": np.union1d(split.pretrain, split.train), "valid": split.valid, "test": split.test}


def split_digests(index: pd.DataFrame, split: Split) -> dict[str, str]:
    """A digest of the record ids in each part, and one of them all.

    The order of a store's rows and where it lies do not enter: sha256 of the sorted ids as JSON, and of the digests of
    train, valid and test in that order.

    Args:
        index: with the column record_id.
        split: rows of it.
    """
    ids = index["record_id"].astype(str).to_numpy(dtype=object)
    digests = {part: _sha256(sorted(ids[rows].tolist())) for part, rows in parts_of(split).items()}
    return {"all": _sha256([digests[part] for part in PARTS]), **digests}


def _sha256(values: list[str]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def signal_digests(store: Store) -> Digests:
    """(n,) 16 bytes for each record of a store: equal where the samples of all leads are.

    The signals are read once, a record at a time, and not through the memory map, whose pages would count as this
    process's memory. The digests are kept beside the signals where the folder can be written.

    Raises:
        OSError: if the signals cannot be read.
    """
    kept = store.path / DIGESTS
    with contextlib.suppress(OSError):
        content = kept.read_bytes()
        if len(content) == DIGEST_BYTES * len(store.index):
            return np.frombuffer(content, dtype=f"V{DIGEST_BYTES}")
    content = b"".join(_digests_of_records(store))
    partial = kept.with_name(f".{DIGESTS}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
    with contextlib.suppress(OSError):  # of a store that others own: computed again next time
        try:
            partial.write_bytes(content)
            partial.replace(kept)
        finally:
            partial.unlink(missing_ok=True)
    return np.frombuffer(content, dtype=f"V{DIGEST_BYTES}")


def content_digests(store: Store) -> dict[str, str]:
    """SHA-256 of a store's manifest, and of all its records' digests in the order of the index.

    The manifest holds the digest of the index and says how the signals were made; the second tells their samples, so
    that two stores with both the same hold the same data.

    Raises:
        OSError: if the store cannot be read.
    """
    manifest = (store.path / "manifest.json").read_bytes()
    return {
        "manifest": hashlib.sha256(manifest).hexdigest(),
        "signals": hashlib.sha256(signal_digests(store).tobytes()).hexdigest(),
    }


def _digests_of_records(store: Store) -> list[bytes]:
    num_leads = len(store.preparation.leads)
    found = []
    with Path(store.path, "signals.int16").open("rb") as file:
        for offset, num_samples in zip(store.index["offset"], store.index["num_samples"], strict=True):
            file.seek(2 * offset)
            samples = file.read(2 * num_leads * num_samples)
            found.append(hashlib.blake2b(samples, digest_size=DIGEST_BYTES).digest())
    return found


def check_parts(store: Store, split: Split) -> dict[str, Any]:
    """What is in two parts of a split at once, as plain JSON values.

    Args:
        store: whose rows are split.
        split: the rows of each part.

    Returns:
        records and patients: part -> how many; patients_in_two_parts and signals_in_two_parts: "train+valid",
        "train+test" and "valid+test" -> how many patients, or how many records of the second part have the samples of
        one in the first; examples: up to MAX_EXAMPLES pairs of such records, by their ids; repeated_signals: part ->
        how many of its records repeat an earlier one of it; patients_known: whether any patient has two records; where
        none has, the source may not tell patients apart.

    Raises:
        OSError: if the signals cannot be read.
    """
    parts = parts_of(split)
    patients = store.index["patient_id"].astype(str).to_numpy(dtype=object)
    digests = signal_digests(store)
    members = {part: set(patients[rows].tolist()) for part, rows in parts.items()}
    pairs = list(itertools.combinations(PARTS, 2))
    twins = {(first, second): _twins(digests, parts[first], parts[second]) for first, second in pairs}
    ids = store.index["record_id"].astype(str).to_numpy(dtype=object)
    examples = [[str(ids[row]), str(ids[twin])] for found in twins.values() for row, twin in found]
    return {
        "records": {part: len(rows) for part, rows in parts.items()},
        "patients": {part: len(members[part]) for part in PARTS},
        "patients_known": len(set(patients.tolist())) < len(patients),
        "patients_in_two_parts": {f"{one}+{other}": len(members[one] & members[other]) for one, other in pairs},
        "signals_in_two_parts": {f"{one}+{other}": len(found) for (one, other), found in twins.items()},
        "repeated_signals": {part: len(rows) - len(np.unique(digests[rows])) for part, rows in parts.items()},
        "examples": examples[:MAX_EXAMPLES],
    }


def _twins(digests: Digests, first: NDArray[np.int64], second: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Each row of `second` whose signal is also in `first`, with the first such row there."""
    where = dict(zip(reversed(digests[first].tolist()), reversed(first.tolist()), strict=True))
    found = ((where.get(digest), row) for digest, row in zip(digests[second].tolist(), second.tolist(), strict=True))
    return [(twin, row) for twin, row in found if twin is not None]


def leaks(checked: Mapping[str, Any]) -> tuple[int, int]:
    """(patients in two parts, records whose signal is in another part) of what `check_parts` found."""
    return sum(checked["patients_in_two_parts"].values()), sum(checked["signals_in_two_parts"].values())
