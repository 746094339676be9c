import pytest
import torch
from torch import nn

from trainables import steps
from trainables.optimizers import build_optimizer, parameter_groups
from trainables.schedules import learning_rate, weight_decay
from trainables.steps import Share, autocast, train_epoch
from trainables.workers import Workers

SIGNAL = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
TARGET = torch.randn(20, 1, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def stage(tiny_run):
    """A stage of plain gradient descent: a step moves the weights by the rate times the gradient."""
    plain = tiny_run.task.pretrain.optimizer.model_copy(update={"name": "sgd", "momentum": 0.0})
    told = {"optimizer": plain, "lr": 0.5, "weight_decay": 0.0, "warmup_share": 0.0, "min_lr": 0.5, "num_epochs": 3}
    return tiny_run.task.pretrain.model_copy(update=told)


def model_of(seed=2):
    torch.manual_seed(seed)
    return nn.Linear(6, 1)


def loss_of(model, rows):
    return nn.functional.mse_loss(model(SIGNAL[rows]), TARGET[rows])


def shares_of(model, batches):
    """One worker's shares: a batch is a list of rows."""
    for rows in batches:
        yield Share(lambda rows=rows: loss_of(model, rows), len(rows), len(rows))


def epoch_of(model, batches, stage, *, stage_epoch=0, shares=None, optimizer=None, after_step=None):
    if optimizer is None:
        groups = parameter_groups(model, weight_decay=stage.weight_decay, decay_biases_and_norms=False)
        optimizer = build_optimizer(stage, groups)
    return train_epoch(
        shares_of(model, batches) if shares is None else shares,
        num_batches=len(batches),
        module=model,
        optimizer=optimizer,
        stage=stage,
        stage_epoch=stage_epoch,
        workers=Workers(),
        after_step=after_step,
    )


def gradient_of(model, rows):
    model.zero_grad()
    loss_of(model, rows).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_step_goes_down_the_gradient_at_the_stages_rate(stage):
    model = model_of()
    expected = flat(model) - 0.5 * gradient_of(model_of(), range(8))
    metrics = epoch_of(model, [range(8)], stage)
    torch.testing.assert_close(flat(model), expected)
    assert metrics["train/lr"] == 0.5
    assert metrics["train/loss"] == pytest.approx(loss_of(model_of(), range(8)).item())


def test_accumulated_batches_step_as_one_larger_batch_does(stage):
    whole, parts = model_of(), model_of()
    epoch_of(whole, [range(16)], stage)
    epoch_of(
        parts, [range(first, first + 4) for first in (0, 4, 8, 12)], stage.model_copy(update={"accumulation_steps": 4})
    )
    torch.testing.assert_close(flat(parts), flat(whole), rtol=1e-6, atol=1e-6)  # float32 rounding of four sums
    assert not torch.equal(flat(whole), flat(model_of()))


def test_the_last_step_of_an_epoch_takes_the_batches_that_are_left(stage):
    stage = stage.model_copy(update={"accumulation_steps": 2})
    model, expected = model_of(), model_of()
    epoch_of(model, [range(0, 4), range(4, 8), range(8, 12)], stage)
    for rows in (range(8), range(8, 12)):
        moved = flat(expected) - 0.5 * gradient_of(expected, rows)
        nn.utils.vector_to_parameters(moved, expected.parameters())
    torch.testing.assert_close(flat(model), flat(expected), rtol=1e-6, atol=1e-6)


def test_every_step_of_every_epoch_has_its_own_rate(stage):
    stage = stage.model_copy(update={"accumulation_steps": 2, "min_lr": 0.0, "warmup_share": 0.4})
    model, rates = model_of(), []
    optimizer = build_optimizer(stage, parameter_groups(model, weight_decay=0.0, decay_biases_and_norms=False))
    optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    batches = [range(3), range(3, 6), range(6, 9)]
    logged = [epoch_of(model, batches, stage, stage_epoch=epoch, optimizer=optimizer) for epoch in range(3)]
    expected = [learning_rate(step, 6, peak_lr=0.5, min_lr=0.0, warmup_share=0.4) for step in range(6)]
    assert rates == expected
    assert [metrics["train/lr"] for metrics in logged] == expected[1::2]


def test_every_step_has_its_own_weight_decay_where_anything_decays(stage):
    stage = stage.model_copy(update={"weight_decay": 0.1, "final_weight_decay": 0.5})
    model, decays = nn.Sequential(model_of()), []
    optimizer = build_optimizer(stage, parameter_groups(model, weight_decay=0.1, decay_biases_and_norms=False))
    optimizer.register_step_pre_hook(
        lambda optimizer, *_: decays.append([group["weight_decay"] for group in optimizer.param_groups])
    )
    for epoch in range(3):
        epoch_of(model, [range(4)], stage, stage_epoch=epoch, optimizer=optimizer)
    expected = [weight_decay(step, 3, start=0.1, end=0.5) for step in range(3)]
    assert decays == [[decay, 0.0] for decay in expected]  # the weight's group, and the bias's


def test_what_follows_is_told_of_each_step_after_it_was_taken(stage):
    stage = stage.model_copy(update={"accumulation_steps": 2})
    model, told = model_of(), []
    batches = [range(3), range(3, 6), range(6, 9)]
    for epoch in range(3):
        epoch_of(
            model, batches, stage, stage_epoch=epoch, after_step=lambda *step: told.append((*step, flat(model).sum()))
        )
    assert [step[:2] for step in told] == [(step, 6) for step in range(6)]
    assert len({step[2].item() for step in told}) == 6
    assert told[-1][2] == flat(model).sum()


def test_the_epochs_loss_is_the_mean_over_its_records(stage):
    frozen = stage.model_copy(update={"lr": 1e-30, "min_lr": 0.0})
    batches = [range(5), range(5, 7)]
    metrics = epoch_of(model_of(), batches, frozen)
    assert metrics["train/loss"] == pytest.approx(loss_of(model_of(), range(7)).item(), rel=1e-6)


def test_a_gradient_above_the_limit_is_shortened_to_it(stage):
    model = model_of()
    gradient = gradient_of(model_of(), range(8))
    assert gradient.norm() > 0.1
    epoch_of(model, [range(8)], stage.model_copy(update={"clip_norm": 0.1}))
    torch.testing.assert_close(
        flat(model), flat(model_of()) - 0.5 * 0.1 * gradient / gradient.norm(), rtol=1e-4, atol=1e-6
    )


def test_a_gradient_below_the_limit_is_left_as_it_is(stage):
    free, limited = model_of(), model_of()
    epoch_of(free, [range(8)], stage)
    epoch_of(limited, [range(8)], stage.model_copy(update={"clip_norm": 1e6}))
    assert torch.equal(flat(free), flat(limited))


def test_the_gradient_is_clipped_after_all_of_a_step_was_accumulated(stage):
    stage = stage.model_copy(update={"clip_norm": 0.1})
    whole, parts = model_of(), model_of()
    epoch_of(whole, [range(8)], stage)
    epoch_of(parts, [range(4), range(4, 8)], stage.model_copy(update={"accumulation_steps": 2}))
    torch.testing.assert_close(flat(parts), flat(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda loss: loss * float("nan"),
        lambda loss: loss * float("inf"),
        lambda loss: loss + float("inf"),  # the gradient stays finite
        lambda loss: loss + (loss - loss.detach()).abs().sqrt(),  # the loss stays finite, its gradient does not
    ],
    ids=["nan", "inf", "inf with a finite gradient", "finite with an infinite gradient"],
)
def test_what_is_not_finite_ends_the_epoch_before_it_reaches_a_weight(stage, spoil):
    model, good = model_of(), model_of()
    epoch_of(good, [range(4)], stage)
    losses = [lambda: loss_of(model, range(4)), lambda: spoil(loss_of(model, range(4, 8)))]
    shares = (Share(loss, 4, 4) for loss in losses)
    with pytest.raises(FloatingPointError, match="not finite at optimiser step 1"):
        epoch_of(model, [range(4), range(4, 8)], stage, shares=shares)
    assert torch.equal(flat(model), flat(good))


def test_an_epoch_puts_its_module_into_training_mode(stage):
    model = model_of().eval()
    epoch_of(model, [range(4)], stage)
    assert model.training


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("auto", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_a_cpu_computes_in_bfloat16_only_where_told(stage, precision, dtype):
    stage = stage.model_copy(update={"precision": precision})
    model = model_of()
    with autocast(stage, torch.device("cpu")):
        assert model(SIGNAL).dtype == dtype
    metrics = epoch_of(model, [range(8)], stage)
    assert model.weight.dtype == torch.float32
    assert metrics["train/loss"] == pytest.approx(loss_of(model_of(), range(8)).item(), rel=0.02)


READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__")  # each waits for the device


@pytest.fixture
def reads(monkeypatch):
    """What is asked of tensors, by name."""
    asked = []
    for name in READS:
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *args, _name=name, _call=original: asked.append(_name) or _call(*args)
        )
    return asked


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_device_is_asked_as_often_in_an_epoch_of_many_batches_as_in_one_of_few(stage, reads, clip_norm, optimizer):
    told = stage.optimizer.model_copy(update={"name": optimizer})
    stage = stage.model_copy(update={"clip_norm": clip_norm, "optimizer": told, "lr": 0.01, "min_lr": 0.0})
    asked = []
    for number in (2, 50):
        epoch_of(model_of(), [range(4)] * number, stage)
        asked.append(sorted(reads))
        reads.clear()
    assert asked[0] == asked[1]
    assert len(asked[0]) <= 3  # whether all was finite, and the loss


def test_a_bad_step_ends_an_epoch_long_before_its_end(stage, monkeypatch):
    monkeypatch.setattr(steps, "STEPS_BETWEEN_CHECKS", 3)
    computed = []

    def loss(number):
        computed.append(number)
        return loss_of(model, range(4)) * (float("nan") if number == 4 else 1)

    model = model_of()
    shares = (Share(lambda number=number: loss(number), 4, 4) for number in range(20))
    with pytest.raises(FloatingPointError, match="not finite at optimiser step 4"):
        epoch_of(model, [range(4)] * 20, stage, shares=shares)
    assert computed == list(range(6))
    good = model_of()
    epoch_of(good, [range(4)] * 4, stage)
    assert torch.equal(flat(model), flat(good))
