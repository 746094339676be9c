"""What the cluster can hold, what Tune's results and errors are to the ledger, and where its scratch lies."""

import pickle
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import tuning
from search_spaces.compose import compose_choices
from search_spaces.schema import checked
from search_spaces.tuning import (
    LedgerScheduler,
    Places,
    Trouble,
    concurrency,
    error_of,
    gangs_on,
    scratch_folder,
    unflattened,
)
from trainables.failures import InterruptedTrial
from trainables.settings import Cluster
from trainables.study import StudyError, StudyFolder
from trainables.trial import resources_of


def cluster(**changes):
    shipped = checked(compose_choices(["search=stmem_ptbxl"]).tree).cluster
    return Cluster.model_validate(shipped.model_dump() | changes)


@pytest.mark.parametrize(
    ("changes", "nodes", "num_gpus", "at_a_time"),
    [
        ({}, [{"CPU": 2}], 0, 2),
        ({"cpus_per_worker": 3}, [{"CPU": 4}, {"CPU": 4}], 0, 2),  # a worker is never spread over two nodes
        ({"workers_per_trial": 2}, [{"CPU": 1}, {"CPU": 1}], 0, 1),  # a gang may be
        ({}, [{"CPU": 16, "GPU": 1}, {"CPU": 4}], 1, 1),  # CPUs without a GPU hold none
        ({}, [{"CPU": 16, "GPU": 2}], 0.25, 8),
        ({"workers_per_trial": 2, "placement": "spread"}, [{"CPU": 4}], 0, 2),  # where it can be
        ({"workers_per_trial": 2, "placement": "strict_pack"}, [{"CPU": 3}, {"CPU": 3}, {"CPU": 1}], 0, 2),
        ({"workers_per_trial": 2, "placement": "pack"}, [{"CPU": 3}, {"CPU": 3}, {"CPU": 1}], 0, 3),
        ({"workers_per_trial": 2, "placement": "strict_spread"}, [{"CPU": 8}, {"CPU": 1}], 0, 1),
        ({"workers_per_trial": 2, "placement": "strict_spread"}, [{"CPU": 2}, {"CPU": 1}, {"CPU": 1}], 0, 2),
        ({"workers_per_trial": 3, "placement": "strict_spread"}, [{"CPU": 4}] * 4, 0, 5),
        ({"memory_gb_per_worker": 3}, [{"CPU": 4, "memory": 10e9}, {"CPU": 4, "memory": 2e9}], 0, 3),
        ({"memory_gb_per_worker": 1}, [{"CPU": 4, "memory": 10e9}], 0, 4),
        ({"max_concurrent_trials": 3}, [{"CPU": 16}], 0, 3),
        ({"max_concurrent_trials": 30}, [{"CPU": 16}], 0, 16),
    ],
)
def test_as_many_trials_run_at_a_time_as_the_nodes_hold(changes, nodes, num_gpus, at_a_time):
    assert concurrency(cluster(**changes), nodes, num_gpus) == at_a_time


def test_a_trial_that_no_node_can_hold_is_refused_with_what_there_is():
    with pytest.raises(StudyError, match=r"needs 1 x \(8 CPU\), each on one node, .* have 4 CPU and 0 GPU; 4 CPU") as e:
        concurrency(cluster(cpus_per_worker=8), [{"CPU": 4}, {"CPU": 4}], 0)
    assert "\n" not in str(e.value)
    with pytest.raises(StudyError, match=r"\(1 CPU and 3 GB\), .* have 4 CPU and 0 GPU and 2 GB: .* what makes the m"):
        concurrency(cluster(memory_gb_per_worker=3), [{"CPU": 4, "memory": 2e9}], 0)
    with pytest.raises(StudyError, match=r"needs 2 x \(1 CPU and 1 GPU\)"):
        concurrency(cluster(workers_per_trial=2), [{"CPU": 16, "GPU": 1}], 1)


@pytest.mark.parametrize(
    ("placement", "nodes", "where"),
    [
        ("strict_pack", [{"CPU": 1}, {"CPU": 1}], "all on one node"),
        ("strict_spread", [{"CPU": 8}], "each on a node of its own"),
    ],
)
def test_a_placement_that_no_nodes_allow_is_refused_with_the_one_that_they_do(placement, nodes, where):
    gang = cluster(workers_per_trial=2, placement=placement)
    with pytest.raises(StudyError, match=rf"needs 2 x \(1 CPU\), {where}, .*cluster.placement={placement[7:]}$"):
        concurrency(gang, nodes, 0)
    assert concurrency(cluster(workers_per_trial=2, placement=placement[7:]), nodes, 0) >= 1


@settings(deadline=None)
@given(
    rooms=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    workers=st.integers(2, 4),
)
def test_gangs_that_are_spread_strictly_can_all_be_placed_and_one_more_cannot(rooms, workers):
    def placed(number):
        """Whether so many gangs fit when each takes the emptiest nodes, which is the best way."""
        left = sorted(rooms)
        for _ in range(number):
            left = sorted(left)
            if len(left) < workers or left[-workers] < 1:
                return False
            left[-workers:] = [room - 1 for room in left[-workers:]]
        return True

    number = gangs_on(rooms, workers, "strict_spread")
    assert placed(number)
    assert not placed(number + 1)


def test_a_worker_has_one_gpu_where_there_are_any_unless_told_otherwise():
    assert cluster().gpus_of_worker(0) == 0
    assert cluster().gpus_of_worker(4) == 1
    assert cluster(gpus_per_worker=0.25).gpus_of_worker(4) == 0.25
    assert cluster(gpus_per_worker=0).gpus_of_worker(4) == 0


@pytest.mark.parametrize("gpus", [-1, 1.5, float("nan"), float("inf")])
def test_gpus_that_ray_cannot_give_are_refused(gpus):
    with pytest.raises(ValueError, match="gpus_per_worker must be auto, a share of one GPU or a whole number"):
        cluster(gpus_per_worker=gpus)


def test_metrics_come_back_under_their_own_names():
    ours = {"epoch": 2, "stage": "pretrain", "seconds": 1.0, "value": None, "best_epoch": None, "finished": False}
    ours |= {"holds": [{"node": "n1"}]}
    flat = ours | {"reason": None, "metrics/val/auroc": 0.7, "metrics/train/loss": 1.0, "training_iteration": 2}
    told = ours | {"reason": None, "metrics": {"val/auroc": 0.7, "train/loss": 1.0}}
    assert unflattened(flat) == told | {"reused": None}
    assert unflattened(flat | {"reused": True}) == told | {"reused": True}


def test_the_process_that_has_become_free_goes_to_the_new_trial_and_not_to_one_whose_own_is_being_started():
    scheduler = LedgerScheduler(None, Trouble(), lambda: None, SimpleNamespace(resources=lambda: None), None)
    starting, new = (SimpleNamespace(status="PENDING", update_resources=lambda _: None) for _ in range(2))
    for trial in (starting, new):
        scheduler.on_trial_add(None, trial)
        assert scheduler.choose_trial_to_run(None) is trial
    assert scheduler.choose_trial_to_run(None) is None
    scheduler.on_trial_add(None, SimpleNamespace(status="TERMINATED", update_resources=lambda _: None))
    assert scheduler.choose_trial_to_run(None) is None


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_process_of_a_stopped_trial_is_told_to_give_back_what_it_holds(goes_on):
    told = []
    actor = SimpleNamespace(release=SimpleNamespace(remote=lambda: told.append("release")))
    trial = SimpleNamespace(config={"number": 3}, temporary_state=SimpleNamespace(ray_actor=actor))
    ledger = SimpleNamespace(report=lambda *_: goes_on, trials={3: SimpleNamespace(state="COMPLETE")})
    sentinel = SimpleNamespace(
        holds=lambda *_: None, stopped=lambda number, *, kept, paused: told.append((number, kept, paused))
    )
    scheduler = LedgerScheduler(ledger, Trouble(), lambda: None, None, sentinel)
    keys = ("epoch", "stage", "seconds", "value", "best_epoch", "finished", "reason", "holds")
    decision = scheduler.on_trial_result(None, trial, dict.fromkeys(keys))
    assert decision == ("CONTINUE" if goes_on else "STOP")
    assert told == ([] if goes_on else [(3, True, False), "release"])


def test_an_error_that_tune_keeps_as_text_alone_is_of_what_the_trial_runs_on(tmp_path):
    text = "Failure # 1 (occurred at 2026)\nTask was killed due to the node running low on memory.\n"
    (tmp_path / "error.txt").write_text(text)
    error = error_of(SimpleNamespace(pickled_error_file=None, error_file=tmp_path / "error.txt"))
    assert str(error) == "process_died: Task was killed due to the node running low on memory."


def test_an_error_that_tune_keeps_whole_is_read_as_it_was(tmp_path):
    (tmp_path / "error.pkl").write_bytes(pickle.dumps(InterruptedTrial("storage", "the disk is full", ("n1",))))
    error = error_of(SimpleNamespace(pickled_error_file=tmp_path / "error.pkl"))
    assert (error.cause, error.nodes) == ("storage", ("n1",))


# -------- where trials may run


@pytest.fixture
def nodes(monkeypatch):
    """The usable nodes of a cluster, by id; asked anew each time."""
    there = {"n1": {"CPU": 2.0}, "n2": {"CPU": 1.0}}
    monkeypatch.setattr(tuning, "usable_nodes", lambda: there)
    monkeypatch.setattr(tuning, "ASK_EVERY_S", -1.0)
    return there


def test_as_many_trials_run_as_the_nodes_hold_that_are_there_now(nodes, caplog):
    places = Places(cluster())
    assert places.room() == 3
    nodes["n3"] = {"CPU": 4.0}
    assert places.room() == 7
    nodes.clear()
    assert places.room() == 0  # until one joins
    assert "the cluster now has room for 0 trials at a time, before 7" in caplog.text
    nodes["n4"] = {"CPU": 1.0}
    assert places.room() == 1


def test_a_node_whose_disk_is_full_is_avoided_unless_it_is_the_only_one(nodes):
    places = Places(cluster())
    places.avoid(InterruptedTrial("process_died", "it was killed", ("n1",)))
    assert not places.avoided
    places.avoid(InterruptedTrial("storage", "the disk is full", ("n1",)))
    assert places.avoided == {"n1"}
    assert places.room() == 1
    assert places.resources() == resources_of(cluster(), 0, avoid=frozenset({"n1"}))
    assert places.resources() != resources_of(cluster(), 0)
    places.avoid(InterruptedTrial("storage", "the disk is full", ("n2",)))
    assert places.avoided == {"n1"}


def test_tunes_scratch_is_nobody_elses_and_what_a_killed_driver_left_there_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning.tempfile, "gettempdir", lambda: str(tmp_path))
    study = StudyFolder(tmp_path / "study")
    with scratch_folder(study) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "left").touch()
        killed = shutil.copytree(folder, tmp_path / "killed")
    assert not folder.exists()
    killed.rename(folder)
    with scratch_folder(study) as again:
        assert again == folder
        assert not any(folder.iterdir())
    with scratch_folder(StudyFolder(tmp_path / "another")) as other:
        assert other != folder
