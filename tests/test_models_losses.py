import math

import pytest
import torch

from models.losses import hidden_patch_mse, multilabel_loss, single_label_loss
from models.masking import split_by_noise, take


@pytest.fixture
def patches():
    return torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hidden():
    return split_by_noise(torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(1)), 2)[1]


@pytest.fixture
def prediction():
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_reconstruction_loss_is_its_formula_in_plain_loops(patches, hidden, prediction, norm_pix_loss):
    total, count = 0.0, 0
    for record in range(2):
        for lead in range(3):
            for index, position in enumerate(hidden[record, lead].tolist()):
                target = patches[record, lead, position].tolist()
                if norm_pix_loss:
                    mean = sum(target) / 5
                    variance = sum((value - mean) ** 2 for value in target) / 4
                    target = [(value - mean) / math.sqrt(variance + 1e-6) for value in target]
                guess = prediction[record, lead, index].tolist()
                total += sum((a - b) ** 2 for a, b in zip(guess, target, strict=True)) / 5
                count += 1
    loss = hidden_patch_mse(prediction, patches, hidden, norm_pix_loss=norm_pix_loss)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_visible_patches_do_not_enter_the_loss_and_hidden_ones_do(patches, hidden, prediction, norm_pix_loss):
    loss = hidden_patch_mse(prediction, patches, hidden, norm_pix_loss=norm_pix_loss)
    is_hidden = torch.zeros(2, 3, 6).scatter(2, hidden, 1.0).bool()
    other = torch.randn(patches.shape, generator=torch.Generator().manual_seed(3))
    visible_changed = torch.where(is_hidden[..., None], patches, other)
    hidden_changed = torch.where(is_hidden[..., None], other, patches)
    assert torch.equal(hidden_patch_mse(prediction, visible_changed, hidden, norm_pix_loss=norm_pix_loss), loss)
    assert not torch.equal(hidden_patch_mse(prediction, hidden_changed, hidden, norm_pix_loss=norm_pix_loss), loss)


def test_standardised_targets_forget_offset_and_scale_of_a_patch(patches, hidden, prediction):
    changed = patches * torch.rand(2, 3, 6, 1).add(0.5) + torch.randn(2, 3, 6, 1)
    loss = hidden_patch_mse(prediction, patches, hidden, norm_pix_loss=True)
    torch.testing.assert_close(hidden_patch_mse(prediction, changed, hidden, norm_pix_loss=True), loss)


def test_a_perfect_reconstruction_costs_nothing(patches, hidden):
    assert hidden_patch_mse(take(patches, hidden), patches, hidden, norm_pix_loss=False) == 0


def test_a_flat_patch_has_a_flat_standardised_target(hidden):
    flat = torch.full((2, 3, 6, 5), 0.7)
    assert hidden_patch_mse(torch.zeros(2, 3, 4, 5), flat, hidden, norm_pix_loss=True).item() < 1e-6


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_multilabel_loss_is_its_formula_in_plain_loops(smoothing):
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.float32)
    total = 0.0
    for row, truth in zip(logits.tolist(), targets.tolist(), strict=True):
        for logit, label in zip(row, truth, strict=True):
            probability = 1 / (1 + math.exp(-logit))
            smooth = (1 - smoothing) * label + smoothing * 0.5
            total -= smooth * math.log(probability) + (1 - smooth) * math.log(1 - probability)
    loss = multilabel_loss(logits, targets, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(total / 12, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_single_label_loss_is_its_formula_in_plain_loops(smoothing):
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    classes = [2, 0, 3]
    total = 0.0
    for row, truth in zip(logits.tolist(), classes, strict=True):
        normalizer = sum(math.exp(logit) for logit in row)
        for index, logit in enumerate(row):
            smooth = (1 - smoothing) * (index == truth) + smoothing / 4
            total -= smooth * math.log(math.exp(logit) / normalizer)
    targets = torch.nn.functional.one_hot(torch.tensor(classes), 4).float()
    loss = single_label_loss(logits, targets, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)


@pytest.mark.parametrize("loss", [multilabel_loss, single_label_loss])
def test_a_batch_costs_the_mean_of_its_records_in_float32(loss):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.eye(3)[[0, 2, 1, 1]]
    whole = loss(logits, targets, label_smoothing=0.1)
    single = torch.stack([loss(logits[i : i + 1], targets[i : i + 1], label_smoothing=0.1) for i in range(4)])
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, single.mean())
