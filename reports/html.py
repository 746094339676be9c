"""The page: a study and its figures as one HTML file that needs no network, no library and no script to be read.

A section is a module in `reports/sections` with a function `view`, which prepares what it shows, and a template of the
same name beside it; styles and a script of its own, where it has any, lie beside them too.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports.folder import Study
from reports.words import FILTERS

SECTIONS = (
    "summary",
    "models",
    "confirmation",
    "classes",
    "operating_points",
    "published",
    "calibration",
    "subgroups",
    "errors",
    "choices",
    "importance",
    "space",
    "configuration",
    "history",
    "curves",
    "rungs",
    "trials",
    "failures",
    "cost",
    "timeline",
    "operation",
    "reproduce",
    "provenance",
    "citation",
    "methods",
)
"""In the order of the page."""
HERE = Path(__file__).parent
SECTION = re.compile(r'<section id="([\w-]+)"[^>]*>\s*<h2[^>]*>(.*?)</h2>', re.DOTALL)
"""How a section begins; the page's table of contents is made of these."""


def render(study: Study, metrics: dict[str, Any]) -> str:
    """The whole page.

    Args:
        study: a study's folder, read.
        metrics: its figures, as `reports.metrics.figures` returns them.

    Returns:
        HTML with styles and script inside; the same text for the same study, whenever it is made.
    """
    environment = templates()
    views = {name: importlib.import_module(f"reports.sections.{name}").view(study, metrics) for name in SECTIONS}
    sections = [
        environment.get_template(f"{name}.html").render(study=study, metrics=metrics, **view)
        for name, view in views.items()
    ]
    return environment.get_template("page.html").render(
        title=views["summary"]["title"],
        contents=list(contents_of(sections)),
        sections=[Markup(section) for section in sections],  # each escaped by its own template
        styles=of_sections("css"),
        scripts=of_sections("js"),
    )


def templates() -> Environment:
    """Where templates are found and what they may call; names from the data are escaped in all of them."""
    environment = Environment(
        loader=FileSystemLoader([HERE / "templates", HERE / "sections"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment


def of_sections(kind: str) -> Markup:
    """The files of one kind that lie beside the sections' templates, joined; they are ours, so nothing is escaped."""
    found = [HERE / "sections" / f"{name}.{kind}" for name in SECTIONS]
    return Markup("").join(Markup(path.read_text(encoding="utf-8")) for path in found if path.exists())


def contents_of(sections: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each section that is really on the page: its id and the text of its heading.

    Args:
        sections: their HTML; one may hold several sections, or none where there is nothing to show.
    """
    for section in sections:
        for name, heading in SECTION.findall(section):
            yield name, Markup(heading).striptags()
