import math

import pytest
import torch

from models.classifier import Classifier
from models.losses import multilabel_loss
from models.st_mem import STMEMEncoder


def encoder():
    return STMEMEncoder(
        leads=["I", "II"], num_patches=4, patch_size=5, num_sep_tokens=1, size="tiny", standardize_patches=True
    )


def classifier(*, drop_path=0.0, head_init_std=0.02, num_classes=3):
    torch.manual_seed(0)
    return Classifier(encoder(), num_classes, drop_path=drop_path, head_init_std=head_init_std)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small gain nothing from threads, which wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def signal():
    return torch.randn(8, 2, 20, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_head_of_the_embedding(signal):
    model = classifier()
    expected = model.encoder(signal) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(signal), expected)
    assert expected.shape == (8, 3)


def test_the_head_is_drawn_with_the_given_spread_and_without_bias():
    head = classifier(head_init_std=0.3, num_classes=50).head
    assert head.weight.std().item() == pytest.approx(0.3, rel=0.05)
    assert not head.bias.any()
    assert not classifier(head_init_std=0.0).head.weight.any()


def test_every_parameter_learns_those_too_that_pre_training_holds_fixed(signal):
    pretrained = encoder()
    assert not pretrained.positions.requires_grad
    model = Classifier(pretrained, 3, drop_path=0.0, head_init_std=0.02)
    model(signal).square().sum().backward()
    unused = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert unused == []


def test_eight_records_are_learnt_by_heart(signal):
    model = classifier(drop_path=0.1)
    targets = torch.randint(2, (8, 3), generator=torch.Generator().manual_seed(2)).float()
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        multilabel_loss(model(signal, model.draw(8, generator)), targets, label_smoothing=0.0).backward()
        optimizer.step()
    assert torch.equal((model.eval()(signal) > 0).float(), targets)


def test_a_branch_is_dropped_at_a_rate_that_rises_linearly_and_scaled_so_that_its_mean_stays():
    factors = classifier(drop_path=0.4).draw(4000, torch.Generator().manual_seed(0))
    assert factors.shape == (4000, 3, 2)
    for layer, rate in enumerate([0.0, 0.2, 0.4]):
        values = factors[:, layer].flatten()
        assert set(values.tolist()) <= {0.0, torch.tensor(1 / (1 - rate)).item()}
        assert (values == 0).float().mean().item() == pytest.approx(rate, abs=0.03)
        assert values.mean().item() == pytest.approx(1.0, abs=0.05)


def test_without_drop_path_every_factor_is_one(signal):
    model = classifier()
    factors = model.draw(8, torch.Generator())
    assert (factors == 1).all()
    assert torch.equal(model(signal, factors), model(signal))


def test_drop_path_changes_the_output_in_training_and_never_in_evaluation(signal):
    model = classifier(drop_path=0.9)
    factors = model.draw(8, torch.Generator().manual_seed(0))
    plain = model(signal)
    assert not torch.allclose(model(signal, factors), plain)
    assert torch.equal(model.eval()(signal, factors), model(signal))
    torch.testing.assert_close(model(signal), plain)


def test_draws_of_a_batch_can_be_shared_out(signal):
    model = classifier(drop_path=0.5)
    factors = model.draw(8, torch.Generator().manual_seed(0))
    parts = torch.cat([model(signal[:3], factors[:3]), model(signal[3:], factors[3:])])
    torch.testing.assert_close(parts, model(signal, factors))


def test_layers_are_numbered_from_the_input_to_the_head():
    layers = {name: classifier().layer_of(name) for name, _ in classifier().named_parameters()}
    before = {"encoder.positions", "encoder.sep_token", "encoder.lead_embeddings"}
    for name, layer in layers.items():
        if name in before or name.startswith("encoder.patch_embedding."):
            assert layer == 0
        elif name.startswith("encoder.blocks."):
            assert layer == int(name.split(".")[2]) + 1
        else:
            assert name.split(".")[0] == "head" or name.startswith("encoder.norm.")
            assert layer == 4
    assert set(layers.values()) == {0, 1, 2, 3, 4}


def test_a_loaded_state_gives_the_same_logits(signal):
    model, other = classifier(), Classifier(encoder(), 3, drop_path=0.0, head_init_std=0.02)
    assert not torch.equal(other(signal), model(signal))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(signal), model(signal))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path"),
        ({"head_init_std": -1.0}, "head_init_std must be finite and at least 0, got -1.0"),
        ({"head_init_std": math.nan}, "head_init_std"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        classifier(**changes)
