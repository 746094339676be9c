"""A study's two books as immutable numbered objects: each holds the bytes that a step added to both of them.

Object 7 of a study says which bytes come before it (by their number and by the digest of object 6), so that the books
rebuilt from the objects are those that were stored, byte for byte, or none. An object is created only where there is
none with its number. So two drivers cannot both go on: each begins with an object of its own, a claim without bytes,
and whoever finds the next number taken has lost the study to the one that took it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from trainables.files import StorageError, read_bytes, write_atomically
from trainables.study import StudyError, StudyFolder

FORMAT = 1
FOLDER = "batches/"
Standing = Literal["behind", "equal", "ahead"]
Books = dict[str, bytes]
"""Content of each book by its name; the events, written first, come first."""


def names_of_books(study: StudyFolder) -> tuple[str, str]:
    """The files whose bytes travel together."""
    return study.events.name, study.journal.name


@dataclass(frozen=True)
class Batch:
    """What one object holds.

    Attributes:
        number: from 0 on, without a gap.
        session: of the driver that stored it; no two are the same.
        holder: who that is, for a message.
        previous: digest of the object before; empty for the first.
        begins: where its bytes begin in each book.
        added: the bytes of each book.
    """

    number: int
    session: str
    holder: str
    previous: str
    begins: Mapping[str, int]
    added: Books

    @property
    def name(self) -> str:
        """Of its object."""
        return f"{FOLDER}{self.number:08d}"

    def encode(self) -> bytes:
        """Its object: a line of JSON, then the bytes of one book after the other."""
        content = b"".join(self.added.values())
        head = {
            "format": FORMAT,
            "number": self.number,
            "session": self.session,
            "holder": self.holder,
            "previous": self.previous,
            "books": {name: [self.begins[name], len(added)] for name, added in self.added.items()},
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        return json.dumps(head).encode() + b"\n" + content

    @classmethod
    def decode(cls, name: str, content: bytes | None) -> Batch:
        """The batch in an object.

        Raises:
            StorageError: if it is not whole, or not of a format that is known here.
        """
        line, _, body = (content or b"").partition(b"\n")
        try:
            head = json.loads(line)
            if head["format"] != FORMAT:
                raise ValueError(f"format must be {FORMAT}, got {head['format']!r}")
            if hashlib.sha256(body).hexdigest() != head["sha256"]:
                raise ValueError("its bytes are not those that were stored")
            begins, added, at = {}, {}, 0
            for book, (begin, length) in head["books"].items():
                begins[book], added[book] = int(begin), body[at : at + int(length)]
                at += int(length)
            session, holder, previous = (str(head[key]) for key in ("session", "holder", "previous"))
            batch = cls(int(head["number"]), session, holder, previous, begins, added)
            if batch.name != name or at != len(body):
                raise ValueError(f"it says that it is {batch.name} with {at} bytes")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{name} of the store holds no batch of a study ({error}): restore it") from error
        return batch


def digest_of(content: bytes) -> str:
    """By which the object after this one names it."""
    return hashlib.sha256(content).hexdigest()


def joined(objects: Iterable[tuple[str, bytes | None]], books: Iterable[str]) -> tuple[Books, list[Batch], str]:
    """The books that a study's objects hold together.

    Args:
        objects: names and contents of all of them, in the order of their numbers.
        books: names of the books.

    Returns:
        The books, the batches, and the digest that the next object names.

    Raises:
        StorageError: if one is missing, damaged, or follows another one than that before it.
    """
    contents: dict[str, list[bytes]] = {book: [] for book in books}
    lengths = dict.fromkeys(contents, 0)
    batches: list[Batch] = []
    previous = ""
    for name, content in objects:
        batch = Batch.decode(name, content)
        if batch.number != len(batches):
            raise StorageError(f"{FOLDER}{len(batches):08d} of the store is missing, {name} is there: restore it")
        if batch.previous != previous or batch.begins.keys() != lengths.keys() or dict(batch.begins) != lengths:
            raise StorageError(f"{name} of the store does not follow the object before it: restore them from a copy")
        for book, added in batch.added.items():
            contents[book].append(added)
            lengths[book] += len(added)
        batches.append(batch)
        assert content is not None
        previous = digest_of(content)
    return {book: b"".join(parts) for book, parts in contents.items()}, batches, previous


def bring_up(study: StudyFolder, stored: Books, url: str) -> Standing:
    """Make the books in a study's folder those of the store, unless they hold more than it does.

    Args:
        study: whose folder is a working copy; it may be empty.
        stored: what the store holds.
        url: of the store's folder, for the message.

    Returns:
        How the folder stood to the store before.

    Raises:
        StudyError: if the folder's books and the store's are not of one study; nothing is changed then.
        StorageError: if they cannot be read or written.
    """
    paths = {book: study.path / book for book in stored}
    here = {book: read_bytes(path) if path.exists() else b"" for book, path in paths.items()}
    if here == stored:
        return "equal"
    ahead = {book: here[book].startswith(stored[book]) and here[book] != stored[book] for book in stored}
    behind = {book: stored[book].startswith(whole_lines(here[book])) and not ahead[book] for book in stored}
    events, *others = stored
    # events reach the disk first: where the power failed, they alone may be ahead of what is stored
    mixed = behind[events] and here[events] != stored[events] and any(ahead[book] for book in others)
    if mixed or not all(ahead[book] or behind[book] for book in stored):
        raise StudyError(
            f"{study.path} must hold a copy of the study at {url}, an older one or a newer one; its books are others: "
            "type study_dir=DIR with an empty folder to go on from the store, or another storage=URL"
        )
    for book, path in paths.items():
        if behind[book]:
            write_atomically(path, stored[book])
    return "ahead" if any(ahead.values()) else "behind"


def whole_lines(content: bytes) -> bytes:
    """Without the line at the end that a crash cut off."""
    return content[: content.rfind(b"\n") + 1]
