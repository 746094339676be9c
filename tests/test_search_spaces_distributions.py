"""From a leaf in YAML to Optuna and back, and what is tried of a space before the first trial."""

import copy
import math

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from search_spaces.compose import compose_choices
from search_spaces.distributions import apply, check_space, decoded, encoded, leaves_of, parse, settled
from search_spaces.schema import ChoiceError, checked, dotted
from trainables import components
from trainables.components import build_encoder

JOB = ["search=stmem_ptbxl", "scale=laptop", "data=synthetic"]


def leaf(written, key="x"):
    return parse({key: written}).leaves[0]


def refusal(function, *arguments):
    with pytest.raises(ChoiceError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def study_of(seed=0):
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


# -------- leaves


@pytest.mark.parametrize(
    ("written", "distribution", "text"),
    [
        ({"uniform": [0.3, 0.9]}, FloatDistribution(0.3, 0.9), "{uniform: [0.3, 0.9]}"),
        ({"uniform": [0, 1], "step": 0.1}, FloatDistribution(0, 1, step=0.1), "{uniform: [0.0, 1.0], step: 0.1}"),
        ({"log_uniform": [1e-4, 1]}, FloatDistribution(1e-4, 1, log=True), "{log_uniform: [0.0001, 1.0]}"),
        ({"uniform": [0, 3], "step": 1}, FloatDistribution(0, 3, step=1), "{uniform: [0.0, 3.0], step: 1.0}"),
        ({"int_uniform": [1, 8]}, IntDistribution(1, 8), "{int_uniform: [1, 8]}"),
        ({"int_uniform": [2, 8], "step": 2}, IntDistribution(2, 8, step=2), "{int_uniform: [2, 8], step: 2}"),
        ({"log_int": [1, 1000]}, IntDistribution(1, 1000, log=True), "{log_int: [1, 1000]}"),
        ({"choice": ["a", None, True]}, CategoricalDistribution(["a", None, True]), "{choice: [a, null, true]}"),
        ({"choice": [0.5]}, CategoricalDistribution([0.5]), "{choice: [0.5]}"),
        ({"uniform": [-1, 1], "choice": None}, FloatDistribution(-1, 1), "{uniform: [-1.0, 1.0]}"),
    ],
)
def test_a_leaf_is_a_distribution_of_optuna(written, distribution, text):
    assert leaf(written).distribution == distribution
    assert leaf(written).text == text


def test_lists_and_mappings_are_held_as_text():
    written = {"choice": [["I", "II"], {"a": 1}, "x"]}
    assert leaf(written).distribution == CategoricalDistribution(['["I", "II"]', '{"a": 1}', "x"])
    assert leaf(written).text == '{choice: [["I", "II"], {"a": 1}, x]}'


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (0.5, "space.x: must be a distribution such as {uniform: [LOW, HIGH]} or {choice: [A, B]}, got 0.5"),
        ([1, 2], "space.x: must be a distribution such as"),
        ({"uniform": [0, 1], "choice": [0]}, "space.x: must hold exactly one distribution, got uniform and choice"),
        ({"uniform": [0, 1], "setp": 1}, "space.x: no such distribution setp"),
        ({"uniform": [0.9, 0.3]}, "space.x: uniform must be [LOW, HIGH] with LOW below HIGH, got [0.9, 0.3]"),
        ({"uniform": [0.3, 0.3]}, "space.x: uniform must be [LOW, HIGH] with LOW below HIGH, got [0.3, 0.3]"),
        ({"uniform": [0.3]}, "space.x: uniform must be [LOW, HIGH], got [0.3]"),
        ({"uniform": "ab"}, "space.x: uniform must be [LOW, HIGH], got 'ab'"),
        ({"uniform": 3}, "space.x: uniform must be [LOW, HIGH], got 3"),
        ({"uniform": ["a", 1]}, "space.x: an end of uniform must be a finite number, got 'a'"),
        ({"uniform": [0, math.inf]}, "space.x: an end of uniform must be a finite number, got inf"),
        ({"uniform": [False, 1]}, "space.x: an end of uniform must be a finite number, got False"),
        ({"int_uniform": [1, 2.5]}, "space.x: an end of int_uniform must be a whole number, got 2.5"),
        ({"log_uniform": [0, 1]}, "space.x: log_uniform must lie above 0, got [0, 1]"),
        ({"log_int": [-1, 5]}, "space.x: log_int must lie above 0, got [-1, 5]"),
        ({"uniform": [1e-6, 0.3]}, "space.x: a range over two decades must be log_uniform, got uniform: [1e-06, 0.3]"),
        ({"int_uniform": [1, 101]}, "space.x: a range over two decades must be log_int, got int_uniform: [1, 101]"),
        ({"uniform": [0, 1], "step": 0.3}, "space.x: step must be positive and divide 1 - 0, got 0.3"),
        ({"uniform": [0, 1], "step": 0}, "space.x: step must be positive and divide 1 - 0, got 0"),
        ({"uniform": [0, 1], "step": 2}, "space.x: step must be positive and divide 1 - 0, got 2"),
        ({"uniform": [0, 1], "step": "a"}, "space.x: step must be a finite number, got 'a'"),
        ({"int_uniform": [0, 4], "step": 0.5}, "space.x: step must be a whole number, got 0.5"),
        ({"log_uniform": [1, 2], "step": 1}, "space.x: step goes with uniform and int_uniform, got log_uniform"),
        ({"choice": []}, "space.x: choice must be a list of values, got []"),
        ({"choice": 3}, "space.x: choice must be a list of values, got 3"),
        ({"choice": [1, 1.0]}, "space.x: choice must hold every value once, got [1, 1.0]"),
        ({"choice": [[1], [1]]}, "space.x: choice must hold every value once, got [[1], [1]]"),
        ({"choice": [math.nan]}, "space.x: choice must hold finite numbers, got nan"),
        ({"choice": ["[1]"]}, "space.x: choice holds the text '[1]'; write a list or a mapping without quotes"),
        ({"choice": [b"a"]}, "space.x: choice must hold numbers, texts, lists or mappings, got b'a'"),
        ({"choice": [1], "when": 3}, "space.x: when must be {OTHER.KEY: VALUE or [VALUES]}, got 3"),
        ({"choice": [1], "when": {}}, "space.x: when must be {OTHER.KEY: VALUE or [VALUES]}, got {}"),
        ({"choice": [1], "when": {"y": 1}}, "space.x: when y: not searched; there is none"),
        ({"choice": [1], "when": {"x": 1}}, "space.x: its condition depends on itself, through x <- x"),
    ],
)
def test_a_leaf_that_cannot_be_is_refused_in_one_line(written, expected):
    assert refusal(parse, {"x": written}).startswith(expected)


def test_two_decades_are_not_over_two_decades():
    assert leaf({"uniform": [0.01, 1]}).distribution == FloatDistribution(0.01, 1)


def test_a_range_from_zero_has_no_number_of_decades():
    assert leaf({"uniform": [0, 1000]}).distribution == FloatDistribution(0, 1000)


def test_leaves_are_found_in_nested_and_in_dotted_trees_and_null_ones_are_not_searched():
    nested = {"a": {"b": {"uniform": [0, 1]}, "c": None, "d": {"choice": None}}, "e": {}}
    assert leaves_of(nested) == {"a.b": {"uniform": [0, 1]}}
    assert leaves_of(leaves_of(nested)) == leaves_of(nested)


def test_a_group_is_chosen_by_a_list_or_by_a_choice_with_its_keys_beside_it():
    assert leaves_of({"model": ["a", "b"]}) == {"model": {"choice": ["a", "b"]}}
    assert leaves_of({"model": {"choice": ["a", "b"], "x": {"uniform": [0, 1]}}}) == {
        "model": {"choice": ["a", "b"]},
        "model.x": {"uniform": [0, 1]},
    }


# -------- conditions

CONDITIONAL = {
    "opt.momentum": {"uniform": [0.5, 0.99], "when": {"opt.name": "sgd"}},
    "opt.name": {"choice": ["adamw", "sgd"], "when": {"stage": [1, 2]}},
    "stage": {"choice": [0, 1, 2]},
}


def test_leaves_come_after_those_that_they_depend_on():
    assert [leaf.key for leaf in parse(CONDITIONAL).leaves] == ["stage", "opt.name", "opt.momentum"]


@pytest.mark.parametrize(
    ("point", "asked"),
    [
        ({"stage": 0}, {"stage"}),
        ({"stage": 1, "opt.name": "adamw"}, {"stage", "opt.name"}),
        ({"stage": 2, "opt.name": "sgd", "opt.momentum": 0.9}, {"stage", "opt.name", "opt.momentum"}),
    ],
)
def test_a_leaf_whose_condition_does_not_hold_is_not_asked_for(point, asked):
    assert set(parse(CONDITIONAL).ask(FixedTrial(point))) == asked


def test_a_condition_must_name_a_choice_and_one_of_its_values():
    on_a_range = {"y": {"uniform": [0, 1]}, "x": {"choice": [1], "when": {"y": 0.5}}}
    assert refusal(parse, on_a_range) == "space.x: when y: must be a choice, got {uniform: [0.0, 1.0]}"
    on_no_value = {"y": {"choice": ["a", "b"]}, "x": {"choice": [1], "when": {"y": ["a", "c"]}}}
    assert refusal(parse, on_no_value) == "space.x: when y: must be among a, b, got c"


def test_conditions_in_a_circle_are_refused():
    circle = {"x": {"choice": [1], "when": {"y": 1}}, "y": {"choice": [1], "when": {"x": 1}}}
    assert refusal(parse, circle) == "space.x: its condition depends on itself, through x <- y <- x"


@pytest.mark.parametrize(
    ("run", "choices", "kept"),
    [
        ({"a": 1, "b": 2, "c": 3}, {"model": "m"}, {"b": {"choice": [1]}, "c": {"choice": [2], "when": {"b": 1}}}),
        ({"a": 0, "b": 2, "c": 3}, {"model": "m"}, {}),
        ({"a": 1, "b": 2, "c": 3}, {"model": "n"}, {}),
        ({"a": True, "b": 2, "c": 3}, {"model": "m"}, {}),
    ],
)
def test_a_condition_on_what_is_not_searched_is_decided_by_the_run(run, choices, kept):
    leaves = {"c": {"choice": [2], "when": {"b": 1}}, "b": {"choice": [1], "when": {"a": [1, 5], "model": "m"}}}
    assert settled(leaves, run, choices) == kept


def test_a_condition_on_a_key_that_there_is_not_is_refused():
    told = refusal(settled, {"lr": {"choice": [2], "when": {"optimzer": 1}}}, {"optimizer": 1, "lr": 2}, {})
    assert told == "space.lr: when optimzer: no such key; did you mean optimizer?"


# -------- points


def test_defaults_are_the_runs_own_values_as_optuna_keeps_them():
    space = parse(
        {
            "a.b": {"choice": [[1], [2]]},
            "c": {"uniform": [0, 1]},
            "d": {"choice": [1], "when": {"c2": 1}},
            "c2": {"choice": [0, 1]},
        }
    )
    assert space.defaults({"a": {"b": [2]}, "c": 0.25, "c2": 0, "d": 1}) == {"a.b": "[2]", "c": 0.25, "c2": 0}


def test_the_default_of_a_group_is_the_option_that_the_run_holds():
    tree = {"model": {"x": 2}, "options": {"model": {"one": {"x": 1}, "two": {"x": 2}}}}
    assert parse({"model": ["one", "two"]}).defaults(tree) == {"model": "two"}


def test_a_queued_default_is_trial_zero_and_comes_back_decoded():
    space = parse(
        {"leads": {"choice": [["I"], ["I", "II"]]}, "lr": {"log_uniform": [1e-4, 1e-2]}, "n": {"int_uniform": [1, 9]}}
    )
    tree = {"leads": ["I", "II"], "lr": 1e-3, "n": 3}
    study = study_of()
    study.enqueue_trial(space.defaults(tree))
    trial = study.ask()
    assert space.ask(trial) == tree
    assert space.values(trial.params) == tree


def test_a_grid_holds_every_combination_once_and_no_leaf_whose_condition_does_not_hold():
    space = parse(
        {
            "b": {"choice": ["x", "y"], "when": {"a": 2}},
            "a": {"choice": [1, 2, 3]},
            "c": {"uniform": [0.1, 0.3], "step": 0.1},
        }
    )
    points = space.grid()
    assert len(points) == (1 + 2 + 1) * 3
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    assert all(("b" in point) == (point["a"] == 2) for point in points)
    assert {point["c"] for point in points} == {0.1, 0.2, 0.3}


def test_each_point_of_a_grid_can_be_queued_and_is_tried_as_it_is():
    space = parse({"leads": {"choice": [["I"], ["II"]]}, "x": {"uniform": [0, 0.6], "step": 0.2}})
    study = study_of()
    for point in space.grid() * 2:  # queued twice, as after a restart
        study.enqueue_trial(point, skip_if_exists=True)
    tried = []
    for _ in range(8):
        trial = study.ask()
        tried.append(space.ask(trial))
        study.tell(trial, 0.0)
    assert [{key: encoded(value) for key, value in point.items()} for point in tried] == space.grid()


@pytest.mark.parametrize("written", [{"uniform": [0, 1]}, {"log_uniform": [1e-3, 1]}, {"log_int": [1, 8]}])
def test_a_grid_over_what_cannot_be_counted_is_refused_by_name(written):
    told = refusal(parse({"a": {"choice": [1, 2]}, "x": written}).grid)
    assert told.startswith("space.x: sampler=grid needs values that can be counted, got {")


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('abcé "'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(plain_values)
def test_a_value_is_the_same_after_being_kept_by_optuna(value):
    assert decoded(encoded(value)) == value


finite = st.floats(-1e6, 1e6, allow_nan=False)
positive = st.floats(1e-6, 1e6, allow_nan=False)
pairs = st.tuples(finite, finite).filter(lambda pair: pair[0] < pair[1])
written_leaves = st.one_of(
    pairs.map(lambda pair: {"uniform": list(pair)}),
    st.tuples(positive, positive).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: {"log_uniform": list(pair)}),
    st.tuples(st.integers(-90, 5), st.integers(6, 90)).map(lambda pair: {"int_uniform": list(pair)}),
    st.tuples(st.integers(1, 5), st.integers(6, 10**6)).map(lambda pair: {"log_int": list(pair)}),
    st.lists(plain_values.filter(lambda value: not isinstance(value, str)), min_size=1, max_size=4).map(
        lambda values: {"choice": values}
    ),
)


@settings(max_examples=60, deadline=None)
@given(written_leaves, st.integers(0, 2**31))
def test_what_is_asked_for_lies_within_what_is_written(written, seed):
    try:
        space = parse({"x": written})
    except ChoiceError:
        return
    value = space.ask(study_of(seed).ask())["x"]
    kind, bounds = next(iter(written.items()))
    if kind == "choice":
        assert value in bounds
    else:
        assert bounds[0] <= value <= bounds[1]
        assert isinstance(value, int) == kind.startswith(("int", "log_int"))


# -------- putting values into a run


def test_values_are_put_into_a_copy_of_the_run_the_groups_first():
    tree = {"model": {"x": 1}, "task": {"list": [{"level": 1}, {"level": 2}]}}
    options = {"model": {"one": {"x": 1}, "two": {"x": 5, "y": 6}}}
    before = copy.deepcopy((tree, options))
    changed = apply(tree, {"model.y": 7, "task.list.1.level": 9, "model": "two"}, options)
    assert changed == {"model": {"x": 5, "y": 7}, "task": {"list": [{"level": 1}, {"level": 9}]}}
    assert (tree, options) == before


def test_a_key_that_the_chosen_option_lacks_is_refused():
    options = {"model": {"one": {"x": 1}, "two": {"x": 5, "y": 6}}}
    assert refusal(apply, {"model": {"x": 1}}, {"model": "one", "model.y": 7}, options).startswith(
        "space.model.y: no such key"
    )


def test_the_runs_own_values_change_nothing():
    tree = compose_choices(JOB).tree
    space = parse(tree["space"])
    assert apply(tree, space.values(space.defaults(tree)), {}) == tree


# -------- trying a space


def checked_space(*typed):
    tree = compose_choices([*JOB, *typed]).tree
    launch = checked(tree)
    check_space(tree, parse(launch.space), launch.options)


def test_a_model_that_cannot_be_sharded_is_refused_where_it_would_be(monkeypatch):
    def with_a_number(run):
        encoder = build_encoder(run)
        encoder.scale = torch.nn.Parameter(torch.tensor(1.0))
        return encoder

    monkeypatch.setattr(components, "build_encoder", with_a_number)
    checked_space("cluster.workers_per_trial=2")
    told = refusal(checked_space, "cluster.workers_per_trial=2", "cluster.sharding=full")
    assert told == (
        "model: MaskedAutoencoder cannot be sharded, as its weight encoder.scale is a single number without rows: give "
        "it the shape (1,), or type cluster.sharding=none"
    )


@pytest.mark.parametrize("search", ["stmem_ptbxl", "stmem_ptbxl_pretrain", "stmem_ptbxl_finetune"])
@pytest.mark.parametrize("scale", ["laptop", "full"])
def test_every_value_of_the_shipped_searches_can_be(search, scale):
    checked_space(f"search={search}", f"scale={scale}", *(["task.encoder=x"] if search.endswith("finetune") else []))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (
            ["space.model.mask_ratio={uniform: [0.3, 0.99]}"],
            "space.model.mask_ratio: mask_ratio must keep and hide at least one of 30 patches, got 0.99",
        ),
        (
            ["space.task.finetune.layer_decay={uniform: [0.5, 1.5]}"],
            "space.task.finetune.layer_decay: must be less than or equal to 1, got 1.5",
        ),
        (
            ["space.task.pretrain.optimizer.name={choice: [adamw, lion]}"],
            "space.task.pretrain.optimizer.name: must be 'adamw' or 'sgd', got 'lion'",
        ),
        (
            ["task.pretrain.min_lr=5e-4"],
            "space.task.pretrain.lr: task.pretrain: min_lr must not exceed the peak rate 0.0001, got 0.0005",
        ),
        (
            ["space.task.finetune.transforms.0.level={int_uniform: [1, 11]}"],
            "space.task.finetune.transforms.0.level: task.finetune.transforms.0: level must lie between 0 and 10, got",
        ),
        (
            ["space.model.mask_ratio={uniform: [0.3, 0.6]}"],
            "model.mask_ratio: the run's own value, which trial 0 takes, must lie in the range searched, "
            "{uniform: [0.3, 0.6]}, got 0.75",
        ),
        (
            ["space.model.mask_ratio={choice: [0.3, 0.6]}"],
            "model.mask_ratio: the run's own value, which trial 0 takes, must lie in the range searched, "
            "{choice: [0.3, 0.6]}, got 0.75",
        ),
        (
            ["space.task.pretrain.num_epochs={int_uniform: [1, 5]}"],
            "space.task.pretrain.num_epochs: every trial of a study must have the same task.pretrain.num_epochs",
        ),
        (
            ["data.highpass_hz=0.5,0.67"],
            "space.data.highpass_hz: every trial of a study must have the same data.highpass_hz",
        ),
        (["task=joint,pretrain"], "space.task"),
        (["model._target_=models.transformer.Block"], "model: models.transformer.Block must take encoder"),
        (["model.encoder.patch_duration_s=0.37"], "model: patch_duration_s must divide"),
        (["model.decoder_width=1000000000000"], "model: models.masked_autoencoder.MaskedAutoencoder cannot"),
        (["data.reader._target_=data.record.Record"], "data.reader: data.record.Record must take root"),
    ],
)
def test_a_value_that_the_space_could_choose_but_the_run_could_not_take_is_refused(typed, expected):
    assert refusal(checked_space, *typed).startswith(expected)


def test_a_searched_key_is_tried_in_every_option_that_it_belongs_to(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "narrow.yaml").write_text(
        "defaults: [st_mem, _self_]\nencoder: {patch_duration_s: 4.5}\nmask_ratio: 0.5\n"
    )
    typed = ["--config-dir", str(tmp_path), "model=st_mem,narrow"]
    told = refusal(checked_space, *typed)  # two patches a lead: none of the ends can be
    assert told.startswith("space.model.mask_ratio: mask_ratio must keep and hide at least one of 2 patches")
    checked_space(*typed, "space.model.mask_ratio={uniform: [0.3, 0.9], when: {model: st_mem}}")


def test_each_method_is_tried_once_with_its_own_defaults_before_a_sampler_is_asked():
    tree = compose_choices(["search=methods_ptbxl", "scale=laptop", "data=synthetic"]).tree
    space = parse(tree["space"])
    points = space.first_points(tree, tree["options"])
    assert points[0] == space.defaults(tree)
    assert [point["model"] for point in points] == tree["space"]["model"]["choice"]
    by_model = {point["model"]: point for point in points}
    assert by_model["signal_mae"]["model.mask_ratio"] == 0.8
    assert "model.mask_ratio" not in by_model["byol"]
    assert by_model["byol"]["model.momentum_start"] == 0.996
    narrow = parse(tree["space"] | {"model.temperature": {"uniform": [0.2, 0.5], "when": {"model": "clocs"}}})
    tried = [point["model"] for point in narrow.first_points(tree, tree["options"])]
    assert "clocs" not in tried  # its own temperature is not searched
    assert "simclr" in tried
    plain = parse({"model.mask_ratio": {"uniform": [0.3, 0.9]}})
    assert plain.first_points(tree, {}) == [{"model.mask_ratio": 0.75}]


def test_composed_defaults_are_members_of_comma_lists():
    checked_space(
        "model.mask_ratio=0.5,0.6",
        "model.encoder.num_sep_tokens=0,2",
        "task.finetune.optimizer.betas=[0.9,0.99],[0.9,0.95]",
    )


def test_every_key_of_the_composed_run_has_one_dotted_name():
    tree = {"a": {"b": [1, 2]}, "c": [{"d": 1}, {"d": 2}], "e": []}
    assert set(dotted(tree)) == {"a", "a.b", "c", "c.0", "c.0.d", "c.1", "c.1.d", "e"}
