"""The schema of a launch: what it refuses, how it says so, and that no key of it goes unread."""

import copy
import functools
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from search_spaces import compose
from search_spaces.compose import compose_choices
from search_spaces.former_names import FORMER_NAMES, former_name
from search_spaces.schema import ChoiceError, Launch, checked, dotted, unknown_key
from trainables.settings import Component

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _each_set_of_options_is_read_once():
    """Hydra reads twenty files for a configuration, a tenth of a second."""
    read, patch = compose._hydra, pytest.MonkeyPatch()
    kept = functools.cache(lambda groups, config_dir: read(dict(groups), config_dir))
    patch.setattr(compose, "_hydra", lambda groups, folder: copy.deepcopy(kept(tuple(groups.items()), folder)))
    yield
    patch.undo()


def launch(*arguments):
    return checked(compose_choices(["search=stmem_ptbxl", *arguments]).tree)


def refusal(*arguments):
    with pytest.raises(ChoiceError) as caught:
        launch(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_study_of_the_version_before_goes_on_where_its_sampler_and_its_rungs_are_typed():
    frozen = yaml.safe_load((ROOT / "tests" / "golden" / "study_0_1_0.yaml").read_text())
    former = ("sampler=tpe", "scheduler.reduction_factor=3", "scheduler.grace_epochs=1")  # the defaults of then
    assert checked(frozen).identity() == launch("data=synthetic", "scale=laptop", *former).identity()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("seed=abc", "seed: must be a whole number, got 'abc'"),
        ("task.pretrain.lr=-1", "task.pretrain.lr: must be greater than 0, got -1"),
        ("task.pretrain.lr=abc", "task.pretrain.lr: must be a number, got 'abc'"),
        ("data.leads=null", "data.leads: must be a list such as [A,B], got None"),
        ("data.window_s=inf", "data.window_s: must be finite, got inf"),
        ("data.lowpass_hz=400", "data: lowpass_hz must lie below half of sampling_rate_hz (125), got 400"),
        ("cluster.gpus_per_worker=many", "cluster.gpus_per_worker: must be a number or 'auto', got 'many'"),
        ("evaluate.fold=tset", "evaluate.fold: must be 'valid' or 'test' or a whole number, got 'tset'"),
        (
            "scheduler.name=hyperband",
            "scheduler: name must be one of fifo, asha, asha_promotion, median, pbt, got 'hyperband'",
        ),
        ("resume=yes", "resume: must be 'auto', 'never' or 'must', got 'yes'"),
        ("search.direction=up", "search.direction: must be 'maximize' or 'minimize', got 'up'"),
        ("model.transforms=[{a: 3}]", "model.transforms.0._target_: is missing"),
        ("debug.enabled=maybe", "debug.enabled: must be true or false, got 'maybe'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_key_what_must_hold_and_what_came(typed, expected):
    assert refusal(typed) == expected


def test_two_mistakes_are_told_in_one_line():
    told = refusal("seed=abc", "task.pretrain.lr=-1")
    assert "seed: must be a whole number" in told
    assert "task.pretrain.lr: must be greater than 0" in told


@pytest.mark.parametrize(
    ("typed", "said"),
    [("[2,4]", "[2, 4]"), ("2-4", "2-4"), ("2..4", "2..4"), ("'2,4'", "2,4"), ("'(2, 4)'", "(2, 4)")]
    + [("{min: 2, max: 4}", "{'min': 2, 'max': 4}")],
)
def test_an_elastic_range_of_workers_is_refused_with_what_it_would_do_to_a_search(typed, said):
    assert refusal(f"cluster.workers_per_trial={typed}") == (
        f"cluster.workers_per_trial: must be one number, got {said}: within a search an elastic trial would take the "
        "workers that other trials wait for, begin anew at each change, and follow the cluster's load with its "
        "rounding, so that it could not be repeated; type the smallest of them, and more trials run at a time instead"
    )


def test_what_is_no_range_of_workers_is_told_what_it_is():
    assert refusal("cluster.workers_per_trial=two") == "cluster.workers_per_trial: must be a whole number, got 'two'"
    assert launch("cluster.workers_per_trial='2'").cluster.workers_per_trial == 2


@pytest.mark.parametrize("typed", ["sharding=full", "placement=spread", "placement=strict_pack"])
def test_what_is_about_several_workers_is_refused_for_one(typed):
    key, _, value = typed.partition("=")
    usual = "none" if key == "sharding" else "pack"
    assert refusal(f"cluster.{typed}") == (
        f"cluster: {key} is about the workers of a trial together: it must be {usual} where workers_per_trial is 1, "
        f"got {value}; raise workers_per_trial"
    )
    launch(f"cluster.{typed}", "cluster.workers_per_trial=2")


def test_workers_that_may_share_a_gpu_cannot_share_a_model_out():
    typed = ["cluster.sharding=full", "cluster.workers_per_trial=2"]
    assert refusal(*typed, "cluster.gpus_per_worker=0.25").startswith(
        "cluster: sharding must be none where workers share a GPU"
    )
    for gpus in ("auto", "0", "1", "2"):
        launch(*typed, f"cluster.gpus_per_worker={gpus}")


def test_an_encoder_that_nothing_would_read_is_refused():
    assert refusal("task.encoder=x").startswith("task.encoder must be null unless")


def test_fine_tuning_alone_needs_an_encoder_or_to_start_from_scratch():
    arguments = ["search=stmem_ptbxl_finetune"]
    with pytest.raises(ChoiceError, match="encoder must name"):
        checked(compose_choices(arguments).tree)
    checked(compose_choices([*arguments, "task.encoder=some folder"]).tree)
    checked(compose_choices([*arguments, "task.finetune.mode=scratch"]).tree)


def test_a_key_that_a_file_brings_but_nobody_knows_is_refused(tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    text = "# @package _global_\ndefaults: [stmem_ptbxl, _self_]\ntask: {pretrain: {lrr: 1}}\ntrain: {lr: 2}\n"
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(ChoiceError) as caught:
        checked(compose_choices(["search=mine", "--config-dir", str(tmp_path)]).tree)
    assert "task.pretrain.lrr: no such key; did you mean task.pretrain.lr?" in str(caught.value)
    assert "train: no such key" in str(caught.value)


def test_a_configuration_is_the_same_after_yaml():
    tree = compose_choices(["search=stmem_ptbxl", "model.mask_ratio=0.65,0.75"]).tree
    again = yaml.safe_load(yaml.safe_dump(tree))
    assert checked(again) == checked(tree)
    assert checked(again).identity() == checked(tree).identity()


@pytest.mark.parametrize(
    "typed",
    [
        "search.num_trials=7",
        "search.max_hours=2",
        "search.max_device_hours=2",
        "search.keep_best=1",
        "cluster.workers_per_trial=2",
        ["cluster.workers_per_trial=2", "cluster.sharding=full", "cluster.placement=spread"],
        "tracking=wandb",
        "study_dir=elsewhere",
        "storage=s3://bucket/elsewhere",
        "data.root=elsewhere",
        "data.store_dir=elsewhere",
        "data.download=true",
        "evaluate.num_resamples=10",
        ["evaluate.threshold=youden", "evaluate.beta=2", "evaluate.protocol=ptb_xl_benchmark"],
        "debug.log_level=DEBUG",
        "resume=must",
    ],
)
def test_what_changes_no_number_leaves_the_identity(typed):
    assert launch(*([typed] if isinstance(typed, str) else typed)).identity() == launch().identity()


@pytest.mark.parametrize(
    "typed",
    [
        "seed=1",
        "search.direction=minimize",
        "search.metric=val/average_precision",
        "model.mask_ratio=0.6",
        "space.model.mask_ratio={uniform: [0.4, 0.9]}",
        "~space.model.mask_ratio",
        "data.highpass_hz=0.5",
        "data.max_train_patients=100",
        "task.labels=all",
        "task.finetune.drop_path=0.2",
        "task.folds=2",
        "sampler=random",
        "sampler.num_startup_trials=3",
        "scheduler=median",
        "scheduler.grace_epochs=2",
        "scale=laptop",
    ],
)
def test_what_changes_a_number_changes_the_identity(typed):
    assert launch(typed).identity() != launch().identity()


def test_a_study_of_before_there_were_folds_is_the_one_with_one():
    tree = compose_choices(["search=stmem_ptbxl"]).tree
    former = copy.deepcopy(tree)
    assert former["task"].pop("folds") == 1
    assert checked(former).identity() == checked(tree).identity()
    assert "folds" not in checked(tree).identity()["task"]
    assert launch("task.folds=2").identity()["task"]["folds"] == 2


def test_no_fold_at_all_is_refused():
    assert refusal("task.folds=0") == "task.folds: must be greater than or equal to 1, got 0"


def test_a_launch_holds_the_run_that_a_trial_needs():
    ours = launch("seed=3")
    assert ours.run.seed == 3
    assert (ours.run.model, ours.run.data, ours.run.task) == (ours.model, ours.data, ours.task)


def fields_of(model, seen=None):
    """Every field of a model and of those inside it."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        yield name
        for inner in annotated(field.annotation):
            yield from fields_of(inner, seen)


def annotated(annotation):
    """The models that an annotation names, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in getattr(annotation, "__args__", ()) for inner in annotated(argument)]


def test_every_key_is_read_by_something():
    packages = ("search_spaces", "trainables", "data", "models", "reports")
    files = [ROOT / "launch.py", *(path for package in packages for path in (ROOT / package).rglob("*.py"))]
    declared = {ROOT / "search_spaces" / "schema.py", ROOT / "trainables" / "settings.py"}
    code = "\n".join(path.read_text(encoding="utf-8") for path in files if path not in declared)
    code += re.sub(r"^    \w+: .*$", "", "\n".join(path.read_text(encoding="utf-8") for path in declared), flags=re.M)
    names = set(fields_of(Launch)) - {"target"}
    assert [name for name in sorted(names) if not re.search(rf"\.{name}\b|\"{name}\"", code)] == []


def test_components_are_the_only_models_with_keys_that_the_schema_does_not_name():
    assert Component.model_config["extra"] == "allow"
    assert Launch.model_config["extra"] == "forbid"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("mask_ratio", "no such key; did you mean model.mask_ratio?"),
        ("model.mask_ration", "no such key; did you mean model.mask_ratio?"),
        ("task.mask_ratio", "no such key; did you mean model.mask_ratio?"),
        ("modle.mask_ratio", "no such key; did you mean model.mask_ratio?"),
        ("model.qqq", "no such key; model holds mask_ratio, size"),
        ("qqq", "no such key; the configuration holds model, seed"),
    ],
)
def test_an_unknown_key_is_met_with_what_was_meant_or_what_there_is(key, expected):
    assert unknown_key(key, dotted({"model": {"mask_ratio": 0.75, "size": "tiny"}, "seed": 0})) == expected


@pytest.mark.parametrize("key", ["blr", "train.blr", "train.blr.x"])
def test_a_key_of_st_mem_is_met_with_ours(key):
    assert "task.pretrain.base_lr or task.finetune.base_lr" in (former_name(key) or "")


def test_a_key_that_neither_has_is_no_former_name():
    assert former_name("model.mask_ratio") is None
    assert former_name("task.pretrain.lr") is None


def test_an_old_key_that_is_typed_gives_the_new_one():
    assert refusal("blr=1e-3").startswith("blr: ST-MEM's name; here task.pretrain.base_lr or task.finetune.base_lr")


def known_keys():
    """Every key that some option of the data group makes."""
    return {
        key
        for option in ("ptb_xl", "index_csv", "synthetic")
        for key in dotted(compose_choices(["search=stmem_ptbxl", f"data={option}"]).tree)
    }


def test_every_former_name_leads_to_a_key_that_exists():
    ours = {key for former in FORMER_NAMES.values() for key in former.keys}
    assert ours - known_keys() == set()


def test_the_page_on_former_names_says_what_the_hints_say():
    rows = [
        f"| `{name}` | {'<br>'.join(f'`{key}`' for key in former.keys) or 'not needed'} | {former.note} |"
        for name, former in FORMER_NAMES.items()
    ]
    page = (ROOT / "docs" / "from_st_mem.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows


def test_storage_is_null_unless_typed_and_goes_with_a_study():
    assert launch().storage is None
    assert launch("storage=s3://bucket/a/b-1").storage == "s3://bucket/a/b-1"
    said = refusal("storage=s3://bucket/a", "command=train")
    assert "storage goes with a study: command=search, preflight, report, or train with trial=N, got train" in said


@pytest.mark.parametrize("url", ["/shared/x", "s3://key:very-secret@bucket/x", "s3://bucket/x?secret=very-secret"])
def test_storage_is_a_folder_of_a_store_without_secrets(url):
    said = refusal(f"storage={url}")
    assert said.startswith("storage: must")
    assert "very-secret" not in said
