"""How to cite the study: its data and the methods that it used."""

from __future__ import annotations

from typing import Any

from reports.citations import citations_of
from reports.folder import Study

OWN_DATA = ("index_csv",)
"""Data whose source the configuration does not know."""


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The publications with their BibTeX entries."""
    return {
        "citations": citations_of(study, metrics),
        "own_data": study.setting("data.name") in OWN_DATA,
        "generated": study.setting("data.name") == "synthetic",
        "revision": (metrics["provenance"]["revisions"] or ["unknown"])[-1],
        "version": metrics["provenance"]["versions"].get("heartsweep", "unknown"),
    }
