"""How often each position is seen and predicted, against exact counts, and what holds of every draw."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from models.jepa_masks import InverseBlock, MultiBlock, RandomPositions

MULTIBLOCK = {
    "num_targets": 4,
    "target_share": (0.15, 0.2),
    "context_share": (0.85, 1.0),
    "min_context": 2,
    "allow_overlap": False,
}
SHIPPED = {
    "multiblock": MultiBlock(**MULTIBLOCK),
    "overlapping": MultiBlock(**(MULTIBLOCK | {"allow_overlap": True})),
    "inverse_block": InverseBlock(keep_share=(0.15, 0.25), num_blocks=4, min_block=3),
    "random": RandomPositions(keep_share=(0.15, 0.25)),
}
every_mode = pytest.mark.parametrize("mode", list(SHIPPED))


def multiblock(**changes):
    return MultiBlock(**(MULTIBLOCK | changes))


def drawn(masks, batch_size, num_positions, seed=0):
    masks.check(num_positions)
    return masks.draw(batch_size, num_positions, torch.Generator().manual_seed(seed))


def in_many_batches(masks, batch_size, num_positions, num_batches):
    generator = torch.Generator().manual_seed(0)
    return [masks.draw(batch_size, num_positions, generator) for _ in range(num_batches)]


def overlap(context, targets, num_positions):
    """Whether any record sees a position that it predicts."""
    return bool(ones_at(context, num_positions).gather(1, targets.flatten(1)).any())


def frequency(positions, num_positions):
    """(N,) how often each position is among a row's: (R, ...) -> shares of the R rows."""
    return torch.bincount(positions.flatten(), minlength=num_positions) / len(positions)


def assert_close_shares(observed, expected, num_draws):
    """Within 20 percent and five standard errors of what is expected."""
    for position, (share, exact) in enumerate(zip(observed.tolist(), expected, strict=True)):
        error = math.sqrt(max(exact * (1 - exact), 0.0) / num_draws)
        assert abs(share - exact) <= 0.2 * exact, (position, share, exact)
        assert abs(share - exact) <= 5 * error + 1e-3, (position, share, exact)


def assert_symmetric(counts):
    """No end is favoured: (R, N) counts of R records differ from their mirror image by five standard errors at most."""
    difference = counts - counts.flip(1)
    assert (difference.mean(dim=0).abs() <= 5 * difference.std(dim=0) / math.sqrt(len(counts))).all()


def ones_at(positions, num_positions):
    """(R, K) positions as (R, N) ones and zeros."""
    return torch.zeros(len(positions), num_positions).scatter(1, positions, 1.0)


def block_share(position, length, num_positions):
    """How likely a block whose start is uniform over all that there are holds a position."""
    starts = range(num_positions - length + 1)
    return sum(start <= position < start + length for start in starts) / len(starts)


@every_mode
def test_every_position_is_seen_and_predicted_the_ends_as_well_as_the_middle(mode):
    draws = in_many_batches(SHIPPED[mode], 32, 40, 60)
    seen, predicted = set(), set()
    for context, targets in draws:
        seen |= set(context.flatten().tolist())
        predicted |= set(targets.flatten().tolist())
    assert seen == predicted == set(range(40))


@every_mode
def test_what_is_seen_is_not_predicted_unless_it_may_be(mode):
    found = [overlap(*draw, 40) for draw in in_many_batches(SHIPPED[mode], 32, 40, 20)]
    assert all(found) if mode == "overlapping" else not any(found)


def test_at_random_every_position_is_seen_equally_often():
    context, targets = drawn(RandomPositions(keep_share=(0.25, 0.25)), 8000, 40)
    assert_close_shares(frequency(context, 40), [0.25] * 40, 8000)
    assert_close_shares(frequency(targets, 40), [0.75] * 40, 8000)


def test_at_random_the_share_that_is_seen_is_drawn_for_each_batch():
    widths = [context.shape[1] for context, _ in in_many_batches(RandomPositions((0.2, 0.4)), 2, 50, 400)]
    assert set(widths) == set(range(10, 21))
    assert sum(widths) / 400 == pytest.approx(15, abs=0.8)


@pytest.mark.parametrize(("num_positions", "share"), [(40, 0.2), (12, 0.25), (30, 0.5)])
def test_a_target_block_lies_anywhere_with_the_same_probability(num_positions, share):
    masks = multiblock(num_targets=2, target_share=(share, share), allow_overlap=True)
    _, targets = drawn(masks, 6000, num_positions)
    length = round(num_positions * share)
    assert targets.shape == (6000, 2, length)
    starts = torch.bincount(targets[..., 0].flatten(), minlength=num_positions) / 12000
    expected = [1 / (num_positions - length + 1)] * (num_positions - length + 1) + [0.0] * (length - 1)
    assert_close_shares(starts, expected, 12000)
    inclusion = [block_share(position, length, num_positions) for position in range(num_positions)]
    assert_close_shares(frequency(targets.flatten(0, 1), num_positions), inclusion, 12000)


def test_the_length_of_target_blocks_is_drawn_for_each_batch_from_its_range():
    masks = multiblock(target_share=(0.1, 0.2), num_targets=1)
    lengths = [targets.shape[2] for _, targets in in_many_batches(masks, 1, 100, 1500)]
    assert set(lengths) == set(range(10, 21))
    assert sum(lengths) / 1500 == pytest.approx(15, abs=0.5)


def multiblock_contexts(num_positions, num_targets, target, block, *, fewest):
    """Exact shares of what is seen: all targets and context blocks, cut to `fewest` positions anywhere alike.

    Without `fewest` nothing is cut, as in batches of one record.
    """
    starts = range(num_positions - target + 1)
    total, shares = 0, [0.0] * num_positions
    for targets in itertools.product(starts, repeat=num_targets):
        covered = {position for start in targets for position in range(start, start + target)}
        for start in range(num_positions - block + 1):
            free = [position for position in range(start, start + block) if position not in covered]
            total += 1
            for position in free:
                shares[position] += 1.0 if fewest is None else fewest / len(free)
    return [share / total for share in shares]


def fewest_seen(num_positions, num_targets, target, block):
    starts = range(num_positions - target + 1)
    return min(
        block - len({p for s in targets for p in range(s, s + target)} & set(range(start, start + block)))
        for targets in itertools.product(starts, repeat=num_targets)
        for start in range(num_positions - block + 1)
    )


@pytest.mark.parametrize("block", [12, 10])
def test_the_context_of_one_record_is_a_block_without_the_targets_as_often_as_counted(block):
    masks = multiblock(num_targets=2, target_share=(0.25, 0.25), context_share=(block / 12, block / 12), min_context=1)
    draws = in_many_batches(masks, 1, 12, 3000)
    seen = torch.cat([ones_at(context, 12) for context, _ in draws])
    assert_close_shares(seen.mean(dim=0), multiblock_contexts(12, 2, 3, block, fewest=None), 3000)
    assert_symmetric(seen)


@pytest.mark.parametrize("block", [12, 10])
def test_a_context_that_is_cut_to_the_batchs_fewest_loses_positions_anywhere_alike(block):
    """The public code keeps the left-most: its right end is hardly ever seen."""
    masks = multiblock(num_targets=2, target_share=(0.25, 0.25), context_share=(block / 12, block / 12), min_context=1)
    context, _ = drawn(masks, 12000, 12)
    fewest = fewest_seen(12, 2, 3, block)
    assert context.shape == (12000, fewest)
    seen = ones_at(context, 12)
    assert_close_shares(seen.mean(dim=0), multiblock_contexts(12, 2, 3, block, fewest=fewest), 12000)
    assert_symmetric(seen)


@every_mode
@pytest.mark.parametrize("batch_size", [1, 64])
def test_both_ends_of_a_record_are_treated_alike(mode, batch_size):
    draws = in_many_batches(SHIPPED[mode], batch_size, 40, 1500 if batch_size == 1 else 60)
    for part in (0, 1):
        counts = [
            torch.zeros(batch_size, 40).scatter_add(1, rows, torch.ones(rows.shape))
            for rows in (draw[part].flatten(1) for draw in draws)
        ]
        assert_symmetric(torch.cat(counts))


def test_where_overlap_is_allowed_the_context_is_a_whole_block():
    masks = multiblock(allow_overlap=True, context_share=(0.5, 0.5))
    context, _ = drawn(masks, 4000, 40)
    assert context.shape == (4000, 20)
    assert (context.diff(dim=1) == 1).all()
    expected = [block_share(position, 20, 40) for position in range(40)]
    assert_close_shares(frequency(context, 40), expected, 4000)


def test_min_context_positions_are_seen_even_where_the_block_has_fewer_and_never_a_target():
    masks = multiblock(num_targets=1, target_share=(0.5, 0.5), context_share=(0.1, 0.1), min_context=8)
    context, targets = drawn(masks, 500, 20)
    assert context.shape == (500, 8)
    assert not overlap(context, targets, 20)


@pytest.mark.parametrize(("num_positions", "keep"), [(40, 0.25), (40, 0.6), (10, 0.3)])
def test_one_hidden_block_lies_anywhere_with_the_same_probability(num_positions, keep):
    masks = InverseBlock(keep_share=(keep, keep), num_blocks=1, min_block=1)
    context, targets = drawn(masks, 8000, num_positions)
    hidden = num_positions - round(num_positions * keep)
    assert targets.shape == (8000, 1, hidden)
    assert (targets.diff(dim=2) == 1).all()
    inclusion = [block_share(position, hidden, num_positions) for position in range(num_positions)]
    assert_close_shares(frequency(targets, num_positions), inclusion, 8000)
    assert_close_shares(frequency(context, num_positions), [1 - share for share in inclusion], 8000)


def arrangements(num_kept, num_hidden, num_blocks, min_block):
    """All orders of blocks of all lengths and of seen positions, as lists of booleans: hidden or not."""
    lengths = [
        choice
        for choice in itertools.product(range(min_block, num_hidden + 1), repeat=num_blocks)
        if sum(choice) == num_hidden
    ]
    found = []
    for choice in lengths:
        for places in itertools.combinations(range(num_kept + num_blocks), num_blocks):
            row, blocks = [], iter(choice)
            for place in range(num_kept + num_blocks):
                row += [True] * next(blocks) if place in places else [False]
            found.append(tuple(row))
    return found


@pytest.mark.parametrize(
    ("num_positions", "num_kept", "num_blocks", "min_block"), [(10, 4, 2, 2), (12, 3, 3, 2), (9, 5, 2, 1)]
)
def test_every_arrangement_of_several_hidden_blocks_is_equally_likely(num_positions, num_kept, num_blocks, min_block):
    share = num_kept / num_positions
    masks = InverseBlock(keep_share=(share, share), num_blocks=num_blocks, min_block=min_block)
    context, targets = drawn(masks, 12000, num_positions)
    assert context.shape == (12000, num_kept)
    hidden = ones_at(targets[:, 0], num_positions)
    exact = arrangements(num_kept, num_positions - num_kept, num_blocks, min_block)
    inclusion = [sum(row[position] for row in exact) / len(exact) for position in range(num_positions)]
    assert_close_shares(hidden.mean(dim=0), inclusion, 12000)
    assert_symmetric(hidden)
    counts = {row: 0 for row in exact}
    for row in hidden.bool().tolist():
        counts[tuple(row)] += 1
    for row, count in counts.items():
        expected = exact.count(row) / len(exact)
        assert count / 12000 == pytest.approx(expected, abs=6 * math.sqrt(expected / 12000))


def test_blocks_that_would_be_too_short_are_fewer():
    masks = InverseBlock(keep_share=(0.7, 0.7), num_blocks=4, min_block=5)
    _, targets = drawn(masks, 200, 20)  # six are hidden: one block, for two would be three long
    assert (targets.diff(dim=2) == 1).all()


@every_mode
def test_the_same_seed_draws_the_same_and_another_seed_something_else(mode):
    first, again, other = (drawn(SHIPPED[mode], 16, 40, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1][:, :, :3], other[1][:, :, :3])


@every_mode
def test_records_of_a_batch_have_masks_of_their_own(mode):
    context, targets = drawn(SHIPPED[mode], 16, 40)
    assert len({tuple(row) for row in targets.flatten(1).tolist()}) == 16
    assert len({tuple(row) for row in context.tolist()}) > (
        5 if mode == "overlapping" else 15
    )  # long blocks start alike


shares = st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(lambda pair: (min(pair), max(pair)))


def refused(masks, num_positions):
    """Whether this cannot be; the refusal must be one line."""
    try:
        masks.check(num_positions)
    except ValueError as error:
        return "\n" not in str(error)
    return False


def drawn_in_order(masks, batch_size, num_positions, seed):
    context, targets = masks.draw(batch_size, num_positions, torch.Generator().manual_seed(seed))
    for positions in (context, targets.flatten(0, 1)):
        assert positions.dtype == torch.int64
        assert positions.shape[1] > 0
        assert positions.min() >= 0
        assert positions.max() < num_positions
        assert (positions.diff(dim=1) > 0).all()  # ascending, none twice
    assert len(context) == len(targets) == batch_size
    return context, targets


@given(
    num_positions=st.integers(1, 60),
    batch_size=st.integers(1, 5),
    num_targets=st.integers(1, 4),
    target_share=st.tuples(st.floats(0.01, 0.2), st.floats(0.2, 0.5)),
    context_share=shares,
    min_context=st.integers(1, 6),
    allow_overlap=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_what_multiblock_accepts_it_draws(
    num_positions, batch_size, num_targets, target_share, context_share, min_context, allow_overlap, seed
):
    masks = MultiBlock(num_targets, target_share, context_share, min_context, allow_overlap)
    assume(not refused(masks, num_positions))
    context, targets = drawn_in_order(masks, batch_size, num_positions, seed)
    least, most = (max(1, round(num_positions * share)) for share in target_share)
    assert targets.shape[1] == num_targets
    assert least <= targets.shape[2] <= most
    assert (targets.diff(dim=2) == 1).all()
    assert context.shape[1] >= min_context
    assert context.shape[1] <= max(min_context, max(1, round(num_positions * context_share[1])))
    assert allow_overlap or not overlap(context, targets, num_positions)


@given(
    num_positions=st.integers(1, 60),
    batch_size=st.integers(1, 5),
    keep_share=shares,
    num_blocks=st.integers(1, 8),
    min_block=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_what_inverse_block_accepts_it_draws(num_positions, batch_size, keep_share, num_blocks, min_block, seed):
    masks = InverseBlock(keep_share, num_blocks, min_block)
    assume(not refused(masks, num_positions))
    context, targets = drawn_in_order(masks, batch_size, num_positions, seed)
    least, most = (max(1, round(num_positions * share)) for share in keep_share)
    assert least <= context.shape[1] <= most
    both = torch.cat([context, targets[:, 0]], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(num_positions).expand(batch_size, -1))
    for row in targets[:, 0].tolist():
        runs = [len(list(run)) for _, run in itertools.groupby(enumerate(row), lambda pair: pair[1] - pair[0])]
        assert min(runs) >= min_block
        assert len(runs) <= num_blocks


@given(num_positions=st.integers(1, 60), batch_size=st.integers(1, 5), keep_share=shares, seed=st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_what_random_positions_accept_they_draw(num_positions, batch_size, keep_share, seed):
    masks = RandomPositions(keep_share)
    assert refused(masks, num_positions) is (num_positions < 2)
    assume(num_positions > 1)
    context, targets = drawn_in_order(masks, batch_size, num_positions, seed)
    both = torch.cat([context, targets[:, 0]], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(num_positions).expand(batch_size, -1))


@pytest.mark.parametrize(
    ("masks", "num_positions", "message"),
    [
        (multiblock(num_targets=0), 40, "num_targets must be at least 1, got 0"),
        (multiblock(target_share=(0.0, 0.2)), 40, r"target_share must be \[LOW, HIGH\] .*, got \[0.0, 0.2\]"),
        (multiblock(target_share=(0.3, 0.2)), 40, r"target_share must be \[LOW, HIGH\]"),
        (multiblock(context_share=(0.9, 1.1)), 40, r"context_share must be \[LOW, HIGH\]"),
        (multiblock(context_share=(math.nan, 1.0)), 40, r"context_share must be \[LOW, HIGH\]"),
        (multiblock(min_context=0), 40, "min_context must lie between 1 and .*; got 0"),
        (multiblock(min_context=9), 40, "min_context must lie .* of 40 patches, 8 at worst; got 9 with num_targets=4"),
        (multiblock(target_share=(0.25, 0.25)), 40, "min_context must .* 0 at worst; got 2 with .*target_share="),
        (multiblock(min_context=41, allow_overlap=True), 40, "min_context must lie .* 40 at worst; got 41"),
        (InverseBlock((0.15, 0.25), 0, 3), 40, "num_blocks and min_block must be at least 1, got 0 and 3"),
        (InverseBlock((0.15, 0.25), 4, 0), 40, "num_blocks and min_block must be at least 1, got 4 and 0"),
        (InverseBlock((0.15, 0.95), 4, 3), 40, "keep_share must leave min_block=3 of 40 patches .* leaves 2"),
        (InverseBlock((0.15, 1.0), 1, 1), 40, "keep_share must leave min_block=1 of 40 patches .* leaves 0"),
        (InverseBlock((-0.1, 0.2), 4, 3), 40, r"keep_share must be \[LOW, HIGH\]"),
        (RandomPositions((0.5, 0.4)), 40, r"keep_share must be \[LOW, HIGH\] .*, got \[0.5, 0.4\]"),
        (RandomPositions((0.5, 0.5)), 1, "a record must have two patches at least .*, got 1"),
    ],
)
def test_what_cannot_always_be_drawn_is_refused_in_one_line_that_names_the_key(masks, num_positions, message):
    with pytest.raises(ValueError, match=message) as caught:
        masks.check(num_positions)
    assert "\n" not in str(caught.value)
