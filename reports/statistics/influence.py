"""How much each patient moves an AUROC or an AUPRC: the first-order effect of giving a patient more weight.

n records, I patients, K classes. The sum of squared influences is the variance of the value when patients are drawn
anew (the infinitesimal jackknife, Efron and Stein 1981, Annals of Statistics 9:586-596). For the AUROC the influences
are centred placements, and with the factors below their sum of squares is the variance of Obuchowski 1997 (Biometrics
53:567-578) for several records of one patient; with one record a patient it is DeLong's. For average precision they
are the derivative of its formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, owens_t

from reports.statistics.discrimination import Floats

PRIOR_PATIENTS = 1
"""As how many patients the binormal model's variance of an AUROC counts; docs/statistics.md says what it brings."""


def placement_variance(area: float) -> float:
    """The variance of a positive's placement among the negatives in the binormal model of equal variances.

    With z the standard score of the area it is P(X < z, Y < z) - area^2, X and Y normal with correlation 1/2; Owen's T
    (1956, Annals of Mathematical Statistics 27:1075-1090) gives the first.
    """
    return float(area * (1 - area) - 2 * owens_t(ndtri(area), 1 / np.sqrt(3)))


@dataclass(frozen=True)
class Influence:
    """Of every patient on the METRICS of one class, through their positive and through their negative records."""

    values: Floats
    """(2,) the METRICS themselves."""
    positive: Floats
    """(2, I)"""
    negative: Floats
    """(2, I)"""
    num_positive_patients: int
    """m, those with a positive record."""
    num_negative_patients: int
    alone: tuple[int, int]
    """The first patient with a positive record and the first with a negative one."""

    @property
    def num_patients(self) -> int:
        """Those of the rarer kind."""
        return min(self.num_positive_patients, self.num_negative_patients)

    @cached_property
    def total(self) -> Floats:
        """(2, I), scaled so that the sum of squares is the variance of the value."""
        of_positive, of_negative = self.parts
        return of_positive + of_negative

    @cached_property
    def parts(self) -> tuple[Floats, Floats]:
        """(2, I) of the positives and of the negatives, scaled so that their sums of squares are the variances of each.

        By m / (m - 1) within the root, as a variance divides by one less than its size. The AUROC's are then moderated:
        where few patients are ranked nearly right, those who are ranked badly are easily missing, and the variance is
        too small just where the value is too high. As Smyth 2004 (Stat. Appl. Genet. Mol. Biol. 3:3) does for few
        samples, it is averaged with what a model expects, here the binormal one. That counts as PRIOR_PATIENTS and is
        given the area (m v + 1/3) / (m + 2/3), as counts are started in Tukey 1977 (Exploratory Data Analysis): at an
        area of 1 it would have no variance itself.

        An AUPRC that one patient alone decides, or that is 1, shows no scatter. It is given the variance of a share of
        m patients with one success and one failure added (Agresti and Coull 1998, American Statistician 52:119-126).
        """
        sizes = (self.num_positive_patients, self.num_negative_patients)
        kinds = enumerate(zip((self.positive, self.negative), sizes, strict=True))
        scaled = [np.stack([self._part(kind, size, row, part[row]) for row in (0, 1)]) for kind, (part, size) in kinds]
        return scaled[0], scaled[1]

    def _part(self, kind: int, size: int, row: int, part: Floats) -> Floats:
        """(I,) of one kind and metric, scaled."""
        value = float(self.values[row])
        own = float(np.sum(part**2)) * size / max(size - 1, 1) if size > 1 else 0.0
        smoothed = (size * value + 1) / (size + 2)
        if row == 0:
            prior = placement_variance((size * value + 1 / 3) / (size + 2 / 3)) / size
            wanted = (size * own + PRIOR_PATIENTS * prior) / (size + PRIOR_PATIENTS)
        else:
            wanted = own if own > 1e-30 else smoothed * (1 - smoothed) / size
        if own > 1e-30:
            return np.asarray(part * np.sqrt(wanted / np.sum(part**2)))
        return np.asarray(np.sqrt(wanted) * (np.arange(part.size) == self.alone[kind]))

    @cached_property
    def degrees_of_freedom(self) -> Floats:
        """(2,) how well the variance is known, in Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2).

        The variance is the sum of two, of the positives' and the negatives' part, each estimated from its own number of
        patients. Twice the square of a variance over the variance of its estimate is m - 1 for normal values; few
        patients who are ranked badly among many who are ranked well make it smaller, and the smaller one counts.
        """
        return satterthwaite(self.parts, (self.num_positive_patients, self.num_negative_patients))


def satterthwaite(parts: tuple[Floats, Floats], sizes: tuple[int, int]) -> Floats:
    """(2,) degrees of freedom of the variance that (2, I) scaled influences of positives and of negatives make."""
    squares = [np.sum(part**2, axis=1) for part in parts]
    total = np.sum((parts[0] + parts[1]) ** 2, axis=1)
    normal = sum(square**2 / max(size - 1, 1) for square, size in zip(squares, sizes, strict=True))
    fourth = sum(
        np.sum(np.square(part**2), axis=1) - square**2 / size
        for part, square, size in zip(parts, squares, sizes, strict=True)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.minimum(total**2 / normal, 2 * total**2 / np.maximum(fourth, 0.0))
    return np.maximum(np.where(np.isfinite(found), found, 1.0), 1.0)


def of_difference(one: Influence, other: Influence) -> tuple[Floats, Floats]:
    """(2, I) influences of the patients on one model's METRICS less another's, and (2,) degrees of freedom.

    Each patient's influence on the one less that on the other: what both models owe to the same patient cancels. Scaled
    by m / (m - 1) as `Influence.parts`, but not moderated: the prior is of an area, and says nothing of a difference.
    The degrees of freedom are at most m - 1, m patients of the rarer kind: where these happen to scatter little the
    other kind seems to make the variance, which is then too small and would pass for well known.

    Args:
        one: of a class with two positive and two negative patients at least.
        other: of the same records.
    """
    sizes = (one.num_positive_patients, one.num_negative_patients)
    positive, negative = one.positive - other.positive, one.negative - other.negative
    parts = (positive * np.sqrt(sizes[0] / (sizes[0] - 1)), negative * np.sqrt(sizes[1] / (sizes[1] - 1)))
    return parts[0] + parts[1], np.minimum(satterthwaite(parts, sizes), min(sizes) - 1.0)


def influence(targets: NDArray[Any], scores: NDArray[Any], patient_of_record: NDArray[np.int64]) -> Influence:
    """The influence of every patient on the AUROC and the AUPRC of one class.

    Args:
        targets: (n,) 1 for a positive, 0 for a negative; both kinds are there.
        scores: (n,) finite, higher means more likely positive.
        patient_of_record: (n,) 0 to I - 1.
    """
    positive = np.asarray(targets) > 0.5
    levels, place = np.unique(-np.asarray(scores), return_inverse=True)  # tie groups, the highest score first
    positives = np.bincount(place[positive], minlength=levels.size).astype(np.float64)
    negatives = np.bincount(place[~positive], minlength=levels.size).astype(np.float64)
    area, of_areas = _of_auroc(positives, negatives)
    average, of_averages = _of_auprc(positives, negatives)
    num_patients = int(patient_of_record.max()) + 1
    parts, patients = [], []
    for kind, rows in enumerate((positive, ~positive)):
        found = [np.where(rows, of_levels[kind, place], 0.0) for of_levels in (of_areas, of_averages)]
        sums = [np.bincount(patient_of_record, row, minlength=num_patients) for row in found]
        parts.append(np.array(sums, dtype=np.float64))
        patients.append(np.unique(patient_of_record[rows]))
    sizes = [int(found.size) for found in patients]
    alone = (int(patients[0][0]), int(patients[1][0]))
    return Influence(np.array([area, average]), parts[0], parts[1], sizes[0], sizes[1], alone)


def _of_auroc(positives: Floats, negatives: Floats) -> tuple[float, Floats]:
    """The area; and (2, levels) of a positive and of a negative record: how far its placement lies from the mean."""
    num_positive, num_negative = positives.sum(), negatives.sum()
    of_positive = 1 - (np.cumsum(negatives) - negatives / 2) / num_negative
    of_negative = (np.cumsum(positives) - positives / 2) / num_positive
    area = positives @ of_positive / num_positive
    return float(area), np.stack([(of_positive - area) / num_positive, (of_negative - area) / num_negative])


def _of_auprc(positives: Floats, negatives: Floats) -> tuple[float, Floats]:
    """The average precision; and (2, levels) alike: a record changes the precision at its level and at all below."""
    true = np.cumsum(positives)
    selected = true + np.cumsum(negatives)
    num_positive = true[-1]
    precision = true / selected
    average = positives @ precision / num_positive
    gained = np.cumsum((positives / selected)[::-1])[::-1]
    lost = np.cumsum((positives * true / selected**2)[::-1])[::-1]
    return float(average), np.stack([precision - average + gained - lost, -lost]) / num_positive
