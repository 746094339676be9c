import math

import pytest
import torch

from models.attention_pool import AttentionPooled
from models.classifier import Classifier
from models.mlae import MLAEEncoder
from models.mtae import MTAEEncoder
from models.signal_vit import SignalViT
from models.st_mem import STMEMEncoder
from models.vit import ViT1d

INPUT = {"leads": ["I", "II", "V1"], "num_samples": 20, "sampling_rate_hz": 10, "size": "laptop"}
ENCODERS = {
    "st_mem": lambda: STMEMEncoder(**INPUT, patch_duration_s=0.5, num_sep_tokens=1, standardize_patches=False),
    "mtae": lambda: MTAEEncoder(**INPUT, patch_duration_s=0.5, standardize_patches=False),
    "mlae": lambda: MLAEEncoder(**INPUT, standardize_patches=False),
    "signal_vit": lambda: SignalViT(**(INPUT | {"size": "turgut_tiny"}), patch_duration_s=0.5),
    "vit1d": lambda: ViT1d(**INPUT, patch_duration_s=0.5),
}


@pytest.fixture(params=ENCODERS)
def pooled(request):
    torch.manual_seed(0)
    return AttentionPooled(ENCODERS[request.param]())


@pytest.fixture
def signal():
    return torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(1))


def attended(attention, tokens, num_heads):
    """One record's mean token's attention to its tokens, head by head and key by key."""
    width = tokens.shape[1]
    mean = sum(tokens) / len(tokens)
    of_query, of_key, of_value = attention.in_proj_weight.split(width)
    query_bias, key_bias, value_bias = attention.in_proj_bias.split(width)
    query = of_query @ mean + query_bias
    keys = [of_key @ token + key_bias for token in tokens]
    values = [of_value @ token + value_bias for token in tokens]
    mixed = []
    for part in torch.arange(width).split(width // num_heads):
        weights = [(query[part] @ key[part] / math.sqrt(len(part))).exp() for key in keys]
        mixed.append(sum(w * value[part] for w, value in zip(weights, values, strict=True)) / sum(weights))
    return attention.out_proj.weight @ torch.cat(mixed) + attention.out_proj.bias


def test_the_embedding_is_the_attention_of_the_mean_patch_to_all_patches_in_plain_loops(pooled, signal):
    pooled = pooled.double().requires_grad_(False)
    for bias in (pooled.attention.in_proj_bias, pooled.attention.out_proj.bias):
        torch.nn.init.normal_(bias)
    tokens = pooled.encoder.patch_tokens(signal.double())
    assert pooled.attention.num_heads == pooled.encoder.num_heads
    for record in range(4):
        expected = attended(pooled.attention, tokens[record], pooled.encoder.num_heads)
        torch.testing.assert_close(pooled(signal.double())[record], pooled.encoder.norm(expected))


def test_it_is_an_encoder_of_the_same_shape(pooled, signal):
    encoder = pooled.encoder
    assert pooled(signal).shape == (4, encoder.width)
    for name in ("width", "depth", "leads", "num_samples", "segment_samples", "num_rows", "num_columns"):
        assert getattr(pooled, name) == getattr(encoder, name)


def test_layers_are_those_of_the_encoder_and_the_attention_follows_its_blocks(pooled):
    for name, _ in pooled.named_parameters():
        part, _, rest = name.partition(".")
        expected = pooled.encoder.layer_of(rest) if part == "encoder" else pooled.depth + 1
        assert pooled.layer_of(name) == expected
    layers = {pooled.layer_of(name) for name, _ in pooled.named_parameters()}
    assert layers == set(range(pooled.depth + 2))


def test_a_dropped_branch_is_dropped_in_the_encoder(pooled, signal):
    factors = torch.ones(4, pooled.depth, 2)
    torch.testing.assert_close(pooled(signal, factors), pooled(signal))
    factors[1] = 0.0
    dropped = pooled(signal, factors)
    torch.testing.assert_close(dropped[[0, 2, 3]], pooled(signal)[[0, 2, 3]])
    tokens = pooled.encoder.patch_tokens(signal, factors)[1].double()
    expected = attended(pooled.attention.double(), tokens, pooled.encoder.num_heads)
    torch.testing.assert_close(dropped[1], pooled.encoder.norm(expected.float()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(dropped[1], pooled.float()(signal)[1])


def test_what_is_not_shown_is_not_attended_to(pooled, signal):
    shown = {}
    visible = torch.ones(4, 3, 20, dtype=torch.bool)
    if pooled.num_rows > 1:
        shown["rows"] = torch.tensor([[0, 2]] * 4)
        visible[:, 1] = False
    if pooled.num_columns > 1:
        shown["columns"] = torch.tensor([[0, 3]] * 4)
        visible[..., 5:15] = False
    other = torch.randn(4, 3, 20)
    embedding = pooled(signal, **shown)
    assert torch.equal(pooled(torch.where(visible, signal, other), **shown), embedding)
    assert not torch.allclose(embedding, pooled(signal))


def test_every_parameter_learns_but_for_those_that_pre_training_holds_fixed(pooled, signal):
    pooled(signal).square().sum().backward()
    without = {
        name for name, parameter in pooled.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert without == {"encoder.positions"}


def test_a_classifier_on_it_hides_leads_and_learns_every_parameter(signal):
    torch.manual_seed(0)
    pooled = AttentionPooled(ENCODERS["st_mem"]())
    model = Classifier(pooled, 3, drop_path=0.5, head_init_std=0.02, mask_c_ratio=0.5, mask_t_ratio=0.5)
    draws = model.draw(4, torch.Generator().manual_seed(0))
    assert {name: values.shape for name, values in draws.items()} == {
        "drop_path": (4, 3, 2),
        "rows": (4, 1),
        "columns": (4, 2),
    }
    model(signal).square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())
