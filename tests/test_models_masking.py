import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.masking import num_kept_patches, split_by_noise, take


@pytest.mark.parametrize(
    ("mask_ratio", "num_kept"),
    [(0.15, 25), (0.3, 21), (0.45, 16), (0.6, 12), (0.65, 10), (0.75, 7), (0.8, 6), (0.85, 4), (0.9, 3)],
)
def test_of_thirty_patches_the_exact_floor_is_kept(mask_ratio, num_kept):
    assert num_kept_patches(30, mask_ratio) == num_kept


@given(num_patches=st.integers(2, 400), percent=st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_a_percentage_keeps_what_integers_say_or_is_refused(num_patches, percent):
    expected = num_patches * (100 - percent) // 100
    if 0 < expected < num_patches:
        assert num_kept_patches(num_patches, percent / 100) == expected
    else:
        with pytest.raises(ValueError, match="mask_ratio"):
            num_kept_patches(num_patches, percent / 100)


@pytest.mark.parametrize("mask_ratio", [0.0, 1.0, 0.97, -0.5, 1.5, math.nan, math.inf])
def test_a_ratio_that_keeps_or_hides_nothing_is_refused_in_one_line(mask_ratio):
    with pytest.raises(ValueError, match="mask_ratio must keep and hide at least one of 30 patches") as caught:
        num_kept_patches(30, mask_ratio)
    assert "\n" not in str(caught.value)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 12)),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_every_lead_keeps_the_patches_with_the_smallest_noise(shape, share, seed):
    num_patches = shape[-1]
    num_kept = min(max(1, round(num_patches * share)), num_patches - 1)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))

    kept, hidden = split_by_noise(noise, num_kept)

    assert kept.shape == (*shape[:2], num_kept)
    assert hidden.shape == (*shape[:2], num_patches - num_kept)
    for record in range(shape[0]):
        for lead in range(shape[1]):
            draws = noise[record, lead].tolist()
            ranked = sorted(range(num_patches), key=draws.__getitem__)
            assert kept[record, lead].tolist() == sorted(ranked[:num_kept])
            assert hidden[record, lead].tolist() == sorted(ranked[num_kept:])


def test_equal_draws_are_settled_by_position():
    kept, hidden = split_by_noise(torch.full((1, 2, 5), 0.5), 2)
    assert kept.tolist() == [[[0, 1], [0, 1]]]
    assert hidden.tolist() == [[[2, 3, 4], [2, 3, 4]]]


def test_records_and_leads_are_split_independently():
    kept, _ = split_by_noise(torch.rand(4, 12, 30, generator=torch.Generator().manual_seed(0)), 7)
    rows = {tuple(row) for row in kept.flatten(0, 1).tolist()}
    assert len(rows) == 48


def test_every_patch_is_kept_equally_often():
    noise = torch.rand(2000, 2, 10, generator=torch.Generator().manual_seed(0))
    kept, _ = split_by_noise(noise, 3)
    share = torch.bincount(kept.flatten(), minlength=10) / 4000
    torch.testing.assert_close(share, torch.full((10,), 0.3), atol=0.03, rtol=0)  # four standard errors


def test_take_picks_the_named_tokens():
    tokens = torch.randn(2, 3, 5, 4)
    positions = torch.tensor([[[4, 0], [1, 1], [2, 3]], [[0, 1], [3, 2], [4, 4]]])
    taken = take(tokens, positions)
    for record in range(2):
        for lead in range(3):
            for index in range(2):
                expected = tokens[record, lead, positions[record, lead, index]]
                assert torch.equal(taken[record, lead, index], expected)
