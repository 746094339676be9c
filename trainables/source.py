"""A digest of our own source. The standard library alone is imported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def source_digest(packages: Iterable[str]) -> str:
    """The digest of the Python files of these packages, as they lie on the disk now.

    Args:
        packages: names of packages beside this one.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
