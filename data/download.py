"""Fetch a published data set over HTTP, file by file against its checksums; stopped, it goes on where it was."""

from __future__ import annotations

import hashlib
import http.client
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import TypeVar

from data.folders import writing_to
from data.ptb_xl import RECORDS_FOLDER
from data.record import DataError

PTB_XL_URL = "https://physionet.org/files/ptb-xl/1.0.3/"
SUMS = "SHA256SUMS.txt"

_NUM_CONNECTIONS = 8
_TIMEOUT_S = 60.0
_MAX_FAILURES = 5
_CHUNK_BYTES = 1 << 18
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *]?(.+)")
_BUSY = (408, 425, 429, 500, 502, 503, 504)

_Result = TypeVar("_Result")


def download(
    url: str,
    folder: Path,
    *,
    rates: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
    backoff_s: float = 0.5,
) -> None:
    """Bring `folder` to hold the tables of the data set at `url` and its records at the given rates.

    Files that are there are checked, not fetched again; one that was cut off goes on at its last byte, kept beside
    its place with the suffix .part until its checksum is right.

    Args:
        url: folder on a server, with SHA256SUMS.txt in it.
        folder: where to.
        rates: of 100 and 500, which records to fetch.
        progress: called in this thread with (files done, files in all).
        backoff_s: pause after a file's first failure; it doubles with each further one.

    Raises:
        DataError: if the server cannot be reached, lacks a file or sends another than its checksum says, if a file
            that is there differs from the published one, or if the disk is full or read-only.
    """
    if unknown := set(rates) - set(RECORDS_FOLDER):
        raise DataError(f"data.source_rate_hz must be 100 or 500, got {sorted(unknown)}")
    source = _Source(url, backoff_s)
    try:
        sums = source.fetch_sums()
        left_out = tuple(f"{name}/" for rate, name in RECORDS_FOLDER.items() if rate not in rates)
        chosen = {name: digest for name, digest in sums.items() if not name.startswith(left_out)}
        with writing_to(Path(folder), key="data.root"):
            _fetch_all(source, Path(folder), chosen, progress)
    finally:
        source.server.close()


def _fetch_all(
    source: _Source, folder: Path, digests: dict[str, str], progress: Callable[[int, int], None] | None
) -> None:
    with ThreadPoolExecutor(_NUM_CONNECTIONS) as pool:
        files = [pool.submit(source.fetch, name, folder, digest) for name, digest in digests.items()]
        try:
            for done, file in enumerate(as_completed(files), start=1):
                file.result()
                if progress is not None:
                    progress(done, len(files))
        finally:
            source.server.stopping.set()  # after an error or Ctrl-C the other threads end at their next chunk
            pool.shutdown(wait=True, cancel_futures=True)


class _TransientError(Exception):
    """Trying again may help."""


class _Source:
    """The files of one folder on a server."""

    def __init__(self, url: str, backoff_s: float) -> None:
        self.server = _Server(url if url.endswith("/") else f"{url}/")
        self.backoff_s = backoff_s

    def fetch_sums(self) -> dict[str, str]:
        """Path to SHA-256 of every file, as the source lists them."""
        content = self._with_patience(SUMS, lambda: b"".join(self.server.chunks(self.server.get(SUMS, 0))))
        lines = content.decode(errors="replace").splitlines()
        found = [_SUM_LINE.fullmatch(line) for line in lines if line.strip()]
        sums = {match[2]: match[1].lower() for match in found if match}
        if not sums or None in found:
            raise DataError(f"{self.server.url}{SUMS} must list a checksum and a file in each line: check the address")
        for name in sums:
            if name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise DataError(f"{self.server.url}{SUMS} must not name a file outside of its folder, got {name!r}")
        return sums

    def fetch(self, name: str, folder: Path, digest: str) -> None:
        """Put one file at its place in `folder`, unless it is there."""
        path = folder / name
        if path.exists():
            if _sha256(path) != digest:
                raise DataError(f"{path} differs from the published file: move it away to have it fetched")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        self._with_patience(name, lambda: self._receive(name, part, digest))
        part.replace(path)

    def _with_patience(self, name: str, attempt: Callable[[], _Result]) -> _Result:
        failures = 0
        while True:
            try:
                return attempt()
            except _TransientError as error:
                failures += 1
                pause_s = self.backoff_s * 2 ** (failures - 1)
                if failures == _MAX_FAILURES or self.server.stopping.wait(pause_s):
                    raise DataError(
                        f"{self.server.url}{name} could not be fetched in {failures} attempts, the last ended with: "
                        f"{error}; check the network and type the same line again to go on"
                    ) from error

    def _receive(self, name: str, part: Path, digest: str) -> None:
        """Add what is missing to `part` and check the whole."""
        start = part.stat().st_size if part.exists() else 0
        response = self.server.get(name, start)
        if response.status == 416:  # nothing is missing, or the part is longer than the file
            response.read()
        else:
            # a server that knows no ranges sends all of the file with status 200
            with part.open("ab" if response.status == 206 else "wb") as file:
                for chunk in self.server.chunks(response):
                    file.write(chunk)
        if _sha256(part) != digest:
            part.unlink()
            raise _TransientError(f"its checksum differs from the one in {SUMS}")


class _Server:
    """Requests to one server; each thread keeps a connection of its own, as most files are smaller than a handshake."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.parts = urllib.parse.urlsplit(url)
        if self.parts.scheme not in ("http", "https") or not re.fullmatch(r"[^@:]+(:\d{1,5})?", self.parts.netloc):
            raise DataError(f"the address of a data set must be http://HOST/... or https://HOST/..., got {url!r}")
        bypassed = urllib.request.proxy_bypass(str(self.parts.hostname))
        self.proxy = "" if bypassed else urllib.request.getproxies().get(self.parts.scheme, "")
        self.stopping = threading.Event()
        self._connections: dict[int, http.client.HTTPConnection] = {}  # by thread

    def close(self) -> None:
        """Close every thread's connection."""
        for connection in self._connections.values():
            connection.close()

    def get(self, name: str, start: int) -> http.client.HTTPResponse:
        """The response to a request for a file from byte `start` on: 200 for the whole, 206 for the rest, or 416.

        Raises:
            _TransientError: if the network failed or the server is busy.
            DataError: if the server refuses.
        """
        headers = {"User-Agent": "heartsweep"} | ({"Range": f"bytes={start}-"} if start else {})
        target = urllib.parse.quote(f"{self.parts.path}{name}", safe="/%")
        if self.proxy and self.parts.scheme == "http":
            target = f"http://{self.parts.netloc}{target}"
        connection = self._connection()
        try:
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()  # the next request opens it again
            raise _TransientError(str(error) or type(error).__name__) from error
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if response.status == 200 or (start and (response.status == 416 or (response.status == 206 and continues))):
            return response
        connection.close()
        told = f"{response.status} {response.reason} {response.headers.get('Location', '')}".rstrip()
        if response.status in _BUSY:
            raise _TransientError(told)
        raise DataError(f"{self.url}{name} cannot be fetched, the server answered {told}: check the address")

    def chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The response's body.

        Raises:
            _TransientError: if less came than was promised.
        """
        promised = response.headers.get("Content-Length")
        received = 0
        try:
            while chunk := response.read(_CHUNK_BYTES):
                received += len(chunk)
                yield chunk
                if self.stopping.is_set():
                    break
        except (OSError, http.client.HTTPException) as error:
            self._connection().close()
            raise _TransientError(str(error) or type(error).__name__) from error
        if promised is not None and received < int(promised):
            self._connection().close()  # what else it would send belongs to this response
            raise _TransientError(f"{received} of {promised} bytes came")

    def _connection(self) -> http.client.HTTPConnection:
        thread = threading.get_ident()
        if thread not in self._connections:
            self._connections[thread] = self._new_connection()
        return self._connections[thread]

    def _new_connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        if not self.proxy:
            return kind(self.parts.netloc, timeout=_TIMEOUT_S)
        connection = kind(urllib.parse.urlsplit(self.proxy).netloc, timeout=_TIMEOUT_S)
        if self.parts.scheme == "https":
            connection.set_tunnel(str(self.parts.hostname), self.parts.port or 443)
        return connection


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
