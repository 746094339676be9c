"""What the code of a study had beside its commit: the uncommitted changes, kept so that the code can be had again.

A file of a study's folder may be given to others, so the kept text leaves out what looks like a secret and is limited
in size; the digest is that of the whole of it, before anything is left out.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainables.files import write_atomically
from trainables.provenance import git
from trainables.study import StudyFolder

MAX_BYTES = 1 << 20
"""Of the text that is kept: a change of code has some kilobytes."""
MAX_FILES = 200
"""Whose numbers of lines an event holds."""
LEFT_BEHIND = "changes.json"
"""Beside this file where the code has left its repository, as in a cluster's job: what code_changes() found there."""
LEFT_OUT = "[left out: it looks like a secret]"
DIFF = (
    *("-c", "core.quotePath=true", "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false"),
    *("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--full-index"),
)
"""The same text whatever the user's settings; binary files are named with the digests of their content."""
SECRET_FILES = re.compile(r"(^|/)(\.env|\.netrc|id_[a-z0-9]+|[^/]*\.(pem|key|p12|pfx|jks)|[^/]*credential[^/]*)", re.I)
NAMES = (
    r"(pass_?word|passwd|pass_?phrase|pwd|secret|token(?!s\b|i[sz])|credential|authorization"
    r"|api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key)"
)
"""What smells of a secret in a name; tokens are parts of signals here, and tokenizers make them."""
CODE = r"(?!(await\s+)?[A-Za-z_][\w.]*([(\[][^\"']*[)\]][,:)]*$|[(\[{]$))"
"""Not before a value that is computed: a call, or something taken out of a list, without a text in it."""
SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|^[ +-]\s*[A-Za-z0-9+/]{60,}={0,2}$"  # the lines of such a key
    r"|\b(AKIA|ASIA)[0-9A-Z]{16}\b"  # Amazon
    r"|\b(gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-)[A-Za-z0-9_-]{16,}"
    r"|://[^/\s:@]+:[^/\s@]+@"  # a URL with a password
    r"|(\bbearer|authorization\W+basic)\s+[A-Za-z0-9+/._~-]{6,}"  # of a header
    r"|\beyJ[A-Za-z0-9_-]{6,}"  # a JSON Web Token
    rf"|{NAMES}[\w-]*[\"']?(\s*:\s*[\w.\[\] |]+)?\s*[:=]+>?\s*{CODE}(?=\S{{6}})"  # whatever follows a name of one
    r"|tokens\w*[\"']?\s*[:=]\s*([\"'][^\"'\s]{8,}[\"']|[A-Za-z0-9+/_-]{32,})",
    re.I,
)
"""Lines that hold one of these are left out of the kept text."""


@dataclass(frozen=True)
class Changes:
    """Uncommitted changes of tracked files, and how many source files are not tracked at all."""

    text: str
    """The diff as it is kept."""
    sha256: str
    """Of the whole diff."""
    num_bytes: int
    files: dict[str, list[int]]
    """File -> lines added, lines removed; [0, 0] for a binary one."""
    num_left_out: int
    """Lines of the diff that are not kept, for their content or for want of room."""
    num_untracked: int
    """Source files that git does not know: the study may have run with them, and nothing tells how they were."""

    def as_event(self) -> dict[str, Any]:
        """What the event of a start says of it."""
        return {
            "sha256": self.sha256,
            "bytes": self.num_bytes,
            "stat": dict(list(self.files.items())[:MAX_FILES]),
            "num_files": len(self.files),
            "lines_left_out": self.num_left_out,
            "untracked_sources": self.num_untracked,
            "file": f"code/{file_name(self)}" if self.text else None,
        }


def file_name(changes: Changes) -> str:
    """Of the kept text in a study's folder code/: another change has another name, so that a resumed study has both."""
    return f"changes-{changes.sha256[:12]}.diff"


@functools.cache
def code_changes() -> Changes | None:
    """The uncommitted changes of this code; None where it is in no repository that is known."""
    folder = Path(__file__).parent
    if (folder / LEFT_BEHIND).exists():
        return Changes(**json.loads((folder / LEFT_BEHIND).read_bytes()))
    try:
        git("ls-files", "--error-unmatch", Path(__file__).name, folder=folder)
        root = Path(git("rev-parse", "--show-toplevel", folder=folder).rstrip("\n"))
        diff = git(*DIFF, "HEAD", folder=root)
        untracked = git("ls-files", "--others", "--exclude-standard", "--", "*.py", "*.yaml", "*.html", folder=root)
    except (OSError, subprocess.CalledProcessError):
        return None
    return replace(changes_in(diff), num_untracked=len(untracked.splitlines()))


def changes_in(diff: str) -> Changes:
    """A diff as it may be kept: without what looks like a secret, and not too long."""
    kept: list[str] = []
    files: dict[str, list[int]] = {}
    num_left_out, room, name, in_hunk = 0, MAX_BYTES, "", False
    for line in io.StringIO(diff, newline="\n"):
        if line.startswith("diff --git "):
            name, in_hunk = line.rstrip().rpartition(" b/")[2].rstrip('"'), False
            files[name] = [0, 0]
        elif line.startswith("@@"):
            in_hunk = True
        elif in_hunk and line[0] in "+-":
            files[name]["+-".index(line[0])] += 1
        secret = in_hunk and (SECRET_FILES.search(name) or SECRETS.search(line.rstrip()))
        shown = _without_content(line) if secret else line
        room -= len(shown.encode())
        if room >= 0:
            kept.append(shown)
        num_left_out += bool(secret) or room < 0
    whole = diff.encode()
    return Changes("".join(kept), hashlib.sha256(whole).hexdigest(), len(whole), files, num_left_out, 0)


def _without_content(line: str) -> str:
    """A line of a hunk, or its heading, in whose place the patch can still be read."""
    if line.startswith("@@"):
        return line[: line.index("@@", 2) + 2] + "\n"
    return f"{line[0]}{LEFT_OUT}\n"


def keep_changes(study: StudyFolder, changes: Changes | None) -> dict[str, Any] | None:
    """Keep the changes' text in a study's folder; return what its event says of them, None where nothing changed.

    Raises:
        StorageError: on a full or read-only disk.
    """
    if changes is None or not (changes.num_bytes or changes.num_untracked):
        return None
    if changes.text:
        write_atomically(study.code / file_name(changes), changes.text.encode())
    return changes.as_event()
