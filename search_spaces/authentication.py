"""Tokens of Ray clusters: who has to show one, where it lies, and that nobody else can read it.

Ray takes the token from RAY_AUTH_TOKEN, else from the file RAY_AUTH_TOKEN_PATH, else from ~/.ray/auth_token, and looks
at all only where RAY_AUTH_MODE is `token`. Nothing here imports Ray: the environment has to be right before that.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import tempfile
from pathlib import Path

from search_spaces.schema import ChoiceError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"  # noqa: S105  names, no secrets
KUBERNETES = "RAY_ENABLE_K8S_TOKEN_AUTH"  # the token is then the pod's service account's, and Ray finds it
MODES = ("token", "disabled")


def authenticate(address: str | None) -> list[str]:
    """Have this process, and what it starts, show a token where one is due; called before Ray is used.

    A Ray that we start asks for a token always, an address that is not loopback has to. A loopback address may be of
    either kind: a token is shown where there is one, since a cluster that wants none does not mind it.

    Args:
        address: of the cluster (HOST:PORT, a URL, or `auto`); None for a Ray that launch.py starts on this machine.

    Returns:
        what the user should know, a line each.

    Raises:
        ChoiceError: if authentication is off where it has to be on, there is no token to show, or a new one cannot be
            written.
    """
    mode = os.environ.get(MODE, "").lower()
    if mode and mode not in MODES:
        raise ChoiceError(f"{MODE} must be {' or '.join(MODES)}, got {mode!r}: unset it, or export {MODE}=token")
    if address is None:
        notes = _own_token()
        if mode == "disabled":
            notes.append(f"{MODE}=disabled is for clusters of others: the Ray that is started here asks for its token")
        os.environ[MODE] = "token"
        return notes
    exposed = not (address == "auto" or is_loopback(address))
    if mode == "disabled" and exposed:
        raise ChoiceError(
            f"{MODE}=disabled and cluster.address={address} is not loopback: whoever reaches a Ray cluster without "
            f"tokens runs code on it; start it with {MODE}=token, and export {MODE}=token here"
        )
    there = mode != "disabled" and has_token()
    if not there and (exposed or mode == "token"):
        raise ChoiceError(
            f"cluster.address={address} needs the cluster's token and there is none here: copy the head's "
            f"~/.ray/auth_token to {token_path()} (chmod 600), or name its file in {TOKEN_PATH}"
        )
    os.environ[MODE] = mode or ("token" if there else "disabled")
    return _narrowed(token_path()) if there and _is_in_a_file() else []


def is_loopback(address: str) -> bool:
    """Whether an address, HOST:PORT or a URL, is of this machine alone.

    A name other than localhost counts as one of a network, whatever it resolves to now.
    """
    host = host_of(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(address: str) -> str:
    """The host of HOST:PORT, [IPV6]:PORT or a URL, in lower case."""
    rest = address.rpartition("://")[2].partition("/")[0].rpartition("@")[2]
    host = rest[1:].partition("]")[0] if rest.startswith("[") else rest.partition(":")[0]
    return host.lower()


def token_path() -> Path:
    """Where Ray looks for the token, unless RAY_AUTH_TOKEN holds it."""
    given = os.environ.get(TOKEN_PATH)
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def has_token() -> bool:
    """Whether there is a token to show.

    Raises:
        ChoiceError: if its file cannot be read or is empty.
    """
    if not _is_in_a_file():
        return True
    path = token_path()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ChoiceError(
            f"the token in {path} cannot be read ({error.strerror}): mend it, or name another in {TOKEN_PATH}"
        ) from error
    if not content.strip():
        raise ChoiceError(f"{path} must hold a token and is empty: delete it, or name another in {TOKEN_PATH}")
    return True


def _is_in_a_file() -> bool:
    return not os.environ.get(TOKEN) and not os.environ.get(KUBERNETES)


def _own_token() -> list[str]:
    """Make a token if there is none yet; see that the one in the file is this user's alone."""
    if not _is_in_a_file():
        return []
    if not has_token():
        _write_new(token_path())
    return _narrowed(token_path())


def _write_new(path: Path) -> None:
    """Write a new token, never readable by others and never seen half written.

    Of two processes that come at the same time, one writes the token and the other takes it.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 from the start
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(32))  # as long as Ray's own
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)  # unlike a renaming, never replaces the token of another
        finally:
            os.unlink(partial)
    except OSError as error:
        raise ChoiceError(
            f"Ray is never started without a token, and {path} cannot be written ({error.strerror}): name another "
            f"place for it in {TOKEN_PATH}"
        ) from error


def _narrowed(path: Path) -> list[str]:
    """Take a token file's permissions from everybody else; a note says so."""
    mode = path.stat().st_mode & 0o777
    if not mode & 0o077:
        return []
    try:
        path.chmod(mode & 0o700)
    except OSError as error:  # of another user, or mounted read-only, as a Kubernetes secret is
        return [f"{path} can be read by others on this machine and stays so ({error.strerror})"]
    return [f"{path} could be read by others on this machine: its permissions are now {mode & 0o700:04o}"]
