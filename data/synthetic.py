"""Generated 12-lead ECGs in the layout of PTB-XL: every command runs on them without a patient's data.

A beat is a sum of Gaussian waves of a heart dipole (after McSharry et al. 2003, doi:10.1109/TBME.2003.808805, in
three dimensions as in Sameni et al. 2007, doi:10.1155/2007/43407), projected to electrodes by the matrix of Dower et
al. 1980. Diagnoses change the waves: an infarct turns the first forces away from its wall and lifts or inverts what
follows, a bundle branch block widens the QRS, hypertrophy raises the voltage. How strongly is drawn, weak findings
look like normal variation, and some labels are left out or wrong as in real tables, so no classifier reaches 1.

Axes of the dipole: x to the left arm, y to the feet, z to the back. Shapes: W waves, T samples, times in s, mV.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray

from data.folders import build_folder
from data.labels import LabelProtocol
from data.ptb_xl import DATABASE, FILENAME_COLUMN, PTBXL, RECORDS_FOLDER, STATEMENTS, protocols_of
from data.record import LEADS, DataError, Record

GENERATOR_VERSION = 3  # 2: reports as PTB-XL has them; 3: quality columns as well; the signals of 1
DURATION_S = 10.0
NUM_FOLDS = 10
UNITS_PER_MV = 1000
DRIFT_MV = 0.6
"""Of a lead's mean over a second, from its least to its largest: more is written down as baseline drift."""
NOISE_MV = 0.028
"""Standard deviation of what changes from one sample to the next, in the band of a record at 100 Hz: more is written
down as static noise."""

Vector = NDArray[np.float64]

DOWER = np.array(
    [
        [0.632, -0.235, 0.059],  # I
        [0.235, 1.066, -0.132],  # II
        [-0.515, 0.157, -0.917],  # V1
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],  # V6
    ]
)
"""(8, 3) from the dipole to the independent leads: Dower, Machado, Osborne 1980, Clin Cardiol 3:87."""


class Statement(NamedTuple):
    """A row of scp_statements.csv, as far as it is used."""

    description: str
    diagnostic: float | None
    form: float | None
    rhythm: float | None
    diagnostic_class: str | None
    diagnostic_subclass: str | None


def _diagnosis(description: str, superclass: str, subclass: str, form: float | None = None) -> Statement:
    return Statement(description, 1.0, form, None, superclass, subclass)


STATEMENT_OF_CODE = {
    "NORM": _diagnosis("normal ECG", "NORM", "NORM"),
    "IMI": _diagnosis("inferior myocardial infarction", "MI", "IMI"),
    "ASMI": _diagnosis("anteroseptal myocardial infarction", "MI", "AMI"),
    "ALMI": _diagnosis("anterolateral myocardial infarction", "MI", "AMI"),
    "LMI": _diagnosis("lateral myocardial infarction", "MI", "LMI"),
    "NDT": _diagnosis("non-diagnostic T abnormalities", "STTC", "STTC", 1.0),
    "NST_": _diagnosis("non-specific ST changes", "STTC", "NST_", 1.0),
    "ISCAL": _diagnosis("ischemic in anterolateral leads", "STTC", "ISCA"),
    "ISCIN": _diagnosis("ischemic in inferior leads", "STTC", "ISCI"),
    "LNGQT": _diagnosis("long QT-interval", "STTC", "STTC", 1.0),
    "LAFB": _diagnosis("left anterior fascicular block", "CD", "LAFB/LPFB"),
    "CLBBB": _diagnosis("complete left bundle branch block", "CD", "CLBBB"),
    "CRBBB": _diagnosis("complete right bundle branch block", "CD", "CRBBB"),
    "IRBBB": _diagnosis("incomplete right bundle branch block", "CD", "IRBBB"),
    "1AVB": _diagnosis("first degree AV block", "CD", "_AVB"),
    "IVCD": _diagnosis("non-specific intraventricular conduction disturbance (block)", "CD", "IVCD"),
    "LVH": _diagnosis("left ventricular hypertrophy", "HYP", "LVH"),
    "RVH": _diagnosis("right ventricular hypertrophy", "HYP", "RVH"),
    "LAO/LAE": _diagnosis("left atrial overload/enlargement", "HYP", "LAO/LAE"),
    "PVC": Statement("ventricular premature complex", None, 1.0, None, None, None),
    "LVOLT": Statement("low QRS voltages in the frontal and horizontal leads", None, 1.0, None, None, None),
    "SR": Statement("sinus rhythm", None, None, 1.0, None, None),
    "AFIB": Statement("atrial fibrillation", None, None, 1.0, None, None),
    "STACH": Statement("sinus tachycardia", None, None, 1.0, None, None),
    "SBRAD": Statement("sinus bradycardia", None, None, 1.0, None, None),
    "SARRH": Statement("sinus arrhythmia", None, None, 1.0, None, None),
}
"""The SCP-ECG statements that are generated: a subset of PTB-XL's, under the same names."""

_GERMAN_OF_CODE = {
    "NORM": "normales ekg",
    "IMI": "inferiorer infarkt",
    "ASMI": "anteroseptaler infarkt",
    "ALMI": "anterolateraler infarkt",
    "LMI": "lateraler infarkt",
    "NDT": "unspezifisches abnormes t",
    "NST_": "unspezifische st-veränderung",
    "ISCAL": "anterolaterale ischämie",
    "ISCIN": "inferiore ischämie",
    "LNGQT": "verlängertes qt-intervall",
    "LAFB": "linksanteriorer hemiblock",
    "CLBBB": "linksschenkelblock",
    "CRBBB": "rechtsschenkelblock",
    "IRBBB": "unvollständiger rechtsschenkelblock",
    "1AVB": "av-block 1. grades",
    "IVCD": "unspezifische intraventrikuläre leitungsstörung",
    "LVH": "linkshypertrophie",
    "RVH": "rechtshypertrophie",
    "LAO/LAE": "p-sinistrocardiale",
    "PVC": "ventrikuläre extrasystole(n)",
    "LVOLT": "niederspannung",
    "SR": "sinusrhythmus",
    "AFIB": "vorhofflimmern",
    "STACH": "sinustachykardie",
    "SBRAD": "sinusbradykardie",
    "SARRH": "sinusarrhythmie",
}
"""What German reports of PTB-XL call the statements."""

_CODES_OF_SUPERCLASS = {
    superclass: [code for code, told in STATEMENT_OF_CODE.items() if told.diagnostic_class == superclass]
    for superclass in ("MI", "STTC", "CD", "HYP")
}
_SHARE_OF_SUPERCLASS = {"MI": 0.25, "STTC": 0.24, "CD": 0.22, "HYP": 0.13}
_RATE_OF_RHYTHM = {"SR": (62, 98), "AFIB": (60, 125), "STACH": (101, 135), "SBRAD": (40, 58), "SARRH": (55, 85)}
_SHARE_OF_RHYTHM = {"SR": 0.80, "AFIB": 0.07, "STACH": 0.04, "SBRAD": 0.04, "SARRH": 0.05}
_NOISE_OF_DEVICE = {"CS100 3": 0.7, "CS-12": 1.0, "AT-6 C 5.5": 1.0, "AT-60 3": 1.5}  # relative to the mean


@dataclass(frozen=True)
class Synthetic:
    """A generated source that is read by the same reader as PTB-XL.

    The recordings are written once, under `root`, into a folder of their own for each combination of the other
    keys; that folder may itself be used as the root of a PTB-XL. Reports follow from the labels, in German or English.

    Attributes:
        root: where generated sources are kept.
        source_rate_hz: 100 or 500.
        num_patients: about one patient in seven has two or three records.
        seed: of everything that is drawn.
    """

    root: Path | None
    source_rate_hz: int
    num_patients: int
    seed: int

    @property
    def folder(self) -> Path:
        """Where this source lies, in the layout of PTB-XL.

        Raises:
            DataError: if there is no root.
        """
        if self.root is None:
            raise DataError("data.root must be a folder for the generated recordings, got none: give data.root=DIR")
        return Path(self.root) / f"synthetic-{self.fingerprint()[:12]}"

    def table(self) -> pd.DataFrame:
        """One row a record (data.record.Reader); the recordings are generated if they are not there."""
        return self._written().table()

    def read(self, row: Mapping[str, Any]) -> Record:
        """The recording of one row of `table`."""
        return PTBXL(self.folder, self.source_rate_hz).read(row)

    def protocols(self) -> dict[str, LabelProtocol]:
        """The protocols of PTB-XL over the statements that are generated."""
        return protocols_of(_statements())

    def fingerprint(self) -> str:
        """Digest of the generator's version and of what it is given: nothing has to be generated to know it.

        Raises:
            DataError: if a rate or a number of patients is given that cannot be.
        """
        if self.source_rate_hz not in RECORDS_FOLDER:
            raise DataError(f"data.source_rate_hz must be 100 or 500, got {self.source_rate_hz}")
        if self.num_patients < NUM_FOLDS:
            raise DataError(
                f"data.reader.num_patients must be at least {NUM_FOLDS}, one a fold, got {self.num_patients}"
            )
        identity = f"synthetic {GENERATOR_VERSION} {self.seed} {self.num_patients} {self.source_rate_hz}"
        return hashlib.sha256(identity.encode()).hexdigest()

    def _written(self) -> PTBXL:
        build_folder(self.folder, self._write, key="data.root")
        return PTBXL(self.folder, self.source_rate_hz)

    def _write(self, folder: Path) -> None:
        rows: list[dict[str, Any]] = []
        folds = np.random.default_rng([self.seed, 0]).permutation(self.num_patients) % NUM_FOLDS + 1
        for patient in range(self.num_patients):
            rng = np.random.default_rng([self.seed, 1, patient])
            person = _draw_person(rng)
            for _ in range(rng.choice([1, 2, 3], p=[0.86, 0.11, 0.03])):
                record_id = len(rows) + 1
                codes, row, leads_mv = _draw_record(person, self.source_rate_hz, rng)
                row["report"] = _draw_report(codes, np.random.default_rng([self.seed, 2, record_id]))
                row |= _quality(codes, leads_mv)
                name = f"{RECORDS_FOLDER[self.source_rate_hz]}/{record_id // 1000 * 1000:05d}/{record_id:05d}"
                name += "_lr" if self.source_rate_hz == 100 else "_hr"
                _write_wfdb(folder / name, leads_mv, self.source_rate_hz)
                identity = {"ecg_id": record_id, "patient_id": float(patient + 1), "strat_fold": folds[patient]}
                rows.append(identity | row | {FILENAME_COLUMN[self.source_rate_hz]: name})
        pd.DataFrame(rows).reindex(columns=_DATABASE_COLUMNS).to_csv(folder / DATABASE, index=False)
        _statements().to_csv(folder / STATEMENTS)


_DATABASE_COLUMNS = [
    "ecg_id",
    "patient_id",
    "age",
    "sex",
    "height",
    "weight",
    "nurse",
    "site",
    "device",
    "recording_date",
    "report",
    "scp_codes",
    "heart_axis",
    "infarction_stadium1",
    "infarction_stadium2",
    "validated_by",
    "second_opinion",
    "initial_autogenerated_report",
    "validated_by_human",
    "baseline_drift",
    "static_noise",
    "burst_noise",
    "electrodes_problems",
    "extra_beats",
    "pacemaker",
    "strat_fold",
    "filename_lr",
    "filename_hr",
]


def _statements() -> pd.DataFrame:
    """What scp_statements.csv holds, indexed by code."""
    return pd.DataFrame.from_dict(STATEMENT_OF_CODE, orient="index", columns=list(Statement._fields))


@dataclass
class Wave:
    """A Gaussian in time along one direction of the dipole.

    Attributes:
        centre_s: from the beat's reference point, near the R peak; scaled by the RR interval for the T waves.
        width_s: standard deviation.
        vector_mv: (3,) the dipole at the centre.
    """

    centre_s: float
    width_s: float
    vector_mv: Vector


Heart = dict[str, Wave]
"""The waves of one beat: P, septal, apical, free_wall, basal (the QRS in order), ST, T_rise, T."""

REPOLARISATION = ("ST", "T_rise", "T")
DEPOLARISATION = ("septal", "apical", "free_wall", "basal")


@dataclass(frozen=True)
class _Person:
    """What a patient's records share."""

    age: float
    sex: int
    heart: Heart
    lead_matrix: NDArray[np.float64]  # (8, 3)
    findings: tuple[tuple[str, float], ...]  # code, severity
    codes: tuple[str, ...]  # what the cardiologist wrote, less the rhythm


def _draw_person(rng: Generator) -> _Person:
    findings = _draw_findings(rng)
    age = float(np.clip(np.rint(rng.normal(52 + 12 * bool(findings), 16)), 18, 95))
    body = DOWER * rng.normal(1, 0.12, (8, 1)) + rng.normal(0, 0.07, (8, 3))  # build, electrodes put a little aside
    return _Person(
        age=300.0 if age > 89 else age,
        sex=int(rng.integers(2)),
        heart=_draw_heart(rng),
        lead_matrix=body,
        findings=findings,
        codes=_labelled_codes(findings, rng),
    )


def _draw_findings(rng: Generator) -> tuple[tuple[str, float], ...]:
    """What ails a heart and how much: severities around 1, of which a good part is hard to see."""
    if rng.random() < 0.42:
        return ()
    superclasses = [name for name, share in _SHARE_OF_SUPERCLASS.items() if rng.random() < 1.7 * share]
    codes = [str(rng.choice(_CODES_OF_SUPERCLASS[name])) for name in superclasses]
    return tuple((code, float(np.clip(rng.lognormal(-0.15, 0.5), 0.2, 2.2))) for code in codes)


def _labelled_codes(findings: tuple[tuple[str, float], ...], rng: Generator) -> tuple[str, ...]:
    """The findings as somebody read them: one in fifteen is missed, one record in fifty has one that is not there."""
    codes = [code for code, _ in findings if rng.random() > 0.07]
    if rng.random() < 0.02:
        codes.append(str(rng.choice([code for group in _CODES_OF_SUPERCLASS.values() for code in group])))
    return tuple(dict.fromkeys(codes)) or ("NORM",)


def _direction(frontal_deg: float, posterior_deg: float) -> Vector:
    """The unit vector at an angle of the frontal plane (0 left, 90 down), turned to the back."""
    frontal, posterior = np.deg2rad(frontal_deg), np.deg2rad(posterior_deg)
    return np.array(
        [np.cos(frontal) * np.cos(posterior), np.sin(frontal) * np.cos(posterior), np.sin(posterior)], dtype=np.float64
    )


def _draw_heart(rng: Generator) -> Heart:
    """A healthy heart, with the spread that healthy hearts have."""
    axis_deg = rng.normal(48, 22)
    voltage_mv = rng.lognormal(0, 0.22)
    pr_s = rng.normal(0.155, 0.02)
    width = rng.lognormal(0, 0.08)
    t_axis_deg, t_mv = axis_deg * 0.6 + rng.normal(12, 14), rng.lognormal(-1.25, 0.33)
    qt = rng.normal(1, 0.04)
    waves = {
        # centre, width, amplitude, frontal and posterior angle
        "P": (0.02 - pr_s, 0.022, rng.lognormal(-2.3, 0.3), 55 + rng.normal(0, 12), -5),
        "septal": (
            -0.028 * width,
            0.008 * width,
            voltage_mv * rng.lognormal(-1.75, 0.35),
            168 + rng.normal(0, 25),
            -55,
        ),
        "apical": (-0.006 * width, 0.010 * width, 0.85 * voltage_mv, axis_deg, -10 + rng.normal(0, 10)),
        "free_wall": (0.010 * width, 0.011 * width, 0.95 * voltage_mv, axis_deg - 12, 35 + rng.normal(0, 10)),
        "basal": (0.032 * width, 0.009 * width, voltage_mv * rng.lognormal(-1.2, 0.35), -100 + rng.normal(0, 20), 45),
        "ST": (0.110 * qt, 0.035, abs(rng.normal(0, 0.025)), t_axis_deg, -30),
        "T_rise": (0.210 * qt, 0.050, 0.40 * t_mv, t_axis_deg, -28 + rng.normal(0, 12)),
        "T": (0.275 * qt, 0.038, t_mv, t_axis_deg, -28 + rng.normal(0, 12)),
    }
    return {
        name: Wave(centre, max(spread, 0.006), size * _direction(frontal, posterior))
        for name, (centre, spread, size, frontal, posterior) in waves.items()
    }


def _infarct(wall: Vector) -> Callable[[Heart, float], None]:
    """Forces turn away from a dead wall at first; what follows points to it (fresh) or away from it (old)."""

    def change(heart: Heart, severity: float) -> None:
        heart["q"] = Wave(-0.022, 0.011, -0.42 * severity * wall)
        apical = heart["apical"].vector_mv
        apical -= 0.22 * severity * max(float(apical @ wall), 0.0) * wall
        heart["ST"].vector_mv += 0.05 * severity * wall
        heart["T"].vector_mv -= 0.14 * severity * wall

    return change


def _ischaemia(wall: Vector) -> Callable[[Heart, float], None]:
    """T turns away from the wall, ST sinks over it."""

    def change(heart: Heart, severity: float) -> None:
        heart["ST"].vector_mv -= 0.07 * severity * wall
        heart["T"].vector_mv -= 0.27 * severity * wall

    return change


def _flat_t(heart: Heart, severity: float) -> None:
    for name in ("T_rise", "T"):
        heart[name].vector_mv *= 1 - 0.65 * severity


def _low_st(heart: Heart, severity: float) -> None:
    mean = heart["apical"].vector_mv + heart["free_wall"].vector_mv
    heart["ST"].vector_mv -= 0.07 * severity * mean / np.linalg.norm(mean)
    heart["T"].vector_mv *= 1 - 0.25 * severity


def _long_qt(heart: Heart, severity: float) -> None:
    for name in REPOLARISATION:
        heart[name].centre_s *= 1 + 0.20 * severity
        heart[name].width_s *= 1 + 0.12 * severity


def _left_anterior_block(heart: Heart, severity: float) -> None:
    """The frontal axis turns up and to the left."""
    angle = np.deg2rad(-65 * severity)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    for name in ("apical", "free_wall"):
        heart[name].vector_mv = turn @ heart[name].vector_mv


def _widen(heart: Heart, factor: float) -> None:
    for name in DEPOLARISATION:
        heart[name].centre_s = (heart[name].centre_s + 0.04) * factor - 0.04
        heart[name].width_s *= factor


def _left_bundle_block(heart: Heart, severity: float) -> None:
    """A wide QRS without septal forces, late to the left and back; ST and T against it."""
    _widen(heart, 1 + 0.5 * severity)
    heart["septal"].vector_mv = 0.15 * _direction(0, 20) * severity
    late = 0.55 * severity * _direction(-5, 45)
    heart["late"] = Wave(0.065, 0.022, late)
    heart["ST"].vector_mv -= 0.15 * late
    heart["T"].vector_mv -= 0.6 * late


def _right_bundle_block(size: float) -> Callable[[Heart, float], None]:
    """Late forces to the right and front."""

    def change(heart: Heart, severity: float) -> None:
        late = size * severity * _direction(170, -45)
        heart["late"] = Wave(0.050 + 0.03 * size, 0.012 + 0.012 * size, late)
        heart["T"].vector_mv -= 0.2 * late

    return change


def _slow_av(heart: Heart, severity: float) -> None:
    heart["P"].centre_s -= 0.055 * severity


def _left_hypertrophy(heart: Heart, severity: float) -> None:
    """More voltage to the left and back, and strain."""
    for name in ("apical", "free_wall", "basal"):
        heart[name].vector_mv *= 1 + 0.45 * severity
    heart["free_wall"].vector_mv += 0.30 * severity * _direction(-10, 40)
    heart["ST"].vector_mv -= 0.03 * severity * _direction(20, 10)
    heart["T"].vector_mv -= 0.14 * severity * _direction(20, 10)


def _right_hypertrophy(heart: Heart, severity: float) -> None:
    heart["free_wall"].vector_mv += 0.60 * severity * _direction(140, -50)
    heart["T"].vector_mv -= 0.15 * severity * _direction(140, -50)


def _left_atrium(heart: Heart, severity: float) -> None:
    """A second, late half of a wide P, to the left and back."""
    heart["P"].width_s *= 1 + 0.2 * severity
    heart["P_late"] = Wave(heart["P"].centre_s + 0.05, 0.020, 0.10 * severity * _direction(10, 60))


_CHANGE_OF_CODE: dict[str, Callable[[Heart, float], None]] = {
    "IMI": _infarct(_direction(95, 5)),
    "ASMI": _infarct(_direction(20, -75)),
    "ALMI": _infarct(_direction(-5, -35)),
    "LMI": _infarct(_direction(-10, 15)),
    "NDT": _flat_t,
    "NST_": _low_st,
    "ISCAL": _ischaemia(_direction(10, -30)),
    "ISCIN": _ischaemia(_direction(90, -10)),
    "LNGQT": _long_qt,
    "LAFB": _left_anterior_block,
    "CLBBB": _left_bundle_block,
    "CRBBB": _right_bundle_block(0.7),
    "IRBBB": _right_bundle_block(0.35),
    "1AVB": _slow_av,
    "IVCD": lambda heart, severity: _widen(heart, 1 + 0.35 * severity),
    "LVH": _left_hypertrophy,
    "RVH": _right_hypertrophy,
    "LAO/LAE": _left_atrium,
}


def _draw_record(
    person: _Person, rate_hz: int, rng: Generator
) -> tuple[list[str], dict[str, Any], NDArray[np.float64]]:
    """One visit: its statements, a row of the database, less names and report, and the leads (12, T) in mV."""
    rhythm = str(rng.choice(list(_SHARE_OF_RHYTHM), p=list(_SHARE_OF_RHYTHM.values())))
    device = str(rng.choice(list(_NOISE_OF_DEVICE)))
    codes = [*person.codes, rhythm]
    heart = copy.deepcopy(person.heart)
    for code, severity in person.findings:
        _CHANGE_OF_CODE[code](heart, severity * rng.lognormal(0, 0.15))
    if rng.random() < 0.04:
        codes.append("LVOLT")
        for name in DEPOLARISATION:
            heart[name].vector_mv *= 0.45
    num_ectopic = int(rng.integers(1, 4)) if rng.random() < 0.05 else 0
    codes += ["PVC"] * bool(num_ectopic)
    dipole_mv = _dipole(heart, rhythm, num_ectopic, rate_hz, rng)
    independent = person.lead_matrix @ dipole_mv + _noise(rate_hz, _NOISE_OF_DEVICE[device], rng)
    row = {
        "age": person.age,
        "sex": person.sex,
        "site": float(rng.integers(4)),
        "device": device,
        "recording_date": f"{rng.integers(1990, 2001)}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d} 09:00:00",
        "scp_codes": str({code: 0.0 if STATEMENT_OF_CODE[code].rhythm else 100.0 for code in codes}),
        "validated_by_human": True,
    }
    return codes, row, _twelve_leads(independent)


def _draw_report(codes: Sequence[str], rng: Generator) -> str:
    """The statements in words, the rhythm first, in one of four ways that PTB-XL has: records share their texts."""
    ordered = sorted(codes, key=lambda code: STATEMENT_OF_CODE[code].rhythm is None)
    english = [STATEMENT_OF_CODE[code].description.lower() for code in ordered]
    german = " ".join(_GERMAN_OF_CODE[code] for code in ordered)
    ways = [". ".join(english) + ".", " ".join(english), german, f"{german} 4.46 unbestätigter bericht"]
    return ways[rng.integers(len(ways))]


def _dipole(heart: Heart, rhythm: str, num_ectopic: int, rate_hz: int, rng: Generator) -> NDArray[np.float64]:
    """(3, T) mV: beats over the whole record."""
    times_s = np.arange(round(DURATION_S * rate_hz)) / rate_hz
    beats_s, intervals_s = _draw_beats(rhythm, rng)
    ectopic = set(rng.choice(np.arange(2, len(beats_s) - 1), size=num_ectopic, replace=False).tolist())
    waves: list[tuple[float, float, Vector]] = []
    for number, (beat_s, interval_s) in enumerate(zip(beats_s, intervals_s, strict=True)):
        strength = 1 + 0.04 * np.sin(1.6 * beat_s) + rng.normal(0, 0.015)  # breathing turns and moves the heart
        if number in ectopic:
            waves += _ectopic_waves(beat_s - 0.25 * interval_s)
            continue
        stretch = np.sqrt(interval_s)  # Bazett
        for name, wave in heart.items():
            if rhythm == "AFIB" and name in ("P", "P_late"):
                continue
            centre_s = wave.centre_s * (stretch if name in REPOLARISATION else 1)
            waves.append((beat_s + centre_s, wave.width_s, strength * wave.vector_mv))
    centres, widths, vectors = (np.array(column) for column in zip(*waves, strict=True))
    shapes = np.exp(-0.5 * ((times_s - centres[:, None]) / widths[:, None]) ** 2)
    dipole_mv: NDArray[np.float64] = vectors.T @ shapes
    return dipole_mv + _fibrillation(times_s, rng) if rhythm == "AFIB" else dipole_mv


def _draw_beats(rhythm: str, rng: Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times of the beats that touch the record, and the interval before each, in s."""
    mean_s = 60 / rng.uniform(*_RATE_OF_RHYTHM[rhythm])
    number = np.arange(int(DURATION_S / mean_s * 2) + 4)
    if rhythm == "AFIB":
        intervals_s = mean_s * np.clip(rng.lognormal(0, 0.22, len(number)), 0.5, 1.8)
    else:
        depth = 0.16 if rhythm == "SARRH" else abs(rng.normal(0, 0.025))
        breaths = np.sin(2 * np.pi * number * mean_s * rng.uniform(0.18, 0.33) + rng.uniform(0, 6.3))
        intervals_s = mean_s * (1 + depth * breaths + rng.normal(0, 0.01, len(number)))
    beats_s = np.cumsum(intervals_s) - mean_s * rng.uniform(1, 2)
    touching = beats_s < DURATION_S + 0.5
    return beats_s[touching], intervals_s[touching]


def _ectopic_waves(beat_s: float) -> list[tuple[float, float, Vector]]:
    """A premature beat from the ventricle: no P, wide, T against it."""
    forces = 1.6 * _direction(70, 50)
    return [(beat_s, 0.035, forces), (beat_s + 0.06, 0.03, 0.4 * forces), (beat_s + 0.30, 0.06, -0.4 * forces)]


def _fibrillation(times_s: NDArray[np.float64], rng: Generator) -> NDArray[np.float64]:
    """(3, T) mV: the atria's own irregular waves, largest in V1."""
    phases = 2 * np.pi * (rng.uniform(5, 8, (3, 1)) * times_s + rng.uniform(0, 1, (3, 1)))
    return np.outer(0.035 * _direction(120, -60), np.sin(phases).sum(axis=0))


def _noise(rate_hz: int, level: float, rng: Generator) -> NDArray[np.float64]:
    """(8, T) mV in the independent leads, from what nine electrodes pick up: so it obeys Einthoven's law too."""
    num_samples = round(DURATION_S * rate_hz)
    times_s = np.arange(num_samples) / rate_hz
    breath = np.sin(2 * np.pi * rng.uniform(0.15, 0.35) * times_s + rng.uniform(0, 6.3))
    drift = np.sin(2 * np.pi * rng.uniform(0.03, 0.12, (9, 1)) * times_s + rng.uniform(0, 6.3, (9, 1)))
    muscle_mv = level * rng.lognormal(-4.6, 0.5) * np.sqrt(rate_hz / 100)  # as dense at any rate
    electrodes = rng.normal(0, muscle_mv, (9, num_samples))
    electrodes += level * (rng.normal(0, 0.05, (9, 1)) * breath + rng.normal(0, 0.08, (9, 1)) * drift)
    if rate_hz > 200:  # at 100 Hz the mains lie beyond what a recorder lets through
        electrodes += rng.exponential(0.006, (9, 1)) * level * np.sin(2 * np.pi * 50 * times_s)
    right_arm, left_arm, left_leg = electrodes[:3]
    chest = electrodes[3:] - electrodes[:3].mean(axis=0)  # against Wilson's terminal
    return np.vstack([left_arm - right_arm, left_leg - right_arm, chest])


def _twelve_leads(independent: NDArray[np.float64]) -> NDArray[np.float64]:
    """(12, T) of (8, T): III = II - I and the augmented leads follow from I and II."""
    one, two = independent[:2]
    return np.vstack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2, independent[2:]])


def _quality(codes: list[str], leads_mv: NDArray[np.float64]) -> dict[str, str | None]:
    """What PTB-XL's columns on quality would say of leads (12, T): which of them wander or are noisy, extra beats."""
    level_mv = leads_mv.reshape(len(leads_mv), int(DURATION_S), -1).mean(axis=2)
    # of white noise alone the second differences have 6 times the variance; beats are too few to move a median
    noise_mv = np.median(np.abs(np.diff(leads_mv, n=2, axis=1)), axis=1) / (0.6745 * np.sqrt(6))
    noise_mv *= np.sqrt(100 * DURATION_S / leads_mv.shape[1])
    return {
        "baseline_drift": _leads_text(np.ptp(level_mv, axis=1) > DRIFT_MV),
        "static_noise": _leads_text(noise_mv > NOISE_MV),
        "extra_beats": "VES" if "PVC" in codes else None,
    }


def _leads_text(concerned: NDArray[np.bool_]) -> str | None:
    """Leads as PTB-XL names them in these columns; None for none."""
    return f" , {','.join(np.array(LEADS)[concerned])}" if concerned.any() else None


def _write_wfdb(path: Path, leads_mv: NDArray[np.float64], rate_hz: int) -> None:
    """A record in WFDB's format 16, as PTB-XL has them; `path` is without a suffix."""
    units = np.rint(leads_mv * UNITS_PER_MV).clip(-32767, 32767).astype("<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.dat").write_bytes(units.T.tobytes())
    sums = units.sum(axis=1, dtype=np.int64) % 65536
    lines = [f"{path.name} {len(LEADS)} {rate_hz} {units.shape[1]}"]
    lines += [
        f"{path.name}.dat 16 {UNITS_PER_MV}.0(0)/mV 16 0 {signal[0]} {total} 0 {lead.upper()}"
        for lead, signal, total in zip(LEADS, units, sums, strict=True)
    ]
    path.with_name(f"{path.name}.hea").write_text("\n".join(lines) + "\n")
