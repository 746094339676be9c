import math

import pytest
import torch

from models.encoder import LEADS
from models.masked_autoencoder import MaskedAutoencoder
from models.signal_vit import SIGNAL_SIZES, SignalViT

SPEC = {"leads": LEADS, "num_samples": 2500, "sampling_rate_hz": 500, "patch_duration_s": 0.2}
"""A grid of 12 leads by 25 columns of 100 samples."""


def signal_mae(size, **changes):
    """The paper's task on the paper's input."""
    with torch.device("meta"):
        return MaskedAutoencoder(
            encoder=SignalViT(**(SPEC | changes), size=size),
            mask_ratio=0.8,
            norm_pix_loss=False,
            loss_on="all",
            ncc_weight=0.1,
            decoder_width=None,
            decoder_depth=2,
            decoder_heads=None,
            decoder_head_width=32,
        )


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) / 1e6


@pytest.mark.parametrize(
    ("size", "of_encoder", "of_decoder"),
    [
        ("turgut_tiny", 5.36, 1.70),
        ("turgut_small", 12.66, 1.74),
        ("turgut_medium", 24.68, 1.77),
        ("turgut_large", 53.90, 1.83),
        ("turgut_small_deep", 21.33, 1.70),
        ("turgut_medium_deep", 47.93, 1.75),
    ],
)
def test_parameters_count_as_in_the_paper(size, of_encoder, of_decoder):
    model = signal_mae(size)
    assert millions(model.encoder) == pytest.approx(of_encoder, rel=0.005)
    assert millions(model.decoder) == pytest.approx(of_decoder, rel=0.005)


def test_of_three_hundred_patches_sixty_are_kept_where_the_float_floor_keeps_59():
    model = signal_mae("turgut_tiny")
    assert (model.encoder.num_patches, model.num_kept) == (300, 60)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = SignalViT(leads=["V1", "II"], num_samples=12, sampling_rate_hz=10, size="laptop", patch_duration_s=0.3)
    for name, parameter in encoder.named_parameters():
        if name != "positions":
            torch.nn.init.normal_(parameter, std=0.2)
    return encoder.requires_grad_(False).double()


def place(lead, column, width=64):
    """The encoding of a place of the grid: sines and cosines of the column, then of the lead's standard row."""
    values = []
    for index in (column, LEADS.index(lead)):
        angles = [index / 10000 ** (k / (width // 4)) for k in range(width // 4)]
        values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return torch.tensor(values, dtype=torch.float64)


def test_positions_tell_column_and_standard_lead_and_are_zero_for_the_class_token(encoder):
    assert not encoder.positions[0].any()
    expected = torch.stack([place(lead, column) for lead in ("V1", "II") for column in range(4)])
    torch.testing.assert_close(encoder.positions[1:], expected, rtol=0, atol=1e-6)


def test_the_embedding_is_the_paper_patch_by_patch(encoder):
    signal = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for record in range(2):
        tokens = [encoder.class_token]
        for row, lead in enumerate(["V1", "II"]):
            for column in range(4):
                patch = signal[record, row, 3 * column : 3 * column + 3]
                embedded = encoder.patch_embedding.weight @ patch + encoder.patch_embedding.bias
                tokens.append(embedded + place(lead, column).float().double())
        sequence = torch.stack(tokens)[None]
        for block in encoder.blocks:
            sequence = block(sequence)
        mean = sum(sequence[0, 1:]) / 8  # not of the class token
        centred = mean - mean.mean()
        expected = centred / (centred.square().mean() + 1e-6).sqrt() * encoder.norm.weight + encoder.norm.bias
        torch.testing.assert_close(encoder(signal)[record], expected, rtol=1e-5, atol=1e-5)


def test_heads_share_the_width_out_whatever_it_is():
    for size, (width, depth, num_heads) in SIGNAL_SIZES.items():
        with torch.device("meta"):
            encoder = SignalViT(**SPEC, size=size)
        attention = encoder.blocks[0].attention
        assert len(encoder.blocks) == depth
        assert attention.num_heads * attention.head_width == width
        assert attention.num_heads == num_heads


def test_every_norm_has_the_eps_of_vit(encoder):
    assert {module.eps for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}


def test_amplitude_reaches_the_embedding(encoder):
    signal = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert not torch.allclose(encoder(3 * signal), encoder(signal), rtol=0.01, atol=0.01)


def test_a_size_of_the_other_family_is_refused_in_one_line_that_names_the_key():
    with pytest.raises(ValueError, match="size must be one of laptop, turgut_tiny, .*, got 'small'") as caught:
        SignalViT(**SPEC, size="small")
    assert "\n" not in str(caught.value)
