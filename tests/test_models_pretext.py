"""What holds of every pretext task; a new one is a line in TASKS and a file in golden/."""

import json
from pathlib import Path

import pytest
import torch

from models.mlae import MLAE
from models.mtae import MTAE
from models.st_mem import STMEM

GOLDEN = Path(__file__).parent / "golden"


TINY = {
    "leads": ["I", "II", "V2"],
    "num_samples": 80,
    "sampling_rate_hz": 100,
    "size": "tiny",
    "mask_ratio": 0.5,
    "norm_pix_loss": True,
    "standardize_patches": True,
    "decoder_width": 64,
    "decoder_depth": 1,
    "decoder_heads": 1,
}

TASKS = {
    "st_mem": lambda: STMEM(**TINY, patch_duration_s=0.1, num_sep_tokens=2),
    "mtae": lambda: MTAE(**TINY, patch_duration_s=0.1),
    "mlae": lambda: MLAE(**TINY),
}
FIXED = {name: {"encoder.positions"} for name in TASKS}
"""Parameters that pre-training holds fixed."""


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small gain nothing from threads, which wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=TASKS)
def name(request):
    return request.param


@pytest.fixture
def task(name):
    torch.manual_seed(0)
    return TASKS[name]()


@pytest.fixture
def signal():
    return ecg_like(8)


def ecg_like(num_records):
    """(B, 3, 80): a beat of random rate and phase in each record, seen by each lead with another sign and size."""
    generator = torch.Generator().manual_seed(7)
    rate, phase = torch.rand(2, num_records, 1, 1, generator=generator).unbind(0)
    time = torch.arange(80) / 80
    beat = torch.exp(-(((time * (1 + 2 * rate) + phase) % 1 - 0.5) ** 2) / 0.01)
    return beat * torch.tensor([1.0, -0.5, 2.0])[:, None] + 0.1 * torch.randn(num_records, 3, 80, generator=generator)


def train(task, signal, num_steps, *, new_draws=True):
    """The losses of a few steps; the draws of the first stay unless `new_draws`."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-3)
    draws = task.draw(len(signal), generator)
    losses = []
    for _ in range(num_steps):
        loss = task(signal, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        draws = task.draw(len(signal), generator) if new_draws else draws
    return losses


def test_the_loss_is_a_finite_scalar(task, signal):
    loss = task(signal, task.draw(8, torch.Generator()))
    assert loss.shape == ()
    assert loss.isfinite()


def test_gradients_arrive_exactly_where_something_is_learnt(task, name, signal):
    task(signal, task.draw(8, torch.Generator())).backward()
    without = {key for key, parameter in task.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert without == FIXED[name]


def test_training_leaves_fixed_parameters_alone_and_changes_all_others(task, name, signal):
    before = {key: value.clone() for key, value in task.named_parameters()}
    train(task, signal, 2)
    assert {key for key, value in task.named_parameters() if torch.equal(value, before[key])} == FIXED[name]


def test_a_loaded_state_gives_the_same_loss(task, name, signal):
    draws = task.draw(8, torch.Generator())
    other = TASKS[name]()
    assert not torch.equal(other(signal, draws), task(signal, draws))
    other.load_state_dict(task.state_dict(), strict=True)
    assert torch.equal(other(signal, draws), task(signal, draws))


def test_the_same_seed_gives_the_same_training(task, name, signal):
    torch.manual_seed(0)
    assert train(TASKS[name](), signal, 3) == train(task, signal, 3)


def test_other_draws_give_another_loss(task, signal):
    first, second = (task.draw(8, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.equal(task(signal, first), task(signal, second))


def test_draws_are_one_row_a_record_and_follow_the_generator(task):
    draws = task.draw(5, torch.Generator().manual_seed(3))
    assert len(draws) == 5
    assert draws.device.type == "cpu"
    assert torch.equal(draws, task.draw(5, torch.Generator().manual_seed(3)))


def test_a_batch_costs_the_mean_of_its_parts(task, signal):
    draws = task.draw(8, torch.Generator())
    parts = torch.stack([task(signal[part], draws[part]) for part in (slice(0, 4), slice(4, 8))])
    torch.testing.assert_close(parts.mean(), task(signal, draws))


def test_eight_records_are_learnt_by_heart(task, signal):
    losses = train(task, signal, 150, new_draws=False)
    assert losses[-1] < 0.1 * losses[0]


def test_ten_losses_are_those_on_file(task, name, signal):
    """Written once with train(...); rewritten only when a change of the numbers is meant."""
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert train(task, signal, 10) == pytest.approx(golden["losses"], rel=1e-4)


def test_the_loss_under_bfloat16_autocast_is_a_float32_near_the_full_one(task, signal):
    draws = task.draw(8, torch.Generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(signal, draws)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, task(signal, draws), rtol=0.03, atol=0)
