"""What an answer rests on: attributions add up to it, and rollout is the product of the blocks' attention."""

import numpy as np
import pytest
import torch

from models.attention_pool import AttentionPooled
from models.classifier import Classifier
from models.mtae import MTAEEncoder
from models.resnet import ResNet1d
from models.s4d import S4D
from models.signal_vit import SignalViT
from models.st_mem import STMEMEncoder
from models.vit import ViT1d
from reports.checkpoints.saliency import (
    TOLERANCE,
    along_record,
    attention_rollout,
    attribution,
    integrated_gradients,
    smoothed,
)

INPUT = {"leads": ("I", "II", "V2"), "num_samples": 240, "sampling_rate_hz": 100.0, "size": "laptop"}
PATCHES = {**INPUT, "patch_duration_s": 0.3}


def vit():
    return ViT1d(**PATCHES)


def encoders():
    with torch.random.fork_rng():
        torch.manual_seed(0)  # else each run of the tests has other weights
        return [
            ("vit", vit()),
            ("st_mem", STMEMEncoder(**PATCHES, num_sep_tokens=1, standardize_patches=True)),
            ("mtae", MTAEEncoder(**PATCHES, standardize_patches=True)),
            ("signal_vit", SignalViT(**PATCHES)),
            ("pooled", AttentionPooled(vit())),
            ("resnet", ResNet1d(**INPUT, kernel_size=3)),
            ("s4d", S4D(**INPUT, state_size=8, bidirectional=True, min_memory_s=0.2, max_memory_s=20)),
        ]


def classifier_of(encoder, *, std=0.5):
    torch.manual_seed(0)
    return Classifier(encoder, 4, drop_path=0.0, head_init_std=std).eval()


@pytest.fixture
def crops():
    return torch.randn(2, 3, 240, generator=torch.Generator().manual_seed(1))


def test_the_attributions_of_a_linear_answer_are_its_terms(crops):
    weights = torch.randn(3, 240)
    found = integrated_gradients(lambda x: (x * weights).sum(dim=(1, 2)), crops, torch.zeros_like(crops), num_steps=1)
    torch.testing.assert_close(found, crops * weights)


def test_the_midpoint_rule_is_exact_for_a_quadratic_answer_between_any_two_points(crops):
    baseline = crops.flip(0)
    found = integrated_gradients(lambda x: x.square().sum(dim=(1, 2)), crops, baseline, num_steps=3)
    torch.testing.assert_close(found, crops.square() - baseline.square())


@pytest.mark.parametrize(("name", "encoder"), encoders())
def test_attributions_add_up_to_what_they_explain(name, encoder, crops):
    classifier = classifier_of(encoder)
    found = attribution(classifier, crops, [0, 100], 340, target=2)
    with torch.no_grad():
        explained = (classifier(crops) - classifier(torch.zeros_like(crops)))[:, 2].mean()
    assert found.total == pytest.approx(float(explained), abs=1e-5)
    assert found.error == pytest.approx(abs(float(found.values.sum()) - found.total), abs=1e-4)
    assert found.error <= max(TOLERANCE * abs(found.total), 1e-4)


def test_crops_are_put_where_they_were_cut():
    crops = torch.ones(2, 1, 3)
    assert along_record(crops, [0, 2], 6).tolist() == [[1, 1, 2, 1, 1, 0]]


def test_what_is_looked_at_is_smoothed_over_a_tenth_of_a_second_and_keeps_its_sum():
    values = torch.zeros(2, 100)
    values[1, 50] = 1.0
    found = smoothed(values, 100.0)
    assert np.flatnonzero(found[1]).tolist() == list(range(45, 56))
    assert found.sum() == pytest.approx(1)
    assert (found[0] == 0).all()


@pytest.mark.parametrize(("name", "encoder"), [case for case in encoders() if case[0] not in ("resnet", "s4d")])
def test_rollout_shares_out_at_most_one_whole_and_all_of_it_without_own_tokens(name, encoder, crops):
    found = attention_rollout(encoder.eval(), crops)
    assert found.shape == crops.shape
    assert (found >= 0).all()
    total = found.sum(dim=(1, 2))
    assert (total <= 1 + 1e-5).all()
    if name in ("vit", "pooled"):
        torch.testing.assert_close(total, torch.ones(2))


def test_rollout_is_the_product_of_attention_and_residual_ways_in_plain_loops(crops):
    encoder = vit().eval()
    found = attention_rollout(encoder, crops)
    with torch.no_grad():
        sequence = encoder._tokens(encoder.patches(crops), None, None).flatten(1, 2)
        rolled = np.eye(8)[None].repeat(2, 0)
        for block in encoder.blocks:
            qkv = block.attention.qkv(block.attention_norm(sequence)).view(2, 8, 3, block.attention.num_heads, 64)
            query, key, _ = qkv.unbind(2)
            mean = np.zeros((2, 8, 8))
            for record in range(2):
                for head in range(block.attention.num_heads):
                    scores = query[record, :, head].double() @ key[record, :, head].double().T / 8
                    mean[record] += scores.softmax(dim=-1).numpy() / block.attention.num_heads
            rolled = (0.5 * mean + 0.5 * np.eye(8)) @ rolled
            sequence = block(sequence)
    expected = rolled.mean(axis=1)  # (2, 8) of the patches, each of three leads and 30 samples
    np.testing.assert_allclose(found.view(2, 3, 8, 30).sum(dim=(1, 3)).numpy(), expected, rtol=1e-4)


def test_the_weights_of_an_attention_are_those_it_mixes_with():
    attention = vit().blocks[0].attention.eval()
    tokens = torch.randn(2, 5, attention.qkv.in_features)
    value = attention.qkv(tokens).view(2, 5, 3, attention.num_heads, attention.head_width)[:, :, 2].transpose(1, 2)
    mixed = attention.out((attention.weights(tokens) @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixed, attention(tokens), rtol=1e-4, atol=1e-5)


def test_rollout_of_what_has_no_patches_is_refused(crops):
    with pytest.raises(ValueError, match="needs a transformer over patches, got ResNet1d"):
        attention_rollout(ResNet1d(**INPUT, kernel_size=3), crops)
