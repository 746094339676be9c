"""Two processes over gloo, without Ray, against one: a run's numbers do not depend on who computes them."""

import dataclasses

import numpy as np
import pytest
import torch

from models.pretext import PretextTask
from tests.gang_of_two import run_by_two
from trainables.collapse import spread
from trainables.loops import train
from trainables.metrics import compute
from trainables.pretrain import fresh_encoder
from trainables.recordings import open_recordings
from trainables.settings import Run
from trainables.state import TrainState
from trainables.workers import Workers

# plain gradient descent: AdamW divides by a gradient's size, so the rounding of one that is 0 in truth becomes a step
PLAIN = ["task.pretrain.optimizer.name=sgd", "task.finetune.optimizer.name=sgd", "task.finetune.head_init=normal"]
PLAIN += ["task.pretrain.lr=0.1", "task.finetune.lr=0.1"]  # so that the weights move by far more than rounding
SHORT = ["task.pretrain.num_epochs=1", "task.finetune.num_epochs=1"]
CASES = {
    # 53 training records in batches of 7, which two workers share as 4 and 3; the last step takes one batch of two
    "joint": [*PLAIN, *SHORT, "task.pretrain.batch_size=7", "task.finetune.batch_size=7"]
    + ["task.pretrain.accumulation_steps=2", "task.finetune.accumulation_steps=2", "task.finetune.clip_norm=0.3"]
    + ["task.finetune.drop_path=0.5"],
    "linprobe": [*PLAIN, *SHORT, "task.finetune.mode=linprobe", "task.finetune.optimizer.name=adamw"]
    + ["task.finetune.batch_size=9"],
    "probe": [*PLAIN, "task.stages=pretrain", "task.pretrain.num_epochs=1"],
    # views, facts, batch norm, gathered negatives, networks that follow
    "byol": [*PLAIN, "model=byol", "task.stages=pretrain", "task.pretrain.num_epochs=1", "task.pretrain.lr=0.01"]
    + ["task.pretrain.batch_size=7", "task.pretrain.accumulation_steps=2"],
    "meclip": [*PLAIN, "model=meclip", "task.stages=pretrain", "task.pretrain.num_epochs=1", "task.pretrain.lr=0.01"]
    + ["task.pretrain.batch_size=7"],
}


def trained(run, store, workers):
    """What a run reports and ends with."""
    state = TrainState("val/auroc", maximize=True)
    for _ in train(run, state, open_recordings(run, store), workers):
        assert state.model is not None
    metrics = [epoch["metrics"] for epoch in state.history]
    return {"metrics": metrics, "weights": state.model.state_dict(), "best": state.best_weights}


@dataclasses.dataclass(frozen=True)
class Telling(Workers):
    """A worker that writes down what it brings to sums and joins."""

    brought: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def total(self, values):
        self.brought.append(values.clone())
        return super().total(values)

    def joined(self, rows):
        self.brought.append(torch.from_numpy(rows.copy()))
        return super().joined(rows)


class InfiniteOnOne(PretextTask):
    """A pretext task whose loss is infinite, with a finite gradient, on one worker at its third batch."""

    def __init__(self, run, rank):
        super().__init__()
        self.encoder = fresh_encoder(run)
        self._rank, self._calls = rank, 0

    def forward(self, signal, draws):
        self._calls += 1
        loss = self.encoder(signal).square().mean()
        return loss + float("inf") if (self._rank, self._calls) == (1, 3) else loss


def refused(run, store, workers):
    """What ends a run whose loss is infinite on one worker, on this one."""
    from trainables import pretrain

    pretrain.build_pretext = lambda run: InfiniteOnOne(run, workers.rank)
    with pytest.raises(FloatingPointError) as caught:
        trained(run, store, workers)
    return str(caught.value)


def work(rank, runs, store, folder):
    """One of two processes: every case in turn."""
    workers = Workers.of_this_process()
    assert (workers.rank, workers.world_size, workers.device.type) == (rank, 2, "cpu")
    found = {name: trained(Run.model_validate_json(run), store, workers) for name, run in runs.items()}
    telling = Telling.of_this_process()
    assert trained(Run.model_validate_json(runs["joint"]), store, telling)["metrics"] == found["joint"]["metrics"]
    found["brought"] = telling.brought
    found["told"] = [workers.told_by_first(value) for value in (rank == 0, rank == 1)]
    found["joined"] = workers.joined(np.arange(rank, 3 * rank + 2))
    found["total"] = workers.total(torch.tensor([1.0, float(rank)]))
    found["refused"] = refused(Run.model_validate_json(runs["joint"]), store, workers)
    torch.save(found, folder / f"worker_{rank}.pt")


@pytest.fixture(scope="module")
def runs(compose_run):
    return {name: compose_run(*typed) for name, typed in CASES.items()}


@pytest.fixture(scope="module")
def pair(runs, tiny_store, tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("gloo")
    as_json = {name: run.model_dump_json(by_alias=True) for name, run in runs.items()}
    run_by_two(work, as_json, tiny_store.path, folder)
    return [torch.load(folder / f"worker_{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_workers_take_the_steps_of_one(runs, pair, tiny_store, case):
    alone = trained(runs[case], tiny_store.path, Workers())
    for worker in pair:
        found = worker[case]
        assert len(found["metrics"]) == len(alone["metrics"]) == runs[case].task.num_epochs
        for ours, theirs in zip(found["metrics"], alone["metrics"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        torch.testing.assert_close(found["weights"], dict(alone["weights"]), rtol=1e-4, atol=1e-5)
        # a probe's head is an optimum: it follows embeddings that differ by rounding, and by more than these
        torch.testing.assert_close(found["best"], alone["best"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_both_workers_end_with_the_same_numbers_to_the_bit(pair, case):
    first, second = (worker[case] for worker in pair)
    assert first["metrics"] == second["metrics"]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)


def test_every_metric_is_made_of_what_all_workers_bring_though_their_shares_differ(runs, pair, tiny_store):
    run, recordings = runs["joint"], open_recordings(runs["joint"], tiny_store.path)
    pretraining, finetuning = pair[0]["joint"]["metrics"]
    losses, features, probed, middles, finetuned, answers = zip(*(worker["brought"] for worker in pair), strict=True)

    def check_loss(parts, metrics):
        (first_sum, first_count), (second_sum, second_count) = (part.tolist() for part in parts)
        assert first_count > second_count > 0  # batches of seven: four and three
        assert first_sum / first_count != pytest.approx(second_sum / second_count, rel=1e-6)
        assert metrics["train/loss"] == pytest.approx(
            (first_sum + second_sum) / (first_count + second_count), rel=1e-12
        )

    def check_validation(parts, metrics):
        classes, rows = recordings.valid_classes, recordings.split.valid
        assert 0 < len(parts[1]) < len(parts[0])
        of_all = torch.cat(parts)[:, classes].numpy()
        truth = recordings.targets(rows)[:, classes]
        expected = compute(run.task.metrics, "multilabel", of_all, np.ascontiguousarray(truth), split="val")
        assert {name: metrics[name] for name in expected} == expected
        return set(expected)

    check_loss(losses, pretraining)
    check_loss(finetuned, finetuning)
    assert sum(map(len, features)) == len(recordings.split.train)
    names = check_validation(probed, pretraining)
    assert check_validation(answers, finetuning) == names
    of_all = spread(torch.cat(middles))
    assert {name: pretraining[name] for name in of_all} == of_all
    assert all(
        spread(part)[name] != pytest.approx(value, rel=1e-3) for part in middles for name, value in of_all.items()
    )
    # the rate alone is known to each
    assert set(pretraining) == {"train/loss", "train/lr"} | names | set(of_all)
    assert set(finetuning) == {"train/loss", "train/lr"} | names


def test_a_loss_that_is_infinite_on_one_worker_ends_the_epoch_on_both_at_the_same_step(pair):
    assert [worker["refused"] for worker in pair] == ["the gradient is not finite at optimiser step 1"] * 2


def test_what_the_first_worker_says_reaches_both(pair):
    assert [worker["told"] for worker in pair] == [[True, False]] * 2


def test_rows_are_joined_by_rank_and_sums_taken_over_all(pair):
    for worker in pair:
        assert worker["joined"].tolist() == [0, 1, 1, 2, 3, 4]
        assert worker["total"].tolist() == [2.0, 1.0]


def test_a_worker_alone_talks_to_nobody():
    alone = Workers.of_this_process()
    assert alone == Workers(0, 1, torch.device("cpu"))
    module, rows, values = torch.nn.Linear(1, 1), np.arange(3), torch.ones(2)
    assert alone.together(module) is module
    assert alone.joined(rows) is rows
    assert alone.total(values) is values
    assert alone.told_by_first(True) is True
