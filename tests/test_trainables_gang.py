"""Trials of two workers on a Ray cluster of several nodes, as a search is typed, against one process on one machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parent.parent
TINY = [
    "search=stmem_ptbxl",
    "scale=laptop",
    "data=synthetic",
    "data.reader.num_patients=150",
    "data.max_train_patients=null",
    "data.max_valid_patients=null",
    "data.leads=[I,II,V2]",
    "data.window_s=3.0",
    "task.pretrain.num_epochs=2",
    "task.finetune.num_epochs=3",
    "scheduler=fifo",
    "evaluate.num_resamples=50",
    "study_dir=study",
]


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory):
    """The address of a cluster of three nodes of one CPU, and a head without any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # it is on loopback and ends with this module
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0},
        )
        try:
            for _ in range(3):
                cluster.add_node(num_cpus=1)
            yield cluster.address
        finally:
            cluster.shutdown()


def launched(folder, *typed):
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), *typed],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
