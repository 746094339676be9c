"""A folder in an S3-compatible object store: the few things that a study does there, each with an end.

What passes (a store that is busy or restarting, a lost connection, a time-out) is tried again, with growing pauses, for
a limited time; all else ends in one line. Objects are bytes: nothing that is read here is executed. The endpoint is
AWS_ENDPOINT_URL's where that is set, credentials are looked for as every AWS tool does (environment, profile, role of
the machine); neither ever comes from the configuration.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainables.files import StorageError, writing_to
from trainables.remote_url import parts_of, problem_of

Answer = TypeVar("Answer")

PATIENCE_S = 120.0
"""How long one request is tried again before it has failed."""
ATTEMPT_S = 30.0
"""How long one attempt may take, beside the time for its bytes."""
SLOWEST_BYTES_PER_S = 1_000_000
LONGEST_PAUSE_S = 10.0
NAMES_A_PAGE = 1000
AT_A_TIME = 16
"""Requests in flight where many objects are read or deleted."""

PASSING_CODES = frozenset(
    {
        *("InternalError", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "RequestTimeout"),
        *("OperationAborted", "ConditionalRequestConflict", "BadDigest", "IncompleteBody"),
        *("429", "500", "502", "503", "504"),
    }
)
"""What a store answers that may well be asked again."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder in an object store. Names of objects are relative to it, with / between their parts.

    Attributes:
        url: s3://bucket/prefix.
        patience_s: see PATIENCE_S.
        attempt_s: see ATTEMPT_S.

    Raises:
        StorageError: if the URL is none of a folder in an S3-compatible store.
    """

    url: str
    patience_s: float = PATIENCE_S
    attempt_s: float = ATTEMPT_S

    def __post_init__(self) -> None:
        if (problem := problem_of(self.url)) is not None:
            raise StorageError(f"storage {problem}")

    def under(self, name: str) -> RemoteFolder:
        """A folder in this one."""
        return RemoteFolder(f"{self.url.rstrip('/')}/{name}", self.patience_s, self.attempt_s)

    def get(self, name: str) -> bytes | None:
        """The object's bytes; None where there is none.

        Raises:
            StorageError: if the store does not give them.
        """
        store, path = _store(), self._path(name)
        with _missing_is_none() as found:
            found.append(self._ask(f"read {name}", lambda: store._cat_file(path)))
        content: bytes | None = found[0] if found else None
        return content

    def get_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """The bytes of many objects in the order of their names, some at a time.

        Raises:
            StorageError: if the store does not give one of them.
        """
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            yield from pool.map(self.get, names)

    def download(self, name: str, target: Path) -> bool:
        """Put the object's bytes into the file `target`, whole or not at all; False where there is no such object.

        Raises:
            StorageError: if the store does not give them, or on a full or read-only disk.
        """
        store, path = _store(), self._path(name)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        with writing_to(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _missing_is_none() as found:  # in one stream: parts could be of two objects where one is replaced
                one_stream = {"max_concurrency": 1}
                self._ask(f"read {name}", lambda: store._get_file(path, str(partial), **one_stream), slow=True)
                found.append(True)
            if found:
                with writing_to(target):
                    partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return bool(found)

    def put(self, name: str, content: bytes) -> None:
        """Keep the bytes as an object, in the place of one with this name.

        Raises:
            StorageError: if the store does not take them.
        """
        store, path = _store(), self._path(name)
        self._ask(f"write {name}", lambda: store._pipe_file(path, content), num_bytes=len(content))

    def upload(self, source: Path, name: str) -> None:
        """Keep a file as an object, in the place of one with this name.

        Raises:
            StorageError: if the file cannot be read or the store does not take it.
        """
        store, path = _store(), self._path(name)
        try:
            num_bytes = source.stat().st_size
        except OSError as error:
            raise StorageError(f"{source} cannot be read: {error.strerror or error}") from error
        self._ask(f"write {name}", lambda: store._put_file(str(source), path), num_bytes=num_bytes)

    def create(self, name: str, content: bytes) -> bool:
        """Keep the bytes as an object if there is none with this name; say whether the one there now is this one.

        An answer may be lost after the store has taken the bytes. Who else could write the same bytes must put
        something of its own into them.

        Raises:
            StorageError: if the store does not take them.
        """
        store, path = _store(), self._path(name)

        async def create() -> bool:
            try:
                await store._pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            return True

        if self._ask(f"create {name}", create, num_bytes=len(content)):
            return True
        return self.get(name) == content

    def check_creates_only(self) -> None:
        """Refuse a store that replaces an object where it was to create one: two drivers could both go on there.

        Raises:
            StorageError: if it does, or does not answer.
        """
        name = f"probe-{uuid.uuid4().hex}"
        try:
            refuses = self.create(name, b"first") and not self.create(name, b"second")
        finally:
            self.delete(name)
        if not refuses:
            raise StorageError(
                f"{self.url}: the store must refuse to write an object that is there (If-None-Match: *), it has "
                "replaced one: use another store, or a shared folder with study_dir=DIR"
            )

    def delete(self, name: str) -> None:
        """Delete an object; nothing where there is none.

        Raises:
            StorageError: if the store does not.
        """
        store, path = _store(), self._path(name)
        with _missing_is_none():
            self._ask(f"delete {name}", lambda: store._rm_file(path))

    def delete_under(self, prefix: str) -> None:
        """Delete all objects whose names begin with `prefix`, with what stands for folders among them.

        Raises:
            StorageError: if the store does not.
        """
        if names := self._keys(prefix):
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                list(pool.map(self.delete, names))

    def names(self, prefix: str = "") -> list[str]:
        """Names of all objects that begin with `prefix`, in the order of their bytes.

        Without the empty ones, named with / at their end, by which pyarrow and consoles remember a folder.

        Raises:
            StorageError: if the store does not list them.
        """
        return [name for name in self._keys(prefix) if name and not name.endswith("/")]

    def _keys(self, prefix: str) -> list[str]:
        store, (bucket, root) = _store(), parts_of(self.url)
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{root}{prefix}", "MaxKeys": NAMES_A_PAGE}
        found: list[str] = []
        while True:
            page = self._ask("list it", lambda: store._call_s3("list_objects_v2", **request))
            found += [entry["Key"].removeprefix(root) for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return sorted(found)
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _path(self, name: str) -> str:
        bucket, root = parts_of(self.url)
        return f"{bucket}/{root}{name}"

    def _ask(
        self, deed: str, request: Callable[[], Awaitable[Answer]], *, num_bytes: int = 0, slow: bool = False
    ) -> Answer:
        """Ask until there is an answer or there will be none.

        Args:
            deed: for the message: "read NAME".
            request: makes the request, once a call.
            num_bytes: that it sends.
            slow: whether it receives a number of bytes that is not known before.

        Raises:
            FileNotFoundError: if the object is not there.
            StorageError: if it cannot be done, or was not in time.
        """
        from fsspec.asyn import sync

        limit = self.patience_s if slow else self.attempt_s + num_bytes / SLOWEST_BYTES_PER_S

        async def attempt() -> Answer:
            return await asyncio.wait_for(request(), limit)

        give_up, pause = time.monotonic() + self.patience_s, 0.1
        while True:
            try:
                answer: Answer = sync(_store().loop, attempt)
            except Exception as error:  # noqa: BLE001  of a tower of libraries; each is said in one line
                if isinstance(error, FileNotFoundError) and _code(error) != "NoSuchBucket":
                    raise
                wait = min(pause, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
                if not passes(error) or time.monotonic() + wait > give_up:
                    raise StorageError(self._said(deed, error)) from error
                time.sleep(wait)
                pause *= 2
            else:
                return answer

    def _said(self, deed: str, error: Exception) -> str:
        """What failed, in one line, with what to do."""
        bucket = parts_of(self.url)[0]
        came = " ".join(str(error).split())[:200] or type(error).__name__
        code = _code(error)
        if passes(error):
            return (
                f"{self.url}: the store could not {deed} for {self.patience_s:g} s (last: {came}): see that it answers "
                "at AWS_ENDPOINT_URL, or without that at AWS, then type the same line again to go on"
            )
        if code == "NoSuchBucket":
            return f"{self.url}: the store must hold the bucket {bucket}, it does not: create it, or type another one"
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            return (
                f"{self.url}: the store needs credentials, none were found: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, on every node"
            )
        if isinstance(error, PermissionError):
            return (
                f"{self.url}: not allowed to {deed} ({code or came}): the credentials in use must be valid and may "
                "list, read, write and delete there"
            )
        return f"{self.url}: the store could not {deed}: {came}"


def try_from_here(url: str, *, patience_s: float = 5.0) -> str | None:
    """Write, read and delete an object from this machine: None if that can be done, else one line on what is wrong."""
    name, content = f"probe-{uuid.uuid4().hex}", os.urandom(16)
    try:
        folder = RemoteFolder(url, patience_s=patience_s, attempt_s=patience_s)
        folder.put(name, content)
        read = folder.get(name)
        folder.delete(name)
    except StorageError as error:
        return str(error)
    return None if read == content else f"{url}: the store must give what was written to it, it gave something else"


def passes(error: BaseException) -> bool:
    """Whether what went wrong may well go right when it is asked again."""
    from aiohttp import ClientError as ConnectionFault
    from botocore.exceptions import ClientError, HTTPClientError

    for cause in _causes(error):
        if isinstance(cause, ClientError):
            status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return _code(cause) in PASSING_CODES or status >= 500
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return False
    passing = (ConnectionFault, HTTPClientError, TimeoutError, asyncio.TimeoutError, ConnectionError)
    return any(isinstance(cause, passing) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _code(error: BaseException) -> str | None:
    """The store's own name for an error, if it is one of a store."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None


@contextmanager
def _missing_is_none() -> Iterator[list[Any]]:
    """A list for what a block finds; it stays empty where the block finds no object."""
    found: list[Any] = []
    try:
        yield found
    except FileNotFoundError as error:
        if isinstance(error, StorageError):
            raise


CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


def _store() -> Any:
    """The connection of this process to the store that the environment names.

    Raises:
        StorageError: if the packages for it are not installed.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _connection(endpoint, *map(os.environ.get, CREDENTIALS))


@functools.lru_cache(maxsize=4)
def _connection(endpoint: str | None, *_: str | None) -> Any:
    try:
        from s3fs import S3FileSystem
    except ImportError as error:
        raise StorageError(
            "storage=s3://... needs the package s3fs: type python -m pip install -c constraints.txt -e '.[s3]'"
        ) from error
    store = S3FileSystem(
        endpoint_url=endpoint,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": 5,
            "read_timeout": ATTEMPT_S,
            "retries": {"total_max_attempts": 1},  # here is the one place that tries again
            "request_checksum_calculation": "when_required",  # stores beside AWS's may not know the new ones
            "response_checksum_validation": "when_required",
        },
    )
    store.retries = 1
    return store
