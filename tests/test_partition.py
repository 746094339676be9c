"""A machine that the network cuts off while it computes a trial: the search goes on without it."""

import json
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest
import ray

from tests.test_search import REPOSITORY, TINY, check_books, events_of
from tests.test_search_spaces_preflight import TOKEN, free_port, ray_node

HERE, THERE = "10.77.41.1", "10.77.41.2"
NOTICED_SOON = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
"""By the head; by default it gives a silent node half a minute."""


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def machine_of_its_own():
    """A network namespace joined to this machine by one cable; yields its name and that of the cable's end here."""
    name = f"hs{secrets.token_hex(3)}"
    with ExitStack() as stack:
        try:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
            ip("address", "add", f"{HERE}/24", "dev", f"{name}a")
            ip("link", "set", f"{name}a", "up")
            for words in (
                ("address", "add", f"{THERE}/24", "dev", f"{name}b"),
                ("link", "set", f"{name}b", "up"),
                ("link", "set", "lo", "up"),
                ("route", "add", "default", "via", HERE),
            ):
                ip("-netns", name, *words)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a network namespace cannot be made here: {getattr(error, 'stderr', error)}")
        yield name, f"{name}a"


@pytest.mark.cluster
def test_a_trial_on_a_machine_that_is_cut_off_goes_on_elsewhere_and_is_counted_once(tmp_path, monkeypatch):
    for name, value in (TOKEN | NOTICED_SOON).items():
        monkeypatch.setenv(name, value)
    address = f"{ray.util.get_node_ip_address()}:{(port := free_port())}"
    ports = [f"--port={port}", f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    study, cut_off = tmp_path / "study", secrets.token_hex(28)
    line = [*TINY, "cluster=ray", f"cluster.address={address}", "search.num_trials=3", "scheduler=fifo"]
    line += ["task.pretrain.num_epochs=4", "task.finetune.num_epochs=4"]
    line.remove("scheduler.reduction_factor=2")
    with (
        ray_node("--head", *ports),
        machine_of_its_own() as (name, cable),
        ray_node(
            f"--address={address}",
            f"--node-ip-address={THERE}",
            before=("env", f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={cut_off}", "ip", "netns", "exec", name),
        ),
        subprocess.Popen(
            [sys.executable, str(REPOSITORY / "launch.py"), *line],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as driver,
    ):
        cut_when_it_computes(driver, study, cut_off, cable)
        try:
            said, _ = driver.communicate(timeout=300)
        finally:
            driver.kill()
            ip("link", "set", cable, "up")
    assert driver.returncode == 0, said
    check_books(study, 3)
    events = events_of(study)
    interrupted = [event for event in events if event["event"] == "trial_interrupted"]
    assert {event["cause"] for event in interrupted} == {"node_lost"}
    assert {node for event in interrupted for node in event["nodes"]} == {cut_off}
    after = events.index(interrupted[0])
    assert cut_off not in {node for event in events[after:] if event["event"] == "epoch" for node in event["nodes"]}


def cut_when_it_computes(driver, study, node, cable):
    """Wait until a trial has reported from a node, then cut its cable."""
    path = study / "events.jsonl"
    while driver.poll() is None:
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        if any(node in json.loads(line).get("nodes", ()) for line in lines):
            break
        time.sleep(0.05)  # a file tells nobody that it has grown
    ip("link", "set", cable, "down")
