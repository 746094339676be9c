"""What a search may cost: the records counted, the steps multiplied, the trials laid side by side."""

import pytest
import torch

from search_spaces import estimate as estimate_module
from search_spaces.compose import compose_choices
from search_spaces.estimate import estimate
from search_spaces.schema import checked

SMALL = ("scale=laptop", "data=synthetic", "data.reader.num_patients=30", "data.window_s=1.2", "cluster.num_cpus=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture
def cost_of(folder, monkeypatch):
    """Estimates on a machine without a GPU on which every epoch takes a second."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(estimate_module, "_seconds", lambda *arguments, **views: 1.0)
    return lambda *typed: estimate(
        checked(compose_choices(["search=stmem_ptbxl", *SMALL, f"data.root={folder}", *typed]).tree)
    )


def test_a_search_costs_its_epochs_times_its_trials(cost_of):
    cost = cost_of("task.pretrain.num_epochs=3", "task.finetune.num_epochs=4", "search.num_trials=10")
    assert (cost.trial_seconds, cost.num_trials, cost.at_a_time) == (7.0, 10, 4)
    assert cost.search_seconds == 21.0  # three rounds
    assert cost.device_hours == pytest.approx(70 / 3600)


def test_a_confirmation_begins_after_the_last_trial_and_costs_its_trainings(cost_of):
    epochs = ("task.pretrain.num_epochs=3", "task.finetune.num_epochs=4", "search.num_trials=10")
    cost = cost_of(*epochs, "search.confirm.top_k=2", "search.confirm.seeds=3")
    assert (cost.num_confirmation_runs, cost.runs) == (6, "10 trials and 6 confirmation runs")
    assert cost.search_seconds == 21.0 + 14.0  # two rounds more
    assert cost.device_hours == pytest.approx((70 + 42) / 3600)
    assert cost_of(*epochs, "search.num_trials=1", "search.confirm.top_k=5").num_confirmation_runs == 3


def test_workers_share_a_trial_and_take_room_from_others(cost_of):
    cost = cost_of("task.pretrain.num_epochs=3", "task.finetune.num_epochs=4", "cluster.workers_per_trial=2")
    assert (cost.trial_seconds, cost.at_a_time) == (3.5, 2)
    assert cost_of("cluster.workers_per_trial=9").at_a_time == 1
    assert cost_of("cluster.max_concurrent_trials=3").at_a_time == 3
    assert cost_of("cluster.cpus_per_worker=2").at_a_time == 2


def test_a_stage_alone_costs_itself(cost_of):
    epochs = ("task.pretrain.num_epochs=3", "task.finetune.num_epochs=4")
    assert cost_of("task=pretrain", *epochs).trial_seconds == 3.0
    assert cost_of("task=finetune", "task.finetune.mode=scratch", *epochs).trial_seconds == 4.0


def test_a_linear_probe_passes_its_encoder_once(cost_of):
    epochs = ("task.pretrain.num_epochs=3", "task.finetune.num_epochs=40")
    assert cost_of("task.finetune.mode=linprobe", *epochs).trial_seconds == 4.0


def test_a_grid_has_as_many_trials_as_points(cost_of):
    cost = cost_of("space=none", "sampler=grid", "model.mask_ratio=0.75,0.5", "task.finetune.layer_decay=0.75,1.0")
    assert cost.num_trials == 4


def test_training_records_are_counted_after_patients_are_drawn(cost_of):
    everyone = cost_of("data.max_train_patients=null").num_records
    assert 24 <= everyone < 60  # of 30 patients, eight tenths train, some with more than one record
    assert cost_of("data.max_train_patients=12").num_records == round(everyone / 2)


def test_k_folds_cost_k_models_that_train_on_all_but_one_of_them(cost_of):
    epochs = ("task.pretrain.num_epochs=3", "task.finetune.num_epochs=4", "data.max_train_patients=null")
    one, five, nine = (cost_of(f"task.folds={folds}", *epochs) for folds in (1, 5, 9))
    assert (one.trial_seconds, five.trial_seconds) == (7.0, 35.0)
    assert nine.device_hours == pytest.approx(9 * one.device_hours)
    assert five.num_records == round(nine.num_records * 9 / 8 * 4 / 5)
    assert cost_of("task.folds=5", "data.max_train_patients=6").num_records < one.num_records / 2


def test_fine_tuning_takes_the_labelled_records_alone(folder, monkeypatch):
    counts = {}
    monkeypatch.setattr(
        estimate_module,
        "_seconds",
        lambda _, stage, records, *__, **___: counts.setdefault(type(stage).__name__, records),
    )
    typed = ["search=stmem_ptbxl", *SMALL, "task.labels=superdiagnostic_single", f"data.root={folder}"]
    cost = estimate(checked(compose_choices(typed).tree))
    assert 0 < counts["Finetune"] < counts["Pretrain"] == cost.num_records


def test_there_is_no_estimate_before_the_recordings_can_be_counted(tmp_path):
    assert estimate(checked(compose_choices(["search=stmem_ptbxl", f"data.root={tmp_path}"]).tree)) is None


@pytest.mark.parametrize("mode", ["finetune", "linprobe"])
def test_steps_are_timed_here_and_leave_the_number_of_threads_as_it_was(folder, mode):
    brief = (
        "data.leads=[II]",
        "task.pretrain.batch_size=4",
        "task.finetune.batch_size=4",
        f"task.finetune.mode={mode}",
    )
    typed = ["search=stmem_ptbxl", *SMALL, *brief, f"data.root={folder}", "cluster.cpus_per_worker=2"]
    threads = torch.get_num_threads()
    cost = estimate(checked(compose_choices(typed).tree))
    assert 0 < cost.trial_seconds < 600
    assert cost.device_hours == pytest.approx(cost.trial_seconds * 12 / 3600)
    assert torch.get_num_threads() == threads != 2


def test_gpus_of_this_machine_limit_how_many_trials_run_at_a_time(cost_of, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch = checked(compose_choices(["search=stmem_ptbxl", *SMALL]).tree)
    assert estimate_module._at_a_time(launch.cluster) == 2
    halves = launch.cluster.model_copy(update={"gpus_per_worker": 0.5})
    assert estimate_module._at_a_time(halves) == 4
    assert estimate_module._at_a_time(launch.cluster.model_copy(update={"gpus_per_worker": 0})) == 4


def test_two_views_are_timed_as_two(monkeypatch, folder):
    shapes = []
    monkeypatch.setattr(estimate_module, "_seconds", lambda *_, num_views=1: shapes.append(num_views) or 1.0)
    typed = ["search=simclr_ptbxl", *SMALL, f"data.root={folder}", "task=pretrain"]
    estimate(checked(compose_choices(typed).tree))
    assert shapes == [2]


def test_every_method_can_be_timed(folder):
    for search in ("simclr", "jepa", "meclip", "clocs"):
        typed = [f"search={search}_ptbxl", *SMALL, f"data.root={folder}", "task.pretrain.batch_size=4", "task=pretrain"]
        assert estimate(checked(compose_choices(typed).tree)).trial_seconds > 0
