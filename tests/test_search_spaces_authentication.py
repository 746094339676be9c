"""Who has to show a token, and that a token is never anybody else's to read."""

import os
import stat
import threading

import pytest

from search_spaces.authentication import authenticate, host_of, is_loopback
from search_spaces.schema import ChoiceError

OF_RAY = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_K8S_TOKEN_AUTH")
THERE = "10.0.0.7:6379"
HERE = "127.0.0.1:6379"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without a token, and none of Ray's variables in the environment; both as before afterwards."""
    for name in OF_RAY:
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def token(home):
    path = home / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    path.write_text("0" * 64, encoding="ascii")
    return path


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


# -------- a Ray that is started here


def test_a_token_is_made_for_a_ray_that_is_started_here(home):
    assert authenticate(None) == []
    path = home / ".ray" / "auth_token"
    assert len(path.read_text(encoding="ascii")) == 64
    assert permissions(path) == 0o600
    assert permissions(path.parent) == 0o700
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert [entry.name for entry in path.parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_a_new_token_is_never_readable_by_others_even_for_an_instant(home, monkeypatch, mask):
    """Every file that is opened for it has its permissions from the start, whatever the umask."""
    made = []
    opened = os.open
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: made.append(opened(*args, **kwargs)) or made[-1])
    written = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (written.append(os.fstat(file).st_mode), fsync(file)))
    before = os.umask(mask)
    try:
        authenticate(None)
    finally:
        os.umask(before)
    assert len(made) == 1
    assert [stat.S_IMODE(mode) for mode in written] == [0o600]
    assert permissions(home / ".ray" / "auth_token") == 0o600


def test_a_token_that_is_there_is_taken_and_kept(token):
    assert authenticate(None) == []
    assert token.read_text(encoding="ascii") == "0" * 64


def test_a_token_that_others_can_read_is_narrowed_with_a_note(token):
    token.chmod(0o644)
    (note,) = authenticate(None)
    assert "its permissions are now 0600" in note
    assert permissions(token) == 0o600
    assert authenticate(None) == []


def test_a_token_is_made_where_its_path_says(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "secrets" / "token"))
    authenticate(None)
    assert permissions(home / "secrets" / "token") == 0o600
    assert not (home / ".ray").exists()


def test_a_token_in_the_environment_is_written_nowhere(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    authenticate(None)
    assert list(home.iterdir()) == []


def test_tokens_cannot_be_switched_off_for_a_ray_that_is_started_here(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (note,) = authenticate(None)
    assert "RAY_AUTH_MODE=disabled" in note
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_an_empty_token_file_is_refused(token):
    token.write_text("\n", encoding="ascii")
    with pytest.raises(ChoiceError, match="must hold a token and is empty: delete it"):
        authenticate(None)


def test_a_token_that_cannot_be_written_is_refused_and_nothing_is_started_without(home, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "file" / "token"))
    with pytest.raises(ChoiceError, match="RAY_AUTH_TOKEN_PATH"):
        authenticate(None)


def test_of_many_that_come_at_the_same_time_all_have_one_token(home):
    threads = [threading.Thread(target=authenticate, args=(None,)) for _ in range(8)]
    seen = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
        seen.append((home / ".ray" / "auth_token").read_text(encoding="ascii"))
    assert len(set(seen)) == 1
    assert len(seen[0]) == 64


# -------- clusters that run already


def test_an_address_on_a_network_is_refused_without_authentication(token, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ChoiceError, match="RAY_AUTH_MODE=disabled and cluster.address=10.0.0.7:6379 is not loopback"):
        authenticate(THERE)


def test_an_address_on_a_network_is_refused_without_a_token():
    with pytest.raises(ChoiceError, match="copy the head's ~/.ray/auth_token to .*chmod 600") as error:
        authenticate(THERE)
    assert "\n" not in str(error.value)


def test_an_address_on_a_network_is_shown_the_token_without_being_told(token):
    assert authenticate(THERE) == []
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_no_token_is_made_for_a_cluster_of_others(home):
    assert authenticate(HERE) == []
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("address", [HERE, "auto", "http://localhost:8265"])
def test_a_cluster_on_loopback_is_shown_the_token_where_there_is_one(token, address):
    assert authenticate(address) == []
    assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_what_was_typed_for_a_cluster_on_loopback_is_followed(token, monkeypatch, mode):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    authenticate(HERE)
    assert os.environ["RAY_AUTH_MODE"] == mode


def test_a_token_that_was_asked_for_must_be_there(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ChoiceError, match="there is none here"):
        authenticate(HERE)


def test_another_mode_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "tokens")
    with pytest.raises(ChoiceError, match="must be token or disabled, got 'tokens'"):
        authenticate(HERE)


def test_a_pods_own_service_account_is_left_to_ray(home, monkeypatch):
    monkeypatch.setenv("RAY_ENABLE_K8S_TOKEN_AUTH", "true")
    assert authenticate(THERE) == []
    assert list(home.iterdir()) == []


# -------- addresses


@pytest.mark.parametrize(
    ("address", "host", "loopback"),
    [
        ("127.0.0.1:6379", "127.0.0.1", True),
        ("127.8.8.8:6379", "127.8.8.8", True),
        ("localhost:6379", "localhost", True),
        ("LOCALHOST", "localhost", True),
        ("[::1]:6379", "::1", True),
        ("http://127.0.0.1:8265/", "127.0.0.1", True),
        ("https://[::1]:8265", "::1", True),
        ("10.0.0.7:6379", "10.0.0.7", False),
        ("0.0.0.0:6379", "0.0.0.0", False),
        ("[fd00::7]:6379", "fd00::7", False),
        ("head.example.org:6379", "head.example.org", False),
        ("localhost.example.org:6379", "localhost.example.org", False),
        ("127.0.0.1.example.org:6379", "127.0.0.1.example.org", False),
        ("http://127.0.0.1@example.org:8265", "example.org", False),
        ("http://example.org/127.0.0.1", "example.org", False),
        ("ray://head:10001", "head", False),
    ],
)
def test_an_address_is_loopback_if_its_host_is(address, host, loopback):
    assert host_of(address) == host
    assert is_loopback(address) == loopback
