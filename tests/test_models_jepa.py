import pytest
import torch

from models.jepa import JEPA
from models.masking import take
from models.mlae import MLAEEncoder
from models.mtae import MTAEEncoder
from models.signal_vit import SignalViT
from models.st_mem import STMEMEncoder
from models.vit import ViT1d

INPUT = {"leads": ["I", "II", "V1", "V2", "V3", "V5"], "num_samples": 40, "sampling_rate_hz": 10, "size": "laptop"}
"""Six leads of eight columns of five samples."""

ENCODERS = {
    "vit1d": lambda: ViT1d(**INPUT, patch_duration_s=0.5),
    "st_mem": lambda: STMEMEncoder(**INPUT, patch_duration_s=0.5, num_sep_tokens=2, standardize_patches=False),
    "mtae": lambda: MTAEEncoder(**INPUT, patch_duration_s=0.5, standardize_patches=False),
    "mlae": lambda: MLAEEncoder(**INPUT, standardize_patches=False),
    "signal_vit": lambda: SignalViT(**INPUT, patch_duration_s=0.5),
}
every_encoder = pytest.mark.parametrize("name", list(ENCODERS))

JEPA_KEYS = {
    "mask_mode": "multiblock",
    "num_targets": 2,
    "target_share": (0.25, 0.3),
    "context_share": (0.9, 1.0),
    "min_context": 1,
    "allow_overlap": False,
    "keep_share": (0.4, 0.5),
    "num_blocks": 2,
    "min_block": 1,
    "loss": "l1",
    "normalize_targets": True,
    "momentum_start": 0.9,
    "momentum_end": 1.0,
    "predictor_width": None,
    "predictor_depth": None,
}


def jepa(name="vit1d", **changes):
    """A task whose every parameter matters, with a target that has already fallen behind."""
    torch.manual_seed(0)
    task = JEPA(encoder=ENCODERS[name](), **(JEPA_KEYS | changes))
    for key, parameter in task.named_parameters():
        if "positions" not in key:
            torch.nn.init.normal_(parameter, std=0.15)
    return task


def signals(num_records=4, seed=1):
    return torch.randn(num_records, 6, 40, generator=torch.Generator().manual_seed(seed))


def draws_of(task, num_records=4, seed=2):
    return task.draw(num_records, torch.Generator().manual_seed(seed))


def rows_of(draws, rows):
    return {name: values[rows] for name, values in draws.items()}


def on_grid(task, drawn):
    """(G, K) positions of drawn columns, or of drawn leads where the patches are leads, place by place."""
    encoder = task.encoder
    if encoder.num_columns == 1:
        return [list(drawn)]
    if encoder.num_groups > 1:
        return [list(drawn) for _ in range(encoder.num_rows)]
    return [[row * encoder.num_columns + column for row in range(encoder.num_rows) for column in drawn]]


def looped_losses(task, signal, draws):
    """Each record's loss, one target block after another."""
    losses = []
    own = task.encoder.num_own_tokens
    for index, record in enumerate(signal):
        patches = task.encoder.patches(record[None])
        kept = torch.tensor([on_grid(task, draws["context"][index].tolist())])
        context = task.encoder.norm(task.encoder.encode(take(patches, kept), kept=kept))
        wanted = task.target.norm(task.target.encode(patches))[0, :, own:]
        errors = []
        for block in draws["targets"][index].tolist():
            hidden = on_grid(task, block)
            predicted = task.predictor(context, kept, torch.tensor([hidden]))[0]
            for group, positions in enumerate(hidden):
                for place, position in enumerate(positions):
                    target = wanted[group, position]
                    if task.normalize_targets:
                        centred = target - target.mean()
                        target = centred / (centred.square().mean() + 1e-5).sqrt()
                    for guess, value in zip(predicted[group, place].tolist(), target.tolist(), strict=True):
                        error = abs(guess - value)
                        if task.loss == "smooth_l1":
                            error = error**2 / 2 if error < 1 else error - 0.5
                        errors.append(error)
        losses.append(sum(errors) / len(errors))
    return losses


@every_encoder
@pytest.mark.parametrize(
    "changes",
    [{}, {"loss": "smooth_l1", "normalize_targets": False}, {"mask_mode": "random"}, {"mask_mode": "inverse_block"}],
)
def test_each_records_loss_is_its_formula_in_plain_loops(name, changes):
    task = jepa(name, **changes).requires_grad_(False)
    signal, draws = signals(), draws_of(task)
    expected = looped_losses(task, signal, draws)
    assert task.losses(signal, draws).tolist() == pytest.approx(expected, rel=1e-4)
    assert task(signal, draws).item() == pytest.approx(sum(expected) / 4, rel=1e-4)


@every_encoder
def test_records_permuted_have_their_losses_permuted(name):
    task = jepa(name).requires_grad_(False)
    signal, draws = signals(), draws_of(task)
    order = torch.tensor([2, 0, 3, 1])
    losses = task.losses(signal, draws)
    assert len(set(losses.tolist())) == 4
    torch.testing.assert_close(task.losses(signal[order], rows_of(draws, order)), losses[order], rtol=0, atol=1e-6)


@every_encoder
def test_a_record_has_no_part_in_the_losses_of_others(name):
    """In public code, predictions of some records are held against the targets of all."""
    task = jepa(name).requires_grad_(False)
    signal, draws = signals(), draws_of(task)
    changed = signal.clone()
    changed[1] = signals(seed=5)[1]
    before, after = task.losses(signal, draws), task.losses(changed, draws)
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert after[1] != before[1]
    other_masks = {key: values.clone() for key, values in draws.items()}
    for key, values in draws_of(task, seed=3).items():
        assert values.shape == draws[key].shape
        other_masks[key][1] = values[1]
    masked_otherwise = task.losses(signal, other_masks)
    assert torch.equal(masked_otherwise[[0, 2, 3]], before[[0, 2, 3]])
    assert masked_otherwise[1] != before[1]


@every_encoder
def test_every_predicted_block_of_every_record_is_learnt_from(name):
    """In public code 4 predictions of a batch are."""
    task = jepa(name)
    outputs = []
    task.predictor.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    outputs_gradient = []
    task.predictor.head.register_full_backward_hook(lambda module, into, out: outputs_gradient.append(out[0]))
    task(signals(), draws_of(task)).backward()
    (gradient,) = outputs_gradient
    assert len(outputs[0]) == 4 * 2
    per_value = 1 / outputs[0].numel()
    torch.testing.assert_close(gradient.abs(), torch.full_like(gradient, per_value))


@every_encoder
def test_no_gradient_reaches_the_targets(name):
    task = jepa(name)
    signal, draws = signals().requires_grad_(True), draws_of(task)
    assert not any(parameter.requires_grad for parameter in task.target.parameters())
    entered = []
    task.target.norm.register_forward_hook(lambda module, inputs, output: entered.append(output))
    task(signal, draws).backward()
    assert not entered[0].requires_grad
    assert all(parameter.grad is None for parameter in task.target.parameters())
    assert not signal.grad[~seen(task, draws)].any()


def seen(task, draws):
    """(B, C, T) which samples the context shows."""
    visible = torch.zeros(len(draws["context"]), 6, 40, dtype=torch.bool)
    for record, drawn in enumerate(draws["context"].tolist()):
        for index in drawn:
            if task.encoder.num_columns == 1:
                visible[record, index] = True
            else:
                visible[record, :, 5 * index : 5 * index + 5] = True
    return visible


@every_encoder
@pytest.mark.parametrize("mask_mode", ["multiblock", "inverse_block", "random"])
def test_hidden_samples_reach_the_loss_through_the_targets_alone(name, mask_mode):
    task = jepa(name, mask_mode=mask_mode).requires_grad_(False)
    signal, draws, other = signals(), draws_of(task), signals(seed=5)
    visible = seen(task, draws)
    told, predicted = [], []
    task.predictor.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
    task.predictor.register_forward_hook(lambda module, inputs, output: predicted.append(output))
    losses = [
        task.losses(variant, draws)
        for variant in (signal, torch.where(visible, signal, other), torch.where(visible, other, signal))
    ]
    assert torch.equal(told[1], told[0])  # the context, as it enters the predictor
    assert torch.equal(predicted[1], predicted[0])
    assert (losses[1] != losses[0]).all()
    assert not torch.allclose(predicted[2], predicted[0])


@every_encoder
def test_the_encoder_learns_from_what_it_sees(name):
    """In public code the gradient of the patch embedding is 5e-7."""
    torch.manual_seed(0)
    task = JEPA(encoder=ENCODERS[name](), **JEPA_KEYS)
    task(signals(), draws_of(task)).backward()
    fixed = {"encoder.positions"}
    without = {
        key
        for key, parameter in task.named_parameters()
        if not key.startswith("target.") and (parameter.grad is None or not parameter.grad.any())
    }
    assert without == fixed
    embedding = [
        parameter.grad.norm()
        for key, parameter in task.named_parameters()
        if key.startswith("encoder.patch_embedding.")
    ]
    assert min(embedding) > 1e-4


@every_encoder
def test_seen_and_predicted_positions_are_those_of_the_grids_columns_or_of_leads_where_patches_are_leads(name):
    task = jepa(name)
    draws = draws_of(task, 100)
    assert task.num_positions == (6 if name == "mlae" else 8)
    for values in draws.values():
        assert values.min() == 0
        assert values.max() == task.num_positions - 1
    assert draws["context"].shape[0] == 100
    assert draws["targets"].shape[:2] == (100, 2)
    # of the whole batch's masks a worker takes its rows
    task.requires_grad_(False)
    signal = signals(100)
    parts = [task.losses(signal[part], rows_of(draws, part)) for part in (slice(30), slice(30, 100))]
    torch.testing.assert_close(torch.cat(parts), task.losses(signal, draws), rtol=1e-4, atol=1e-5)


def test_the_target_follows_the_encoder_by_its_momentum_which_rises_in_a_straight_line():
    task = jepa(momentum_start=0.8, momentum_end=1.0)
    for step, momentum in ((0, 0.8), (5, 0.9), (10, 1.0)):
        before = {key: value.clone() for key, value in task.target.named_parameters()}
        online = dict(task.encoder.named_parameters())
        task.after_step(step, 11)
        for key, value in task.target.named_parameters():
            torch.testing.assert_close(value, momentum * before[key] + (1 - momentum) * online[key])
            if momentum == 1:
                assert torch.equal(value, before[key])


def test_the_target_starts_as_the_encoder_and_shares_nothing_with_it():
    torch.manual_seed(0)
    task = JEPA(encoder=ENCODERS["st_mem"](), **JEPA_KEYS)
    torch.testing.assert_close(task.target.state_dict(), task.encoder.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in task.encoder.parameters():
            parameter.add_(1.0)
    for key, value in task.target.named_parameters():
        assert not torch.equal(value, dict(task.encoder.named_parameters())[key])


@pytest.mark.parametrize(
    ("changes", "width", "depth", "heads"),
    [
        ({}, 32, 1, 1),  # half of the encoder's 64 and 3
        ({"predictor_width": 128, "predictor_depth": 2}, 128, 2, 2),
        ({"predictor_width": 20}, 20, 1, 1),
    ],
)
def test_the_predictor_has_half_of_the_encoders_width_and_blocks_or_what_is_typed(changes, width, depth, heads):
    predictor = jepa(**changes).predictor
    attention = predictor.blocks[0].attention
    assert (len(predictor.norm.weight), len(predictor.blocks), attention.num_heads) == (width, depth, heads)
    assert attention.head_width == min(width, 64)
    assert predictor.head.weight.shape == (64, width)


@pytest.mark.parametrize("name", ["vit1d", "mlae"])
def test_a_few_records_are_learnt_by_heart_against_a_target_that_stands_still(name):
    torch.manual_seed(0)
    task = JEPA(encoder=ENCODERS[name](), **(JEPA_KEYS | {"momentum_start": 1.0}))
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=2e-3)
    signal, draws = signals(), draws_of(task)
    losses = []
    for step in range(80):
        loss = task(signal, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step(step, 80)
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_share": (0.4, 0.5)}, "min_context must lie between 1 and what the targets leave of 8 patches, 0 at"),
        ({"min_context": 9}, "min_context must lie"),
        ({"num_targets": 0}, "num_targets must be at least 1, got 0"),
        ({"context_share": (0.0, 1.0)}, r"context_share must be \[LOW, HIGH\]"),
        ({"mask_mode": "inverse_block", "min_block": 5}, "keep_share must leave min_block=5 of 8 patches"),
        ({"mask_mode": "inverse_block", "num_blocks": 0}, "num_blocks and min_block must be at least 1"),
        ({"mask_mode": "random", "keep_share": (0.5, 1.5)}, r"keep_share must be \[LOW, HIGH\]"),
        ({"momentum_start": 0.99, "momentum_end": 0.9}, "momentum_start and momentum_end must rise between 0 and 1"),
        ({"momentum_end": 1.1}, "momentum_start and momentum_end must rise between 0 and 1, got 0.9 and 1.1"),
        ({"predictor_width": 30}, "predictor_width must be a positive multiple of 4, got 30"),
        ({"predictor_width": 0}, "predictor_width must be a positive multiple of 4, got 0"),
        ({"predictor_depth": 0}, "predictor_depth must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_when_built_in_one_line_that_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        jepa(**changes)
    assert "\n" not in str(caught.value)


def test_keys_of_other_modes_are_of_no_account():
    impossible = {"min_context": 99, "num_targets": 0, "num_blocks": 0}
    task = jepa(mask_mode="random", **impossible)
    assert task(signals(), draws_of(task)).isfinite()
