"""Which URLs name a folder in an object store; apart from its client, so that a typing mistake costs no import."""

from __future__ import annotations

import re

URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?P<prefix>(/[\w.+=-]+)*)/?", re.ASCII)


def problem_of(url: str) -> str | None:
    """Why a URL names no folder that can be used here, or None; what may be a secret in it is not repeated."""
    if "@" in url or "?" in url:
        return "must hold no credentials and no options: they come from the environment of every node"
    parts = url.removeprefix("s3://").split("/")
    if URL.fullmatch(url) is None or {".", ".."} & set(parts):
        return f"must be s3://BUCKET/PREFIX, of letters, digits and . _ - + = in each part, got {url!r}"
    return None


def parts_of(url: str) -> tuple[str, str]:
    """The bucket of a URL without a problem, and what the keys of its folder's objects begin with: "" or "PREFIX/"."""
    match = URL.fullmatch(url)
    assert match is not None
    prefix = match["prefix"].strip("/")
    return match["bucket"], f"{prefix}/" if prefix else ""
