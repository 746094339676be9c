"""What holds of every pretext task: each YAML in search_spaces/model is held to it; a new one brings a golden file."""

import functools
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from models.classifier import Classifier
from search_spaces.compose import FOLDER, compose_choices
from search_spaces.fitting import encoders_that_give
from search_spaces.schema import checked
from tests.gang_of_two import run_by_two
from trainables.components import MisfitError, build_encoder, build_pretext_on, check_model

GOLDEN = Path(__file__).parent / "golden"
BRIEF = ("command=show", "data=synthetic", "scale=laptop", "task.stages=pretrain", "data.window_s=3.0")
"""The shipped configuration, on windows that are computed in milliseconds."""
SMALLER = ("data.window_s=4.2", "data.leads=[I,II,V1,V2,V3,V4,V5,V6]")
NUM_RECORDS = 8
STEPS_BY_HEART, SHARE_BY_HEART = 200, 0.4
"""Below half of what it was no loss gets by an answer that is the same for all records."""


def names_of(group):
    return sorted(path.stem for path in (FOLDER / group).glob("[!_]*.yaml"))


@functools.cache
def run_of(*typed):
    return checked(compose_choices([*BRIEF, *typed]).tree).run


MODELS = [name for name in names_of("model") if name != "supervised"]
ENCODERS = names_of("encoder")


def build(run):
    return build_pretext_on(run.model, build_encoder(run))


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small gain nothing from threads, which wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def run(name):
    return run_of(f"model={name}")


@pytest.fixture
def task(run):
    torch.manual_seed(0)
    return build(run)


@pytest.fixture
def given(task):
    return ecg_like(task)


def ecg_like(task, num_records=NUM_RECORDS):
    """Signals (B, C, T) or (B, V, C, T) and facts: a beat of random rate and phase, which each lead sees with another
    sign and size; a second view is the first with noise of its own."""
    generator = torch.Generator().manual_seed(7)
    rate, phase = torch.rand(2, num_records, 1, 1, generator=generator).unbind(0)
    num_leads, num_samples = len(task.encoder.leads), task.encoder.num_samples
    time = torch.arange(num_samples) / num_samples
    beat = torch.exp(-(((time * (3 + 2 * rate) + phase) % 1 - 0.5) ** 2) / 0.01)
    gains = torch.linspace(-1, 2, num_leads)[:, None]
    views = [
        beat * gains + 0.1 * torch.randn(num_records, num_leads, num_samples, generator=generator)
        for _ in range(task.num_views)
    ]
    signal = views[0] if task.num_views == 1 else torch.stack(views, dim=1)
    reports = [f"sinus rhythm, rate {number // 2 * 10}, normal ecg" for number in range(num_records)]
    numbers = torch.arange(num_records) // 2  # each patient, report and diagnosis twice
    return signal, {name: task.report_tokens(reports) if name == "reports" else numbers for name in task.reads}


def train(task, given, num_steps, *, new_draws=True, until=0.0):
    """The losses of a few steps, until one is that share of the first; the draws of the first stay unless new."""
    signal, facts = given
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-3)
    draws = task.draw(len(signal), generator)
    losses = []
    for step in range(num_steps):
        loss = task(signal, draws, **facts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step, num_steps)
        losses.append(loss.item())
        if losses[-1] < until * losses[0]:
            break
        draws = task.draw(len(signal), generator) if new_draws else draws
    return losses


def loss_of(task, given, seed=0):
    signal, facts = given
    return task(signal, task.draw(len(signal), torch.Generator().manual_seed(seed)), **facts)


def part_of(given, draws, part):
    signal, facts = given
    pick = lambda named: {name: value[part] for name, value in named.items()}  # noqa: E731
    return signal[part], pick(draws), pick(facts)


def test_the_loss_is_a_finite_scalar(task, given):
    loss = loss_of(task, given)
    assert loss.shape == ()
    assert loss.isfinite()


def test_gradients_arrive_exactly_where_something_is_learnt(task, given):
    loss_of(task, given).backward()
    for key, parameter in task.named_parameters():
        assert (parameter.grad is not None and parameter.grad.any()) == parameter.requires_grad, key


def test_training_changes_all_that_learns_or_follows_and_leaves_tables_alone(task, given):
    before = {key: value.clone() for key, value in task.named_parameters()}
    train(task, given, 2)
    unchanged = {key for key, value in task.named_parameters() if torch.equal(value, before[key])}
    assert {key.rpartition(".")[2] for key in unchanged} <= {"positions"}


def test_a_loaded_state_gives_the_same_loss_bit_for_bit(task, run, given):
    train(task, given, 2)
    torch.manual_seed(1)
    other = build(run)
    assert not torch.equal(loss_of(other, given), loss_of(task, given))
    other.load_state_dict(task.state_dict(), strict=True)
    assert torch.equal(loss_of(other, given), loss_of(task, given))
    assert train(other, given, 2) == train(task, given, 2)


def test_the_same_seed_gives_the_same_training(task, run, given):
    torch.manual_seed(0)
    assert train(build(run), given, 3) == train(task, given, 3)


def test_the_encoder_is_the_first_thing_that_is_drawn(task, run):
    torch.manual_seed(0)
    for name, tensor in build_encoder(run).state_dict().items():
        assert torch.equal(tensor, task.encoder.state_dict()[name])


def test_other_randomness_gives_another_loss(task, given):
    """That of the draws, or of the views where a task has no draws."""
    signal, facts = given
    if task.draw(2, torch.Generator()):
        assert not torch.equal(loss_of(task, given, seed=0), loss_of(task, given, seed=1))
    else:
        noisy = signal + 0.1 * torch.randn(signal.shape, generator=torch.Generator().manual_seed(2))
        assert not torch.equal(task(noisy, {}, **facts), task(signal, {}, **facts))


def test_draws_are_one_row_a_record_and_follow_the_generator(task):
    draws, again = (task.draw(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert draws.keys() == again.keys()
    for key, draw in draws.items():
        assert len(draw) == 5
        assert draw.device.type == "cpu"
        assert torch.equal(draw, again[key])


def test_eight_records_are_learnt_by_heart(name):
    torch.manual_seed(0)
    task = build(run_of(f"model={name}", "data.leads=[I,II,V2,V5]"))
    losses = train(task, ecg_like(task), STEPS_BY_HEART, new_draws=False, until=SHARE_BY_HEART)
    assert losses[-1] < SHARE_BY_HEART * losses[0]


def test_another_length_and_fewer_leads_can_be_learnt_from(name):
    task = build(run_of(f"model={name}", *SMALLER))
    given = ecg_like(task)
    assert given[0].shape[-2:] == (8, 420)
    loss_of(task, given).backward()
    assert task.encoder(given[0].view(-1, 8, 420)).shape == (NUM_RECORDS * task.num_views, task.encoder.width)


def test_ten_losses_are_those_on_file(task, name, given):
    """Rewritten only when a change of the numbers is meant: by hand, with what the failure says."""
    path = GOLDEN / f"{name}.json"
    golden = json.loads(path.read_text()) if path.exists() else {"losses": []}
    losses = train(task, given, 10)
    assert losses == pytest.approx(golden["losses"], rel=1e-4), f"{path.name}: {json.dumps({'losses': losses})}"


def test_the_loss_under_bfloat16_autocast_is_a_float32_near_the_full_one(task, given):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(task, given)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(task, given), rtol=0.05, atol=0.01)


# -------- every pair of a task and an encoder


OF_VECTORS_ALONE = ("resnet1d", "xresnet1d", "s4d")
OF_PATCHES = ("st_mem", "mtae", "mlae", "signal_mae", "jepa")
MISFITS = [(task, encoder) for task in OF_PATCHES for encoder in OF_VECTORS_ALONE] + [("clocs", "mlae")]


def test_the_encoders_that_fit_are_listed():
    assert encoders_that_give({"patches"}) == [name for name in ENCODERS if name not in OF_VECTORS_ALONE]
    assert encoders_that_give({"segments"}) == [name for name in ENCODERS if name != "mlae"]
    assert encoders_that_give({"vector"}) == ENCODERS


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_task_works_on_every_encoder_that_gives_what_it_needs_and_refuses_the_others(name, encoder):
    run = run_of(f"model={name}", f"encoder={encoder}")
    if (name, encoder) in MISFITS:
        with pytest.raises(MisfitError, match="needs an encoder that gives"):
            check_model(run)
        return
    check_model(run)
    torch.manual_seed(0)
    task = build(run)
    given = ecg_like(task, 3)
    loss = loss_of(task, given)
    loss.backward()
    assert loss.isfinite()
    for key, parameter in task.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key  # a gang waits for each of them


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_can_be_trained_with_labels_from_scratch(encoder):
    run = run_of("model=supervised", "task=supervised", "task.stages=finetune", f"encoder={encoder}")
    check_model(run)
    torch.manual_seed(0)
    classifier = Classifier(build_encoder(run), 3, drop_path=0.2, head_init_std=0.02)
    signal = torch.randn(4, 12, 300, generator=torch.Generator().manual_seed(0))
    classifier(signal, classifier.draw(4, torch.Generator().manual_seed(0))).square().sum().backward()
    assert [key for key, parameter in classifier.named_parameters() if parameter.grad is None] == []
    depth = classifier.encoder.depth
    assert {classifier.layer_of(key) for key, _ in classifier.named_parameters()} == set(range(depth + 2))
    alone = classifier.eval().encoder(signal[:1])  # a record's embedding is its own
    torch.testing.assert_close(classifier.encoder(signal)[:1], alone, rtol=1e-4, atol=1e-5)


# -------- two workers against one


def step_of(task, given, workers=(0, 1)):
    """Loss of the global batch, and the gradients that a step would take, as trainables.steps weighs them."""
    rank, world_size = workers
    signal, _ = given
    draws = task.draw(len(signal), torch.Generator().manual_seed(5))
    first = -(-len(signal) * rank // world_size)
    part = slice(first, -(-len(signal) * (rank + 1) // world_size))
    own, own_draws, own_facts = part_of(given, draws, part)
    module = task if world_size == 1 else DistributedDataParallel(task)
    loss = module(own, own_draws, **own_facts)
    (loss * (len(own) * world_size / len(signal))).backward()
    total = loss.detach() * len(own) / len(signal)
    if world_size > 1:
        dist.all_reduce(total)
    task.after_step(0, 10)
    kept = {key: buffer for key, buffer in task.named_buffers() if buffer.is_floating_point()}
    return {"loss": total}, {key: p.grad for key, p in task.named_parameters() if p.requires_grad}, kept


def two_steps(run, workers=(0, 1)):
    """Of a step on seven records, which two workers share as four and three."""
    torch.manual_seed(0)
    task = build(run)
    return step_of(task, ecg_like(task, 7), workers)


def work(rank, runs, folder):
    """One of two processes: every task in turn."""
    found = {name: two_steps(run, (rank, 2)) for name, run in runs.items()}
    torch.save(found, folder / f"worker_{rank}.pt")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each of two processes found of every task."""
    folder = tmp_path_factory.mktemp("gloo")
    runs = {name: run_of(f"model={name}") for name in MODELS}
    run_by_two(work, runs, folder)
    return [torch.load(folder / f"worker_{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_workers_have_the_loss_and_the_gradients_of_one(run, pair, name):
    alone = two_steps(run)
    for worker in pair:
        for found, expected in zip(worker[name], alone, strict=True):
            assert found.keys() == expected.keys()
            # float32 sums come in another order, on which a ReLU may turn; what a batch norm takes out has nothing else
            rounding = 1e-4 * torch.stack([value.norm() for value in expected.values()]).max() if expected else 0
            for key, value in expected.items():
                assert (found[key] - value).norm() < 1e-3 * value.norm() + rounding, key
