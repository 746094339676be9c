"""Which keys of a configuration say where things lie on its author's machines: what is shared goes without them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TYPED = ("command", "study_dir", "storage", "resume", "trial", "checkpoint", "weights", "mapping", "study_dirs", "port")
"""Keys that say what was typed and where the study lies."""
LIES_AT = (
    "data.root",
    "data.store_dir",
    "data.download",
    "task.encoder",
    "debug",
    "options",
    "model.text_encoder.folder",
    "cluster.address",
)
"""Keys that say where other things lie, with all that is under them."""
NAMES = ("folder", "root", "store_dir")
"""Last parts of keys that say it wherever they stand, as in studies of other versions."""
A_PATH = re.compile(r"/|~[/\\]|[A-Za-z]:[/\\]|\\\\|(file|s3|gs)://")
"""How a text begins that is a path, whatever its key is called."""


def is_place(name: str) -> bool:
    """Whether a setting, by its dotted name, is a place; what a search drew it from (space.NAME) is one, too."""
    name = name.removeprefix("space.")
    under = any(name == key or name.startswith(f"{key}.") for key in LIES_AT)
    return under or name in TYPED or name.rpartition(".")[2] in NAMES


def without_places(tree: Any, name: str = "") -> Any:
    """A configuration without the places, and without values that are paths.

    Args:
        tree: the whole, or a part of it.
        name: the dotted name of the part; empty for the whole.
    """
    if isinstance(tree, Mapping):
        named = {key: f"{name}.{key}" if name else str(key) for key in tree}
        kept = {key: value for key, value in tree.items() if not is_place(named[key]) and not _is_path(value)}
        return {key: without_places(value, named[key]) for key, value in kept.items()}
    if isinstance(tree, list):
        return [without_places(value, name) for value in tree if not _is_path(value)]
    return tree


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and A_PATH.match(value) is not None
