"""Two processes over gloo that share a model's weights out, against one that holds them all."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import search_spaces
from models.unit import Unit
from tests.gang_of_two import run_by_two
from trainables import components
from trainables.components import build_encoder
from trainables.loops import train
from trainables.optimizers import build_optimizer, parameter_groups
from trainables.pretrain import build_pretext
from trainables.recordings import open_recordings
from trainables.settings import Run
from trainables.state import SavedState, TrainState, read_place
from trainables.steps import Share, train_epoch
from trainables.workers import Workers

# plain gradient descent, as in test_trainables_workers.py: AdamW makes steps of the rounding of what is 0 in truth
PLAIN = ["task.pretrain.optimizer.name=sgd", "task.finetune.optimizer.name=sgd", "task.finetune.head_init=normal"]
PLAIN += ["task.pretrain.lr=0.1", "task.finetune.lr=0.1"]
SHORT = ["task.pretrain.num_epochs=1", "task.finetune.num_epochs=1"]
PRETRAIN = [*PLAIN, "task.stages=pretrain", "task.pretrain.num_epochs=1", "task.pretrain.lr=0.01"]
CASES = {
    # batches of 7, which two workers share as 4 and 3; the last step takes one batch of two
    "joint": [*PLAIN, *SHORT, "task.pretrain.batch_size=7", "task.finetune.batch_size=7"]
    + ["task.pretrain.accumulation_steps=2", "task.finetune.accumulation_steps=2", "task.finetune.clip_norm=0.3"]
    + ["task.pretrain.clip_norm=0.5", "task.finetune.drop_path=0.5", "task.finetune.layer_decay=0.6"],
    "linprobe": [*PLAIN, *SHORT, "task.finetune.mode=linprobe", "task.finetune.batch_size=9"],
    "attention": [*PLAIN, "task.stages=finetune", "task.finetune.mode=scratch", "task.finetune.pool=attention"]
    + ["task.finetune.num_epochs=1"],
    # batch norm, networks that follow, gathered negatives, a temperature that is learnt, complex state spaces
    "byol": [*PRETRAIN, "model=byol", "task.pretrain.batch_size=7", "task.pretrain.accumulation_steps=2"],
    "jepa": [*PRETRAIN, "model=jepa", "task.pretrain.batch_size=7", "task.pretrain.lr=0.1", "model.momentum_start=0.9"],
    "meclip": [*PRETRAIN, "model=meclip", "task.pretrain.batch_size=7", "model.learn_temperature=true"],
    "simclr": [*PRETRAIN, "model=simclr", "encoder=s4d", "task.pretrain.batch_size=7", "task.pretrain.lr=1e-3"],
}
SHIPPED = ["task.pretrain.num_epochs=2", "task.finetune.num_epochs=2"]  # AdamW, two moments a weight


def names_of(group):
    return sorted(path.stem for path in (Path(search_spaces.__file__).parent / group).glob("[!_]*.yaml"))


def entered(run, store, workers, folder=None, epochs=None):
    """A run's state after some of its epochs, or all; where there is a `folder` it goes on from there and is saved."""
    state = TrainState("val/auroc", maximize=True, writes=workers.rank == 0)
    saved = None if folder is None else SavedState.load(folder)
    for number, _ in enumerate(train(run, state, open_recordings(run, store), workers, saved=saved), start=1):
        if folder is not None:
            state.save(folder)
        if number == epochs:
            break
    return state


def found_in(state):
    """What a run reports and ends with; all workers must call."""
    return {
        "metrics": [epoch["metrics"] for epoch in state.history],
        "weights": {name: tensor.clone() for name, tensor in state.whole().state_dict().items()},
        "best": state.best_weights,
    }


def local_bytes(tensors):
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def bytes_of(state):
    """What this worker holds of parameters and of the optimiser's state."""
    of_optimizer = [value for values in state.optimizer.state.values() for value in values.values()]
    return local_bytes([*state.model.parameters(), *of_optimizer])


class InfiniteOnOne(nn.Module):
    """Two units, and a loss that is infinite, with a finite gradient, on one worker at its third call."""

    def __init__(self, rank):
        super().__init__()
        self.layers = nn.Sequential(Doubling(), Doubling())
        self._rank, self._calls = rank, 0

    def forward(self, signal):
        self._calls += 1
        loss = self.layers(signal).square().mean()
        return loss + float("inf") if (self._rank, self._calls) == (1, 3) else loss


class Doubling(Unit):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3, 3), 2.0))

    def forward(self, signal):
        return signal @ self.weight


def refused(workers, stage):
    """What ends an epoch in which one worker's loss is infinite, on this one, and at which call."""
    model = InfiniteOnOne(workers.rank)
    form = workers.shared_out(model)
    assert [name for name, part in model.named_modules() if hasattr(part, "unshard")] == ["", "layers.0", "layers.1"]
    assert all(parameter.is_meta for parameter in form.parameters())
    optimizer = build_optimizer(stage, parameter_groups(model, weight_decay=0.0, decay_biases_and_norms=False))
    shares = (Share(lambda: model(torch.ones(2, 3)), 2, 4) for _ in range(5))
    with pytest.raises(FloatingPointError) as caught:
        train_epoch(
            shares, num_batches=5, module=model, optimizer=optimizer, stage=stage, stage_epoch=0, workers=workers
        )
    return str(caught.value), model._calls


def work(rank, runs, store, folder):
    """One of two processes: every case in turn."""
    workers = Workers.of_this_process(sharding="full")
    runs = {name: Run.model_validate_json(run) for name, run in runs.items()}
    found = {name: found_in(entered(runs[name], store, workers)) for name in CASES}
    for epochs in (1, 3):  # in pre-training, and in fine-tuning
        state = entered(runs["shipped"], store, workers, folder / f"begun_by_two_{epochs}", epochs=epochs)
        found[f"bytes_{epochs}"] = bytes_of(state)
        found[f"continued_{epochs}"] = found_in(
            entered(runs["shipped"], store, workers, folder / f"begun_by_one_{epochs}")
        )
    found["refused"] = refused(workers, runs["joint"].task.pretrain)
    torch.save(found, folder / f"worker_{rank}.pt")


@pytest.fixture(scope="module")
def runs(compose_run):
    return {name: compose_run(*typed) for name, typed in (CASES | {"shipped": SHIPPED}).items()}


@pytest.fixture(scope="module")
def folder(runs, tiny_store, tmp_path_factory):
    """Where one worker has begun the shipped run, twice, and two have gone on with it, and the other way round."""
    folder = tmp_path_factory.mktemp("sharding")
    for epochs in (1, 3):
        entered(runs["shipped"], tiny_store.path, Workers(), folder / f"begun_by_one_{epochs}", epochs=epochs)
        shutil.copytree(folder / f"begun_by_one_{epochs}", folder / f"left_by_one_{epochs}")
    as_json = {name: run.model_dump_json(by_alias=True) for name, run in runs.items()}
    run_by_two(work, as_json, tiny_store.path, folder)
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    """What each of two processes found."""
    return [torch.load(folder / f"worker_{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_workers_that_share_a_model_out_take_the_steps_of_one_that_holds_it(runs, pair, tiny_store, case):
    alone = found_in(entered(runs[case], tiny_store.path, Workers()))
    first, second = (worker[case] for worker in pair)
    assert first["metrics"] == second["metrics"]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert len(first["metrics"]) == len(alone["metrics"]) == runs[case].task.num_epochs
    for ours, theirs in zip(first["metrics"], alone["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(first["best"], alone["best"], rtol=1e-3, atol=1e-3)
    assert second["best"] == {}  # the first alone writes: a whole copy on each would undo what sharding saves


@pytest.mark.parametrize("case", ["byol", "jepa", "meclip", "simclr"])
def test_the_steps_move_the_weights_by_far_more_than_that(runs, pair, case):
    begun, ended = build_pretext(runs[case]).state_dict(), pair[0][case]["weights"]
    moved = {name.partition(".")[0] for name in ended if (ended[name] - begun[name]).abs().max() > 1e-3}
    assert moved >= {"encoder"} | ({"target"} if case in ("byol", "jepa") else set())


def test_a_worker_holds_half_of_the_parameters_and_of_the_optimisers_state(runs, pair, tiny_store):
    for epochs in (1, 3):
        alone = bytes_of(entered(runs["shipped"], tiny_store.path, Workers(), epochs=epochs))
        each = [worker[f"bytes_{epochs}"] for worker in pair]
        assert max(each) / alone == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("epochs", [1, 3])
def test_what_is_saved_of_shares_is_what_one_worker_saves(folder, epochs):
    ours, theirs = (folder / f"{name}_{epochs}" for name in ("begun_by_two", "left_by_one"))
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    for path in ours.iterdir():
        tensors, expected = load_file(path), load_file(theirs / path.name)
        assert {name: (value.shape, value.dtype) for name, value in tensors.items()} == {
            name: (value.shape, value.dtype) for name, value in expected.items()
        }
        torch.testing.assert_close(tensors, expected, rtol=1e-3, atol=1e-3)
    assert read_place(ours).keys() == read_place(theirs).keys()


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_goes_on_with_another_number_of_workers(runs, folder, pair, tiny_store, epochs):
    unbroken = found_in(entered(runs["shipped"], tiny_store.path, Workers()))
    by_two = pair[0][f"continued_{epochs}"]
    by_one = found_in(entered(runs["shipped"], tiny_store.path, Workers(), folder / f"begun_by_two_{epochs}"))
    for found in (by_two, by_one):
        assert len(found["metrics"]) == len(unbroken["metrics"]) == 4
        for ours, theirs in zip(found["metrics"], unbroken["metrics"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        torch.testing.assert_close(found["weights"], unbroken["weights"], rtol=1e-3, atol=1e-3)


def test_a_loss_that_is_infinite_on_one_worker_ends_the_epoch_on_both_at_the_same_step(pair):
    assert [worker["refused"] for worker in pair] == [("the gradient is not finite at optimiser step 1", 4)] * 2


def test_a_weight_without_rows_is_refused_by_its_name_before_anything_runs(tiny_run, monkeypatch):
    def with_a_number(run):
        encoder = build_encoder(run)
        encoder.blocks[1].scale = nn.Parameter(torch.tensor(1.0))
        return encoder

    monkeypatch.setattr(components, "build_encoder", with_a_number)
    components.check_model(tiny_run)
    with pytest.raises(
        ValueError, match=r"cannot be sharded, as its weight encoder\.blocks\.1\.scale is a single number"
    ):
        components.check_model(tiny_run, sharded=True)


@pytest.mark.parametrize("model", names_of("model"))
def test_every_method_can_be_sharded(compose_run, model):
    stages = ["task.stages=pretrain"] if model != "supervised" else ["task=supervised"]
    components.check_model(compose_run(f"model={model}", *stages, "data.leads=[I,II,V1,V2]"), sharded=True)


@pytest.mark.parametrize("encoder", names_of("encoder"))
def test_the_blocks_of_every_encoder_are_sharded_one_by_one(compose_run, encoder):
    built = build_encoder(compose_run(f"encoder={encoder}", "model=simclr"))
    units = [part for part in built.modules() if isinstance(part, Unit)]
    assert len(units) == built.depth > 1
    inside = sum(parameter.numel() for unit in units for parameter in unit.parameters())
    assert inside > 0.75 * sum(parameter.numel() for parameter in built.parameters())
