"""What a command line composes to: order of precedence, overrides of the space, paths, and one line for any mistake."""

import copy
import functools
import os
import random
import shlex
import string
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml

from search_spaces import compose
from search_spaces.compose import GROUPS, compose_choices, help_text, read_line, recompose
from search_spaces.distributions import parse
from search_spaces.schema import ChoiceError, checked, dotted

FOLDER = Path(compose.__file__).parent
SEARCHES = ("stmem_ptbxl", "stmem_ptbxl_pretrain", "stmem_ptbxl_finetune")
JOB = "search=stmem_ptbxl"


@pytest.fixture(scope="module", autouse=True)
def _each_set_of_options_is_read_once():
    """Hydra reads twenty files for a configuration, a tenth of a second."""
    read, patch = compose._hydra, pytest.MonkeyPatch()
    kept = functools.cache(lambda groups, config_dir: read(dict(groups), config_dir))
    patch.setattr(compose, "_hydra", lambda groups, folder: copy.deepcopy(kept(tuple(groups.items()), folder)))
    yield
    patch.undo()


@pytest.fixture
def config_dir(tmp_path):
    """A user's own options: a second model, and searches over both."""
    files = {
        "model/st_mem_deep.yaml": "defaults: [st_mem, _self_]\ndecoder_depth: 8\n",
        "model/other.yaml": "defaults: [st_mem, _self_]\nextra_key: 1\n",
        "search/both.yaml": "# @package _global_\ndefaults: [stmem_ptbxl, _self_]\n"
        "space: {model: {choice: [st_mem, st_mem_deep]}}\n",
        "search/mine.yaml": "# @package _global_\ndefaults: [stmem_ptbxl, _self_]\ntask: {pretrain: {lr: 2.0e-3}}\n"
        "data: {max_train_patients: 5}\n",
    }
    for name, text in files.items():
        path = tmp_path / "my options" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "my options"


def tree(*arguments):
    return compose_choices([JOB, *arguments]).tree


def space(*arguments):
    return tree(*arguments)["space"]


def refusal(*arguments):
    with pytest.raises(ChoiceError) as caught:
        compose_choices(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def options(group):
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml") if not path.stem.startswith("_"))


# -------- the files


@pytest.mark.parametrize(("search", "scale"), list(product(SEARCHES, options("scale"))))
def test_every_search_composes_with_every_scale_data_and_debug(search, scale):
    for data, debug in product(options("data"), options("debug")):
        typed = [f"search={search}", f"scale={scale}", f"data={data}", f"debug={debug}"]
        if search.endswith("finetune"):
            typed.append("task.encoder=somewhere")
        composed = compose_choices(typed)
        launch = checked(composed.tree)
        assert (launch.search.name, launch.scale.name, launch.data.name) == (search, scale, data)
        assert len(parse(launch.space).leaves) >= 2


OTHER_GROUPS = ("sampler", "scheduler", "cluster", "tracking", "task")


@pytest.mark.parametrize("number", range(max(len(options(group)) for group in OTHER_GROUPS)))
def test_every_option_of_the_other_groups_composes(number):
    chosen = {group: options(group)[number % len(options(group))] for group in OTHER_GROUPS}
    typed = [f"{group}={option}" for group, option in chosen.items()]
    launch = checked(tree(*typed, *(["task.encoder=somewhere"] if chosen["task"] == "finetune" else [])))
    assert [getattr(launch, group).name for group in ("sampler", "scheduler", "tracking", "task")] == [
        chosen[group] for group in ("sampler", "scheduler", "tracking", "task")
    ]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_with_values_of_other_groups_begins_with_the_header(path):
    text = path.read_text()
    keys = set(yaml.safe_load(text) or {}) - {"defaults"}
    reaches_out = "override /" in text or path.parent.name in ("search", "scale")
    if reaches_out and (keys or "override /" in text):
        assert text.splitlines()[0] == "# @package _global_"


@pytest.mark.parametrize("scale", options("scale"))
def test_a_scale_sets_only_what_every_option_has_and_nothing_that_is_searched(scale):
    keys = leaf_keys(yaml.safe_load((FOLDER / "scale" / f"{scale}.yaml").read_text()))
    for group in ("model", "data", "task"):
        for option in options(group):
            assert keys <= set(dotted(tree("space=none", f"{group}={option}")))
    for search in options("search"):
        if search != "none":
            assert keys & set(tree(f"search={search}")["space"]) == set()


def leaf_keys(part):
    return {key for key, value in dotted(part).items() if not isinstance(value, dict)}


def test_the_default_scale_leaves_a_search_of_ones_own_its_numbers(config_dir):
    (config_dir / "search" / "mine.yaml").write_text(
        "# @package _global_\nmodel: {encoder: {size: base}}\ntask: {pretrain: {num_epochs: 5}}\n"
        "search: {num_trials: 7}\n"
    )
    composed = tree("--config-dir", str(config_dir), "search=mine")
    assert composed["model"]["encoder"]["size"] == "base"
    assert (composed["task"]["pretrain"]["num_epochs"], composed["search"]["num_trials"]) == (5, 7)


def test_the_defaults_of_the_shipped_space_lie_in_their_ranges_at_every_scale():
    for scale in options("scale"):
        composed = tree(f"scale={scale}")
        for key, leaf in composed["space"].items():
            low, high = next(iter(leaf.values()))
            assert low < dotted(composed)[key] < high


# -------- precedence


def test_a_search_wins_over_the_defaults_a_scale_over_the_search_and_what_is_typed_over_all(config_dir):
    def values(*typed):
        composed = compose_choices(["--config-dir", str(config_dir), *typed]).tree
        return composed["task"]["pretrain"]["lr"], composed["data"]["max_train_patients"]

    assert values(JOB) == (1.0e-3, None)
    assert values("search=mine", "scale=laptop") == (2.0e-3, 1400)
    assert values("search=mine", "scale=laptop", "data.max_train_patients=7") == (2.0e-3, 7)
    assert values("data.max_train_patients=7", "scale=laptop", "search=mine") == (2.0e-3, 7)


def test_a_group_that_is_typed_wins_over_the_searchs():
    assert tree("data=synthetic")["data"]["name"] == "synthetic"
    assert tree("data=synthetic")["search"]["name"] == "stmem_ptbxl"


def test_the_last_of_two_equal_keys_wins():
    assert tree("seed=3", "seed=4")["seed"] == 4
    assert tree("data.root=/a", "data.root=/b")["data"]["root"] == "/b"


def test_grid_lets_every_trial_run_to_its_end_unless_told_otherwise():
    assert tree("sampler=grid")["scheduler"]["name"] == "fifo"
    assert tree("sampler=grid", "scheduler=median")["scheduler"]["name"] == "median"


def test_the_study_folder_is_named_by_search_data_and_scale():
    assert (
        Path(tree("data=synthetic", "scale=laptop")["study_dir"])
        == Path("runs/stmem_ptbxl-synthetic-laptop").absolute()
    )
    assert tree("debug=default")["study_dir"].endswith("/runs/stmem_ptbxl-ptb_xl-full-debug")


def test_recordings_are_looked_for_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ECG_DATA", str(tmp_path))
    assert tree()["data"]["root"] == str(tmp_path)
    monkeypatch.delenv("ECG_DATA")
    assert tree()["data"]["root"] is None


def test_composing_does_not_depend_on_the_folder_it_is_typed_in(monkeypatch, tmp_path):
    here = tree("study_dir=/s", "data.store_dir=/t")
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "config.yaml").write_text("seed: 99\n")
    monkeypatch.chdir(tmp_path)
    assert tree("study_dir=/s", "data.store_dir=/t") == here
    assert list(tmp_path.iterdir()) == [tmp_path / "search_spaces"]


# -------- overrides of the space


def test_a_leaf_that_is_typed_replaces_the_whole_leaf():
    assert space("space.model.mask_ratio={choice: [0.5, 0.75]}")["model.mask_ratio"] == {"choice": [0.5, 0.75]}
    assert space()["model.mask_ratio"] == {"uniform": [0.3, 0.9]}


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_new_leaf_needs_no_plus(plus):
    leaf = {"log_uniform": [0.01, 0.1]}
    assert (
        space(f"{plus}space.task.pretrain.weight_decay={{log_uniform: [0.01, 0.1]}}")["task.pretrain.weight_decay"]
        == leaf
    )


def test_a_tilde_or_null_takes_a_leaf_out_and_leaves_the_runs_value():
    for typed in ("~space.model.mask_ratio", "space.model.mask_ratio=null"):
        assert "model.mask_ratio" not in space(typed)
        assert tree(typed)["model"]["mask_ratio"] == 0.75


def test_a_tilde_takes_out_all_leaves_below_it():
    assert set(space("~space.task.finetune")) == {"model.mask_ratio", "task.pretrain.lr"}


def test_what_is_not_in_the_space_cannot_be_taken_out():
    assert refusal(JOB, "~space.model.mask_ration") == (
        "~space.model.mask_ration: not in the space; did you mean model.mask_ratio?"
    )


def test_only_the_space_has_keys_to_take_out():
    assert "only a key of the space" in refusal(JOB, "~model.mask_ratio")


def test_a_value_typed_for_a_searched_key_fixes_it_and_is_noted():
    composed = compose_choices([JOB, "model.mask_ratio=0.6"])
    assert "model.mask_ratio" not in composed.tree["space"]
    assert composed.tree["model"]["mask_ratio"] == 0.6
    assert composed.notes == ["model.mask_ratio=0.6: fixed, no longer searched"]


def test_a_list_that_is_replaced_takes_the_searched_keys_inside_it_out():
    composed = compose_choices(
        [JOB, "space.task.finetune.transforms.0.level={uniform: [0, 9]}", "task.finetune.transforms=[]"]
    )
    assert "task.finetune.transforms.0.level" not in composed.tree["space"]
    assert "task.finetune.transforms.0.level" in composed.notes[0]


def test_a_value_typed_with_its_range_is_the_default_of_the_search_in_either_order():
    pair = ["model.mask_ratio=0.5", "space.model.mask_ratio={uniform: [0.4, 0.6]}"]
    for typed in (pair, pair[::-1]):
        assert tree(*typed)["model"]["mask_ratio"] == 0.5
        assert space(*typed)["model.mask_ratio"] == {"uniform": [0.4, 0.6]}


def test_a_comma_list_is_a_choice():
    composed = compose_choices([JOB, "model.mask_ratio=0.65,0.75,0.85"])
    assert composed.tree["space"]["model.mask_ratio"] == {"choice": [0.65, 0.75, 0.85]}
    assert composed.tree["model"]["mask_ratio"] == 0.75
    assert composed.notes == ["model.mask_ratio: searched, one of 0.65, 0.75, 0.85; trial 0 takes 0.75"]


def test_the_first_of_a_comma_list_is_the_default_where_the_runs_own_is_not_among_them():
    assert tree("model.mask_ratio=0.65,0.85")["model"]["mask_ratio"] == 0.65


def test_a_comma_list_without_the_shipped_space_runs_exactly_those():
    composed = tree("space=none", "sampler=grid", "model.mask_ratio=0.65,0.75,0.85", "seed=1,2")
    assert len(parse(composed["space"]).grid()) == 6


def test_a_comma_list_may_hold_lists_and_quoted_texts():
    assert space("task.metrics=[AUROC],[AUROC,'Accuracy']")["task.metrics"] == {
        "choice": [["AUROC"], ["AUROC", "Accuracy"]]
    }


def test_a_search_of_ones_own_needs_no_search_file():
    assert compose_choices(["sampler=grid", "model.mask_ratio=0.5,0.75"]).tree["search"]["name"] == "none"
    assert refusal("seed=3") == (
        "search=NAME is needed, or a space of your own; there is "
        + ", ".join(name for name in options("search") if name != "none")
    )


def test_one_space_serves_the_joint_task_and_each_stage_alone():
    assert set(space("task=pretrain")) == {"model.mask_ratio", "task.pretrain.lr"}
    finetune = ["task=finetune", "task.encoder=x"]
    assert set(space(*finetune)) == {"task.finetune.lr", "task.finetune.layer_decay"}
    assert set(space(*finetune, "task.finetune.mode=linprobe")) == {"task.finetune.lr"}


def test_a_typed_leaf_whose_condition_does_not_hold_is_noted():
    leaf = "space.task.finetune.optimizer.momentum={uniform: [0.5, 0.99], when: {task.finetune.optimizer.name: sgd}}"
    composed = compose_choices([JOB, leaf])
    assert "task.finetune.optimizer.momentum" not in composed.tree["space"]
    assert "does not hold" in composed.notes[0]
    searched = compose_choices([JOB, leaf, "task.finetune.optimizer.name=sgd,adamw"]).tree["space"]
    assert searched["task.finetune.optimizer.momentum"]["when"] == {"task.finetune.optimizer.name": "sgd"}
    fixed = compose_choices([JOB, leaf, "task.finetune.optimizer.name=sgd"]).tree["space"]
    assert fixed["task.finetune.optimizer.momentum"] == {"uniform": [0.5, 0.99]}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (
            "space.model.mask_ration={uniform: [0.5, 0.8]}",
            "space.model.mask_ration: no such key; did you mean model.mask_ratio?",
        ),
        (
            "space.model.mask_ratio={unifrom: [0.5, 0.8]}",
            "space.model.mask_ratio: no such distribution unifrom; did you mean uniform?",
        ),
        ("space.data=[ptb_xl, synthetic]", "space.data: data holds other keys: search one of them, space.data.KEY"),
        ("space.sampler.name={choice: [tpe, gp]}", "space.sampler.name: is told to no trial"),
        ("++space={a: 1}", "++space={a: 1}: space takes the name of an option"),
        ("space.model.mask_ratio=0.5,0.6", "space.model.mask_ratio: write model.mask_ratio=A,B,C"),
        (
            "space.model.mask_ratio={uniform: [0, 1], when: {model.foo: 1}}",
            "space.model.mask_ratio: when model.foo: no such key",
        ),
    ],
)
def test_a_leaf_that_has_no_place_is_refused(typed, expected):
    assert refusal(JOB, typed).startswith(expected)


# -------- a choice among the options of a group


def test_a_group_may_be_searched_and_every_option_is_composed_with_what_is_typed(config_dir):
    composed = compose_choices(
        ["--config-dir", str(config_dir), "search=both", "scale=laptop", "model.decoder_width=64"]
    )
    assert composed.tree["space"]["model"] == {"choice": ["st_mem", "st_mem_deep"]}
    assert set(composed.tree["space"]) > {"model", "model.mask_ratio"}
    assert [composed.options["model"][name]["decoder_depth"] for name in ("st_mem", "st_mem_deep")] == [None, 8]
    for subtree in composed.options["model"].values():
        assert (subtree["encoder"]["size"], subtree["decoder_width"]) == ("laptop", 64)
    assert composed.options["model"]["st_mem"] == composed.tree["model"]


def test_an_encoder_lies_within_its_model_and_can_be_typed_or_searched():
    assert tree("encoder=mtae")["model"]["encoder"]["_target_"] == "models.mtae.MTAEEncoder"
    composed = compose_choices([JOB, "scale=laptop", "encoder=mtae,st_mem", "model.encoder.patch_duration_s=0.5"])
    assert composed.tree["space"]["model.encoder"] == {"choice": ["mtae", "st_mem"]}
    assert composed.notes == ["encoder: searched, one of mtae, st_mem; trial 0 takes mtae"]
    for subtree in composed.options["model.encoder"].values():
        assert (subtree["size"], subtree["patch_duration_s"]) == ("laptop", 0.5)
    fixed = compose_choices(["search=supervised_ptbxl", "encoder=vit1d"])
    assert "model.encoder" not in fixed.tree["space"]
    assert fixed.notes == ["encoder=vit1d: fixed, no longer searched"]


def test_some_of_the_methods_can_be_typed_over_a_search_of_all():
    composed = compose_choices(["search=methods_ptbxl", "model=jepa,simclr"]).tree
    assert composed["space"]["model"] == {"choice": ["jepa", "simclr"]}
    assert composed["space"]["model.temperature"]["when"] == {"model": ["simclr"]}
    assert composed["space"]["model.momentum_start"]["when"] == {"model": ["jepa"]}
    assert "model.mask_ratio" not in composed["space"]
    one = compose_choices(["search=methods_ptbxl", "model=byol"]).tree
    assert "when" not in one["space"]["model.momentum_start"]
    assert {key for key in one["space"] if key.startswith("model")} == {"model.momentum_start"}


def test_an_encoder_that_the_model_has_no_place_for_is_refused():
    told = refusal(JOB, "text_encoder=small")
    assert told == "text_encoder=small: the chosen model has no text encoder"
    assert refusal(JOB, "encoder=nope").startswith("encoder=nope: no such encoder; ")


def test_a_comma_list_at_a_group_begins_with_the_default(config_dir):
    composed = compose_choices(["--config-dir", str(config_dir), JOB, "model=st_mem_deep,st_mem"])
    assert composed.tree["model"] == composed.options["model"]["st_mem_deep"]
    assert composed.notes == ["model: searched, one of st_mem_deep, st_mem; trial 0 takes st_mem_deep"]


def test_a_model_that_is_typed_is_no_longer_searched(config_dir):
    composed = compose_choices(["--config-dir", str(config_dir), "search=both", "model=st_mem_deep"])
    assert "model" not in composed.tree["space"]
    assert composed.options == {}
    assert composed.notes == ["model=st_mem_deep: fixed, no longer searched"]


def test_a_key_that_only_one_option_has_is_refused_with_the_option(config_dir):
    told = refusal("--config-dir", str(config_dir), JOB, "model=other,st_mem", "model.extra_key=2")
    assert told.startswith("space.model: with model=st_mem: model.extra_key: no such key")


def test_a_searched_group_must_hold_the_runs_own_option(config_dir):
    told = refusal("--config-dir", str(config_dir), JOB, "space.model=[st_mem_deep]")
    assert told.startswith("space.model: must hold the run's own option, st_mem,")


def test_only_some_groups_can_be_searched():
    assert "data takes one name" in refusal(JOB, "data=ptb_xl,synthetic")


# -------- paths


@pytest.mark.parametrize(
    "path",
    ["/x (1.0.3)/é", "/a=b", "/#&'x", "/{a,b}", "/${HOME}", "/a:b, [c]", "/~", "/space  two"],
)
def test_a_path_is_taken_as_typed(path):
    for key in ("data.root", "study_dir", "data.store_dir"):
        assert dotted(tree(f"{key}={path}"))[key] == path
    assert tree("command=evaluate", f"checkpoint={path}")["checkpoint"] == path


def test_a_path_may_begin_at_home_or_here(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    assert tree("data.root=~/ecg")["data"]["root"] == "/home/someone/ecg"
    assert tree("data.root=ecg")["data"]["root"] == str(tmp_path / "ecg")
    assert tree("data.root=~nobody here/x")["data"]["root"] == str(tmp_path / "~nobody here" / "x")
    assert read_line(["study_dir=ecg"]).get("study_dir") == str(tmp_path / "ecg")


def test_what_a_reader_is_told_stays_relative_to_its_root():
    reader = tree("data=index_csv", "data.reader.index_dir=my tables", "data.reader.train_csv=a=b.csv")["data"][
        "reader"
    ]
    assert (reader["index_dir"], reader["train_csv"]) == ("my tables", "a=b.csv")


def test_an_empty_path_is_none():
    assert tree("data.root=")["data"]["root"] is None
    assert tree("data.root=null")["data"]["root"] is None


# -------- over a stored configuration


def test_a_stored_configuration_is_used_as_it_is_and_may_be_moved():
    stored = tree("scale=laptop", "model.mask_ratio=0.6,0.75")
    line = read_line(["command=report", "study_dir=/elsewhere", "evaluate.num_resamples=7"])
    found = recompose(line, stored).tree
    expected = copy.deepcopy(stored) | {"command": "report", "study_dir": "/elsewhere"}
    expected["evaluate"]["num_resamples"] = 7
    assert found == expected
    checked(found)


def test_a_study_of_an_earlier_version_is_reported_with_newer_keys_of_the_evaluation():
    stored = tree("scale=laptop", "evaluate.num_resamples=9")
    for key in ("cost_per_device_hour", "currency"):
        del stored["evaluate"][key]
    line = read_line(["command=report", "study_dir=/elsewhere", "evaluate.cost_per_device_hour=2.5"])
    found = checked(recompose(line, stored).tree).evaluate
    assert (found.num_resamples, found.cost_per_device_hour, found.currency) == (9, 2.5, "EUR")


def test_a_run_alone_is_completed_with_defaults():
    stored = checked(tree("scale=laptop")).run.model_dump(mode="json", by_alias=True)
    found = checked(recompose(read_line(["command=evaluate", "checkpoint=/c", "cluster=ray"]), stored).tree)
    assert found.run == checked(tree("scale=laptop")).run
    assert found.cluster.address == "auto"


def test_what_a_checkpoint_holds_already_may_be_typed_again():
    stored = {key: tree()[key] for key in ("seed", "model", "data", "task")}
    typed = ["command=evaluate", "checkpoint=/c", "data=synthetic", f"data.lowpass_hz={stored['data']['lowpass_hz']}"]
    found = recompose(read_line([*typed, "task.labels=rhythm"]), stored).tree
    assert found["data"]["lowpass_hz"] == stored["data"]["lowpass_hz"]
    assert found["task"]["labels"] == "rhythm"
    with pytest.raises(ChoiceError, match="task.labels: cannot be changed"):
        recompose(read_line(["command=train", "trial=1", "task.labels=rhythm"]), stored)


def test_other_recordings_are_evaluated_as_the_model_was_trained():
    stored = tree("scale=laptop", "data.lowpass_hz=30")
    line = read_line(["command=evaluate", "checkpoint=/c", "data=synthetic", "data.reader.num_patients=9"])
    data = recompose(line, stored).tree["data"]
    assert (data["name"], data["reader"]["num_patients"], data["lowpass_hz"]) == ("synthetic", 9, 30)


@pytest.mark.parametrize(
    "typed", ["model.mask_ratio=0.5", "search=stmem_ptbxl", "seed=3", "data.lowpass_hz=3", "command", "evaluate.flod=1"]
)
def test_what_was_computed_cannot_be_changed_afterwards(typed):
    with pytest.raises(ChoiceError):
        recompose(read_line(["command=evaluate", "checkpoint=/c", typed]), tree())


# -------- mistakes


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("search=stmem_ptblx", "search=stmem_ptblx: no such search; did you mean stmem_ptbxl?"),
        ("serch=stmem_ptbxl", "serch: no such key; did you mean search?"),
        ("model=st_men", "model=st_men: no such model; did you mean st_mem?"),
        ("data=_base", "data=_base: data takes the name of an option; see --help"),
        ("debug=true", "debug=true: debug takes the name of an option; see --help"),
        ("space=null", "space=null: space takes the name of an option; see --help"),
        ("mask_ratio=0.6", "mask_ratio: no such key; did you mean model.mask_ratio?"),
        ("task.finetune=3", "task.finetune holds other keys: set task.finetune.KEY=VALUE, KEY being mode"),
        ("-m", "-m is not needed: a launch is a search already"),
        ("--hlep", "--hlep: no such flag; did you mean --help?"),
        ("--config-dir", "--config-dir must be followed by a folder that exists"),
        ("hydra.run.dir=x", "hydra.run.dir=x: Hydra's own keys and packages are not read here"),
        ("model@x=st_mem", "model@x=st_mem: Hydra's own keys and packages are not read here"),
        ("model.mask_ratio=interval(0.5,0.8)", "model.mask_ratio=interval(0.5,0.8): write 'space.model.mask_ratio="),
        ("uniform: [0.5,", "'uniform: [0.5,' is no KEY=VALUE; quote the whole argument"),
        ("=3", "'=3' is no KEY=VALUE"),
        ("", "'' is no KEY=VALUE"),
        ("seed=${nope}", "Interpolation key 'nope' not found"),
        ("study_dir=???", "study_dir=... is needed"),
        ("a\nb=3", "'a\\nb=3' is no KEY=VALUE"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_what_there_is(typed, expected):
    assert refusal(JOB, typed).startswith(expected)


def test_help_names_every_group_and_option(config_dir):
    text = help_text(config_dir)
    for group in GROUPS:
        row = next(line.split() for line in text.splitlines() if line.split()[:1] == [group])
        assert set(options(group)) <= set(row[1:])
    assert "st_mem_deep" in text
    assert "_base" not in text
    assert read_line(["--help"]).wants_help
    assert read_line(["--cfg"]).wants_configuration


@pytest.mark.parametrize("example", [typed for _, typed in compose.EXAMPLES if "DIR" not in typed])
def test_every_example_of_the_help_composes(example):
    assert example in help_text()
    checked(compose_choices(shlex.split(example)).tree)


@pytest.mark.parametrize("example", [typed for _, typed in compose.EXAMPLES if "DIR" in typed])
def test_every_example_with_a_folder_can_be_read(example):
    line = read_line(shlex.split(example.replace("DIR", "/folder").replace("N", "3")))
    if "search" not in line.groups:
        checked(recompose(line, tree()).tree)


def test_a_mistake_is_found_without_torch_or_ray():
    program = (
        "import sys\n"
        "from search_spaces.compose import compose_choices\n"
        "from search_spaces.schema import ChoiceError, checked\n"
        "for typed in (['search=stmem_ptblx'], ['search=stmem_ptbxl', 'seed=abc']):\n"
        "    try:\n"
        "        checked(compose_choices(typed).tree)\n"
        "    except ChoiceError:\n"
        "        continue\n"
        "    sys.exit('accepted')\n"
        "sys.exit(bool({'torch', 'ray'} & set(sys.modules)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


# -------- fuzzing: whatever is typed or written, a ChoiceError of one line or a configuration

LINES = [
    "search=stmem_ptbxl",
    "scale=laptop",
    "data=synthetic",
    "model.mask_ratio=0.65,0.75",
    "space.model.mask_ratio={uniform: [0.5, 0.8], step: 0.1}",
    "~space.task.pretrain.lr",
    "space.task.pretrain.weight_decay={log_uniform: [1e-3, 1e-1], when: {model.mask_ratio: 0.65}}",
    "data.leads=[I,II]",
    "data.root=~/ecg (1.0.3)",
    "task.finetune.transforms.0.level=3",
    "sampler=grid",
    "search.max_hours=null",
    "evaluate.fold=valid",
    "model=st_mem,st_mem",
    "--config-dir=.",
]
PIECES = [
    *"{}[]()=,.~+:'\"$\\/@#% \n\té-0",
    "null",
    "???",
    "${x}",
    "nan",
    "inf",
    "1e999",
    "space.",
    "_target_",
    "[[",
    "true",
]


def mutated(text, generator):
    """The text with one or two characters or pieces inserted, replaced or removed."""
    for _ in range(generator.randint(1, 2)):
        at = generator.randrange(len(text) + 1)
        piece = generator.choice([generator.choice(PIECES), generator.choice(string.printable)])
        kind = generator.choice(("insert", "replace", "remove"))
        removed = 0 if kind == "insert" else generator.randint(1, 3)
        text = text[:at] + ("" if kind == "remove" else piece) + text[at + removed :]
    return text


def outcome(run):
    """ "accepted", or the one line that a user sees; anything else is an error of ours."""
    try:
        run()
    except ChoiceError as error:
        line = str(error)
        assert line
        assert "\n" not in line
        assert len(line) < 1500
        return line
    return "accepted"


def composed_and_checked(arguments):
    launch = checked(compose_choices(arguments).tree)
    parse(launch.space)
    launch.identity()


@pytest.mark.parametrize(("seed", "count"), [(20, 200), pytest.param(21, 4000, marks=pytest.mark.slow)])
def test_a_mutated_command_line_is_composed_or_refused_in_one_line(seed, count):
    generator = random.Random(seed)
    outcomes = []
    for _ in range(count):
        typed = generator.sample(LINES, generator.randint(1, 3))
        hit = generator.randrange(len(typed))
        typed[hit] = mutated(typed[hit], generator)
        outcomes.append(outcome(lambda typed=typed: composed_and_checked([JOB, *typed])))
    assert count / 25 < outcomes.count("accepted") < count / 2
    assert len(set(outcomes)) > count / 5


FILE = """\
# @package _global_
# a search of one's own
defaults:
  - override /model: st_mem
  - override /space: st_mem
  - _self_
search:
  num_trials: 7
task:
  pretrain: {lr: 2.0e-3}
  finetune: {transforms: []}
space:
  model:
    mask_ratio: {uniform: null, choice: [0.5, 0.75]}
  task:
    finetune: {lr: null, drop_path: {uniform: [0.0, 0.2]}}
"""


@pytest.mark.parametrize(("seed", "count"), [(20, 25), pytest.param(21, 400, marks=pytest.mark.slow)])
def test_a_mutated_search_file_is_composed_or_refused_in_one_line(tmp_path, seed, count):
    generator = random.Random(seed)
    (tmp_path / "search").mkdir()
    outcomes = []
    for number in range(count):
        lines = FILE.splitlines()
        hit = generator.randrange(len(lines))
        lines[hit] = mutated(lines[hit], generator)
        if generator.random() < 0.1:
            lines[generator.randrange(len(lines))] = ""
        (tmp_path / "search" / f"mutant_{number}.yaml").write_text("\n".join(lines), encoding="utf-8")
        arguments = [f"search=mutant_{number}", "--config-dir", str(tmp_path)]
        outcomes.append(outcome(lambda arguments=arguments: composed_and_checked(arguments)))
    assert count / 25 < outcomes.count("accepted") < count / 2
    assert len(set(outcomes)) > count / 5


def test_options_that_what_is_typed_makes_the_same_are_refused():
    told = refusal("search=methods_ptbxl", "encoder=vit1d", "model=st_mem,mtae")
    assert told == "space.model: with what is typed st_mem and mtae are the same; leave one of them out"


def test_methods_and_encoders_may_be_searched_together():
    typed = ["search=methods_ptbxl", "model=simclr,jepa", "encoder=vit1d,st_mem"]
    tree = compose_choices(typed).tree
    points = parse(tree["space"]).first_points(tree, tree["options"])
    assert [(point["model"], point["model.encoder"]) for point in points] == [
        ("simclr", "vit1d"),
        ("jepa", "vit1d"),
        ("simclr", "st_mem"),
    ]


def test_a_choice_typed_into_the_space_narrows_the_conditions_too():
    space = compose_choices(["search=methods_ptbxl", "space.model=[st_mem,simclr]"]).tree["space"]
    assert space["model.mask_ratio"]["when"] == {"model": ["st_mem"]}
    assert "model.momentum_start" not in space
