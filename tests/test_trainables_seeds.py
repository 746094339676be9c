import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.seeds import FINETUNE, INITIALISATION, PRETRAIN, generator_of, seed_of

places = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@given(seeds=st.tuples(st.integers(0, 2**70), st.integers(0, 2**70)), first=places, second=places)
def test_two_places_share_a_seed_only_if_they_are_one(seeds, first, second):
    same = (seeds[0], first) == (seeds[1], second)
    assert (seed_of(seeds[0], *first) == seed_of(seeds[1], *second)) == same


@given(seed=st.integers(0, 2**40), place=places, zeros=st.integers(1, 4))
def test_a_place_is_another_than_the_ones_that_begin_with_it(seed, place, zeros):
    assert seed_of(seed, *place) != seed_of(seed, *place, *[0] * zeros)


def test_a_place_draws_the_same_numbers_whatever_was_drawn_before():
    first = torch.rand(5, generator=generator_of(7, PRETRAIN, 2, 3))
    torch.rand(100)
    assert torch.equal(torch.rand(5, generator=generator_of(7, PRETRAIN, 2, 3)), first)
    assert not torch.equal(torch.rand(5, generator=generator_of(7, PRETRAIN, 2, 4)), first)


def test_the_purposes_are_different_places():
    assert len({INITIALISATION, PRETRAIN, FINETUNE}) == 3


def test_a_seed_fits_what_torch_takes():
    assert all(0 <= seed_of(seed, 1, 2) < 2**63 for seed in range(50))
