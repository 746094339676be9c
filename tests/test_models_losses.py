import math

import pytest
import torch
import torch.nn.functional as F

from models.losses import (
    alignment_loss,
    cosine_distance,
    cross_correlation,
    multilabel_loss,
    nt_xent,
    patch_mse,
    single_label_loss,
    standardized_patches,
)
from models.masking import split_by_noise, take


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def patches():
    return drawn(2, 3, 6, 5)


@pytest.fixture
def hidden():
    return split_by_noise(torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(1)), 2)[1]


@pytest.fixture
def prediction():
    return drawn(2, 3, 4, 5, seed=2)


def hidden_mse(prediction, patches, hidden, *, norm_pix_loss):
    """The loss of ST-MEM from its parts, as models.masked_autoencoder puts them together."""
    return patch_mse(prediction, take(standardized_patches(patches) if norm_pix_loss else patches, hidden))


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
    loss = hidden_mse(prediction, patches, hidden, norm_pix_loss=norm_pix_loss)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_visible_patches_do_not_enter_the_loss_and_hidden_ones_do(patches, hidden, prediction, norm_pix_loss):
    loss = hidden_mse(prediction, patches, hidden, norm_pix_loss=norm_pix_loss)
    is_hidden = torch.zeros(2, 3, 6).scatter(2, hidden, 1.0).bool()
    other = drawn(*patches.shape, seed=3)
    visible_changed = torch.where(is_hidden[..., None], patches, other)
    hidden_changed = torch.where(is_hidden[..., None], other, patches)
    assert torch.equal(hidden_mse(prediction, visible_changed, hidden, norm_pix_loss=norm_pix_loss), loss)
    assert not torch.equal(hidden_mse(prediction, hidden_changed, hidden, norm_pix_loss=norm_pix_loss), loss)


def test_standardised_targets_forget_offset_and_scale_of_a_patch(patches, hidden, prediction):
    changed = patches * torch.rand(2, 3, 6, 1).add(0.5) + torch.randn(2, 3, 6, 1)
    loss = hidden_mse(prediction, patches, hidden, norm_pix_loss=True)
    torch.testing.assert_close(hidden_mse(prediction, changed, hidden, norm_pix_loss=True), loss)


def test_a_perfect_reconstruction_costs_nothing(patches, hidden):
    assert hidden_mse(take(patches, hidden), patches, hidden, norm_pix_loss=False) == 0


def test_a_flat_patch_has_a_flat_standardised_target(hidden):
    flat = torch.full((2, 3, 6, 5), 0.7)
    assert hidden_mse(torch.zeros(2, 3, 4, 5), flat, hidden, norm_pix_loss=True).item() < 1e-6


def test_the_reconstruction_loss_of_half_precision_is_taken_in_float32(patches, hidden, prediction):
    loss = patch_mse(prediction.bfloat16(), take(patches, hidden))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, patch_mse(prediction.bfloat16().float(), take(patches, hidden)))


def test_the_cross_correlation_is_its_formula_in_plain_loops():
    first, second = drawn(2, 3, 7), drawn(2, 3, 7, seed=1) + 4
    similarity = cross_correlation(first, second)
    assert similarity.shape == (2, 3)
    for record in range(2):
        for lead in range(3):
            a, b = first[record, lead].tolist(), second[record, lead].tolist()
            a_mean, b_mean = sum(a) / 7, sum(b) / 7
            product = sum((x - a_mean) * (y - b_mean) for x, y in zip(a, b, strict=True))
            energy = sum((x - a_mean) ** 2 for x in a) * sum((y - b_mean) ** 2 for y in b)
            assert similarity[record, lead].item() == pytest.approx(product / math.sqrt(energy), abs=1e-6)


def test_the_cross_correlation_is_one_for_a_scaled_and_shifted_copy_and_minus_one_for_a_negated_one():
    signal = drawn(4, 12, 50)
    scale = torch.rand(4, 12, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    torch.testing.assert_close(cross_correlation(signal, scale * signal + 3), torch.ones(4, 12))
    torch.testing.assert_close(cross_correlation(-scale * signal - 3, signal), -torch.ones(4, 12))


def test_the_cross_correlation_with_a_constant_is_zero_and_its_gradient_finite():
    for constant in (0.0, 0.3):
        first = torch.full((2, 40), constant, requires_grad=True)
        similarity = cross_correlation(first, drawn(2, 40))
        similarity.sum().backward()
        assert similarity.abs().max() < 1e-3
        assert first.grad.isfinite().all()
        assert cross_correlation(first, first.detach()).abs().max() < 1e-3


# Contrastive losses, similarity by similarity.


def cosine(first, second):
    a, b = first.tolist(), second.tolist()
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def minus_log_share(target, others):
    """-log(e^target / (e^target + the sum of e^other))."""
    return -target + math.log(math.exp(target) + sum(math.exp(other) for other in others))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_is_the_formula_of_simclr_in_plain_loops(temperature):
    first, second = drawn(5, 4), drawn(5, 4, seed=1)
    views = [view for pair in zip(first, second, strict=True) for view in pair]  # 2k and 2k + 1 are of one record
    total = 0.0
    for i in range(10):
        of_i = [cosine(views[i], views[k]) / temperature for k in range(10)]
        partner = i + 1 if i % 2 == 0 else i - 1
        total += minus_log_share(of_i[partner], [of_i[k] for k in range(10) if k not in (i, partner)])
    assert nt_xent(first, second, temperature=temperature).item() == pytest.approx(total / 10, rel=1e-5)


def test_nt_xent_knows_neither_the_order_of_the_records_nor_of_the_views_nor_the_length_of_embeddings():
    first, second = drawn(6, 4), drawn(6, 4, seed=1)
    loss = nt_xent(first, second, temperature=0.2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(nt_xent(first[order], second[order], temperature=0.2), loss)
    torch.testing.assert_close(nt_xent(second, first, temperature=0.2), loss)
    torch.testing.assert_close(nt_xent(5 * first, second, temperature=0.2), loss)
    assert not torch.isclose(nt_xent(first[order], second, temperature=0.2), loss)


def test_nt_xent_of_one_record_is_zero_and_of_identical_embeddings_that_of_a_guess():
    assert nt_xent(drawn(1, 4), drawn(1, 4, seed=1), temperature=0.1).item() == 0
    same = torch.ones(5, 4)
    assert nt_xent(same, same, temperature=0.01).item() == pytest.approx(math.log(9), rel=1e-5)


def test_nt_xent_of_half_precision_and_null_embeddings_is_a_finite_float32():
    first = torch.zeros(4, 8, dtype=torch.bfloat16, requires_grad=True)
    loss = nt_xent(first, drawn(4, 8).bfloat16(), temperature=0.01)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert first.grad.isfinite().all()


IDS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4])
"""Two records of one diagnosis, three of another, three of their own."""
TREATMENTS = ("exclude", "positive", "ignore")


def aligned(first, second, ids=None, treatment="ignore", scale=10.0, weight=0.5):
    return alignment_loss(first, second, scale=scale, same=ids, treatment=treatment, first_weight=weight)


def one_direction(queries, keys, ids, treatment, scale):
    total = 0.0
    for i in range(len(ids)):
        to = [scale * cosine(queries[i], key) for key in keys]
        different = [to[k] for k in range(len(ids)) if ids[k] != ids[i]]
        if treatment == "ignore":
            total += minus_log_share(to[i], [to[k] for k in range(len(ids)) if k != i])
        elif treatment == "exclude":
            total += minus_log_share(to[i], different)
        else:
            positives = [j for j in range(len(ids)) if ids[j] == ids[i]]
            total += sum(minus_log_share(to[j], different) for j in positives) / len(positives)
    return total / len(ids)


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("weight", [0.5, 0.75])
def test_the_alignment_loss_is_its_formula_in_plain_loops(treatment, weight):
    first, second, ids = drawn(8, 5), drawn(8, 5, seed=1), IDS.tolist()
    there = one_direction(first, second, ids, treatment, 7.0)
    back = one_direction(second, first, ids, treatment, 7.0)
    loss = aligned(first, second, IDS, treatment, scale=7.0, weight=weight)
    assert loss.item() == pytest.approx(weight * there + (1 - weight) * back, rel=1e-5)


def test_treatments_differ_where_records_say_the_same():
    losses = {aligned(drawn(8, 5), drawn(8, 5, seed=1), IDS, treatment).item() for treatment in TREATMENTS}
    assert len({round(loss, 4) for loss in losses}) == 3


@pytest.mark.parametrize("ids", [None, torch.tensor([7, 3, 9, 0, 5, 1])])
@pytest.mark.parametrize("treatment", TREATMENTS)
def test_where_nothing_is_repeated_every_treatment_is_plain_clip(ids, treatment):
    first, second = drawn(6, 5), drawn(6, 5, seed=1)
    logits = 10 * F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    plain = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(aligned(first, second, ids, treatment), plain)


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_the_order_of_the_records_and_the_numbers_of_their_ids_do_not_matter(treatment):
    first, second = drawn(8, 5), drawn(8, 5, seed=1)
    loss = aligned(first, second, IDS, treatment)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(aligned(first[order], second[order], IDS[order], treatment), loss)
    torch.testing.assert_close(aligned(first, second, 100 - 3 * IDS, treatment), loss)


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_with_its_whole_weight_one_direction_alone_counts(treatment):
    first, second, ids = drawn(8, 5), drawn(8, 5, seed=1), IDS.tolist()
    there = aligned(first, second, IDS, treatment, weight=1.0)
    assert there.item() == pytest.approx(one_direction(first, second, ids, treatment, 10.0), rel=1e-5)
    torch.testing.assert_close(aligned(second, first, IDS, treatment, weight=0.0), there)


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("batch", ["all alike", "one record", "identical embeddings", "null embeddings"])
def test_the_alignment_loss_and_its_gradients_are_finite_for_every_batch(treatment, batch):
    first, second = drawn(8, 5), drawn(8, 5, seed=1)
    ids = torch.zeros(8, dtype=torch.int64) if batch == "all alike" else IDS
    if batch == "one record":
        first, second, ids = first[:1], second[:1], ids[:1]
    elif batch == "identical embeddings":
        first, second = torch.ones(8, 5), torch.ones(8, 5)
    elif batch == "null embeddings":
        first = torch.zeros(8, 5)
    first.requires_grad_(True)
    second.requires_grad_(True)
    scale = torch.tensor(100.0, requires_grad=True)
    loss = aligned(first, second, ids, treatment, scale=scale)
    loss.backward()
    assert loss.isfinite()
    assert all(values.grad.isfinite().all() for values in (first, second, scale))
    if batch == "one record" or (batch == "all alike" and treatment != "ignore"):
        assert loss.item() == 0  # there is nothing to be told from


def similarity_gradients(treatment):
    """(8, 8) the loss's gradient at each cosine similarity; positive where the loss asks for less of it."""
    # Embeddings that are rows of the identity on one side make the other side's entries the similarities.
    cosines = 0.2 * drawn(8, 8)
    rest = (1 - cosines.square().sum(dim=1, keepdim=True)).sqrt()
    first = torch.cat([cosines, rest], dim=1).requires_grad_(True)
    aligned(first, torch.eye(8, 9), IDS, treatment, weight=1.0).backward()
    # the norm's part of the gradient, along the embedding itself, is given back
    return first.grad[:, :8] - first.grad[:, 8:] * first.detach()[:, :8] / first.detach()[:, 8:]


def test_gradients_of_similarities_say_what_duplicates_are():
    own = torch.eye(8, dtype=torch.bool)
    duplicate = (IDS[:, None] == IDS) & ~own
    different = IDS[:, None] != IDS
    for treatment in TREATMENTS:
        gradient = similarity_gradients(treatment)
        alone = treatment == "exclude"
        assert (gradient[own] < 0).all()
        assert (gradient[different] > 0).all()
        if alone:
            assert gradient[duplicate].abs().max() < 1e-7
        elif treatment == "positive":
            assert (gradient[duplicate] < 0).all()
        else:
            assert (gradient[duplicate] > 0).all()


def test_the_cosine_distance_is_the_squared_distance_of_normalised_vectors():
    prediction, target = drawn(4, 6), drawn(4, 6, seed=1)
    total = 0.0
    for p, t in zip(prediction, target, strict=True):
        p, t = p / math.sqrt(sum(p.square().tolist())), t / math.sqrt(sum(t.square().tolist()))
        total += sum((a - b) ** 2 for a, b in zip(p.tolist(), t.tolist(), strict=True))
    assert cosine_distance(prediction, target).item() == pytest.approx(total / 4, rel=1e-5)
    assert cosine_distance(prediction, 3 * prediction).item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(prediction, -prediction).item() == pytest.approx(4, rel=1e-6)


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
