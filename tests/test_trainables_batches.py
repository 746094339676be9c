"""Books as numbered objects: put together again byte for byte, or refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.batches import Batch, bring_up, digest_of, joined, whole_lines
from trainables.files import StorageError
from trainables.study import StudyError, StudyFolder

BOOKS = ("events.jsonl", "journal.log")


def objects_of(steps):
    """The objects that hold what each step adds to the two books."""
    objects, previous, lengths = [], "", dict.fromkeys(BOOKS, 0)
    for number, added in enumerate(steps):
        batch = Batch(number, "session", "process 1", previous, dict(lengths), dict(zip(BOOKS, added, strict=True)))
        objects.append((batch.name, batch.encode()))
        previous = digest_of(objects[-1][1])
        lengths = {book: lengths[book] + len(added) for book, added in batch.added.items()}
    return objects


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=6))
def test_books_are_put_together_again_byte_for_byte(steps):
    objects = objects_of(steps)
    books, batches, previous = joined(objects, BOOKS)
    assert books == {book: b"".join(added[at] for added in steps) for at, book in enumerate(BOOKS)}
    assert [batch.name for batch in batches] == [name for name, _ in objects]
    assert previous == (digest_of(objects[-1][1]) if objects else "")


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.binary(max_size=9)), min_size=2, max_size=5), st.data())
def test_whatever_byte_of_an_object_is_changed_or_lost_is_noticed(steps, data):
    objects = objects_of(steps)
    number = data.draw(st.integers(0, len(objects) - 2))  # the last one's head has nothing after it that names it
    name, content = objects[number]
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = data.draw(
        st.sampled_from([content[:at], content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], b"", None])
    )
    objects[number] = (name, damaged)
    with pytest.raises(StorageError, match="of the store"):
        joined(objects, BOOKS)


def test_a_missing_object_is_named():
    objects = objects_of([(b"1", b""), (b"2", b""), (b"3", b"")])
    with pytest.raises(StorageError, match="batches/00000001 of the store is missing, batches/00000002 is there"):
        joined([objects[0], objects[2]], BOOKS)


def test_objects_of_two_studies_are_not_one():
    mine, others = objects_of([(b"1", b"a"), (b"2", b"")]), objects_of([(b"9", b"a"), (b"2", b"")])
    with pytest.raises(StorageError, match="batches/00000001 of the store does not follow the object before it"):
        joined([mine[0], others[1]], BOOKS)


def test_a_later_format_is_refused():
    name, content = objects_of([(b"1", b"")])[0]
    head, _, body = content.partition(b"\n")
    later = json.dumps(json.loads(head) | {"format": 2}).encode() + b"\n" + body
    with pytest.raises(StorageError, match="format must be 1, got 2"):
        joined([(name, later)], BOOKS)


@pytest.fixture
def study(tmp_path):
    return StudyFolder(tmp_path)


STORED = {"events.jsonl": b"e1\ne2\n", "journal.log": b"j1\nj2\n"}


@pytest.mark.parametrize(
    ("events", "journal"),
    [(b"", b""), (b"e1\n", b""), (b"e1\ne2\n", b"j1\n"), (b"e1\nhalf", b"j1\n"), (b"e1\ne2\n", b"j1\nj2\nha")],
)
def test_an_older_working_copy_becomes_what_is_stored(study, events, journal):
    study.events.write_bytes(events)
    study.journal.write_bytes(journal)
    stood = bring_up(study, STORED, "s3://bucket/x")
    assert (stood == "behind") == (not journal.startswith(STORED["journal.log"]))
    here = (study.events.read_bytes(), study.journal.read_bytes())
    assert here == tuple(STORED.values()) or here == (events, journal)
    assert all(content.startswith(stored) for content, stored in zip(here, STORED.values(), strict=True))


def test_an_empty_folder_becomes_what_is_stored(study):
    assert bring_up(study, STORED, "s3://bucket/x") == "behind"
    assert {path.name: path.read_bytes() for path in study.path.iterdir()} == STORED
    assert bring_up(study, STORED, "s3://bucket/x") == "equal"


def test_a_working_copy_that_is_ahead_stays(study):
    study.events.write_bytes(b"e1\ne2\ne3\nhalf")
    study.journal.write_bytes(b"j1\nj2\n")
    assert bring_up(study, STORED, "s3://bucket/x") == "ahead"
    assert study.events.read_bytes() == b"e1\ne2\ne3\nhalf"


@pytest.mark.parametrize(
    ("events", "journal"),
    [(b"other\n", b""), (b"e1\nx2\n", b"j1\n"), (b"e1\ne2\n", b"x\n"), (b"", b"j1\nj2\nj3\n")],
)
def test_a_folder_of_another_study_is_refused_and_left_as_it_is(study, events, journal):
    study.events.write_bytes(events)
    study.journal.write_bytes(journal)
    with pytest.raises(StudyError, match=r"must hold a copy of the study at s3://bucket/x, .*: type study_dir=DIR"):
        bring_up(study, STORED, "s3://bucket/x")
    assert (study.events.read_bytes(), study.journal.read_bytes()) == (events, journal)


def test_a_journal_that_lost_its_end_as_the_power_failed_gets_it_back_beside_events_that_are_ahead(study):
    study.events.write_bytes(b"e1\ne2\ne3\n")
    study.journal.write_bytes(b"j1\n")
    assert bring_up(study, STORED, "s3://bucket/x") == "ahead"
    assert study.events.read_bytes() == b"e1\ne2\ne3\n"
    assert study.journal.read_bytes() == STORED["journal.log"]


def test_a_line_that_was_cut_off_is_no_line():
    assert whole_lines(b"a\nb\nc") == b"a\nb\n"
    assert whole_lines(b"c") == b""
