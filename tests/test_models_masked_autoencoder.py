"""The task over every kind of grid, and what tokens of MTAE and MLAE are, with the sizes of their paper."""

import math

import pytest
import torch

from models.encoder import LEADS
from models.masked_autoencoder import MaskedAutoencoder
from models.masking import take
from models.mlae import MLAEEncoder
from models.mtae import MTAEEncoder
from models.signal_vit import SignalViT
from models.st_mem import STMEMEncoder
from models.transformer import sin_cos_table
from models.vit import ViT1d

PAPER_TASK = {
    "mask_ratio": 0.75,
    "norm_pix_loss": True,
    "loss_on": "hidden",
    "ncc_weight": 0.0,
    "decoder_width": None,
    "decoder_depth": None,
    "decoder_heads": None,
    "decoder_head_width": 64,
}
INPUT = {"leads": LEADS, "num_samples": 2250, "sampling_rate_hz": 250, "size": "small"}
OWN_KEYS = {
    STMEMEncoder: {"patch_duration_s": 0.3, "num_sep_tokens": 2, "standardize_patches": True},
    MTAEEncoder: {"patch_duration_s": 0.3, "standardize_patches": True},
    MLAEEncoder: {"standardize_patches": True},
    SignalViT: {"patch_duration_s": 0.3},
    ViT1d: {"patch_duration_s": 0.3},
}
ENCODERS = list(OWN_KEYS)
TOKENS = {"size": "laptop", "leads": ["I", "II", "V2"], "num_samples": 30, "sampling_rate_hz": 10}
"""Three leads of ten columns of three samples each."""


def task(encoder, **changes):
    """A task of an encoder's class; `changes` of either's arguments."""
    keys = INPUT | OWN_KEYS[encoder]
    of_encoder = {key: value for key, value in changes.items() if key in keys}
    of_task = {key: value for key, value in changes.items() if key not in keys}
    torch.manual_seed(0)
    return MaskedAutoencoder(encoder=encoder(**(keys | of_encoder)), **(PAPER_TASK | of_task))


def small_task(encoder, **changes):
    """A task whose every parameter matters."""
    model = task(encoder, **(TOKENS | {"mask_ratio": 0.6} | changes))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.double().requires_grad_(False)


def signals(num_records=2, num_leads=3, num_samples=30, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_records, num_leads, num_samples, generator=generator, dtype=torch.float64)


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) / 1e6


@pytest.mark.parametrize(
    ("encoder", "size", "total", "of_encoder"),
    [
        (MTAEEncoder, "small", 25.13, 21.64),
        (MTAEEncoder, "base", 89.34, 85.75),
        (MLAEEncoder, "small", 26.00, 22.16),
        (MLAEEncoder, "base", 90.73, 86.79),
    ],
)
def test_parameters_count_as_in_the_paper(encoder, size, total, of_encoder):
    with torch.device("meta"):
        model = task(encoder, size=size)
    assert millions(model) == pytest.approx(total, rel=0.005)
    assert millions(model.encoder) == pytest.approx(of_encoder, rel=0.005)


@pytest.mark.parametrize(("encoder", "num_kept", "num_patches"), [(MTAEEncoder, 7, 30), (MLAEEncoder, 3, 12)])
def test_as_many_patches_are_kept_as_in_the_paper(encoder, num_kept, num_patches):
    with torch.device("meta"):
        model = task(encoder)
    assert (model.num_kept, model.encoder.num_patches) == (num_kept, num_patches)


def numbered(num_leads, num_samples):
    """A record in which every sample says its lead and time."""
    return (100.0 * torch.arange(num_leads)[:, None] + torch.arange(num_samples))[None]


def test_a_patch_of_mtae_is_a_stretch_of_all_leads():
    encoder = task(MTAEEncoder, size="laptop", leads=["I", "II"], num_samples=12, sampling_rate_hz=10).encoder
    patches = encoder.patches(numbered(2, 12))
    assert patches.shape == (1, 1, 4, 6)
    assert patches[0, 0, 1].tolist() == [3, 4, 5, 103, 104, 105]


def test_a_patch_of_mlae_is_a_lead():
    encoder = task(MLAEEncoder, size="laptop", mask_ratio=0.5, leads=["II", "V1", "V2"], num_samples=12).encoder
    patches = encoder.patches(numbered(3, 12))
    assert patches.shape == (1, 1, 3, 12)
    assert torch.equal(patches[0, 0], numbered(3, 12)[0])


def test_a_lead_of_mlae_has_the_same_position_whichever_others_there_are():
    positions = task(MLAEEncoder, size="laptop", mask_ratio=0.5, leads=["V1", "I"]).encoder.positions
    table = sin_cos_table(12, 64)
    assert torch.equal(positions, torch.stack([torch.zeros(64), table[LEADS.index("V1")], table[0]]))


@pytest.mark.parametrize("encoder", [MTAEEncoder, MLAEEncoder])
def test_the_embedding_is_the_class_token_of_the_whole_signal(encoder):
    encoder = task(encoder, size="laptop").encoder.eval()
    signal = torch.randn(2, 12, 2250)
    tokens = encoder.encode(encoder.patches(signal))
    assert tokens.shape == (2, 1, 1 + encoder.num_patches, 64)
    torch.testing.assert_close(encoder(signal), encoder.norm(tokens[:, 0, 0]))
    for row in range(2):  # a record's embedding is its own
        torch.testing.assert_close(encoder(signal[row : row + 1])[0], encoder(signal)[row], rtol=1e-4, atol=1e-5)


# The task over every grid. Which samples a patch holds is said here once more, sample by sample.


def samples_of(encoder, group, position):
    """The (lead, time) of each value of a patch."""
    num_leads, num_samples = len(encoder.leads), encoder.num_samples
    if isinstance(encoder, STMEMEncoder):
        return [(group, time) for time in range(3 * position, 3 * position + 3)]
    if isinstance(encoder, MLAEEncoder):
        return [(position, time) for time in range(num_samples)]
    if isinstance(encoder, SignalViT):
        row, column = divmod(position, num_samples // 3)
        return [(row, time) for time in range(3 * column, 3 * column + 3)]
    return [(lead, time) for lead in range(num_leads) for time in range(3 * position, 3 * position + 3)]


def kept_positions(model, noise):
    """(G,) lists of the positions with the smallest noise."""
    return [sorted(sorted(range(len(row)), key=row.tolist().__getitem__)[: model.num_kept]) for row in noise]


def standardized(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return [(value - mean) / math.sqrt(variance + 1e-6) for value in values]


def correlation(first, second):
    means = [sum(values) / len(values) for values in (first, second)]
    a, b = ([value - mean for value in values] for values, mean in zip((first, second), means, strict=True))
    energy = sum(x * x for x in a) * sum(y * y for y in b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(energy)


def looped_loss(model, signal, noise):
    """One record's loss, from the decoder's output for every patch."""
    encoder = model.encoder
    kept = kept_positions(model, noise)
    hidden = [[n for n in range(encoder.num_patches) if n not in group] for group in kept]
    kept_tensor, hidden_tensor = torch.tensor([kept]), torch.tensor([hidden])
    tokens = encoder.norm(encoder.encode(take(encoder.patches(signal[None]), kept_tensor), kept=kept_tensor))
    decoded = model.decoder(tokens, kept_tensor, hidden_tensor, visible_too=True)[0]
    guess, target = torch.zeros_like(signal), torch.zeros_like(signal)
    errors = []
    for group in range(encoder.num_groups):
        for index, position in enumerate(kept[group] + hidden[group]):
            places = samples_of(encoder, group, position)
            wanted = [signal[place].item() for place in places]
            wanted = standardized(wanted) if model.norm_pix_loss else wanted
            values = decoded[group, index].tolist()
            if model.loss_on == "all" or position in hidden[group]:
                errors.append(sum((a - b) ** 2 for a, b in zip(values, wanted, strict=True)) / len(places))
            for place, value, of_target in zip(places, values, wanted, strict=True):
                guess[place], target[place] = value, of_target
    error = sum(errors) / len(errors)
    similarities = [correlation(a, b) for a, b in zip(guess.tolist(), target.tolist(), strict=True)]
    similarity = sum(similarities) / len(similarities)
    return (1 - model.ncc_weight) * error + model.ncc_weight * (1 - similarity)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    ("loss_on", "ncc_weight", "norm_pix_loss"),
    [("hidden", 0.0, True), ("hidden", 0.4, False), ("all", 0.0, False), ("all", 0.1, True), ("all", 1.0, False)],
)
def test_the_loss_is_its_formula_in_plain_loops(encoder, loss_on, ncc_weight, norm_pix_loss):
    model = small_task(encoder, loss_on=loss_on, ncc_weight=ncc_weight, norm_pix_loss=norm_pix_loss)
    signal, draws = signals(), model.draw(2, torch.Generator().manual_seed(2))
    expected = [looped_loss(model, *record) for record in zip(signal, draws["noise"], strict=True)]
    assert model(signal, draws).item() == pytest.approx(sum(expected) / 2, rel=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_reconstruction_is_of_the_hidden_patches_and_the_same_whether_visible_ones_are_asked_for(encoder):
    model = small_task(encoder)
    signal, draws = signals(), model.draw(2, torch.Generator().manual_seed(2))
    prediction, hidden = model.reconstruct(signal, draws)
    kept = torch.tensor([kept_positions(model, noise) for noise in draws["noise"]])
    assert torch.equal(
        torch.cat([kept, hidden], dim=2).sort(dim=2).values[0, 0], torch.arange(kept.shape[2] + hidden.shape[2])
    )
    tokens = model.encoder.norm(model.encoder.encode(take(model.encoder.patches(signal), kept), kept=kept))
    everything = model.decoder(tokens, kept, hidden, visible_too=True)
    torch.testing.assert_close(everything[:, :, kept.shape[2] :], prediction)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_is_hidden_does_not_reach_the_reconstruction(encoder):
    model = small_task(encoder, norm_pix_loss=False)
    signal, draws = signals(), model.draw(2, torch.Generator().manual_seed(2))
    before, hidden = model.reconstruct(signal, draws)
    is_hidden = torch.zeros(signal.shape, dtype=torch.bool)
    for record in range(2):
        for group in range(model.encoder.num_groups):
            for position in hidden[record, group].tolist():
                for lead, time in samples_of(model.encoder, group, position):
                    is_hidden[record, lead, time] = True
    assert is_hidden.float().mean().item() == pytest.approx(0.6, abs=0.1)
    other = signals(seed=3)
    after, _ = model.reconstruct(torch.where(is_hidden, other, signal), draws)
    assert torch.equal(after, before)
    visible_changed, _ = model.reconstruct(torch.where(is_hidden, signal, other), draws)
    assert not torch.allclose(visible_changed, before)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_is_hidden_reaches_the_loss_through_its_target_and_so_do_visible_patches_where_all_count(encoder):
    for loss_on in ("hidden", "all"):
        model = small_task(encoder, norm_pix_loss=False, loss_on=loss_on)
        # with decoders that tell nothing, the loss is the mean square of what counts
        torch.nn.init.zeros_(model.decoder.head.weight)
        torch.nn.init.zeros_(model.decoder.head.bias)
        signal, draws = signals(), model.draw(2, torch.Generator().manual_seed(2))
        _, hidden = model.reconstruct(signal, draws)
        patches = model.encoder.patches(signal)
        counted = patches if loss_on == "all" else take(patches, hidden)
        torch.testing.assert_close(model(signal, draws), counted.square().mean().float())


def test_draws_are_one_row_a_record_for_every_group():
    for encoder, shape in ((STMEMEncoder, (5, 3, 10)), (SignalViT, (5, 1, 30)), (MLAEEncoder, (5, 1, 3))):
        noise = small_task(encoder).draw(5, torch.Generator().manual_seed(0))
        assert {name: values.shape for name, values in noise.items()} == {"noise": shape}


def widths_of(decoder):
    return decoder.norm.weight.shape[0], len(decoder.blocks), decoder.blocks[0].attention.num_heads


@pytest.mark.parametrize(
    ("size", "changes", "expected"),
    [
        ("laptop", {}, (64, 1, 1)),
        ("laptop", {"decoder_width": 128}, (128, 1, 2)),
        ("laptop", {"decoder_head_width": 32}, (64, 1, 2)),
        ("laptop", {"decoder_depth": 3, "decoder_heads": 2}, (64, 3, 2)),
        ("tiny", {}, (256, 4, 4)),
        ("tiny", {"decoder_depth": 2, "decoder_head_width": 32}, (256, 2, 8)),  # the signal MAE's
        ("tiny", {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 1}, (64, 1, 1)),
        ("small", {"decoder_heads": 2}, (256, 4, 2)),
    ],
)
def test_the_decoder_is_the_usual_one_or_narrow_beside_a_narrow_encoder_or_what_is_typed(size, changes, expected):
    with torch.device("meta"):
        model = task(STMEMEncoder, size=size, **changes)
    assert widths_of(model.decoder) == expected


def test_heads_of_the_decoder_are_as_wide_as_told():
    attention = small_task(SignalViT, decoder_head_width=32, decoder_heads=8).decoder.blocks[0].attention
    assert attention.qkv.weight.shape == (3 * 8 * 32, 64)


@pytest.mark.parametrize("encoder", [MTAEEncoder, MLAEEncoder])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "large"}, "size must be one of laptop, tiny, small, base"),
        ({"leads": ["I", "X"]}, "leads must be among"),
        ({"mask_ratio": 0.0}, "mask_ratio must keep and hide at least one of"),
        ({"decoder_width": 31}, "decoder_width must be even"),
    ],
)
def test_what_cannot_be_is_refused_by_name(encoder, changes, message):
    with pytest.raises(ValueError, match=message):
        task(encoder, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ncc_weight": -0.1}, "ncc_weight must lie between 0 and 1, got -0.1"),
        ({"ncc_weight": 1.5}, "ncc_weight must lie between 0 and 1, got 1.5"),
        ({"ncc_weight": math.nan}, "ncc_weight must lie between 0 and 1, got nan"),
        ({"mask_ratio": 0.99}, "mask_ratio must keep and hide at least one of 30 patches, got 0.99"),
        ({"decoder_width": 0}, "decoder_width must be even and positive, got 0"),
        ({"decoder_width": 30}, "decoder_width: the width of a grid of .* must be a multiple of 4, got 30"),
        ({"decoder_depth": 0}, "decoder_depth must be at least 1, got 0"),
        ({"decoder_heads": -1}, "decoder_heads must be at least 1, got -1"),
        ({"decoder_head_width": 0}, "decoder_head_width must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        task(SignalViT, **(TOKENS | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoder", [MTAEEncoder, MLAEEncoder])
def test_a_signal_of_another_shape_is_refused(encoder):
    with pytest.raises(ValueError, match=r"the signal must be \(records, 12 leads, 2250 samples\)"):
        task(encoder, size="laptop").encoder(torch.zeros(1, 11, 2250))
