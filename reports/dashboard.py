"""A study in optuna-dashboard: on the loopback address, following a search that runs, and never changing it.

The dashboard can rename and delete studies and end trials. Here it gets a storage that reads the journal's lines as
they come and cannot write any, behind a door that lets nothing through but reading.
"""

from __future__ import annotations

import errno
import json
import socketserver
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

ADDRESS = "127.0.0.1"
DEFAULT_PORT = 8080
REFUSED = "this dashboard is read-only: a study is changed by the search that runs it alone"
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class GrowingJournal(BaseJournalBackend):
    """The lines of a journal that another process may be writing; opened anew each time, and for reading alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = (0, 0)  # the number of the line that has not been read yet, and where it begins

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """All whole lines from one on; the last one may be half written, and is left for the next time."""
        number, place = self._next if self._next[0] <= log_number_from else (0, 0)
        lines = []
        with self._path.open("rb") as file:
            file.seek(place)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if number >= log_number_from:
                    lines.append(json.loads(line))
                number, place = number + 1, place + len(line)
        self._next = (number, place)
        return lines

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuse: nothing that a browser asks for may reach a study.

        Raises:
            PermissionError: always.
        """
        raise PermissionError(REFUSED)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is http.server's
        """Say nothing: a terminal would fill with one line a second."""


def read_only(application: Application) -> Application:
    """The application for those who read; whoever wants to change something gets 405 and the reason."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return application(environ, start_response)
        headers = [("Content-Type", "application/json"), ("Allow", "GET, HEAD")]
        start_response("405 Method Not Allowed", headers)
        return [json.dumps({"reason": REFUSED}).encode()]

    return answer


def application_of(journal: Path) -> Application:
    """The dashboard of one journal.

    Raises:
        ValueError: if optuna-dashboard is not installed, or there is no journal that it could show.
    """
    try:
        from optuna_dashboard import wsgi
    except ModuleNotFoundError as error:
        if error.name != "optuna_dashboard":
            raise
        raise ValueError(
            "command=dashboard needs optuna-dashboard, which is not installed: pip install 'heartsweep[dashboard]'"
        ) from None
    if not journal.exists():
        raise ValueError(
            f"{journal.parent} holds no {journal.name}: its search has not begun, or another folder is meant"
        )
    try:
        storage = JournalStorage(GrowingJournal(journal))
        storage.get_all_studies()
    except Exception as error:  # noqa: BLE001  whatever a damaged journal does to Optuna
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{journal} cannot be read as a journal of Optuna's ({said}): restore it") from error
    application: Application = wsgi(storage)
    return read_only(application)


@contextmanager
def serving(journal: Path, port: int | None) -> Iterator[WSGIServer]:
    """A server of a study's dashboard on the loopback address; `serve_forever` serves until it is interrupted.

    Args:
        journal: Optuna's, in the folder of a study that runs or has ended.
        port: to listen on; DEFAULT_PORT where None, any that is free where 0.

    Raises:
        ValueError: as `application_of`, and if the port cannot be had.
    """
    application = application_of(journal)
    wanted = DEFAULT_PORT if port is None else port
    try:
        server = make_server(ADDRESS, wanted, application, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise ValueError(
            f"port {wanted} of {ADDRESS} cannot be had ({error.strerror}): type port=N, or port=0"
        ) from error
    with server:
        yield server
