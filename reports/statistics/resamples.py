"""Patients drawn with replacement, each with all their records: the weights of a bootstrap's resamples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.statistics.discrimination import Floats

_CHUNK_NUMBERS = 1 << 18
"""Weights held at once, records times resamples of a chunk: 2 MiB."""


def patient_resamples(patients: NDArray[Any], *, num_resamples: int, seed: int, num_spare: int = 0) -> Iterator[Floats]:
    """Draw the patients with replacement, as many as there are, again and again.

    Args:
        patients: (n,) who each record is of.
        num_resamples: R.
        seed: of the draws, which follow from nothing else but the patients.
        num_spare: more that are drawn after these, to take the place of some; no chunk holds of both.

    Yields:
        (n, r) how often each record was drawn, in chunks of resamples that together are R and the spare ones.
    """
    _, patient_of_record = np.unique(patients, return_inverse=True)
    num_patients = int(patient_of_record.max()) + 1
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_NUMBERS // len(patients))
    whole = num_resamples + num_spare
    starts = [*range(0, num_resamples, chunk), *range(num_resamples, whole, chunk)]
    for start, end in itertools.pairwise([*starts, whole]):
        num = end - start
        drawn = generator.integers(num_patients, size=(num, num_patients))
        cells = drawn * num + np.arange(num)[:, None]
        times_drawn = np.bincount(cells.ravel(), minlength=num_patients * num).reshape(num_patients, num)
        yield times_drawn.astype(np.float64)[patient_of_record]
