"""MTAE and MLAE: what a token is, and the sizes of the paper."""

import pytest
import torch

from models.encoder import LEADS
from models.mlae import MLAE
from models.mtae import MTAE
from models.vit import sin_cos_table

PAPER = {
    "leads": LEADS,
    "num_samples": 2250,
    "sampling_rate_hz": 250,
    "size": "small",
    "mask_ratio": 0.75,
    "norm_pix_loss": True,
    "standardize_patches": True,
    "decoder_width": 256,
    "decoder_depth": 4,
    "decoder_heads": 4,
}


def mtae(**changes):
    return MTAE(**(PAPER | {"patch_duration_s": 0.3} | changes))


def mlae(**changes):
    return MLAE(**(PAPER | changes))


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) / 1e6


@pytest.mark.parametrize(
    ("task", "size", "total", "encoder"),
    [
        (mtae, "small", 25.13, 21.64),
        (mtae, "base", 89.34, 85.75),
        (mlae, "small", 26.00, 22.16),
        (mlae, "base", 90.73, 86.79),
    ],
)
def test_parameters_count_as_in_the_paper(task, size, total, encoder):
    with torch.device("meta"):
        model = task(size=size)
    assert millions(model) == pytest.approx(total, rel=0.005)
    assert millions(model.encoder) == pytest.approx(encoder, rel=0.005)


@pytest.mark.parametrize(("task", "num_kept", "num_patches"), [(mtae, 7, 30), (mlae, 3, 12)])
def test_as_many_patches_are_kept_as_in_the_paper(task, num_kept, num_patches):
    with torch.device("meta"):
        model = task()
    assert (model.num_kept, model.encoder.num_patches) == (num_kept, num_patches)


def numbered(num_leads, num_samples):
    """A record in which every sample says its lead and time."""
    return (100.0 * torch.arange(num_leads)[:, None] + torch.arange(num_samples))[None]


def test_a_patch_of_mtae_is_a_stretch_of_all_leads():
    encoder = mtae(size="tiny", leads=["I", "II"], num_samples=12, sampling_rate_hz=10, patch_duration_s=0.3).encoder
    patches = encoder.patches(numbered(2, 12))
    assert patches.shape == (1, 1, 4, 6)
    assert patches[0, 0, 1].tolist() == [3, 4, 5, 103, 104, 105]


def test_a_patch_of_mlae_is_a_lead():
    patches = mlae(size="tiny", mask_ratio=0.5, leads=["II", "V1", "V2"], num_samples=12).encoder.patches(
        numbered(3, 12)
    )
    assert patches.shape == (1, 1, 3, 12)
    assert torch.equal(patches[0, 0], numbered(3, 12)[0])


def test_a_lead_of_mlae_has_the_same_position_whichever_others_there_are():
    positions = mlae(size="tiny", mask_ratio=0.5, leads=["V1", "I"]).encoder.positions
    table = sin_cos_table(12, 64)
    assert torch.equal(positions, torch.stack([torch.zeros(64), table[LEADS.index("V1")], table[0]]))


@pytest.mark.parametrize("task", [mtae, mlae])
def test_the_embedding_is_the_class_token_of_the_whole_signal(task):
    torch.manual_seed(0)
    encoder = task(size="tiny").encoder.eval()
    signal = torch.randn(2, 12, 2250)
    tokens = encoder.encode(encoder.patches(signal))
    assert tokens.shape == (2, 1, 1 + encoder.num_patches, 64)
    torch.testing.assert_close(encoder(signal), encoder.norm(tokens[:, 0, 0]))
    for row in range(2):  # a record's embedding is its own
        torch.testing.assert_close(encoder(signal[row : row + 1])[0], encoder(signal)[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", [mtae, mlae])
def test_what_is_hidden_does_not_reach_the_reconstruction(task):
    torch.manual_seed(0)
    model = task(size="tiny", num_samples=300, norm_pix_loss=False)
    signal, draws = torch.randn(1, 12, 300), model.draw(1, torch.Generator().manual_seed(0))
    prediction, hidden = model.reconstruct(signal, draws)
    patches = model.encoder.patches(signal).clone()
    patches[0, 0, hidden[0, 0]] += 5.0
    by_lead = {mtae: lambda cut: cut.unflatten(1, (12, -1)).transpose(0, 1).flatten(1), mlae: lambda cut: cut}
    changed = by_lead[task](patches[0, 0])[None]
    assert not torch.equal(changed, signal)
    again, _ = model.reconstruct(changed, draws)
    torch.testing.assert_close(again, prediction)


@pytest.mark.parametrize("task", [mtae, mlae])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "large"}, "size must be one of tiny, small, base"),
        ({"leads": ["I", "X"]}, "leads must be among"),
        ({"mask_ratio": 0.0}, "mask_ratio must keep and hide at least one of"),
        ({"decoder_width": 31}, "decoder_width must be even"),
    ],
)
def test_what_cannot_be_is_refused_by_name(task, changes, message):
    with pytest.raises(ValueError, match=message):
        task(**changes)


@pytest.mark.parametrize("task", [mtae, mlae])
def test_a_signal_of_another_shape_is_refused(task):
    with pytest.raises(ValueError, match=r"the signal must be \(records, 12 leads, 2250 samples\)"):
        task(size="tiny").encoder(torch.zeros(1, 11, 2250))
