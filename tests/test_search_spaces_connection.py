"""Connecting to Ray: what is refused before and after, and who can reach a Ray that is started here."""

import os
import socket
from types import SimpleNamespace

import psutil
import pytest
import ray
import requests

from search_spaces import connection
from search_spaces.compose import compose_choices
from search_spaces.connection import (
    check_guarded,
    check_something_listens,
    environment_of_trials,
    ray_instance,
    start_ray,
    what_was_shown,
)
from search_spaces.schema import checked
from trainables.settings import Cluster
from trainables.study import StudyError


def cluster(**changes):
    shipped = checked(compose_choices(["search=stmem_ptbxl"]).tree).cluster
    return Cluster.model_validate(shipped.model_dump() | changes)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Ray's variables as before afterwards."""
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    return monkeypatch


def test_an_address_at_which_nothing_listens_is_refused_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody else listens there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StudyError, match=f"nothing can be reached at cluster.address={address} .*refused"):
            check_something_listens(address)


def test_an_address_at_which_something_listens_is_not_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_something_listens(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["127.0.0.1", "head", "127.0.0.1:99999", "127.0.0.1:ray"])
def test_an_address_without_a_port_is_refused(address):
    with pytest.raises(StudyError, match="nothing can be reached at cluster.address="):
        check_something_listens(address)


def test_a_refusal_says_which_token_was_shown(environment, tmp_path):
    environment.setenv("RAY_AUTH_MODE", "disabled")
    assert "no token was shown" in what_was_shown()
    environment.setenv("RAY_AUTH_MODE", "token")
    environment.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    assert f"the token of {tmp_path / 'auth_token'} was shown" in what_was_shown()
    environment.setenv("RAY_AUTH_TOKEN", "the token itself")
    assert "RAY_AUTH_TOKEN in the environment" in what_was_shown()
    assert "the token itself" not in what_was_shown()


@pytest.mark.parametrize("gangs", [False, True])
def test_tune_copies_no_keys_into_what_ray_writes_to_its_logs(gangs):
    from ray.tune.execution import class_cache

    before = class_cache.ENV_VARS_TO_PROPAGATE, class_cache.DEFAULT_ENV_VARS
    with environment_of_trials(gangs=gangs):
        names = class_cache.ENV_VARS_TO_PROPAGATE
        assert bool(names) == gangs  # what Train is told by the environment still reaches a gang
        assert [name for name in names if "KEY" in name or "TOKEN" in name or "SECRET" in name] == []
    assert before == (class_cache.ENV_VARS_TO_PROPAGATE, class_cache.DEFAULT_ENV_VARS)


def test_modules_are_imported_ahead_only_on_request_and_where_all_processes_that_wait_have_memory(environment):
    name, seen = "RAY_preload_python_modules", []
    environment.setattr(connection.ray, "init", lambda **_: seen.append(os.environ.get(name)))
    environment.setattr(connection.os, "cpu_count", lambda: 8)
    enough = 4 * 8 * connection.MEMORY_OF_A_PROCESS + 4
    for free, preload in ((enough, True), (enough - 4, True), (enough, False)):
        environment.setattr(connection.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        start_ray(2, include_dashboard=False, preload=preload)
    assert seen == [",".join(connection.OF_A_TRIAL), None, None]
    assert name not in os.environ


def node(address, alive=True):
    return {"NodeManagerAddress": address, "Alive": alive}


def test_a_cluster_over_several_machines_is_refused_without_tokens_by_whatever_address(environment):
    own = next(address.address for addresses in psutil.net_if_addrs().values() for address in addresses)
    reached_by = [cluster(address=address) for address in ("auto", "127.0.0.1:6379")]
    environment.setenv("RAY_AUTH_MODE", "disabled")
    environment.setattr(connection.ray, "nodes", lambda: [node(own), node("192.0.2.99", alive=False)])
    for there in reached_by:
        check_guarded(there)
    environment.setattr(connection.ray, "nodes", lambda: [node(own), node("192.0.2.99")])
    for there in reached_by:
        with pytest.raises(StudyError, match=r"nodes on other machines, 192\.0\.2\.99, and asks for no token"):
            check_guarded(there)
    environment.setenv("RAY_AUTH_MODE", "token")
    for there in reached_by:
        check_guarded(there)


@pytest.mark.cluster
def test_a_ray_that_is_started_here_has_its_dashboard_on_loopback_and_asks_for_a_token(environment):
    environment.setenv("RAY_AUTH_MODE", "disabled")  # is not followed
    with ray_instance(cluster(workers_per_trial=2)):
        assert os.environ["RAY_AUTH_MODE"] == "token"
        listening = {
            (found.laddr.ip, found.laddr.port)
            for process in psutil.Process().children(recursive=True)
            if any(word.endswith("dashboard.py") for word in process.cmdline())
            for found in process.net_connections("tcp")
            if found.status == psutil.CONN_LISTEN
        }
        answers = {place: requests.get("http://{}:{}/api/jobs/".format(*place), timeout=10) for place in listening}
        # Ray counts things for Prometheus on another port, for all the network; nothing can be done there
        dashboards = {place: answer for place, answer in answers.items() if "# HELP" not in answer.text}
        assert {host for host, _ in dashboards} == {"127.0.0.1"}
        assert {answer.status_code for answer in dashboards.values()} == {401}
        assert ray.is_initialized()
    assert not ray.is_initialized()
