"""Which encoders fit a pretext task, by the names that are typed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import yaml

from trainables.components import resolve

FOLDER = Path(__file__).parent / "encoder"


def encoders_that_give(needs: Collection[str]) -> list[str]:
    """The options of the group `encoder` whose class gives all of `needs`."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if set(needs) <= _gives(path))


def _gives(path: Path) -> frozenset[str]:
    target = yaml.safe_load(path.read_text(encoding="utf-8")).get("_target_")
    gives: frozenset[str] = getattr(resolve(target), "gives", frozenset()) if target else frozenset()
    return gives
