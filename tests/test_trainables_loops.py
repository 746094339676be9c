import json

import pytest
import torch

from data.record import DataError
from trainables.checkpoint import DESCRIPTION, keep_run
from trainables.files import StorageError
from trainables.loops import first_encoder, train
from trainables.pretrain import fresh_encoder
from trainables.state import SavedState, TrainState, read_place
from trainables.workers import Workers

ALONE = Workers()


def new_state():
    return TrainState("val/auroc", maximize=True)


@pytest.fixture(scope="module")
def joint(tiny_run, tiny_recordings):
    """The state and the results of a whole joint run."""
    state = new_state()
    return state, list(train(tiny_run, state, tiny_recordings, ALONE))


def test_a_joint_run_has_one_axis_of_epochs_over_both_stages(joint):
    _, results = joint
    assert [(result["epoch"], result["stage"]) for result in results] == [
        (1, "pretrain"),
        (2, "pretrain"),
        (3, "finetune"),
        (4, "finetune"),
    ]


def test_the_history_holds_what_every_epoch_reported(joint):
    state, results = joint
    told = [{"epoch": epoch["epoch"], "stage": epoch["stage"], **epoch["metrics"]} for epoch in state.history]
    assert told == results


def test_the_value_of_a_joint_run_comes_from_fine_tuning_alone(compose_run, tiny_recordings):
    # at a rate near zero fine-tuning stays worse than the probe before it, which must not count all the same
    run = compose_run(
        "task.finetune.lr=1e-9", "task.finetune.head_init=normal", "task.finetune.head_init_std=3", "seed=3"
    )
    state, probed = new_state(), []
    for result in train(run, state, tiny_recordings, ALONE):
        if result["stage"] == "pretrain":
            probed.append(result["val/auroc"])
            assert state.best is None
        else:
            assert state.best.epoch > run.task.num_pretrain_epochs
    assert state.best.value < max(probed)


def test_fine_tuning_begins_with_the_pre_trained_encoder(compose_run, tiny_recordings):
    run = compose_run("task.pretrain.num_epochs=1", "task.finetune.lr=1e-30")
    state = new_state()
    results = train(run, state, tiny_recordings, ALONE)
    next(results)
    pretrained = {name: tensor.clone() for name, tensor in state.model.encoder.state_dict().items()}
    next(results)
    torch.testing.assert_close(dict(state.model.encoder.state_dict()), pretrained, rtol=0, atol=1e-12)
    untrained = fresh_encoder(run).state_dict()
    assert any(not torch.equal(pretrained[name], untrained[name]) for name in untrained)


def test_a_run_from_scratch_needs_no_checkpoint(compose_run, tiny_recordings):
    run = compose_run("task.stages=finetune", "task.finetune.mode=scratch", "task.finetune.num_epochs=1")
    assert run.task.encoder is None
    state = new_state()
    (result,) = train(run, state, tiny_recordings, ALONE)
    assert (result["stage"], state.best.epoch) == ("finetune", 1)


def test_pre_training_alone_ends_after_its_stage(compose_run, tiny_recordings):
    run = compose_run("task.stages=pretrain", "task.pretrain.num_epochs=1")
    state = new_state()
    (result,) = train(run, state, tiny_recordings, ALONE)
    assert (result["stage"], state.best.epoch) == ("pretrain", 1)


# -------- fine-tuning from a checkpoint


@pytest.fixture(scope="module")
def checkpoint(compose_run, tiny_recordings, tmp_path_factory):
    """Folder of a checkpoint of a pre-trained encoder."""
    run, state = compose_run("task.stages=pretrain", "task.pretrain.num_epochs=1"), new_state()
    folder = tmp_path_factory.mktemp("pretrained")
    for _ in train(run, state, tiny_recordings, ALONE):
        state.save(folder)
    return keep_run(folder, run, tiny_recordings, read_place(folder)["best"], "val/auroc")


@pytest.fixture(scope="module")
def over_checkpoint(compose_run, checkpoint):
    return lambda *typed: compose_run("task.stages=finetune", f"task.encoder={checkpoint}", *typed)


@pytest.mark.parametrize("mode", ["finetune", "linprobe"])
def test_fine_tuning_alone_begins_with_the_encoder_of_a_checkpoint(over_checkpoint, tiny_recordings, mode):
    run = over_checkpoint(f"task.finetune.mode={mode}", "task.finetune.num_epochs=1")
    given, untrained = first_encoder(run).state_dict(), fresh_encoder(run).state_dict()
    assert not torch.equal(given["norm.weight"], untrained["norm.weight"])
    state = new_state()
    (result,) = train(run, state, tiny_recordings, ALONE)
    assert result["stage"] == "finetune"
    same = torch.equal(state.model.encoder.state_dict()["norm.weight"], given["norm.weight"])
    assert same == (mode == "linprobe")


def test_an_encoder_of_other_recordings_is_refused_with_what_to_type(over_checkpoint):
    with pytest.raises(DataError, match=r"type data\.highpass_hz=0\.67 data\.standardize=\"record\"$") as caught:
        first_encoder(over_checkpoint("data.highpass_hz=1", "data.standardize=lead"))
    assert "\n" not in str(caught.value)


def test_an_encoder_may_serve_some_of_its_leads_and_no_others(over_checkpoint):
    assert first_encoder(over_checkpoint("data.leads=[V2]")).leads == ("V2",)
    with pytest.raises(DataError, match=r"never saw the leads V3, V4; type data\.leads=\[II,V2\]"):
        first_encoder(over_checkpoint("data.leads=[V3,II,V4]"))


def test_an_encoder_of_another_shape_is_refused_with_the_first_difference(over_checkpoint):
    with pytest.raises(DataError, match="holds another encoder: positions must be 4x64, it is 5x64; ") as caught:
        first_encoder(over_checkpoint("model.encoder.num_sep_tokens=0"))
    assert str(caught.value).endswith(f"set model.* as in the checkpoint's {DESCRIPTION}")
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_refused(compose_run, tmp_path):
    run = compose_run("task.stages=finetune", f"task.encoder={tmp_path / 'nowhere'}")
    with pytest.raises(StorageError, match=f"holds no {DESCRIPTION}: name a folder such as"):
        first_encoder(run)


def test_a_resumed_fine_tuning_needs_no_checkpoint_any_more(over_checkpoint, checkpoint, tiny_recordings, tmp_path):
    run, state = over_checkpoint(), new_state()
    next(train(run, state, tiny_recordings, ALONE))
    state.save(tmp_path)
    gone = run.model_copy(update={"task": run.task.model_copy(update={"encoder": str(tmp_path / "gone")})})
    (result,) = train(gone, new_state(), tiny_recordings, ALONE, saved=SavedState.load(tmp_path))
    assert result["epoch"] == 2


def test_what_is_kept_of_a_run_says_where_it_comes_from(checkpoint, tiny_recordings):
    described = json.loads((checkpoint / DESCRIPTION).read_text())
    assert described["epoch"] == 1
    assert described["metric"] == "val/auroc"
    assert described["metrics"]["val/auroc"] == described["value"]
    assert described["store"] == tiny_recordings.store.hash
    assert described["contract"]["classes"] == list(tiny_recordings.labels.classes)
