import pytest
import torch

from models.encoder import LEADS
from models.transformer import sin_cos_table
from models.vit import ViT1d

SPEC = {"leads": LEADS, "num_samples": 1000, "sampling_rate_hz": 250, "patch_duration_s": 0.1}
"""Forty patches of 25 samples of twelve leads."""


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.40), ("small", 21.41), ("base", 85.29)])
def test_parameters_count_as_in_ecg_ssl(size, millions):
    with torch.device("meta"):
        encoder = ViT1d(**SPEC, size=size)
    learnt = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    assert learnt / 1e6 == pytest.approx(millions, rel=0.002)
    width, num_blocks = encoder.width, 12
    of_a_block = 12 * width**2 + 13 * width
    assert learnt == (300 + 1) * width + num_blocks * of_a_block + 2 * width


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = ViT1d(leads=["I", "V2"], num_samples=12, sampling_rate_hz=10, size="laptop", patch_duration_s=0.3)
    for name, parameter in encoder.named_parameters():
        if name != "positions":
            torch.nn.init.normal_(parameter, std=0.2)
    return encoder.requires_grad_(False).double()


def test_the_embedding_is_the_vision_transformer_patch_by_patch(encoder):
    signal = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    table = sin_cos_table(4, 64)
    for record in range(2):
        tokens = []
        for position in range(4):
            patch = torch.cat([signal[record, lead, 3 * position : 3 * position + 3] for lead in range(2)])
            tokens.append(encoder.patch_embedding.weight @ patch + encoder.patch_embedding.bias + table[position])
        sequence = torch.stack(tokens)[None]
        for block in encoder.blocks:
            sequence = block(sequence)
        mean = sum(sequence[0]) / 4
        centred = mean - mean.mean()
        expected = centred / (centred.square().mean() + 1e-6).sqrt() * encoder.norm.weight + encoder.norm.bias
        torch.testing.assert_close(encoder(signal)[record], expected)


def test_every_norm_has_the_eps_of_vit(encoder):
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 7
    assert {norm.eps for norm in norms} == {1e-6}


def test_amplitude_reaches_the_embedding(encoder):
    signal = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert not torch.allclose(encoder(3 * signal), encoder(signal), rtol=0.01, atol=0.01)
