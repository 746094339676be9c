"""The pre-flight itself: what is said and refused, and that a cluster of three nodes is looked at in seconds."""

import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from ray.exceptions import RayError
from rich.console import Console

from search_spaces import preflight as preflight_module
from search_spaces.compose import compose_choices
from search_spaces.preflight import (
    Preflight,
    default_runs,
    gather,
    model_bytes,
    needed_bytes,
    probes_of_folders,
    say,
)
from search_spaces.preflight_checks import Check, Node
from search_spaces.schema import checked
from trainables.pretrain import build_pretext
from trainables.study import StudyError

REPOSITORY = Path(__file__).parent.parent
SYNTHETIC = ["search=stmem_ptbxl", "scale=laptop", "data=synthetic", "data.reader.num_patients=60"]


def said(found, **how):
    console = Console(file=io.StringIO(), soft_wrap=True, highlight=False)
    say(found, console, **how)
    return console.file.getvalue()


WELL = Check("capacity", "ok", "3 trials at a time")
TOLD = Check("clocks", "warning", "b is 60 s fast")
REFUSED = Check("storage", "refused", "a has no /study"), Check("versions", "refused", "a: ray must be 2.60.0")


def test_every_trial_that_may_wait_has_room_for_its_state():
    def needed(scheduler, num_trials):
        typed = [*SYNTHETIC, f"scheduler={scheduler}", f"search.num_trials={num_trials}"]
        return needed_bytes(checked(compose_choices(typed).tree), [])

    assert needed("asha", 9) == needed("asha", 5)
    assert needed("asha_promotion", 9) - needed("asha_promotion", 5) == needed("pbt", 9) - needed("pbt", 5) > 0


def test_one_line_is_said_when_all_is_well():
    text = said(Preflight((WELL,), 2.12))
    assert text == "pre-flight: 1 checks, 2.1 s: all is well; 3 trials at a time\n"
    Preflight((WELL,), 2.12).refuse()


def test_a_warning_is_a_line_and_no_refusal():
    found = Preflight((WELL, TOLD), 2.0)
    assert said(found).splitlines()[1:] == ["warning: clocks: b is 60 s fast"]
    found.refuse()


def test_all_that_has_to_be_mended_is_refused_at_once():
    with pytest.raises(StudyError, match=r"storage: a has no /study; versions: a: ray must be 2\.60\.0") as error:
        Preflight((WELL, *REFUSED), 2.0).refuse()
    assert "\n" not in str(error.value)


def test_every_check_is_said_where_the_pre_flight_was_asked_for():
    assert len(said(Preflight((WELL, TOLD, *REFUSED), 2.0), say_all=True).splitlines()) == 5


def test_a_models_size_is_known_without_building_it():
    launch = checked(compose_choices([*SYNTHETIC]).tree)
    built = build_pretext(launch.run).state_dict().values()
    assert model_bytes(launch.run) >= sum(tensor.nbytes for tensor in built)
    several = checked(compose_choices(["search=methods_ptbxl", *SYNTHETIC[1:]]).tree)
    assert len({model_bytes(run) for run in default_runs(several)}) > 1


def test_a_text_encoder_of_ones_own_is_looked_for_on_every_node_and_counted(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "sinus": 4, "rhythm": 5}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(tmp_path)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = transformers.BertModel(transformers.BertConfig(vocab_size=6, **small))
    encoder.save_pretrained(tmp_path)
    typed = ["text_encoder=pretrained", f"model.text_encoder.folder={tmp_path}", "model.text_encoder.max_tokens=16"]
    launch = checked(compose_choices(["search=meclip_ptbxl", *typed]).tree)
    assert model_bytes(launch.run) > sum(tensor.nbytes for tensor in encoder.state_dict().values())
    (probe,) = probes_of_folders(launch).values()
    assert probe() is None
    (tmp_path / "model.safetensors").unlink()
    assert "model.safetensors differ" in probe()
    assert probes_of_folders(checked(compose_choices([*SYNTHETIC]).tree)) == {}


# -------- who answers


class Cluster:
    """Stands for Ray: what its tasks give, or None of those that never end."""

    def __init__(self, ends):
        self.ends, self.cancelled = ends, []

    def wait(self, tasks, *, num_returns, timeout):
        ready = [task for task in tasks if self.ends[task] is not None][:num_returns]
        return ready, [task for task in tasks if task not in ready]

    def get(self, task):
        if isinstance(self.ends[task], Exception):
            raise self.ends[task]
        return self.ends[task]

    def cancel(self, task, *, force):
        self.cancelled.append(task)


def test_a_node_that_fails_or_says_nothing_is_named_and_not_waited_for(monkeypatch):
    nodes = [Node(name * 56, f"10.0.0.{number}", {"CPU": 1.0}) for number, name in enumerate("abc")]
    ray = Cluster({"a": "facts", "b": RayError("first line\nModuleNotFoundError: No module named 'data'"), "c": None})
    monkeypatch.setattr(preflight_module, "ray", ray)
    answers, answered, failures = gather(dict(zip(nodes, "abc", strict=True)))
    assert answers == {nodes[0]: "facts"}
    assert answered.keys() == answers.keys()
    assert failures[nodes[1]] == "its task failed (ModuleNotFoundError: No module named 'data')"
    assert "has said nothing for 90 s although Ray hears of it" in failures[nodes[2]]
    assert ray.cancelled == ["c"]


# -------- three nodes


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
RANDOM_PORTS = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]


def free_port():
    with closing(socket.socket()) as bound:
        bound.bind(("", 0))
        return bound.getsockname()[1]


@contextmanager
def ray_node(*arguments, before=()):
    """A node of one CPU that ends with the block."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [*before, ray, "start", "--block", "--num-cpus=1", "--disable-usage-stats", *RANDOM_PORTS, *arguments]
    running = subprocess.Popen(
        command, env=os.environ | TOKEN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = []
        for line in running.stdout:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("the node did not start: " + "".join(said))
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(60)
        running.stdout.close()


@pytest.fixture(scope="module")
def cluster():
    """The address of three nodes of one CPU that ask for a token, and how much others slow this machine down."""
    slowed = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    with ExitStack() as stack:
        address = f"{socket.gethostbyname(socket.gethostname())}:{(port := free_port())}"
        ports = [f"--port={port}", f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}"]
        stack.enter_context(ray_node("--head", *ports))
        for _ in range(2):
            stack.enter_context(ray_node(f"--address={address}"))
        yield address, slowed


def preflight(folder, address, *typed):
    return subprocess.run(
        [
            sys.executable,
            str(REPOSITORY / "launch.py"),
            "command=preflight",
            *SYNTHETIC,
            "cluster=ray",
            f"cluster.address={address}",
            "study_dir=study",
            *typed,
        ],
        cwd=folder,
        env=os.environ | TOKEN,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def looked_at(cluster, tmp_path_factory):
    """A folder in which the cluster was looked at, and what was said the second time, when it was warm."""
    folder = tmp_path_factory.mktemp("preflight")
    for _ in range(2):
        ended = preflight(folder, cluster[0], "cluster.workers_per_trial=2")
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, ended.stdout


@pytest.mark.cluster
def test_three_nodes_are_looked_at_within_ten_seconds(looked_at, cluster):
    (_, text), (_, slowed) = looked_at, cluster
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("  ")}
    assert set(lines) == {
        *("capacity", "authentication", "dashboard", "nodes", "storage", "free", "recordings", "versions", "devices"),
        *("clocks", "estimate"),
    }
    assert all(line.startswith("  ok") for line in lines.values()), text
    assert "the cluster asks for a token" in lines["authentication"]
    assert "1 trial at a time" in lines["capacity"]
    assert "device-hours (timed on" in lines["estimate"]
    seconds = float(re.search(r"pre-flight: 11 checks, ([\d.]+) s", text)[1])
    assert seconds < 10 * slowed, text


@pytest.mark.cluster
def test_a_pre_flight_alone_leaves_no_study_and_no_file_for_a_meeting(looked_at):
    folder, _ = looked_at
    assert sorted(path.name for path in (folder / "study").iterdir()) == ["lock", "ray.log"]


@pytest.mark.cluster
def test_a_node_with_another_view_of_the_folders_is_refused_by_name(looked_at, cluster, tmp_path):
    folder, text = looked_at
    study, stores = folder / "study", folder / "runs" / "stores"
    own = tmp_path / "stores"
    shutil.copytree(stores, own)
    signals = next(own.glob("*/signals.int16"))
    with signals.open("r+b") as file:
        file.write(b"other")
    mounted = f"mount -t tmpfs none '{study}' && mount --bind '{own}' '{stores}' && exec \"$@\""
    before = ["unshare", "--mount", "--propagation=private", "sh", "-c", mounted, "sh"]
    if subprocess.run([*before, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("a mount namespace of its own is not permitted here: it takes root, or user namespaces")
    with ray_node(f"--address={cluster[0]}", before=before):
        ended = preflight(folder, cluster[0])
    assert ended.returncode == 2, ended.stdout + ended.stderr
    (stranger,) = set(re.findall(r"\(node (\w{8})\)", ended.stdout)) - set(re.findall(r"\(node (\w{8})\)", text))
    lines = {line.split()[1]: line for line in ended.stdout.splitlines() if line.startswith("  ")}
    for check, words in (("storage", "is another folder"), ("recordings", "signals.int16")):
        assert lines[check].startswith("  refused"), lines[check]
        assert re.findall(r"\(node (\w{8})\)", lines[check]) == [stranger]
        assert words in lines[check]
    assert ended.stderr.startswith("error: the pre-flight refuses this cluster: storage: ")
    assert ended.stderr.count("\n") == 1
    assert not list(study.glob(".preflight-*"))


@pytest.mark.cluster
def test_a_search_writes_down_what_was_found_and_none_of_its_secrets(looked_at, cluster):
    folder, _ = looked_at
    typed = ["command=search", "search.num_trials=1", "search.max_hours=0.0001"]  # no trial is begun
    ended = preflight(folder, cluster[0], *typed)
    assert "pre-flight: " in ended.stdout, ended.stdout + ended.stderr
    study = folder / "study"
    events = [json.loads(line) for line in (study / "events.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["event"] == "preflight"]
    assert event["seconds"] > 0
    assert {check["name"] for check in event["checks"]} >= {"capacity", "storage", "recordings", "versions"}
    assert all(check["result"] in ("ok", "note") for check in event["checks"])
    written = b"".join(path.read_bytes() for path in study.rglob("*") if path.is_file())
    assert TOKEN["RAY_AUTH_TOKEN"].encode() not in written
