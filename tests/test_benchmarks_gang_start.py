"""benchmarks/gang_start.py without Ray: what its gangs run, and how their parts are told apart."""

import json
from types import SimpleNamespace


def test_every_worker_has_one_result_and_the_weights_of_its_epoch(benchmark, tmp_path):
    run = SimpleNamespace(task=SimpleNamespace(num_epochs=3))
    (result,) = benchmark.EmptyGangTrial.loop(SimpleNamespace(run=run, folder=tmp_path, metric="val/auroc"), None)
    assert result["finished"]
    assert result["epoch"] == 3
    assert (tmp_path / "best-0003.safetensors").exists()


def test_each_part_of_a_trial_begins_where_the_one_before_was_over(benchmark, tmp_path):
    start = 1_700_000_000.0
    over = {part: start + 2.0**place for place, part in enumerate(benchmark.PARTS)}
    (tmp_path / "7.json").write_text(json.dumps(over))
    events = [
        {"event": "trial_started", "trial": 7, "time": "2023-11-14T22:13:20.000+00:00"},
        {"event": "trial_ended", "trial": 7, "time": "2023-11-14T22:15:20.000+00:00"},
    ]
    (found,) = benchmark.seconds_of_parts(events, tmp_path)
    assert list(found.values()) == [1, 1, 2, 4, 8, 16, 32]
    assert list(found) == list(benchmark.PARTS)


def test_a_part_is_over_when_its_first_call_ends(benchmark):
    trial = SimpleNamespace(over={})
    timed = benchmark.EmptyGangTrial.timed(trial, lambda x: x + 1, "workers")
    assert timed(1) == 2
    first = trial.over["workers"]
    assert timed(2) == 3
    assert trial.over == {"workers": first}
