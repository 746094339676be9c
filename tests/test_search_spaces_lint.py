"""What is wrong with a search is said before its first trial, in one line, and nothing else is refused."""

import functools

import pytest

from search_spaces import lint as lint_module
from search_spaces.compose import FOLDER, compose_choices
from search_spaces.distributions import check_space, parse, put
from search_spaces.lint import NOT_TRIED, lint
from search_spaces.schema import ChoiceError, checked, dotted
from trainables.settings import Run

JOB = ("search=stmem_ptbxl", "scale=laptop", "data=synthetic")
FINETUNE = ("search=stmem_ptbxl_finetune", *JOB[1:], "task.encoder=a folder that lint never opens")
BRIEF = "data.window_s=3.0"  # windows of ten patches: the loops are those of longer ones


@functools.cache
def launch_of(*typed):
    return checked(compose_choices(typed).tree)


def linted(*typed):
    launch = launch_of(*typed)
    lint(launch, parse(launch.space))
    return launch


def refusal(*typed):
    with pytest.raises(ChoiceError) as caught:
        linted(*typed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------- the searches that are shipped

SEARCHES = sorted(path.stem for path in (FOLDER / "search").glob("*.yaml") if path.stem != "none")
NEEDS = {"stmem_ptbxl_finetune": FINETUNE[-1:]}
"""What a search does not run without."""
SHIPPED = {
    "joint": JOB,
    "joint on labels of one kind a record": (*JOB, "task.labels=superdiagnostic_single"),
    "pretrain": ("search=stmem_ptbxl_pretrain", *JOB[1:]),
    "finetune": FINETUNE,
    "linear probe": (*FINETUNE, "task.finetune.mode=linprobe"),
    "from scratch": ("search=stmem_ptbxl_finetune", *JOB[1:], "task.finetune.mode=scratch"),
}


@pytest.mark.parametrize("typed", SHIPPED.values(), ids=SHIPPED)
def test_every_way_to_use_the_main_search_passes(typed):
    assert linted(*typed).space


@pytest.mark.parametrize("search", SEARCHES)
def test_every_shipped_search_passes(search):
    typed = (f"search={search}", *JOB[1:], *NEEDS.get(search, ()))
    assert linted(*typed, BRIEF).space
    checked_space(launch_of(f"search={search}", "data=synthetic", *NEEDS.get(search, ())))  # at its own scale


def checked_space(launch):
    check_space(launch.model_dump(mode="json", by_alias=True), parse(launch.space), launch.options)


@pytest.mark.parametrize(
    "typed",
    [
        ("data=ptb_xl",),
        ("data=ptb_xl", "data.root=nowhere"),
        ("data=index_csv", "data.root=nowhere", "task.labels=labels", "data.reader.label_columns=[AFIB,NORM]"),
        ("data=index_csv", "data.root=nowhere", "task.labels=labels", "data.reader.label_columns=[rhythm]"),
    ],
)
def test_a_search_can_be_linted_before_there_are_recordings(typed):
    linted("search=stmem_ptbxl", *typed)


@pytest.mark.parametrize(
    ("search", "key"), [(s, key) for s in ("joint", "finetune") for key in launch_of(*SHIPPED[s]).space]
)
def test_each_shipped_key_is_refused_once_nothing_reads_it(search, key, monkeypatch):
    launch, train = launch_of(*SHIPPED[search]), lint_module.train

    def deaf(run, *arguments, **keywords):
        tree = run.model_dump(mode="json", by_alias=True)
        put(tree, key, dotted(launch.model_dump(mode="json", by_alias=True))[key])
        return train(Run.model_validate(tree), *arguments, **keywords)

    monkeypatch.setattr(lint_module, "train", deaf)
    lint_module._fingerprint.cache_clear()
    typed = (*SHIPPED[search], BRIEF, *(f"~space.{other}" for other in launch.space if other != key))
    assert refusal(*typed).startswith(f"space.{key}: changes nothing in this run: ")
    lint_module._fingerprint.cache_clear()


# -------- keys that reach nothing

DEAD = {
    "momentum under adamw": (JOB, "task.pretrain.optimizer.momentum", "{uniform: [0.5, 0.95]}"),
    "a decoder that is not trained": (FINETUNE, "model.decoder_depth", "{int_uniform: [1, 3]}"),
    "the mask where nothing is masked": (FINETUNE, "model.mask_ratio", "{uniform: [0.5, 0.8]}"),
    "layers that are frozen": (
        (*FINETUNE, "task.finetune.mode=linprobe"),
        "task.finetune.layer_decay",
        "{uniform: [0.5, 1.0]}",
    ),
    "a head that begins as the probe": (JOB, "task.finetune.head_init_std", "{uniform: [0.01, 0.1]}"),
    "a stage that is not run": (SHIPPED["pretrain"], "task.finetune.clip_norm", "{uniform: [1, 5]}"),
    "betas of sgd": (
        (*JOB, "task.finetune.optimizer.name=sgd"),
        "task.finetune.optimizer.betas",
        "{choice: [[0.9, 0.999], [0.8, 0.9]]}",
    ),
    "a probe that nothing uses": (
        (*FINETUNE, "task.finetune.head_init=normal"),
        "task.probe.l2",
        "{log_uniform: [1e-4, 1e-2]}",
    ),
    "how much of the source may be damaged": (JOB, "data.max_unreadable_share", "{uniform: [0.0, 0.1]}"),
}


@pytest.mark.parametrize(("typed", "key", "leaf"), DEAD.values(), ids=DEAD)
def test_a_key_that_changes_nothing_is_refused_by_name(typed, key, leaf):
    said = refusal(*typed, BRIEF, "space=none", f"space.{key}={leaf}")
    assert said.startswith(f"space.{key}: changes nothing in this run: ")
    assert said.endswith(f" give the same numbers; take it out with ~space.{key}")


# -------- keys that do

ALIVE = {
    JOB: {
        "seed": "{int_uniform: [0, 3]}",
        "data.standardize": "{choice: [record, lead]}",
        "data.eval_crops": "{int_uniform: [1, 3]}",
        "data.max_train_patients": "{choice: [700, 1400]}",
        "model.encoder.size": "{choice: [laptop, small, base]}",
        "model.encoder.patch_duration_s": "{choice: [0.3, 0.5]}",
        "model.norm_pix_loss": "{choice: [true, false]}",
        "model.decoder_depth": "{choice: [null, 1, 3]}",
        "task.probe.l2": "{log_uniform: [1e-4, 1e-2]}",
        "task.probe.max_train_records": "{choice: [null, 1000]}",
        "task.pretrain.min_lr": "{uniform: [0.0, 1e-5]}",
        "task.pretrain.warmup_share": "{uniform: [0.0, 0.1]}",
        "task.pretrain.weight_decay": "{uniform: [0.0, 0.1]}",
        "task.pretrain.clip_norm": "{choice: [null, 50, 100]}",
        "task.pretrain.accumulation_steps": "{choice: [1, 4, 8]}",
        "task.pretrain.batch_size": "{choice: [32, 64]}",
        "task.pretrain.precision": "{choice: [auto, float32]}",
        "task.pretrain.optimizer.name": "{choice: [adamw, sgd]}",
        "task.pretrain.optimizer.betas": "{choice: [[0.9, 0.95], [0.9, 0.999]]}",
        "model.transforms": "{choice: [[], [{_target_: data.transforms.Flip}]]}",
        "task.finetune.optimizer.decay_biases_and_norms": "{choice: [false, true]}",
        "task.finetune.drop_path": "{uniform: [0.0, 0.2]}",
        "task.finetune.head_init": "{choice: [probe, normal]}",
        "task.finetune.transforms.0.level": "{int_uniform: [2, 9]}",
    },
    (*JOB, "task.finetune.optimizer.name=sgd", "task.finetune.head_init=normal"): {
        "task.finetune.optimizer.momentum": "{uniform: [0.8, 0.95]}",
        "task.finetune.head_init_std": "{uniform: [0.0, 0.1]}",
    },
    SHIPPED["joint on labels of one kind a record"]: {"task.finetune.label_smoothing": "{uniform: [0.0, 0.1]}"},
    SHIPPED["linear probe"]: {"task.finetune.lr": "{log_uniform: [1e-4, 1e-2]}"},
    FINETUNE: {
        "model.encoder.num_sep_tokens": "{choice: [0, 1, 2]}",
        "task.finetune.lr": "{log_uniform: [1e-4, 1e-2]}",
        "task.finetune.pool": "{choice: [encoder, attention]}",
        "task.finetune.mask_c_ratio": "{uniform: [0.0, 0.5]}",
        "task.finetune.mask_t_ratio": "{uniform: [0.0, 0.5]}",
        "task.finetune.final_weight_decay": "{choice: [0.01, 0.5]}",
        "task.finetune.start_lr": "{uniform: [0.0, 1e-4]}",
    },
}


@pytest.mark.parametrize("typed", ALIVE, ids=range(len(ALIVE)))
def test_keys_that_reach_the_run_pass_whatever_their_range(typed):
    keys = [f"space.{key}={leaf}" for key, leaf in ALIVE[typed].items()]
    assert linted(*typed, BRIEF, "space=none", *keys).space.keys() == ALIVE[typed].keys()


def test_what_the_miniature_cannot_try_exists():
    tree = launch_of(*JOB).model_dump(mode="json", by_alias=True)
    assert set(NOT_TRIED) <= dotted(tree).keys()
    last_parts = {key.rpartition(".")[2] for key in dotted(tree)}
    assert lint_module.TELLING.keys() <= last_parts


def test_a_rate_at_which_the_miniature_diverges_has_an_effect():
    linted(*JOB, BRIEF, "space=none", "space.task.pretrain.lr={log_uniform: [1e-4, 1e30]}")


# -------- objectives, labels, samplers


def test_an_objective_that_no_epoch_logs_is_refused():
    assert refusal(*JOB, "search.metric=val/accuracy").startswith(
        "search.metric: must be one of what the task logs, val/auroc, val/average_precision, got val/accuracy"
    )
    assert refusal(*JOB, "search.metric=train/loss").startswith("search.metric: must be one of")


def test_any_metric_that_is_logged_can_be_the_objective():
    linted(*JOB, "task.metrics=[AveragePrecision]", "search.metric=val/average_precision")


def test_a_metric_that_there_is_not_is_refused():
    assert refusal(*JOB, "task.metrics=[AUROCC]") == "task.metrics: there is no metric AUROCC; did you mean AUROC?"


def test_labels_that_the_recordings_do_not_have_are_refused_before_anything_is_prepared():
    expected = "task.labels: there is no label protocol superdiagnositc; did you mean superdiagnostic?"
    assert refusal(*JOB, "task.labels=superdiagnositc") == expected
    expected = "task.classes: there is no class NROM in superdiagnostic; did you mean NORM?"
    assert refusal(*JOB, "task.classes=[NROM,MI]") == expected


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ("sampler=cmaes", "task.finetune.optimizer.name=adamw,sgd"),
            "sampler=cmaes: needs numbers without conditions, space.task.finetune.optimizer.name is a choice; try tpe",
        ),
        (("sampler=grid",), "space.model.mask_ratio: sampler=grid needs values that can be counted"),
        (("scheduler=pbt",), "scheduler=pbt: trials take over each other's weights"),
        (("space=none",), "space: nothing is searched, all 12 trials would be the same"),
    ],
)
def test_a_sampler_that_cannot_do_the_space_is_refused_by_name(typed, said):
    assert refusal(*JOB, *typed).startswith(said)


@pytest.mark.parametrize(
    "typed",
    [
        ("space=none", "search.num_trials=1"),
        ("space=none", "sampler=grid"),
        ("space=none", "command=show"),
        ("sampler=cmaes",),
        (
            "sampler=gp",
            "task.finetune.optimizer.name=adamw,sgd",
            "space.task.finetune.optimizer.momentum={uniform: [0.5, 0.9], when: {task.finetune.optimizer.name: sgd}}",
        ),
        ("sampler=nsga2", "task.finetune.optimizer.name=adamw,sgd"),
        ("scheduler=pbt", "~space.model.mask_ratio"),
    ],
)
def test_what_can_be_done_is_not_refused(typed):
    linted(*JOB, BRIEF, *typed)


def test_a_rate_that_follows_the_batch_may_have_a_floor_in_every_miniature():
    linted(
        *JOB,
        BRIEF,
        "task.finetune.lr=null",
        "task.finetune.base_lr_rule=batch_over_256",
        "task.finetune.base_lr=5e-3",  # 1.6e-4 at batches of 8, and below the floor at the miniature's 3
        "task.finetune.min_lr=1e-4",
        "task.finetune.batch_size=8,16",
        "~space.model.mask_ratio",
        "~space.task.finetune.layer_decay",
        "~space.task.pretrain.lr",
    )


def test_a_transform_that_names_the_leads_meets_them_in_the_miniature():
    leads = "[I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6]"
    subset = f"{{_target_: data.transforms.LeadSubset, leads: {leads}, keep: [limb]}}"
    linted(*JOB, BRIEF, f"task.finetune.transforms=[{subset}]", "~space.model.mask_ratio", "~space.task.pretrain.lr")


# -------- k folds


def test_what_would_judge_trials_on_other_records_is_not_searched():
    assert refusal(*JOB, "space.task.folds={choice: [1, 3]}") == (
        "space.task.folds: with it trials would be validated on other records, so that their values could not be "
        "compared; take it out with ~space.task.folds and type one value"
    )
    folds = "space.data.train_folds={choice: [[1, 2], [1, 2, 3]]}"
    assert refusal(*JOB, "task.folds=3", folds).startswith("space.data.train_folds: with it trials would be validated")
    assert linted(*JOB, "space=none", folds).space


def test_a_search_on_folds_is_tried_in_a_miniature_of_one():
    assert linted(*JOB, BRIEF, "task.folds=3").space
    run = lint_module.miniature(launch_of(*JOB, "task.folds=3").run, "task.finetune.lr", ["II", "V2"])
    assert run.task.folds == 1


def test_a_population_may_be_trained_on_folds():
    assert linted(*JOB, BRIEF, "task.folds=2", "scheduler=pbt", "~space.model.mask_ratio").space
