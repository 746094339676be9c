import math

import pytest
import torch

from models.encoder import LEADS
from models.masked_autoencoder import MaskedAutoencoder
from models.st_mem import STMEMEncoder
from models.transformer import sin_cos_table

PAPER_ENCODER = {
    "leads": LEADS,
    "num_samples": 2250,
    "sampling_rate_hz": 250,
    "size": "small",
    "patch_duration_s": 0.3,
    "num_sep_tokens": 2,
    "standardize_patches": True,
}
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


def st_mem(**changes):
    """The task with the paper's encoder, but for `changes` of either's arguments."""
    of_encoder = {key: value for key, value in changes.items() if key in PAPER_ENCODER}
    of_task = {key: value for key, value in changes.items() if key not in PAPER_ENCODER}
    return MaskedAutoencoder(encoder=STMEMEncoder(**(PAPER_ENCODER | of_encoder)), **(PAPER_TASK | of_task))


def on_meta(**changes):
    with torch.device("meta"):
        return st_mem(**changes)


def small_one(**changes):
    """A model of random weights whose every parameter matters: 12 leads of 6 patches of 5 samples."""
    torch.manual_seed(0)
    model = st_mem(**({"size": "laptop", "num_samples": 30, "sampling_rate_hz": 10, "patch_duration_s": 0.5} | changes))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) / 1e6


@pytest.mark.parametrize(("size", "total", "encoder"), [("small", 24.61, 21.33), ("base", 88.50, 85.13)])
def test_parameters_count_as_in_the_paper(size, total, encoder):
    model = on_meta(size=size)
    assert millions(model) == pytest.approx(total, rel=0.005)
    assert millions(model.encoder) == pytest.approx(encoder, rel=0.005)


def test_the_reference_small_encoder_has_exactly_its_parameters_and_a_frozen_position_table():
    encoder = on_meta().encoder
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 21_341_718
    assert not encoder.positions.requires_grad
    assert encoder.positions.shape == (32, 384)


@pytest.mark.parametrize(("mask_ratio", "num_tokens"), [(0.75, 9 * 12), (0.8, 8 * 12), (0.9, 5 * 12)])
def test_the_encoder_sees_the_kept_patches_and_two_separators_of_each_lead(mask_ratio, num_tokens):
    model = on_meta(mask_ratio=mask_ratio)
    patches = torch.empty(4, 12, model.num_kept, 75, device="meta")
    kept = torch.empty(4, 12, model.num_kept, dtype=torch.int64, device="meta")
    assert model.encoder.encode(patches, kept=kept).shape == (4, 12, num_tokens // 12, 384)


@pytest.mark.parametrize(("num_sep_tokens", "num_tokens"), [(2, 384), (1, 372), (0, 360)])
def test_a_whole_signal_makes_30_tokens_a_lead_and_the_separators(num_sep_tokens, num_tokens):
    encoder = on_meta(num_sep_tokens=num_sep_tokens).encoder
    tokens = encoder.encode(torch.empty(1, 12, 30, 75, device="meta"))
    assert tokens.shape[1] * tokens.shape[2] == num_tokens


def test_the_reconstruction_has_every_hidden_patch_of_every_lead():
    model = on_meta(size="laptop")
    draws = {"noise": torch.empty(2, 12, 30, device="meta")}
    prediction, hidden = model.reconstruct(torch.empty(2, 12, 2250, device="meta"), draws)
    assert prediction.shape == (2, 12, 23, 75)
    assert hidden.shape == (2, 12, 23)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "large"}, "size must be one of laptop, tiny, small, base, got 'large'"),
        ({"patch_duration_s": 0.31}, "patch_duration_s must be a whole number of samples.* got 0.31 s, which is 77.5"),
        ({"patch_duration_s": 0.0}, "patch_duration_s must be a whole number of samples"),
        ({"patch_duration_s": -0.3}, "patch_duration_s must be a whole number of samples"),
        ({"patch_duration_s": math.nan}, "patch_duration_s must be a whole number of samples"),
        ({"patch_duration_s": 0.4}, "patch_duration_s must divide the window of 2250 samples; got 0.4 s, which is 100"),
        ({"patch_duration_s": 18.0}, "patch_duration_s must divide the window of 2250 samples"),
        ({"patch_duration_s": 9.0}, "mask_ratio must keep and hide at least one of 1 patches"),
        ({"mask_ratio": 0.97}, "mask_ratio must keep and hide at least one of 30 patches, got 0.97"),
        ({"mask_ratio": 0.0}, "mask_ratio"),
        ({"leads": ["I", "X"]}, "leads must be among .*, got 'X'"),
        ({"leads": ["I", "I"]}, "leads must not repeat"),
        ({"leads": []}, "leads must name at least one lead"),
        ({"num_sep_tokens": 3}, "num_sep_tokens must be 0, 1 or 2, got 3"),
        ({"decoder_width": 129}, "decoder_width must be even and positive, got 129"),
        ({"decoder_depth": 0}, "decoder_depth must be at least 1, got 0"),
        ({"decoder_heads": 0}, "decoder_heads must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line_that_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        on_meta(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 1, 30), (2, 4, 30), (2, 12, 35), (12, 30)])
def test_a_signal_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"the signal must be \(records, 12 leads, 30 samples\)"):
        small_one().encoder(torch.zeros(shape))


# The whole model in plain loops: one token at a time, separators around their lead as in the paper.


def linear(layer, token):
    return layer.weight @ token + layer.bias


def normalize(layer, token):
    mean = token.sum() / len(token)
    variance = ((token - mean) ** 2).sum() / len(token)
    return (token - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def run_block(block, tokens):
    triples = [linear(block.attention.qkv, normalize(block.attention_norm, token)).split(64) for token in tokens]
    after = []
    for token, (query, _, _) in zip(tokens, triples, strict=True):
        weights = [(query @ key / 8).exp() for _, key, _ in triples]
        mixed = sum(weight * value for weight, (_, _, value) in zip(weights, triples, strict=True)) / sum(weights)
        token = token + linear(block.attention.out, mixed)
        hidden = torch.nn.functional.gelu(linear(block.mlp[0], normalize(block.mlp_norm, token)))
        after.append(token + linear(block.mlp[2], hidden))
    return after


def looped_encoder(encoder, record, kept_of_lead):
    """Tokens by lead as a dict from "left", "right" or a position to the token, before the final norm."""
    num_sep, norm, projection = encoder.num_own_tokens, encoder.patch_embedding[0], encoder.patch_embedding[1]
    names, tokens = [], []
    for lead, (name, signal) in enumerate(zip(encoder.leads, record, strict=True)):
        sequence = []
        for position in kept_of_lead[lead]:
            patch = signal[position * encoder.patch_size : (position + 1) * encoder.patch_size]
            token = normalize(encoder.patch_embedding[2], linear(projection, normalize(norm, patch)))
            sequence.append((position, token + sin_cos_table(encoder.num_patches, encoder.width)[position]))
        if num_sep:
            sequence.insert(0, ("left", encoder.sep_token))
        if num_sep == 2:
            sequence.append(("right", encoder.sep_token))
        for key, token in sequence:
            names.append((lead, key))
            tokens.append(token + encoder.lead_embeddings[LEADS.index(name)])
    for block in encoder.blocks:
        tokens = run_block(block, tokens)
    by_lead = [{} for _ in encoder.leads]
    for (lead, key), token in zip(names, tokens, strict=True):
        by_lead[lead][key] = token
    return by_lead


def looped_loss(model, record, noise):
    """The loss of one record."""
    encoder, decoder, size = model.encoder, model.decoder, model.encoder.patch_size
    kept_of_lead = [sorted(range(len(row)), key=row.tolist().__getitem__)[: model.num_kept] for row in noise]
    errors, similarities = [], []
    for lead, tokens in enumerate(looped_encoder(encoder, record, kept_of_lead)):
        table = sin_cos_table(encoder.num_patches, decoder.positions.shape[1])
        names, sequence = [], []
        for key in ["left", *range(encoder.num_patches), "right"]:
            if key in tokens:
                token = linear(decoder.embedding, normalize(encoder.norm, tokens[key]))
            elif isinstance(key, int):
                token = decoder.mask_token
            else:
                continue
            names.append(key)
            sequence.append(token + table[key] if isinstance(key, int) else token)
        for block in decoder.blocks:
            sequence = run_block(block, sequence)
        targets, guesses = [], []
        for key, token in zip(names, sequence, strict=True):
            if isinstance(key, int):
                target = record[lead, key * size : (key + 1) * size]
                if model.norm_pix_loss:
                    target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                guess = linear(decoder.head, normalize(decoder.norm, token))
                if model.loss_on == "all" or key not in kept_of_lead[lead]:
                    errors.append(((guess - target) ** 2).mean().item())
                targets.extend(target.tolist())
                guesses.extend(guess.tolist())
        similarities.append(correlation(guesses, targets))
    error, similarity = sum(errors) / len(errors), sum(similarities) / len(similarities)
    return (1 - model.ncc_weight) * error + model.ncc_weight * (1 - similarity)


def correlation(first, second):
    first_mean, second_mean = sum(first) / len(first), sum(second) / len(second)
    product = sum((a - first_mean) * (b - second_mean) for a, b in zip(first, second, strict=True))
    energies = [
        sum((value - mean) ** 2 for value in values) for values, mean in ((first, first_mean), (second, second_mean))
    ]
    return product / math.sqrt(energies[0] * energies[1])


@pytest.mark.parametrize(
    ("num_sep_tokens", "norm_pix_loss", "loss_on", "ncc_weight"),
    [
        (0, True, "hidden", 0.0),
        (1, False, "hidden", 0.3),
        (2, True, "hidden", 0.0),
        (1, True, "all", 0.0),
        (2, False, "all", 0.1),
    ],
)
def test_the_loss_is_the_paper_in_plain_loops(num_sep_tokens, norm_pix_loss, loss_on, ncc_weight):
    changes = {"num_sep_tokens": num_sep_tokens, "norm_pix_loss": norm_pix_loss, "loss_on": loss_on}
    model = small_one(leads=["V1", "II"], mask_ratio=0.6, ncc_weight=ncc_weight, **changes)
    model = model.double().requires_grad_(False)
    signal = torch.randn(2, 2, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws = model.draw(2, torch.Generator().manual_seed(2))
    expected = [looped_loss(model, record, noise) for record, noise in zip(signal, draws["noise"], strict=True)]
    assert model(signal, draws).item() == pytest.approx(sum(expected) / 2, rel=1e-6)


@pytest.mark.parametrize("num_sep_tokens", [0, 1, 2])
def test_the_embedding_is_the_norm_of_the_mean_over_patches_in_plain_loops(num_sep_tokens):
    encoder = small_one(leads=["V1", "II"], num_sep_tokens=num_sep_tokens).double().requires_grad_(False).encoder
    signal = torch.randn(1, 2, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_lead = looped_encoder(encoder, signal[0], [range(6), range(6)])
    patches = [token for tokens in by_lead for key, token in tokens.items() if isinstance(key, int)]
    expected = normalize(encoder.norm, sum(patches) / 12)
    torch.testing.assert_close(encoder(signal)[0], expected, rtol=1e-6, atol=1e-6)


def test_leads_permuted_with_their_names_give_the_same_embedding():
    signal = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    encoder = small_one().double().encoder
    permuted = small_one(leads=[LEADS[index] for index in order]).double().encoder
    permuted.load_state_dict(encoder.state_dict(), strict=True)
    torch.testing.assert_close(permuted(signal[:, order]), encoder(signal), rtol=0, atol=1e-10)
    assert not torch.allclose(encoder(signal[:, order]), encoder(signal), rtol=0, atol=1e-5)  # names do matter


def test_a_model_of_lead_ii_uses_the_embedding_of_lead_ii_from_twelve_lead_weights():
    twelve = small_one()
    one = small_one(leads=["II"])
    one.load_state_dict(twelve.state_dict(), strict=True)
    signal = torch.randn(2, 1, 30, generator=torch.Generator().manual_seed(1))
    before = one.encoder(signal)
    with torch.no_grad():
        one.encoder.lead_embeddings[torch.arange(12) != LEADS.index("II")] = 7.0
    assert torch.equal(one.encoder(signal), before)
    one(signal, one.draw(2, torch.Generator())).backward()
    assert one.encoder.lead_embeddings.grad.any(dim=1).nonzero().flatten().tolist() == [LEADS.index("II")]


def test_the_decoder_reconstructs_a_lead_from_that_lead_alone():
    model = small_one().requires_grad_(False)
    tokens = torch.randn(2, 12, 2 + 1, 64, generator=torch.Generator().manual_seed(1))
    kept = torch.full((2, 12, 1), 3)
    hidden = torch.tensor([0, 1, 2, 4, 5]).expand(2, 12, 5)
    before = model.decoder(tokens, kept, hidden)
    tokens[:, 4] += torch.randn(2, 3, 64)
    changed = (model.decoder(tokens, kept, hidden) != before).flatten(2).any(dim=2)
    assert changed.nonzero()[:, 1].tolist() == [4, 4]


def test_hidden_samples_do_not_reach_the_reconstruction():
    model = small_one().requires_grad_(False)
    signal = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(1))
    draws = model.draw(2, torch.Generator().manual_seed(2))
    before, hidden = model.reconstruct(signal, draws)
    is_hidden = torch.zeros(2, 12, 6).scatter(2, hidden, 1.0).bool().repeat_interleave(5, dim=2)
    after, _ = model.reconstruct(torch.where(is_hidden, torch.randn(2, 12, 30), signal), draws)
    assert torch.equal(after, before)
    visible_changed, _ = model.reconstruct(torch.where(is_hidden, signal, torch.randn(2, 12, 30)), draws)
    assert not torch.allclose(visible_changed, before)


def test_left_and_right_separator_stay_equal_when_their_positions_are_trained():
    model = small_one()
    encoder = model.encoder.requires_grad_(True)
    signal = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        encoder(signal)[:, 0].sum().backward()
        optimizer.step()
    assert encoder.positions[0].any()
    torch.testing.assert_close(encoder.positions[0], encoder.positions[1], rtol=1e-4, atol=1e-6)


def test_amplitude_reaches_the_embedding_where_patches_are_not_standardised():
    signal = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(1))
    for standardize_patches in (True, False):
        encoder = small_one(standardize_patches=standardize_patches).encoder
        same = torch.allclose(encoder(3 * signal), encoder(signal), rtol=1e-2, atol=1e-2)
        assert same is standardize_patches


def test_the_state_of_a_model_does_not_depend_on_its_leads():
    shapes = {name: value.shape for name, value in on_meta(leads=["V6"]).state_dict().items()}
    assert shapes == {name: value.shape for name, value in on_meta().state_dict().items()}


def test_tokens_and_lead_embeddings_start_small_and_separators_have_no_position():
    torch.manual_seed(0)
    encoder = STMEMEncoder(**(PAPER_ENCODER | {"leads": ["I"], "num_samples": 225}))
    assert encoder.lead_embeddings.std().item() == pytest.approx(0.02, rel=0.1)
    assert encoder.sep_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert not encoder.positions[:2].any()
    assert torch.equal(encoder.positions[2:], sin_cos_table(3, 384))
