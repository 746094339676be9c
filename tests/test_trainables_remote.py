"""A folder in an object store: what it does, and what it makes of a store that falters."""

import functools
import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from trainables import remote
from trainables.files import StorageError
from trainables.remote import RemoteFolder, try_from_here
from trainables.remote_url import parts_of, problem_of


@pytest.fixture
def folder(bucket):
    return RemoteFolder(f"{bucket}/a/study")


# -------- what it does


def test_what_is_put_is_read_back_and_listed(folder):
    folder.put("one", b"1")
    folder.put("some/two", b"2")
    folder.put("one", b"3")
    assert (folder.get("one"), folder.get("some/two"), folder.get("none")) == (b"3", b"2", None)
    assert folder.names() == ["one", "some/two"]
    assert folder.under("some").names() == ["two"]
    assert list(folder.get_many(["some/two", "none", "one"])) == [b"2", None, b"3"]


def test_a_folder_knows_nothing_of_one_whose_name_begins_like_its_own(bucket):
    RemoteFolder(f"{bucket}/study").put("mine", b"")
    RemoteFolder(f"{bucket}/study2").put("other", b"")
    RemoteFolder(bucket).put("top", b"")
    assert RemoteFolder(f"{bucket}/study").names() == ["mine"]
    assert RemoteFolder(f"{bucket}/study/").names() == ["mine"]
    assert RemoteFolder(bucket).names() == ["study/mine", "study2/other", "top"]


def test_what_stands_for_a_folder_is_no_object_and_goes_with_what_lies_in_it(bucket):
    from pyarrow.fs import FileSystem

    system, path = FileSystem.from_uri(f"{bucket}/study/train")  # as Ray Train does with the URL it is given
    system.create_dir(f"{path}/x", recursive=True)
    with system.open_output_stream(f"{path}/x/file") as file:
        file.write(b"1")
    folder = RemoteFolder(f"{bucket}/study")
    assert folder.names() == ["train/x/file"]
    folder.under("train").delete_under("")
    assert folder.names() == []
    assert folder._keys("train/") == []


def test_files_go_there_and_back(folder, tmp_path):
    (tmp_path / "sent").write_bytes(bytes(range(256)) * 1000)
    folder.upload(tmp_path / "sent", "file")
    assert folder.download("file", tmp_path / "new" / "received")
    assert (tmp_path / "new" / "received").read_bytes() == (tmp_path / "sent").read_bytes()
    assert not folder.download("none", tmp_path / "nothing")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "received", "sent"]


def test_what_is_created_is_never_replaced(folder):
    assert folder.create("batch", b"first")
    assert not folder.create("batch", b"second")
    assert folder.get("batch") == b"first"
    assert folder.create("batch", b"first")  # as where the answer to the first request was lost


def test_a_store_that_replaces_what_was_to_be_created_is_refused(folder, monkeypatch):
    folder.check_creates_only()
    monkeypatch.setattr(RemoteFolder, "create", lambda self, name, content: self.put(name, content) is None)
    with pytest.raises(StorageError, match=r"must refuse to write an object that is there \(If-None-Match: \*\)"):
        folder.check_creates_only()
    assert folder.names() == []


def test_of_many_that_create_at_once_one_does(folder):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: folder.create("batch", b"%d" % number), range(8)))
    assert sum(made) == 1
    assert folder.get("batch") == b"%d" % made.index(True)


def test_what_is_deleted_is_gone_and_may_be_deleted_again(folder):
    for name in ("one", "two/a", "two/b", "twofold"):
        folder.put(name, b"")
    folder.delete("one")
    folder.delete("one")
    folder.delete_under("two/")
    assert folder.names() == ["twofold"]


def test_more_objects_than_a_page_holds_are_all_listed_and_deleted(folder, monkeypatch):
    monkeypatch.setattr(remote, "NAMES_A_PAGE", 3)
    names = [f"{number:02d}" for number in range(13)]
    for name in names:
        folder.put(name, b"")
    assert folder.names() == names
    folder.delete_under("0")
    assert folder.names() == names[10:]


# -------- what is refused


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://bucket/x", "must be s3://BUCKET/PREFIX"),
        ("s3://", "must be s3://BUCKET/PREFIX"),
        ("/a/folder", "must be s3://BUCKET/PREFIX"),
        ("s3://bucket/../other", "must be s3://BUCKET/PREFIX"),
        ("s3://bucket/a b", "must be s3://BUCKET/PREFIX"),
        ("s3://key:very-secret@bucket/x", "must hold no credentials"),
        ("s3://bucket/x?secret=very-secret", "must hold no credentials"),
    ],
)
def test_a_url_that_names_no_folder_is_refused_without_repeating_a_secret(url, said):
    assert said in problem_of(url)
    with pytest.raises(StorageError, match="storage must") as refused:
        RemoteFolder(url)
    assert "very-secret" not in str(refused.value)


def test_a_url_is_a_bucket_and_what_keys_begin_with():
    assert problem_of("s3://my.bucket/runs/x-1_2+3=4/") is None
    assert parts_of("s3://my.bucket/runs/x/") == ("my.bucket", "runs/x/")
    assert parts_of("s3://bucket") == ("bucket", "")


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(StorageError, match="must hold the bucket no-such-bucket, it does not: create it"):
        RemoteFolder("s3://no-such-bucket/x").put("a", b"")
    with pytest.raises(StorageError, match="must hold the bucket no-such-bucket"):
        RemoteFolder("s3://no-such-bucket/x").names()
    with pytest.raises(StorageError, match="must hold the bucket no-such-bucket"):
        RemoteFolder("s3://no-such-bucket/x").get("a")


def test_missing_credentials_are_said_to_be_missing(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="the store needs credentials, none were found: set AWS_ACCESS_KEY_ID"):
        RemoteFolder(f"{bucket}/x").put("a", b"")


# -------- a store that falters


class Faults:
    """What the store in front of the real one does with the next requests: an answer's number, or hang, or reset."""

    def __init__(self, behind):
        self.behind = urlsplit(behind).netloc
        self.next, self.asked, self.after = [], [], False
        self.released = threading.Event()
        self._lock = threading.Lock()

    def take(self, method, path):
        with self._lock:
            self.asked.append(f"{method} {path.partition('?')[0]}")
            if len(self.next) == 1 and self.next[0].endswith("..."):
                return self.next[0].removesuffix("...")
            return self.next.pop(0) if self.next else "pass"


@pytest.fixture
def faults(s3_server, bucket, monkeypatch):
    """A store that falters as it is told; `after` says whether the real one has done what was asked before."""
    faults = Faults(s3_server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = faults.take(self.command, self.path)
            status, headers, content = 0, [], b""
            if fault == "pass" or faults.after:
                status, headers, content = self.forward(body)
            if fault == "hang":
                faults.released.wait(30)
                self.close_connection = True
                return
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if fault != "pass":
                code = {"503": "SlowDown", "500": "InternalError", "403": "AccessDenied"}[fault]
                content = f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode()
                status, headers = int(fault), [("Content-Type", "application/xml")]
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def forward(self, body):
            connection = HTTPConnection(faults.behind, timeout=30)
            connection.request(self.command, self.path, body, {**self.headers, "Host": faults.behind})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, answer.getheaders(), content

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    faults.folder = RemoteFolder(f"{bucket}/x", patience_s=20, attempt_s=1.0)
    RemoteFolder(f"{bucket}/x").names()  # makes the connection, which takes its time on a busy machine
    faults.asked.clear()
    yield faults
    faults.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("fault", ["503", "500", "reset", "hang"])
def test_what_passes_is_tried_again(faults, tmp_path, fault):
    folder = faults.folder
    (tmp_path / "file").write_bytes(b"content")
    requests = {
        "put": lambda: folder.put("a", b"1"),
        "upload": lambda: folder.upload(tmp_path / "file", "b"),
        "get": lambda: folder.get("a") == b"1",
        "names": lambda: folder.names() == ["a", "b"],
        "create": lambda: folder.create("c", b"3"),
        "delete": lambda: folder.delete("c"),
    }
    for request, made in requests.items():
        faults.next = [fault] if fault == "hang" else [fault, fault, fault]
        assert made() in (None, True), request
        assert faults.next == []
    assert folder.names() == ["a", "b"]
    assert folder.get("b") == b"content"


@pytest.mark.parametrize("fault", ["503", "reset", "hang"])
def test_an_object_whose_creation_was_not_confirmed_is_known_to_be_ours(faults, fault):
    faults.next, faults.after = [fault], True
    assert faults.folder.create("batch", b"mine")
    assert faults.asked[:2] == [faults.asked[0]] * 2
    assert not faults.folder.create("batch", b"another's")


@pytest.mark.parametrize("fault", ["503...", "reset...", "hang..."])
def test_a_store_that_stays_away_ends_in_one_line_after_a_limited_time(faults, fault):
    folder = RemoteFolder(faults.folder.url, patience_s=1.5, attempt_s=0.5)
    faults.next = [fault]
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"the store could not write a for 1.5 s .*: see that it answers") as failed:
        folder.put("a", b"1")
    assert time.monotonic() - started < 15
    assert "\n" not in str(failed.value)
    assert len(faults.asked) >= 2


def test_what_does_not_pass_is_not_tried_again(faults):
    faults.next = ["403..."]
    with pytest.raises(
        StorageError, match=r"not allowed to write a \(AccessDenied\): the credentials in use must"
    ) as failed:
        faults.folder.put("a", b"1")
    assert len(faults.asked) == 1
    assert "a-secret-of-tests" not in str(failed.value)


def test_what_a_node_finds_wrong_with_a_store_is_said_in_one_line(faults, monkeypatch):
    url = faults.folder.url
    assert pickle.loads(pickle.dumps(functools.partial(try_from_here, url)))() is None
    assert faults.folder.names() == []
    faults.next = ["403..."]
    assert "not allowed to write probe-" in try_from_here(url)
    faults.next = ["503..."]
    assert "told to): see that it answers" in try_from_here(url, patience_s=0.5)
    faults.next = []
    monkeypatch.setattr(RemoteFolder, "get", lambda self, name: b"")
    assert "must give what was written to it" in try_from_here(url)
