import math

import pytest
import torch

from models.attention_pool import AttentionPooled
from models.classifier import Classifier
from models.losses import multilabel_loss
from models.mlae import MLAEEncoder
from models.mtae import MTAEEncoder
from models.resnet import ResNet1d
from models.signal_vit import SignalViT
from models.st_mem import STMEMEncoder

INPUT = {"leads": ["I", "II"], "num_samples": 20, "sampling_rate_hz": 10, "size": "laptop"}


def encoder(**changes):
    """Two leads of four patches of five samples each."""
    keys = INPUT | {"patch_duration_s": 0.5, "num_sep_tokens": 1, "standardize_patches": True}
    return STMEMEncoder(**(keys | changes))


def classifier(*, drop_path=0.0, head_init_std=0.02, num_classes=3):
    torch.manual_seed(0)
    return Classifier(encoder(), num_classes, drop_path=drop_path, head_init_std=head_init_std)


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
    draws = classifier(drop_path=0.4).draw(4000, torch.Generator().manual_seed(0))
    assert draws.keys() == {"drop_path"}
    factors = draws["drop_path"]
    assert factors.shape == (4000, 3, 2)
    for layer, rate in enumerate([0.0, 0.2, 0.4]):
        values = factors[:, layer].flatten()
        assert set(values.tolist()) <= {0.0, torch.tensor(1 / (1 - rate)).item()}
        assert (values == 0).float().mean().item() == pytest.approx(rate, abs=0.03)
        assert values.mean().item() == pytest.approx(1.0, abs=0.05)


def test_without_drop_path_every_factor_is_one(signal):
    model = classifier()
    draws = model.draw(8, torch.Generator())
    assert (draws["drop_path"] == 1).all()
    assert torch.equal(model(signal, draws), model(signal))


def test_drop_path_changes_the_output_in_training_and_never_in_evaluation(signal):
    model = classifier(drop_path=0.9)
    draws = model.draw(8, torch.Generator().manual_seed(0))
    plain = model(signal)
    assert not torch.allclose(model(signal, draws), plain)
    assert torch.equal(model.eval()(signal, draws), model(signal))
    torch.testing.assert_close(model(signal), plain)


def test_draws_of_a_batch_can_be_shared_out(signal):
    torch.manual_seed(0)
    model = Classifier(encoder(), 3, drop_path=0.5, head_init_std=0.02, mask_c_ratio=0.5, mask_t_ratio=0.5)
    draws = model.draw(8, torch.Generator().manual_seed(0))
    parts = [
        model(signal[part], {name: rows[part] for name, rows in draws.items()}) for part in (slice(3), slice(3, 8))
    ]
    torch.testing.assert_close(torch.cat(parts), model(signal, draws))


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
        ({"drop_path": math.nan}, "drop_path"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path"),
        ({"head_init_std": -1.0}, "head_init_std must be finite and at least 0, got -1.0"),
        ({"head_init_std": math.nan}, "head_init_std"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        classifier(**changes)
    assert "\n" not in str(caught.value)


# Hidden leads and times.

SIX = {"leads": ["I", "II", "III", "aVR", "aVL", "aVF"], "num_samples": 40}
"""Six leads of eight patches."""


def st_mem():
    return encoder(**SIX)


def signal_vit():
    return SignalViT(**(INPUT | SIX), patch_duration_s=0.5)


def pooled():
    return AttentionPooled(encoder(**SIX))


def hiding(build, **ratios):
    torch.manual_seed(0)
    return Classifier(build(), 3, drop_path=0.0, head_init_std=0.5, **ratios)


def six_leads(num_records=5, seed=1):
    return torch.randn(num_records, 6, 40, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("build", [st_mem, signal_vit, pooled])
@pytest.mark.parametrize(("mask_c_ratio", "mask_t_ratio"), [(0.5, 0.0), (0.0, 0.25), (0.34, 0.75)])
def test_the_given_share_of_leads_and_of_patches_in_time_is_hidden_from_each_record(build, mask_c_ratio, mask_t_ratio):
    model = hiding(build, mask_c_ratio=mask_c_ratio, mask_t_ratio=mask_t_ratio)
    draws = model.draw(5, torch.Generator().manual_seed(0))
    signal, other = six_leads(), six_leads(seed=2)
    shown = torch.ones(5, 6, 40, dtype=torch.bool)
    for name, number, ratio in (("rows", 6, mask_c_ratio), ("columns", 8, mask_t_ratio)):
        assert (name in draws) == (ratio > 0)
        if name in draws:
            assert draws[name].shape == (5, math.floor(number * (1 - ratio)))
            assert len({tuple(row) for row in draws[name].tolist()}) > 1  # each record its own
            seen = torch.zeros(5, number, dtype=torch.bool).scatter(1, draws[name], True)
            shown &= seen[:, :, None] if name == "rows" else seen.repeat_interleave(5, dim=1)[:, None]
    logits = model(signal, draws)
    assert torch.equal(model(torch.where(shown, signal, other), draws), logits)
    assert not torch.allclose(model(torch.where(shown, other, signal), draws), logits)
    assert not torch.allclose(model(signal), logits)


@pytest.mark.parametrize("build", [st_mem, signal_vit, pooled])
def test_nothing_is_hidden_in_evaluation(build):
    masked, plain = hiding(build, mask_c_ratio=0.5, mask_t_ratio=0.5), hiding(build)
    signal = six_leads()
    draws = masked.draw(5, torch.Generator().manual_seed(0))
    assert torch.equal(masked.eval()(signal, draws), plain.eval()(signal))


def test_every_lead_and_every_time_is_hidden_equally_often():
    model = hiding(st_mem, mask_c_ratio=0.5, mask_t_ratio=0.25)
    draws = model.draw(3000, torch.Generator().manual_seed(0))
    for name, number, share in (("rows", 6, 0.5), ("columns", 8, 0.75)):
        frequency = torch.bincount(draws[name].flatten(), minlength=number) / 3000
        torch.testing.assert_close(frequency, torch.full((number,), share), atol=0.04, rtol=0)  # four standard errors


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (
            lambda: ResNet1d(**INPUT, kernel_size=3),
            {"mask_c_ratio": 0.5},
            "mask_c_ratio needs an encoder that tells leads apart, got ResNet1d; set it to 0",
        ),
        (
            lambda: ResNet1d(**INPUT, kernel_size=3),
            {"mask_t_ratio": 0.5},
            "mask_t_ratio needs an encoder that cuts time into patches, got ResNet1d; set it to 0",
        ),
        (
            lambda: MTAEEncoder(**INPUT, patch_duration_s=0.5, standardize_patches=False),
            {"mask_c_ratio": 0.5},
            "mask_c_ratio needs an encoder that tells leads apart, got MTAEEncoder",
        ),
        (
            lambda: MLAEEncoder(**INPUT, standardize_patches=False),
            {"mask_t_ratio": 0.5},
            "mask_t_ratio needs an encoder that cuts time into patches, got MLAEEncoder",
        ),
        (encoder, {"mask_c_ratio": 0.6}, "mask_c_ratio must keep and hide at least one of 2 rows, got 0.6"),
        (encoder, {"mask_t_ratio": 0.8}, "mask_t_ratio must keep and hide at least one of 4 columns, got 0.8"),
        (encoder, {"mask_t_ratio": 1.0}, "mask_t_ratio must keep"),
        (encoder, {"mask_t_ratio": -0.5}, "mask_t_ratio"),
        (encoder, {"mask_c_ratio": math.nan}, "mask_c_ratio"),
    ],
)
def test_leads_and_times_that_cannot_be_hidden_are_refused_in_one_line_by_name(build, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        Classifier(build(), 3, drop_path=0.0, head_init_std=0.02, **changes)
    assert "\n" not in str(caught.value)


def test_leads_can_be_hidden_where_patches_are_whole_leads_and_times_where_they_hold_all_leads():
    by_lead = Classifier(
        MLAEEncoder(**INPUT, standardize_patches=False), 3, drop_path=0.0, head_init_std=0.02, mask_c_ratio=0.5
    )
    by_time = Classifier(
        MTAEEncoder(**INPUT, patch_duration_s=0.5, standardize_patches=False),
        3,
        drop_path=0.0,
        head_init_std=0.02,
        mask_t_ratio=0.5,
    )
    signal = torch.randn(4, 2, 20, generator=torch.Generator().manual_seed(1))
    for model, shape in ((by_lead, (4, 1)), (by_time, (4, 2))):
        draws = model.draw(4, torch.Generator().manual_seed(0))
        assert draws["rows" if model is by_lead else "columns"].shape == shape
        assert not torch.allclose(model(signal, draws), model(signal))
