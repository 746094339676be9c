"""How many trials share a machine: the arithmetic, the largest run of a space, and one search that is packed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.compose import compose_choices
from search_spaces.distributions import parse
from search_spaces.packing import MARGIN, MOST_PER_GPU, largest_run, share_of_gpu, shared_out, step_bytes
from search_spaces.schema import checked
from search_spaces.tuning import concurrency
from trainables.peak import Need
from trainables.settings import Cluster
from trainables.study import StudyError

REPOSITORY = Path(__file__).parent.parent
GB = 10**9


def cluster(**changes):
    shipped = checked(compose_choices(["search=stmem_ptbxl"]).tree).cluster
    return Cluster.model_validate(shipped.model_dump() | {"packing": "measured"} | changes)


@settings(deadline=None)
@given(takes=st.integers(1, 100 * GB), total=st.integers(8 * GB, 200 * GB), gpus=st.integers(1, 16))
def test_all_that_share_a_gpu_fit_into_it_and_ray_gives_as_many_shares_as_fit(takes, total, gpus):
    share = share_of_gpu(Need(GB, takes, total))
    per_gpu = int(1 / share)
    assert share == round(share, 4)
    assert 1 <= per_gpu <= MOST_PER_GPU
    assert per_gpu * share <= 1
    if per_gpu > 1:
        assert per_gpu * takes * (1 + MARGIN) <= total + 1
    if per_gpu < MOST_PER_GPU:  # one more would not
        assert (per_gpu + 1) * takes * (1 + MARGIN) > total - 1
    node = {"CPU": 1000.0, "GPU": float(gpus)}
    assert concurrency(cluster(), [node], share) == gpus * per_gpu


def test_without_a_gpu_there_is_no_share():
    assert share_of_gpu(Need(GB)) == 0.0


@settings(deadline=None)
@given(
    takes=st.integers(10**6, 20 * GB),
    nodes=st.lists(st.tuples(st.integers(1, 64), st.integers(20, 500)), min_size=1, max_size=4),
    most=st.integers(1, 100),
)
def test_no_more_trials_run_than_fit_in_memory_and_no_more_threads_than_there_are_cpus(takes, nodes, most):
    there = [{"CPU": float(cpus), "memory": memory * 1.3 * GB} for cpus, memory in nodes]
    given_out = shared_out(cluster(), Need(takes), there, num_gpus=0.0, most=most)
    for node in there:
        at_a_time = concurrency(given_out, [node], 0.0)
        assert at_a_time * given_out.cpus_per_worker <= node["CPU"]
        assert at_a_time * takes * (1 + MARGIN) <= node["memory"]
    assert concurrency(given_out, there, 0.0) >= 1


@pytest.mark.parametrize(
    ("changes", "need", "nodes", "num_gpus", "most", "threads", "at_a_time"),
    [
        ({}, Need(GB), [{"CPU": 2.0, "memory": 4 * GB}], 0.0, 50, 1, 2),
        ({}, Need(2 * GB), [{"CPU": 2.0, "memory": 4 * GB}], 0.0, 50, 2, 1),  # one fits: it has both CPUs
        ({}, Need(GB), [{"CPU": 16.0, "memory": 7 * GB}], 0.0, 50, 3, 5),
        ({"cpus_per_worker": 4}, Need(GB), [{"CPU": 16.0, "memory": 70 * GB}], 0.0, 50, 4, 4),  # the least
        ({}, Need(GB), [{"CPU": 16.0, "memory": 70 * GB}], 0.0, 4, 4, 4),  # there are no more trials
        ({}, Need(GB), [{"CPU": 16.0, "memory": 70 * GB, "GPU": 1.0}], 0.25, 50, 4, 4),
        ({}, Need(GB), [{"CPU": 16.0, "memory": 70 * GB}, {"CPU": 4.0, "memory": 3 * GB}], 0.0, 50, 1, 18),
    ],
)
def test_threads_are_shared_out(changes, need, nodes, num_gpus, most, threads, at_a_time):
    given_out = shared_out(cluster(**changes), need, nodes, num_gpus=num_gpus, most=most)
    assert given_out.cpus_per_worker == threads
    assert min(most, concurrency(given_out, nodes, num_gpus)) == at_a_time


def test_a_trial_that_fits_on_no_node_is_refused_with_what_it_takes():
    with pytest.raises(StudyError, match=r"needs 1 x \(1 CPU and 12 GB\), .* have 2 CPU and 0 GPU and 4 GB"):
        shared_out(cluster(), Need(10 * GB), [{"CPU": 2.0, "memory": 4 * GB}], num_gpus=0.0, most=5)


def test_a_gang_is_not_packed():
    with pytest.raises(ValueError, match="packing must be none and memory_gb_per_worker null"):
        cluster(workers_per_trial=2)


SPACE = (
    "search=stmem_ptbxl",
    "scale=laptop",
    "data=synthetic",
    "space.model.mask_ratio={uniform: [0.3, 0.9]}",
    "space.task.pretrain.batch_size={choice: [8, 16]}",
    "space.data.window_s={choice: [3.0, 9.0, 6.0]}",
)


def test_the_largest_run_has_each_choice_at_the_end_that_takes_more():
    launch = checked(compose_choices(SPACE).tree)
    run = largest_run(launch, parse(launch.space))
    assert (run.task.pretrain.batch_size, run.data.window_s) == (16, 9.0)
    assert run.model.arguments["mask_ratio"] == 0.3  # fewer patches are left out of the encoder


def test_choices_that_cannot_go_together_are_passed_over():
    rates = "space.task.pretrain.min_lr={choice: [0.0, 9.0]}"  # the second lies above the peak rate
    launch = checked(compose_choices([*SPACE, rates]).tree)
    assert largest_run(launch, parse(launch.space)).task.pretrain.min_lr == 0.0


def test_a_rate_changes_nothing_of_what_a_step_takes_and_a_batch_does():
    sizes = []
    for typed in ("task.finetune.lr=0.5", "task.pretrain.weight_decay=0.3", "task.pretrain.batch_size=16"):
        sizes.append(step_bytes(checked(compose_choices([*SPACE, typed]).tree).run))
    assert sizes[0] == sizes[1] < sizes[2] < 2 * sizes[1]


@pytest.mark.cluster
def test_a_packed_search_measures_first_and_sets_the_memory_aside(tmp_path):
    tiny = ["data.reader.num_patients=100", "data.leads=[II,V2]", "data.window_s=3.0", "task.pretrain.num_epochs=1"]
    typed = ["search=stmem_ptbxl", "scale=laptop", "data=synthetic", *tiny, "task.finetune.num_epochs=1"]
    budget = ["search.num_trials=2", "scheduler=fifo", "cluster.packing=measured", "cluster.num_cpus=2"]
    patients = ["data.max_train_patients=null", "data.max_valid_patients=null", "evaluate.num_resamples=20"]
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), *typed, *budget, *patients, "study_dir=study"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (said,) = [line for line in ended.stdout.splitlines() if line.startswith("packing: ")]
    assert "(measured; 20% more is set aside), so " in said
    events = [json.loads(line) for line in (tmp_path / "study" / "events.jsonl").read_text().splitlines()]
    assert [event["state"] for event in events if event["event"] == "trial_ended"] == ["COMPLETE", "COMPLETE"]
