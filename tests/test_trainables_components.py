"""Which classes a configuration may name, and how its arguments are held against them."""

import sys
from pathlib import Path

import pytest

from data.transforms import Drop
from trainables.components import ComponentError, build, check, meant, modules_of, nearest, resolve
from trainables.settings import Component


def component(target, **arguments):
    return Component(_target_=target, **arguments)


def message(function, *arguments, **keywords):
    with pytest.raises(ComponentError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_target_names_a_class_of_ours():
    assert resolve("data.transforms.Drop") is Drop


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "Drop",
        "data.transforms",
        "data..Drop",
        "search_spaces.schema.Launch",
        "data.transforms.torch.nn.Linear",
        "data.transforms.Tensor",  # imported there, defined elsewhere
        "data.transforms.standardize",  # a function
        "data.transforms.Transform",  # abstract
        "data.transforms.__builtins__",
        "data.transforms.",
        ".data.transforms.Drop",
        "",
    ],
)
def test_nothing_else_can_be_reached_by(target):
    assert "_target_" in message(resolve, target) or "there is no" in message(resolve, target)


def test_looking_a_module_up_imports_no_other():
    before = set(sys.modules)
    message(resolve, "data.antigravity.Fly")
    assert "antigravity" not in set(sys.modules) - before


def test_a_mistyped_module_or_class_is_recognised():
    assert "did you mean transforms?" in message(resolve, "data.tranforms.Drop")
    assert "did you mean Drop?" in message(resolve, "data.transforms.Dropp")
    assert "Cutout" in message(resolve, "data.transforms.Zzz")


def test_modules_are_listed_without_private_parts():
    assert {"st_mem", "vit"} <= set(modules_of("models"))


def test_an_unknown_argument_is_named_with_the_one_that_was_meant():
    told = message(check, component("data.transforms.Drop", sahre=0.1), (), at="task.finetune.transforms.0")
    assert told == "task.finetune.transforms.0.sahre: Drop takes no such key; did you mean share?"


def test_a_missing_argument_is_named():
    assert message(check, component("data.transforms.Drop"), (), at="x") == (
        "x.share is missing: data.transforms.Drop needs it"
    )


def test_what_the_program_provides_need_not_and_may_not_be_told():
    check(component("data.transforms.Drop"), ("share",))
    assert "leave it out" in message(check, component("data.transforms.Drop", share=0.1), ("share",))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"operations": "shift"}, "operations: must be a list such as [A,B], got 'shift'"),
        ({"level": "strong"}, "level: must be a number, got 'strong'"),
        ({"num_layers": 1.5}, "num_layers: must be a whole number, got 1.5"),
    ],
)
def test_an_argument_of_another_type_is_named(arguments, expected):
    told = {"operations": ["shift"], "level": 5, "num_layers": 1, "probability": 0.5} | arguments
    assert message(check, component("data.transforms.RandAugment", **told), (), at="x") == f"x.{expected}"


def test_build_calls_the_class_with_both_kinds_of_arguments():
    reader = build(component("data.ptb_xl.PTBXL"), root=Path("/nowhere"), source_rate_hz=100)
    assert (reader.root, reader.source_rate_hz) == (Path("/nowhere"), 100)


def test_build_turns_plain_values_into_the_annotated_types():
    assert build(component("data.transforms.Drop", share=0)).share == 0.0
    assert type(build(component("data.transforms.Drop", share=0)).share) is float


def test_build_leaves_the_class_to_refuse_values():
    with pytest.raises(ValueError, match="share"):
        build(component("data.transforms.Drop", share=7.0))


def test_a_component_can_be_built_twice():
    drop = component("data.transforms.Drop", share=0.25)
    assert build(drop) == build(drop)
    assert build(drop) is not build(drop)


def test_the_nearest_word_is_found_in_any_case():
    assert meant("AUROC", ["auroc", "loss"]) == "auroc"
    assert meant("zzz", ["auroc", "loss"]) is None
    assert nearest("zzz", ["b", "a"]) == "there is a, b"
    assert nearest("zzz", []) == "there is none"
