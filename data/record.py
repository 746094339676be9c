"""One recording, the names of its leads, and what every source of recordings must be able to do.

Shapes: C leads, T samples.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from data.labels import LabelProtocol

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The twelve standard leads in the order in which every store keeps them."""

TABLE_COLUMNS = ("record_id", "patient_id", "fold", "codes", "age", "sex", "device", "site", "path")
"""What every reader's table holds. Of further columns `report` and `quality` reach the store; the others are the
reader's own and reach only its `read`."""

MV_OF_UNIT = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3}
"""How many mV a unit is, by its casefolded name; micro is written in three ways."""

_LEAD_OF_SPELLING = {lead.casefold(): lead for lead in LEADS}


class DataError(ValueError):
    """A user's data cannot be used as asked; its one line says what was found, where, and what to do."""


class RecordError(DataError):
    """One recording cannot be read: a store lists and counts it and goes on."""


def one_of(known: Iterable[str], given: str) -> str:
    """What exists, and the nearest match to `given`: the end of an error about a name that does not exist."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"must be one of {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "")


def lead_name(name: str) -> str:
    """The standard spelling of a lead: `AVR`, `avr` and ` aVR` are `aVR`.

    Raises:
        DataError: if `name` is not one of the twelve standard leads.
    """
    lead = _LEAD_OF_SPELLING.get(name.strip().casefold())
    if lead is None:
        raise DataError(f"lead {name!r} is unknown: it {one_of(LEADS, name.strip())}")
    return lead


@dataclass(frozen=True)
class Record:
    """One recording as its source holds it.

    Attributes:
        record_id: unique within the source.
        signal_mv: (C, T) float32, in mV.
        sampling_rate_hz: samples a second.
        leads: C standard lead names, in the order of `signal_mv`.
    """

    record_id: str
    signal_mv: NDArray[np.float32]
    sampling_rate_hz: float
    leads: tuple[str, ...]


class Reader(Protocol):
    """What every source of recordings can do; concrete readers are frozen dataclasses that pickle.

    They are built as `ReaderClass(root=..., source_rate_hz=..., **the reader's own keys)` and touch no file before
    one of these methods is called.
    """

    def table(self) -> pd.DataFrame:
        """One row a recording, without reading any signal.

        Columns: record_id (str, unique), patient_id (str), fold (int), codes (list of str), age (years, NaN where
        unknown), sex ("male", "female" or None), device, site (str or None), path (str, for people to find the file).
        Optional: report (str, the text of the clinical report; None or blank where a recording has none), quality
        (list of str, what was flagged about the signal; empty where nothing was, None where nobody looked).

        Raises:
            DataError: if the source is not there or its tables cannot be used.
        """
        ...

    def read(self, row: Mapping[str, Any]) -> Record:
        """The recording of one row of `table`.

        Raises:
            RecordError: if this recording cannot be read.
        """
        ...

    def protocols(self) -> dict[str, LabelProtocol]:
        """The label protocols that the source's codes can be read under, by name."""
        ...

    def fingerprint(self) -> str:
        """Hexadecimal digest that changes when the tables, or the set or sizes of the recordings, change.

        No signal is read: a file whose content changed at the same size goes unnoticed.
        """
        ...
