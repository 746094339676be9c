import errno
import hashlib
import os
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data.download import PTB_XL_URL, SUMS, download
from data.record import DataError

FILES = {
    "ptbxl_database.csv": os.urandom(600_000),
    "LICENSE.txt": b"free",
    "records100/00000/00001_lr.dat": os.urandom(24_000),
    "records100/00000/with space.hea": b"header",
    "records500/00000/00001_hr.dat": os.urandom(120_000),
}


class Server(ThreadingHTTPServer):
    """A data set on loopback, and the ways in which it misbehaves."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in FILES.items())
        self.requests = Counter()  # by path
        self.ranges = []  # (path, first byte asked for)
        self.knows_ranges = True
        self.cut_after = {}  # path: bytes to send before hanging up, once for each entry of the list
        self.answers = {}  # path: statuses to answer with, one after another, before the file
        self.url = f"http://127.0.0.1:{self.server_address[1]}/data/set/"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        name = self.path.removeprefix("/data/set/").replace("%20", " ")
        self.server.requests[name] += 1
        content = self.server.sums.encode() if name == SUMS else self.server.files.get(name)
        if self.server.answers.get(name):
            return self.answer(self.server.answers[name].pop(0))
        if content is None:
            return self.answer(404)
        start = 0
        if (asked := self.headers.get("Range")) and self.server.knows_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.server.ranges.append((name, start))
            if start >= len(content):
                return self.answer(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if cuts := self.server.cut_after.get(name):
            self.wfile.write(content[start : start + cuts.pop(0)])
            self.close_connection = True
            return None
        self.wfile.write(content[start:])
        return None

    def answer(self, status):
        self.send_response(status)
        if status == 301:
            self.send_header("Location", "https://elsewhere/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        """Keep the tests' output clean."""


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, folder, rates=(100,), **keys):
    download(server.url, folder, rates=rates, backoff_s=0.0, **keys)


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXPECTED = {name: content for name, content in FILES.items() if not name.startswith("records500")}


def test_tables_and_the_records_of_a_rate_are_fetched_and_nothing_else(server, tmp_path):
    fetch(server, tmp_path / "new" / "ptb-xl")
    assert files_in(tmp_path / "new" / "ptb-xl") == EXPECTED
    fetch(server, tmp_path / "new" / "ptb-xl", rates=(100, 500))
    assert files_in(tmp_path / "new" / "ptb-xl") == FILES


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    fetch(server, tmp_path)
    server.requests.clear()
    fetch(server, tmp_path)
    assert server.requests == {SUMS: 1}


def test_progress_is_told_in_files(server, tmp_path):
    told = []
    fetch(server, tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 4) for number in range(1, 5)]


def test_an_interrupted_transfer_goes_on_at_its_last_byte(server, tmp_path):
    server.cut_after = {"ptbxl_database.csv": [300_000, 100_000]}
    fetch(server, tmp_path)
    assert files_in(tmp_path) == EXPECTED
    assert server.ranges == [("ptbxl_database.csv", 300_000), ("ptbxl_database.csv", 400_000)]


def test_a_download_that_was_stopped_goes_on_where_it_was(server, tmp_path):
    (tmp_path / "ptbxl_database.csv.part").write_bytes(FILES["ptbxl_database.csv"][:5000])
    fetch(server, tmp_path)
    assert files_in(tmp_path) == EXPECTED
    assert server.ranges == [("ptbxl_database.csv", 5000)]


def test_a_part_that_is_whole_already_is_taken_as_it_is(server, tmp_path):
    (tmp_path / "ptbxl_database.csv.part").write_bytes(FILES["ptbxl_database.csv"])
    fetch(server, tmp_path)
    assert files_in(tmp_path) == EXPECTED
    assert server.requests["ptbxl_database.csv"] == 1


@pytest.mark.parametrize("rubbish", [b"x" * 5000, b"x" * 700_000])
def test_a_part_of_something_else_is_thrown_away(server, tmp_path, rubbish):
    (tmp_path / "ptbxl_database.csv.part").write_bytes(rubbish)
    fetch(server, tmp_path)
    assert files_in(tmp_path) == EXPECTED


def test_a_server_without_ranges_sends_the_whole_file_again(server, tmp_path):
    server.knows_ranges = False
    server.cut_after = {"ptbxl_database.csv": [300_000]}
    fetch(server, tmp_path)
    assert files_in(tmp_path) == EXPECTED


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.answers = {SUMS: [503], "LICENSE.txt": [500, 429]}
    fetch(server, tmp_path)
    assert files_in(tmp_path) == EXPECTED


def test_a_file_that_stays_wrong_is_never_put_in_its_place(server, tmp_path):
    server.files["LICENSE.txt"] = b"tampered"
    with pytest.raises(DataError, match=r"LICENSE.txt could not be fetched in 5 attempts.*checksum differs.*to go on"):
        fetch(server, tmp_path)
    assert server.requests["LICENSE.txt"] == 5
    assert not any(name.startswith("LICENSE.txt") for name in files_in(tmp_path))


def test_a_server_that_never_finishes_is_given_up_and_the_part_is_kept(server, tmp_path):
    server.cut_after = {"ptbxl_database.csv": [1000] * 9}
    with pytest.raises(DataError, match="ptbxl_database.csv could not be fetched in 5 attempts.*bytes came"):
        fetch(server, tmp_path)
    assert (tmp_path / "ptbxl_database.csv.part").stat().st_size == 5000
    server.cut_after = {}
    fetch(server, tmp_path)
    assert files_in(tmp_path) == EXPECTED


@pytest.mark.parametrize(("status", "told"), [(404, "404 Not Found"), (403, "403"), (301, "301 .* https://elsewhere/")])
def test_a_refusal_is_told_at_once(server, tmp_path, status, told):
    server.answers = {"LICENSE.txt": [status] * 9}
    with pytest.raises(
        DataError, match=f"LICENSE.txt cannot be fetched, the server answered {told}.*: check the address"
    ):
        fetch(server, tmp_path)
    assert server.requests["LICENSE.txt"] == 1


def test_a_file_that_a_user_has_changed_is_not_overwritten(server, tmp_path):
    (tmp_path / "LICENSE.txt").write_text("mine")
    with pytest.raises(DataError, match=r"LICENSE.txt differs from the published file: move it away"):
        fetch(server, tmp_path)
    assert (tmp_path / "LICENSE.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ("", "must list a checksum and a file"),
        ("<html>not found</html>\n", "must list a checksum and a file"),
        (f"{'0' * 64}  ../../evil\n", "must not name a file outside of its folder, got '../../evil'"),
        (f"{'0' * 64}  /etc/evil\n", "must not name a file outside of its folder"),
    ],
)
def test_a_list_of_checksums_that_cannot_be_trusted_is_refused(server, tmp_path, sums, message):
    server.sums = sums
    with pytest.raises(DataError, match=message):
        fetch(server, tmp_path)
    assert files_in(tmp_path) == {}


def test_a_server_that_is_not_there_is_told_in_one_line(server, tmp_path):
    with Server() as other:
        url = other.url
    with pytest.raises(DataError, match=r"SHA256SUMS.txt could not be fetched in 5 attempts.*refused"):
        download(url, tmp_path, rates=(100,), backoff_s=0.0)


@pytest.mark.parametrize("url", ["file:///etc/", "ftp://host/set/", "ptb-xl", "http://", "http://host:port/"])
def test_only_web_addresses_are_fetched(tmp_path, url):
    with pytest.raises(DataError, match="must be http://HOST/... or https://HOST/..., got"):
        download(url, tmp_path, rates=(100,))


def test_a_rate_that_does_not_exist_is_refused(server, tmp_path):
    with pytest.raises(DataError, match=r"data.source_rate_hz must be 100 or 500, got \[250\]"):
        fetch(server, tmp_path, rates=(250,))


def test_a_full_disk_ends_in_one_line(server, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("data.download.Path.replace", full)
    with pytest.raises(DataError, match="the disk is full: free some space, or set data.root=DIR"):
        fetch(server, tmp_path)


def test_an_address_behind_a_proxy_is_asked_for_there(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(DataError, match="404"):  # the stand-in for a proxy knows no whole addresses
        download("http://data.invalid/set", tmp_path, rates=(100,), backoff_s=0.0)
    assert server.requests == {f"http://data.invalid/set/{SUMS}": 1}


def test_an_interrupt_stops_all_threads_and_keeps_what_came(server, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server, tmp_path, progress=interrupt)
    whole = {name: content for name, content in files_in(tmp_path).items() if not name.endswith(".part")}
    assert whole.items() <= FILES.items()
    fetch(server, tmp_path)
    assert files_in(tmp_path) == EXPECTED


def test_the_published_address_is_that_of_version_1_0_3():
    assert PTB_XL_URL == "https://physionet.org/files/ptb-xl/1.0.3/"
