"""What the report says of how a study ran."""

from reports.folder import Study, Trial
from reports.search.operation import operation, said_of_reuse


def study(*events, failed=None):
    trials = [
        Trial(number, "FAIL" if number == failed else "COMPLETE", None, 1, 1.0, reason, {}, ())
        for number, reason in enumerate([None, "process_died, 4 times: it was killed"])
    ]
    return Study("s", {}, tuple(events), 0, tuple(trials), {}, {}, {})


def interrupted(trial, cause, *, counts=False):
    return {"event": "trial_interrupted", "trial": trial, "cause": cause, "counts": counts}


def test_interruptions_are_counted_by_cause_with_the_trials_that_they_hit():
    found = operation(
        study(
            {"event": "study_started"},
            {"event": "study_resumed"},
            {"event": "epoch", "nodes": ["n1", "n2"]},
            {"event": "epoch", "nodes": ["n2"]},
            {"event": "epoch"},  # of a study of an earlier version
            interrupted(0, "node_lost"),
            interrupted(1, "process_died", counts=True),
            interrupted(1, "node_lost", counts=True),
            failed=1,
        )
    )
    assert (found["sessions"], found["nodes"], found["gave_up"]) == (2, 2, [1])
    assert found["interruptions"] == [
        {"cause": "a machine was lost", "number": 2, "trials": [0, 1], "counted": 1},
        {"cause": "a process died", "number": 1, "trials": [1], "counted": 1},
    ]
    assert found["released"] is None


def test_what_the_sessions_left_behind_is_added_up():
    first = {"event": "released", "stops": 3, "gone": 9, "longest_s": 0.4, "left": []}
    second = {"event": "released", "stops": 1, "gone": 2, "longest_s": 2.0, "left": ["actor a1 on node n1"]}
    found = operation(study(first, second))
    assert found["released"] == {"stops": 4, "gone": 11, "longest_s": 2.0, "left": ["actor a1 on node n1"]}
    assert found["interruptions"] == []


def epoch(trial, seconds, **marks):
    return {"event": "epoch", "trial": trial, "seconds": seconds, "nodes": [], **marks}


def test_the_hit_rate_of_shared_pretrainings_is_of_trials_and_of_epochs():
    found = operation(
        study(
            epoch(0, 1800.0, reused=False),
            epoch(0, 5400.0, reused=False),
            epoch(0, 9.0),  # of its fine-tuning
            *(epoch(1, 0.0, reused=True) for _ in range(2)),
            epoch(2, 0.0, reused=True),
        )
    )["reuse"]
    assert found == {"trials": 3, "hits": 2, "epochs": 5, "reused": 3, "seconds": 3 * 3600.0}
    assert said_of_reuse(found) == (
        "2 of 3 trials went on from a pre-training that another had made; 3 of 5 pre-training epochs were not computed "
        "again, about 3 hours of computing"
    )


def test_a_study_that_shares_nothing_says_nothing_of_it_and_one_without_a_hit_does():
    assert operation(study(epoch(0, 1.0)))["reuse"] is None
    assert "0 of 1 trials" in said_of_reuse(operation(study(epoch(0, 1.0, reused=False)))["reuse"])
