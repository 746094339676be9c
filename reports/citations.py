"""What to cite for a study: its data, its methods, what searched and what the figures are made by."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reports.folder import Study
from reports.methods import pretexts_and_encoders

FILE = Path(__file__).with_name("citations.yaml")
ACCENTS = {r"{\'a}": "á", r"{\'e}": "é", r"{\"O}": "Ö", r"{\"u}": "ü"}
"""TeX's way of writing letters, as the file has them."""


@dataclass(frozen=True)
class Citation:
    """A publication.

    Attributes:
        key: of its BibTeX entry.
        called_for_by: "always", or a kind and a name, e.g. "encoder s4d".
        fields: BibTeX's, and the type of entry.
    """

    key: str
    called_for_by: frozenset[str]
    fields: dict[str, str]

    @property
    def bibtex(self) -> str:
        """The entry."""
        lines = [f"  {name} = {{{value}}}," for name, value in self.fields.items() if name != "type"]
        return "\n".join([f"@{self.fields['type']}{{{self.key},", *lines, "}"])

    @property
    def said(self) -> str:
        """Authors, year, title, place in one line."""
        authors = [author.partition(",")[0] for author in self.fields["author"].split(" and ")]
        names = f"{authors[0]} et al." if len(authors) > 2 else " and ".join(authors)
        where = self.fields.get("journal") or self.fields.get("booktitle") or self.fields.get("publisher")
        number = f"doi:{self.fields['doi']}" if "doi" in self.fields else None
        eprint = f"arXiv:{self.fields['eprint']}" if "eprint" in self.fields else None
        parts = [f"{names} {self.fields['year']}: {self.fields['title']}", where, number or eprint]
        return _plain(". ".join(part for part in parts if part))


def _plain(text: str) -> str:
    """Text without TeX's braces and accents."""
    for written, letter in ACCENTS.items():
        text = text.replace(written, letter)
    return text.replace("{", "").replace("}", "").replace("--", "\N{EN DASH}")


@functools.cache
def all_citations() -> tuple[Citation, ...]:
    """Every entry of the file, in its order."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return tuple(
        Citation(key, frozenset(entry["for"]), {name: str(value) for name, value in entry.items() if name != "for"})
        for key, entry in content.items()
    )


def citations_of(study: Study, metrics: dict[str, Any]) -> list[Citation]:
    """What to cite for a study, data first; what it used of a user's own has no entry here."""
    pretexts, encoders = pretexts_and_encoders(study)
    uses = {"always", f"data {study.setting('data.name')}"}
    uses |= {f"pretext {name}" for name in pretexts} | {f"encoder {name}" for name in encoders}
    uses |= {f"{group} {study.setting(f'{group}.name')}" for group in ("sampler", "scheduler")}
    if metrics["best"]:
        uses.add("figures intervals")
    if not metrics["importance"].get("reason"):
        uses.add("figures importance")
    return [entry for entry in all_citations() if not uses.isdisjoint(entry.called_for_by)]
