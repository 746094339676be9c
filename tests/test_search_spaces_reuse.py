"""Which searches can share pre-trainings, and how many different ones their spaces have."""

import itertools
import json

import pytest

from search_spaces.compose import compose_choices
from search_spaces.distributions import parse
from search_spaces.reuse import Shared, num_pretrainings, num_values, said_of_pretrainings, shared_by, why_not
from search_spaces.schema import checked

FINETUNE = {"task": {"finetune": {"lr": {"log_uniform": [1e-4, 1e-2]}}}}


def launched(*typed):
    return checked(compose_choices(["data=synthetic", "search.num_trials=8", *typed]).tree)


@pytest.mark.parametrize(
    ("leaf", "number"),
    [
        ({"choice": [1, 2, 3]}, 3),
        ({"uniform": [0.3, 0.9], "step": 0.1}, 7),
        ({"int_uniform": [8, 32], "step": 8}, 4),
        ({"log_int": [8, 64]}, 57),
        ({"uniform": [0.3, 0.9]}, None),
        ({"log_uniform": [1e-4, 1e-2]}, None),
    ],
)
def test_the_values_of_a_leaf_are_counted_unless_it_can_take_any(leaf, number):
    (only,) = parse({"key": leaf}).leaves
    assert num_values(only) == number


def test_a_search_of_fine_tuning_alone_has_one_pretraining():
    assert num_pretrainings(parse(FINETUNE)) == 1


def test_pretrainings_are_the_points_of_the_space_without_what_only_fine_tuning_reads():
    tree = {
        "model": {
            "choice": {"choice": ["a", "b", "c"]},
            "ratio": {"uniform": [0.2, 0.6], "step": 0.2, "when": {"kind": ["x", "y"]}},
        },
        "kind": {"choice": ["x", "y", "z"]},
        "deep": {"choice": [1, 2], "when": {"task.finetune.mode": "linprobe"}},
        "task": {"finetune": {"mode": {"choice": ["linprobe", "finetune"]}, "decay": {"choice": [0.5, 0.75]}}},
    }
    space = parse({key.removesuffix(".choice"): leaf for key, leaf in flattened(tree).items()})
    points = space.grid()
    of_pretraining = {
        json.dumps({key: value for key, value in point.items() if not key.startswith("task.finetune.")})
        for point in points
    }
    assert len(of_pretraining) < len(points)
    assert num_pretrainings(space) == len(of_pretraining) == 3 * (3 + 3 + 1) * (2 + 1)


def flattened(tree, before=""):
    leaves = {}
    for key, node in tree.items():
        if {"choice", "uniform"} & node.keys() and not isinstance(node.get("choice"), dict):
            leaves[before + key] = node
        else:
            leaves |= flattened(node, f"{before}{key}.")
    return leaves


def test_a_space_that_depends_on_nothing_is_a_product():
    leaves = {"a": {"choice": [1, 2]}, "b": {"uniform": [0.0, 1.0], "step": 0.25}, "c": {"choice": ["x", "y", "z"]}}
    assert num_pretrainings(parse(leaves)) == len(list(itertools.product(range(2), range(5), range(3))))


STEPS = (
    "space.model.mask_ratio={uniform: [0.3, 0.9], step: 0.15}",
    "space.task.pretrain.lr={choice: [1.0e-3, 2.0e-3]}",
)


def test_choices_on_steps_let_trials_share_and_the_limit_is_the_configurations():
    launch = launched("search=stmem_ptbxl", *STEPS, "search.reuse.max_gb=3")
    assert shared_by(launch) == Shared(pretraining=True, embeddings=True, max_bytes=3e9)
    assert not shared_by(launch, confirming=True).pretraining
    assert (
        said_of_pretrainings(launch) == "reuse: 10 different pre-trainings; trials with equal ones share their epochs"
    )


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (("search=stmem_ptbxl",), "space.model.mask_ratio and 1 more can take any value"),
        (("search=stmem_ptbxl", *STEPS, "search.reuse.pretraining=false"), "search.reuse.pretraining is false"),
        (("search=stmem_ptbxl", *STEPS, "storage=s3://bucket/study"), "with storage=URL they share no folder"),
        (("scheduler=pbt", "space.task.finetune.lr={log_uniform: [1.0e-4, 1.0e-2]}"), "each other's weights"),
    ],
)
def test_where_trials_share_nothing_the_reason_is_said(typed, reason):
    launch = launched(*typed)
    assert reason in why_not(launch)
    assert reason in said_of_pretrainings(launch)
    assert not shared_by(launch).pretraining


def test_of_trials_without_a_pretraining_nothing_is_said():
    launch = launched("search=stmem_ptbxl_finetune", "task.encoder=somewhere")
    assert said_of_pretrainings(launch) is None
    assert not shared_by(launch).pretraining


def test_a_search_whose_pretraining_is_fixed_shares_it_among_all_trials():
    launch = launched("task=joint", "space.task.finetune.lr={log_uniform: [1.0e-4, 1.0e-2]}")
    assert said_of_pretrainings(launch) == "reuse: all trials share one pre-training"
