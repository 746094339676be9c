"""Which classes a configuration may name, and how its arguments are held against them."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from data.transforms import Drop
from search_spaces.compose import compose_choices
from search_spaces.schema import checked
from trainables import components
from trainables.components import (
    ComponentError,
    build,
    check,
    check_components,
    check_model,
    meant,
    modules_of,
    nearest,
    resolve,
)
from trainables.settings import Component, Model


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


# -------- a whole run


def run_of(*typed):
    return checked(compose_choices(["search=stmem_ptbxl", "data=synthetic", *typed]).tree).run


def test_a_model_of_any_size_is_checked_without_filling_it_or_touching_the_generator():
    generator = torch.get_rng_state()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_model(run_of("model.encoder.size=base"))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 170  # MiB; its weights are 340
    assert torch.equal(torch.get_rng_state(), generator)


def test_weights_are_filled_again_after_a_check():
    check_model(run_of("scale=laptop"))
    assert torch.nn.init.ones_(torch.empty(3)).tolist() == [1, 1, 1]
    assert torch.empty(3).fill_(2).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("model.decoder_width=1000000000000000", "model: models.masked_autoencoder.MaskedAutoencoder cannot be built"),
        ("model.encoder.size=huge", "model.encoder.size: must be 'laptop', 'tiny', 'small' or 'base', got 'huge'"),
        ("model.encoder.num_sep_tokens=many", "model.encoder.num_sep_tokens: must be a whole number, got 'many'"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(typed, expected):
    assert message(check_model, run_of(typed)).startswith(expected)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("data.record.Record", "model.encoder: data.record.Record must take num_samples, which the program tells it"),
        ("models.transformer.Block", "model.encoder: models.transformer.Block must take leads, num_samples, samp"),
    ],
)
def test_an_encoder_must_be_a_class_for_encoders(target, expected):
    run = run_of()
    other = run.model_copy(update={"model": run.model.model_copy(update={"encoder": component(target)})})
    assert message(check_model, other).startswith(expected)


def test_an_encoder_must_be_an_encoder(monkeypatch):
    monkeypatch.setattr(components, "build", lambda *arguments, **provided: torch.nn.Identity())
    assert message(check_model, run_of()).startswith("model.encoder._target_: must be an encoder")


def test_a_model_must_be_a_pretext_task():
    run = run_of()
    no_task = Model(_target_="models.attention_pool.AttentionPooled", encoder=run.model.encoder, transforms=[])
    assert message(check_model, run.model_copy(update={"model": no_task})).startswith(
        "model._target_: must be a pretext task"
    )


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (
            "task.finetune.transforms.0.level=30",
            "task.finetune.transforms.0: level must lie between 0 and 10, got 30.0",
        ),
        (
            "model.transforms=[{_target_: data.transforms.Dropp}]",
            "model.transforms.0: data.transforms.Dropp: there is no class Dropp to build; did you mean Drop?",
        ),
        (
            "model.transforms=[{_target_: data.synthetic.Synthetic, root: null, source_rate_hz: 100, "
            "num_patients: 1, seed: 0}]",
            "model.transforms.0._target_: must be a class that can draw, got data.synthetic.Synthetic",
        ),
        (
            "model.transforms=[{_target_: data.transforms.LeadSubset, leads: [I, II], keep: [I]}]",
            "model.transforms.0: leads must name each lead of the signal, got 2 names for 12 leads: name those "
            "of data.leads, in their order",
        ),
        ("data.reader.seed=x", "data.reader.seed: must be a whole number, got 'x'"),
    ],
)
def test_readers_and_transforms_are_checked_with_their_keys(typed, expected):
    assert message(check_components, run_of(typed)) == expected


def test_a_transform_that_takes_the_runs_signals_is_accepted_without_touching_the_generator():
    generator = torch.get_rng_state()
    subset = "{_target_: data.transforms.LeadSubset, leads: [I, II], keep: [I]}"
    noise = "{_target_: data.transforms.WhiteNoise, amplitude: 0.1}"
    check_components(run_of("data.leads=[I,II]", f"task.finetune.transforms=[{subset}, {noise}]"))
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_component_of_the_configuration_keeps_its_target_and_its_keys_apart():
    assert component("a.b.C", x=1).arguments == {"x": 1}


def test_a_transform_that_is_told_another_rate_than_the_data_has_is_refused():
    powerline = "_target_: data.transforms.PowerlineNoise, amplitude: 0.1, frequency_hz: 20, num_harmonics: 1"
    check_components(run_of(f"model.transforms=[{{{powerline}, sampling_rate_hz: 100}}]"))
    told = message(check_components, run_of(f"model.transforms=[{{{powerline}, sampling_rate_hz: 250}}]"))
    assert told.startswith("model.transforms.0.sampling_rate_hz: must be that of the data, 100, got 250")


def test_what_holds_records_against_each_other_needs_two_in_a_batch():
    for model in ("simclr", "byol", "clocs", "meclip"):
        told = message(check_model, run_of("space=none", f"model={model}", "task.pretrain.batch_size=1"))
        assert told.startswith("task.pretrain.batch_size: ")
    check_model(run_of("task.pretrain.batch_size=1"))


def test_jepa_needs_time_to_hide():
    run = run_of("space=none", "model=jepa", "encoder=st_mem", "model.encoder.patch_duration_s=9.0")
    with pytest.raises(ValueError, match="must hold two patches of each lead"):
        check_model(run)
