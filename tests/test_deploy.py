"""What deploy/ holds is what Kubernetes, Ray's launcher and SLURM take, as far as can be seen without them."""

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from search_spaces.compose import compose_choices
from search_spaces.schema import checked

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))


def closed(properties, *required, **more):
    """A JSON schema of an object that has these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    } | more


STRING, INTEGER, BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": STRING}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9.]+(m|[KMGT]i?)?$"}}
CONTAINER = closed(
    {
        "name": STRING,
        "image": STRING,
        "env": {"type": "array", "items": closed({"name": STRING, "value": STRING}, "name", "value")},
        "resources": closed({"requests": QUANTITIES, "limits": QUANTITIES}),
        "volumeMounts": {"type": "array", "items": closed({"name": STRING, "mountPath": STRING}, "name", "mountPath")},
        "lifecycle": closed(
            {"preStop": closed({"exec": closed({"command": {"type": "array", "items": STRING}}, "command")}, "exec")}
        ),
    },
    "name",
    "image",
)
TOLERATION = closed(
    {
        "key": STRING,
        "operator": {"enum": ["Equal", "Exists"]},
        "value": STRING,
        "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
    }
)
VOLUME = closed(
    {
        "name": STRING,
        "persistentVolumeClaim": closed({"claimName": STRING}, "claimName"),
        "emptyDir": closed({"medium": {"enum": ["", "Memory"]}, "sizeLimit": STRING}),
    },
    "name",
    minProperties=2,
    maxProperties=2,
)
POD = closed(
    {
        "spec": closed(
            {
                "containers": {"type": "array", "items": CONTAINER, "minItems": 1},
                "volumes": {"type": "array", "items": VOLUME},
                "tolerations": {"type": "array", "items": TOLERATION},
                "nodeSelector": STRINGS,
                "terminationGracePeriodSeconds": INTEGER,
            },
            "containers",
        )
    },
    "spec",
)
RAY_JOB = closed(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": closed({"name": {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,46}$"}}, "name"),
        "spec": closed(
            {
                "entrypoint": STRING,
                "backoffLimit": INTEGER,
                "shutdownAfterJobFinishes": BOOLEAN,
                "ttlSecondsAfterFinished": INTEGER,
                "rayClusterSpec": closed(
                    {
                        "rayVersion": STRING,
                        "authOptions": closed({"mode": {"enum": ["disabled", "token"]}, "secretName": STRING}),
                        "headGroupSpec": closed({"rayStartParams": STRINGS, "template": POD}, "template"),
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": closed(
                                {
                                    "groupName": STRING,
                                    "replicas": INTEGER,
                                    "minReplicas": INTEGER,
                                    "maxReplicas": INTEGER,
                                    "rayStartParams": STRINGS,
                                    "template": POD,
                                },
                                "groupName",
                                "minReplicas",
                                "maxReplicas",
                                "template",
                            ),
                        },
                    },
                    "headGroupSpec",
                ),
            },
            "rayClusterSpec",
        ),
    },
    "apiVersion",
    "kind",
    "metadata",
    "spec",
)
"""The fields used, of what KubeRay takes: RayJobSpec, RayClusterSpec and AuthOptions as in ray-operator/apis/ray/v1/
rayjob_types.go and raycluster_types.go of ray-project/kuberay (2026, with authOptions and the rocksdb backend), and the
core/v1 pod fields of Kubernetes."""


@pytest.fixture
def ray_job():
    return yaml.safe_load((DEPLOY / "kuberay_rayjob.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def launcher():
    return yaml.safe_load((DEPLOY / "launcher_aws.yaml").read_text(encoding="utf-8"))


def typed_in(command):
    """What a command line types after launch.py."""
    words = shlex.split(command)
    return words[words.index("launch.py") + 1 :]


# -------- KubeRay


def test_the_ray_job_has_fields_that_kuberay_knows_alone(ray_job):
    jsonschema.validate(ray_job, RAY_JOB)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(ray_job | {"spec": ray_job["spec"] | {"authOptions": {}}}, RAY_JOB)


def test_the_ray_jobs_cluster_asks_for_a_token_and_its_head_runs_no_trial(ray_job):
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["rayVersion"] == pinned("ray")


def test_a_pod_that_is_taken_away_has_time_to_drain(ray_job):
    for group in ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (DEPLOY / Path(command[1]).name).is_file()
        assert int(command[2]) < pod["terminationGracePeriodSeconds"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}


def test_the_ray_jobs_line_composes(ray_job):
    launch = checked(compose_choices(typed_in(ray_job["spec"]["entrypoint"])).tree)
    assert launch.cluster.address == "auto"
    assert launch.study_dir.startswith("/shared/")


def pinned(package):
    """The version of a package in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2].split()[0] for line in lines if line.startswith(f"{package}=="))


# -------- Ray's cluster launcher


def test_rays_own_schema_takes_the_launchers_file(launcher):
    validate_config(prepare_config(launcher))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(launcher | {"spot": True}))


def test_the_launchers_workers_are_spot_machines_and_its_head_is_not(launcher):
    types = launcher["available_node_types"]
    assert "InstanceMarketOptions" not in types[launcher["head_node_type"]]["node_config"]
    assert types[launcher["head_node_type"]]["resources"]["CPU"] == 0
    workers = [kind for name, kind in types.items() if name != launcher["head_node_type"]]
    assert all(kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot" for kind in workers)
    assert sum(kind["max_workers"] for kind in workers) == launcher["max_workers"]


def test_every_ray_that_the_launcher_starts_asks_for_a_token(launcher):
    commands = [*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]]
    starting = [command for command in commands if "ray start" in command]
    assert len(starting) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starting)
    assert "0.0.0.0" not in yaml.safe_dump(launcher)
    assert launcher["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for command in commands + launcher["setup_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


# -------- scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_valid_bash_and_stops_at_its_first_error(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    assert script.stat().st_mode & stat.S_IXUSR


@pytest.fixture
def machine(tmp_path):
    """A home with a checkout, and stand-ins for the commands of a cluster, which write down how they are called."""
    bin_dir, checkout = tmp_path / "bin", tmp_path / "heartsweep"
    bin_dir.mkdir()
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "activate").touch()
    stubs = {
        "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\nn3\\n"; fi',
        # runs what comes after its options, as srun does on one node
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "hostname": "echo 10.0.0.7 10.0.1.7",
        "ray": "exit ${RAY_STUB_EXITS:-0}",
        "sleep": "true",
    }
    for name, body in stubs.items():
        path = bin_dir / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/called"\n{body}\n', encoding="utf-8")
        path.chmod(0o755)
    return tmp_path


def run_script(machine, script, *arguments, **variables):
    """How a script ends on the machine, and the commands that it called."""
    called = machine / "called"
    called.unlink(missing_ok=True)
    environment = {
        "PATH": f"{machine / 'bin'}:{os.environ['PATH']}",
        "HOME": str(machine),
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_JOB_ID": "42",
    }
    ended = subprocess.run(
        ["bash", str(DEPLOY / script), *arguments],
        env=environment | variables,
        cwd=machine,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return ended, called.read_text(encoding="utf-8").splitlines() if called.exists() else []


@pytest.fixture
def token(machine):
    path = machine / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("0" * 64, encoding="ascii")
    path.chmod(0o644)
    return path


def test_slurm_runs_the_same_line_on_every_node_with_the_first_as_the_head(machine, token):
    ended, called = run_script(machine, "slurm.sh", "search=stmem_ptbxl", "data.root=/data with space")
    assert ended.returncode == 0, ended.stderr
    assert token.stat().st_mode & 0o077 == 0
    (line,) = [words for words in map(str.split, called) if words[0] == "ray"]
    before, after = line[: line.index("--")], line[line.index("--") + 1 :]
    assert before[1] == "symmetric-run"
    assert before[before.index("--address") + 1] == "10.0.0.7:6379"
    assert before[before.index("--min-nodes") + 1] == "3"
    assert {"--num-cpus=16", "--num-gpus=1"} <= set(before)
    assert after[0] == "timeout"
    assert after[-2:] == ["cluster=ray", "cluster.address=auto"]
    assert "search=stmem_ptbxl" in after
    assert not any(call.startswith("scontrol requeue") for call in called)


def test_slurm_starts_nothing_without_a_token(machine):
    ended, called = run_script(machine, "slurm.sh", "search=stmem_ptbxl")
    assert ended.returncode == 2
    assert "no token in" in ended.stderr
    assert called == []


def test_a_search_that_ran_out_of_slurms_time_is_put_in_the_queue_again(machine, token):
    ended, called = run_script(machine, "slurm.sh", "search=stmem_ptbxl", RAY_STUB_EXITS="124")
    assert ended.returncode == 124
    assert "scontrol requeue 42" in called
    ended, called = run_script(machine, "slurm.sh", "search=stmem_ptbxl", RAY_STUB_EXITS="1")
    assert ended.returncode == 1
    assert "scontrol requeue 42" not in called


def test_the_installed_ray_knows_what_the_scripts_type(machine):
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    for words in (["symmetric-run"], ["drain-node"], ["start"]):
        shown = subprocess.run([*ray, *words, "--help"], capture_output=True, text=True, check=True).stdout
        known = {
            "symmetric-run": ["--address", "--min-nodes"],
            "drain-node": ["--reason", "--reason-message", "--deadline-remaining-seconds", "PREEMPTION"],
            "start": ["--num-cpus", "--num-gpus", "--disable-usage-stats", "--dashboard-host", "--autoscaling-config"],
        }[words[0]]
        assert [option for option in known if option not in shown] == []


def test_a_spot_notice_drains_the_node(machine):
    notice = machine / "metadata"
    (notice / "latest" / "meta-data" / "spot").mkdir(parents=True)
    (notice / "latest" / "meta-data" / "spot" / "instance-action").write_text(json.dumps({"action": "terminate"}))
    ended, called = run_script(machine, "watch_for_spot_notice.sh", SPOT_METADATA=f"file://{notice}")
    assert ended.returncode == 0, ended.stderr
    (drained,) = [call for call in called if call.startswith("ray drain-node")]
    assert "--reason DRAIN_NODE_REASON_PREEMPTION" in drained
    assert "--deadline-remaining-seconds 110" in drained
