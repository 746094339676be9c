import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.transforms import (
    OPERATIONS,
    Cutout,
    Drop,
    Erase,
    Flip,
    LeadSubset,
    PartialSine,
    PartialSquareWave,
    PartialWhiteNoise,
    RandAugment,
    RandomLeadMask,
    Shift,
    Sine,
    SquareWave,
    Standardize,
    Transform,
    WhiteNoise,
    center_crop_starts,
    n_crop_starts,
    random_crop_starts,
    standardize,
)

LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2"]
ST_MEM_OPERATIONS = ["shift", "cutout", "drop", "flip", "erase", "sine", "partial_sine", "partial_white_noise"]


def catalogue(num_leads: int) -> list[Transform]:
    return [
        Standardize(axis="record"),
        Standardize(axis="lead"),
        Flip(),
        Erase(),
        Drop(share=0.3),
        Cutout(share=0.3),
        Shift(share=0.3),
        Sine(amplitude=0.3, period_share=0.5),
        PartialSine(amplitude=0.3, period_share=0.5, share=0.3),
        SquareWave(amplitude=0.3, period_share=0.5),
        PartialSquareWave(amplitude=0.3, period_share=0.5, share=0.3),
        WhiteNoise(amplitude=0.3),
        PartialWhiteNoise(amplitude=0.3, share=0.3),
        RandomLeadMask(probability=0.3),
        LeadSubset(leads=LEADS[:num_leads], keep=["I"]),
        RandAugment(operations=list(OPERATIONS), level=10, num_layers=3, probability=0.7),
    ]


EVERY = pytest.mark.parametrize(
    "position", range(len(catalogue(1))), ids=[type(each).__name__ for each in catalogue(1)]
)


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator_of(seed))


def applied(transform: Transform, signal: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return transform.apply(signal, transform.draw(tuple(signal.shape), generator_of(seed)))


def test_the_catalogue_of_these_tests_holds_every_transform():
    assert {type(each) for each in catalogue(1)} == set(Transform.__subclasses__())
    assert set(OPERATIONS.values()) < set(Transform.__subclasses__())


@EVERY
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_parts_of_a_batch_are_changed_as_the_whole_is(position, data):
    shape = data.draw(st.tuples(st.integers(2, 7), st.integers(1, 8), st.integers(1, 60)), label="shape")
    cut = data.draw(st.integers(1, shape[0] - 1), label="cut")
    transform = catalogue(shape[1])[position]
    signal = noise_of(*shape, seed=data.draw(st.integers(0, 99), label="seed"))
    draws = transform.draw(shape, generator_of(1))
    assert all(len(draw) == shape[0] for draw in draws.values())
    parts = [
        transform.apply(signal[rows], {name: draw[rows] for name, draw in draws.items()})
        for rows in (slice(0, cut), slice(cut, None))
    ]
    torch.testing.assert_close(torch.cat(parts), transform.apply(signal, draws))


@EVERY
def test_a_transform_leaves_its_input_and_keeps_shape_and_type(position):
    transform = catalogue(8)[position]
    signal = noise_of(6, 8, 50).double()
    before = signal.clone()
    changed = applied(transform, signal)
    assert torch.equal(signal, before)
    assert (changed.shape, changed.dtype) == (signal.shape, signal.dtype)


@EVERY
def test_draws_follow_from_the_generator_alone(position):
    transform = catalogue(8)[position]
    shape = (20, 8, 50)
    torch.manual_seed(0)
    first = transform.draw(shape, generator_of(3))
    torch.manual_seed(1)
    again = transform.draw(shape, generator_of(3))
    other = transform.draw(shape, generator_of(4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@EVERY
@settings(max_examples=12, deadline=None)
@given(level=st.floats(-1e6, 1e6, width=32), num_samples=st.integers(1, 40), num_leads=st.integers(1, 8))
def test_a_flat_record_stays_finite(position, level, num_samples, num_leads):
    signal = torch.full((4, num_leads, num_samples), level)
    assert applied(catalogue(num_leads)[position], signal).isfinite().all()


def test_erase_zeroes_exactly_one_lead_of_each_record_and_every_lead_in_turn():
    signal = noise_of(200, 8, 10)
    erased = (applied(Erase(), signal) == 0).all(dim=2)
    assert (erased.sum(dim=1) == 1).all()
    assert erased.any(dim=0).all()
    assert torch.equal(applied(Erase(), signal)[~erased], signal[~erased])


def test_flip_negates():
    signal = noise_of(3, 2, 5)
    assert torch.equal(applied(Flip(), signal), -signal)


def test_drop_zeroes_the_same_points_on_all_leads_from_none_to_the_share():
    signal = noise_of(400, 3, 20)
    changed = applied(Drop(share=0.3), signal)
    dropped = changed == 0
    assert (dropped == dropped[:, :1]).all()
    assert torch.equal(changed[~dropped], signal[~dropped])
    assert set(dropped[:, 0].sum(dim=1).tolist()) == set(range(7))  # 0.3 of 20 samples


def test_cutout_zeroes_one_stretch_anywhere_on_all_leads():
    signal = noise_of(600, 3, 20)
    changed = applied(Cutout(share=0.3), signal)
    cut = changed == 0
    assert (cut == cut[:, :1]).all()
    assert torch.equal(changed[~cut], signal[~cut])
    edges = torch.diff(cut[:, 0].int(), prepend=torch.zeros(600, 1), append=torch.zeros(600, 1))
    assert (edges.abs().sum(dim=1) <= 2).all()
    assert set(cut[:, 0].sum(dim=1).tolist()) == set(range(7))
    assert cut[:, 0].any(dim=0).all()  # both ends of the crop too


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.integers(-12, 12), min_size=1, max_size=5))
def test_shift_moves_and_fills_with_zero(steps):
    signal = noise_of(len(steps), 2, 12)
    expected = torch.zeros_like(signal)
    for record, step in enumerate(steps):
        for time in range(12):
            if 0 <= time - step < 12:
                expected[record, :, time] = signal[record, :, time - step]
    assert torch.equal(Shift(share=1.0).apply(signal, {"steps": torch.tensor(steps)}), expected)


def test_shift_goes_both_ways_up_to_the_share():
    steps = Shift(share=0.3).draw((500, 1, 10), generator_of(0))["steps"]
    assert set(steps.tolist()) == set(range(-3, 4))


@pytest.mark.parametrize(
    "transform", [Sine(amplitude=0.2, period_share=0.25), SquareWave(amplitude=0.2, period_share=0.25)]
)
def test_a_wave_follows_its_formula_on_all_leads(transform):
    draws = transform.draw((5, 3, 80), generator_of(0))
    added = transform.apply(torch.zeros(5, 3, 80), draws)
    for record in range(5):
        for time in range(80):
            sine = math.sin(2 * math.pi * (time / 20 + draws["phase"][record].item()))  # a quarter of 80 samples
            if isinstance(transform, Sine):
                assert added[record, :, time].tolist() == pytest.approx([0.2 * sine] * 3, abs=1e-5)
            elif abs(sine) > 1e-3:
                assert added[record, :, time].tolist() == pytest.approx([math.copysign(0.2, sine)] * 3)


def test_waves_start_at_a_phase_of_the_records_own():
    phase = Sine(amplitude=1, period_share=0.5).draw((1000, 1, 10), generator_of(0))["phase"]
    assert len(phase.unique()) > 990
    assert phase.min() >= 0
    assert phase.max() < 1
    assert phase.mean().item() == pytest.approx(0.5, abs=0.05)


def test_white_noise_is_standard_normal_and_independent_everywhere():
    noise = applied(WhiteNoise(amplitude=1.0), torch.zeros(50, 8, 500))
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert noise.pow(3).mean().item() == pytest.approx(0, abs=0.03)
    assert noise.pow(4).mean().item() == pytest.approx(3, abs=0.1)
    pairs = ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[:, :, 1:], noise[:, :, :-1]))
    for first, second in pairs:
        assert (first * second).mean().item() == pytest.approx(0, abs=0.01)


def test_noise_of_neighbouring_seeds_is_unrelated():
    noise = WhiteNoise(amplitude=1.0).apply(torch.zeros(40, 4, 500), {"noise_seed": torch.arange(40)})
    related = torch.corrcoef(noise.flatten(1)) - torch.eye(40)
    assert related.abs().max() < 5 / math.sqrt(2000)


@pytest.mark.parametrize("transform", [each for each in catalogue(1) if type(each).__name__.startswith("Partial")])
def test_a_partial_addition_is_the_whole_one_on_a_stretch(transform):
    signal = noise_of(300, 3, 40)
    draws = transform.draw((300, 3, 40), generator_of(0))
    whole = {PartialSine: Sine, PartialSquareWave: SquareWave, PartialWhiteNoise: WhiteNoise}[type(transform)]
    full = whole(**{name: value for name, value in vars(transform).items() if name != "share"}).apply(signal, draws)
    changed = transform.apply(signal, draws)
    for record in range(300):
        first, length = draws["first"][record].item(), draws["length"][record].item()
        inside = slice(first, first + length)
        assert torch.equal(changed[record, :, inside], full[record, :, inside])
        assert torch.equal(changed[record, :, :first], signal[record, :, :first])
        assert torch.equal(changed[record, :, first + length :], signal[record, :, first + length :])
    assert draws["length"].max() == 12
    assert (draws["first"] + draws["length"]).max() == 40


def test_random_lead_mask_keeps_one_lead_at_least_and_its_share_on_average():
    assert (RandomLeadMask(probability=1.0).draw((50, 8, 1), generator_of(0))["kept"].sum(dim=1) == 1).all()
    kept = RandomLeadMask(probability=0.3).draw((2000, 8, 1), generator_of(0))["kept"]
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.02)


def test_random_lead_mask_standardises_the_survivors_together():
    transform = RandomLeadMask(probability=0.5)
    signal = 3 + noise_of(20, 8, 100) * torch.arange(1, 9)[:, None]
    draws = transform.draw((20, 8, 100), generator_of(0))
    changed = transform.apply(signal, draws)
    for record in range(20):
        kept = draws["kept"][record]
        assert (changed[record, ~kept] == 0).all()
        torch.testing.assert_close(changed[record, kept], standardize(signal[record, kept], "record"))


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (["limb"], [0, 1, 2, 3, 4, 5]),
        (["I"], [0]),
        (["II"], [1]),
        (["V2", "aVL"], [4, 7]),
        (["limb", "V1"], [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_lead_subset_keeps_leads_by_name(keep, left):
    signal = noise_of(3, 8, 10)
    changed = applied(LeadSubset(leads=LEADS, keep=keep), signal)
    others = [lead for lead in range(8) if lead not in left]
    assert torch.equal(changed[:, left], signal[:, left])
    assert (changed[:, others] == 0).all()


def test_lead_subset_refuses_a_signal_with_other_leads():
    with pytest.raises(ValueError, match="must name each lead of the signal, got 8 names for 3 leads: name those"):
        applied(LeadSubset(leads=LEADS, keep=["I"]), noise_of(1, 3, 5))


def test_standardising_records_keeps_the_sizes_of_leads_relative_to_each_other():
    signal = 5 + noise_of(4, 3, 200) * torch.tensor([1.0, 2.0, 4.0])[:, None]
    by_record, by_lead = standardize(signal, "record"), standardize(signal, "lead")
    expected = (signal.numpy() - signal.numpy().mean((1, 2), keepdims=True)) / signal.numpy().std((1, 2), keepdims=True)
    np.testing.assert_allclose(by_record.numpy(), expected, atol=1e-5)
    expected = (signal.numpy() - signal.numpy().mean(2, keepdims=True)) / signal.numpy().std(2, keepdims=True)
    np.testing.assert_allclose(by_lead.numpy(), expected, atol=1e-5)
    assert standardize(signal, "none") is signal


def test_a_constant_lead_standardises_to_zero_whatever_its_level():
    signal = torch.full((1, 2, 1000), 0.1)
    signal[0, 1] = noise_of(1000)
    assert (standardize(signal, "lead")[0, 0] == 0).all()
    assert (standardize(torch.full((1, 3, 1000), -4.7), "record") == 0).all()


@settings(max_examples=30, deadline=None)
@given(num_records=st.integers(1, 5), level=st.integers(1, 10), num_layers=st.integers(0, 12), seed=st.integers(0, 99))
def test_rand_augment_is_its_operations_one_after_another_on_each_record(num_records, level, num_layers, seed):
    transform = RandAugment(operations=list(OPERATIONS), level=level, num_layers=num_layers, probability=0.6)
    signal = noise_of(num_records, 4, 30, seed=seed)
    draws = transform.draw((num_records, 4, 30), generator_of(seed))
    changed = transform.apply(signal, draws)
    for record in range(num_records):
        expected = signal[record : record + 1]
        for chosen in draws["operation"][record].tolist():
            if chosen >= 0:
                name = transform.operations[chosen]
                own = {
                    key.split(".")[1]: draw[record : record + 1]
                    for key, draw in draws.items()
                    if key.split(".")[0] == name
                }
                expected = transform.built[name].apply(expected, own)
        torch.testing.assert_close(changed[record], expected[0])


def test_rand_augment_draws_different_operations_each_behind_its_coin():
    transform = RandAugment(operations=ST_MEM_OPERATIONS, level=10, num_layers=8, probability=1.0)
    chosen = transform.draw((200, 2, 10), generator_of(0))["operation"]
    assert (chosen.sort(dim=1).values == torch.arange(8)).all()
    assert set(chosen[:, 0].tolist()) == set(range(8))
    transform = RandAugment(operations=ST_MEM_OPERATIONS, level=10, num_layers=2, probability=0.5)
    chosen = transform.draw((2000, 2, 10), generator_of(0))["operation"]
    assert (chosen >= 0).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_rand_augment_at_level_0_changes_nothing():
    transform = RandAugment(operations=list(OPERATIONS), level=0, num_layers=5, probability=1.0)
    signal = noise_of(10, 8, 40)
    assert torch.equal(applied(transform, signal), signal)


def test_rand_augment_at_level_10_has_the_strengths_of_the_table():
    built = RandAugment(operations=list(OPERATIONS), level=10, num_layers=2, probability=0.5).built
    assert built == {
        "erase": Erase(),
        "flip": Flip(),
        "drop": Drop(share=0.3),
        "cutout": Cutout(share=0.3),
        "shift": Shift(share=0.3),
        "sine": Sine(amplitude=0.3, period_share=0.5),
        "partial_sine": PartialSine(amplitude=0.3, period_share=0.5, share=0.3),
        "square_wave": SquareWave(amplitude=0.3, period_share=0.5),
        "partial_square_wave": PartialSquareWave(amplitude=0.3, period_share=0.5, share=0.3),
        "white_noise": WhiteNoise(amplitude=0.3),
        "partial_white_noise": PartialWhiteNoise(amplitude=0.3, share=0.3),
        "random_lead_mask": RandomLeadMask(probability=0.3),
    }
    half = RandAugment(operations=["partial_sine"], level=5, num_layers=1, probability=0.5).built["partial_sine"]
    assert half == PartialSine(amplitude=0.15, period_share=1.0, share=0.15)


AUGMENT = {"operations": ST_MEM_OPERATIONS, "level": 10, "num_layers": 2, "probability": 0.5}


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (Standardize, {"axis": "none"}, "axis must be record or lead, got 'none'"),
        (Drop, {"share": 1.1}, "share must lie between 0 and 1, got 1.1"),
        (Cutout, {"share": -0.1}, "share must lie between 0 and 1, got -0.1"),
        (Shift, {"share": math.nan}, "share must lie between 0 and 1, got nan"),
        (Sine, {"amplitude": 0.3, "period_share": 0}, "period_share must be above 0 and finite, got 0"),
        (SquareWave, {"amplitude": -1, "period_share": 0.5}, "amplitude must be at least 0 and finite, got -1"),
        (PartialSine, {"amplitude": 1, "period_share": 1, "share": 2}, "share must lie between 0 and 1, got 2"),
        (PartialSquareWave, {"amplitude": 1, "period_share": math.inf, "share": 0}, "period_share must be above 0"),
        (WhiteNoise, {"amplitude": math.nan}, "amplitude must be at least 0 and finite, got nan"),
        (PartialWhiteNoise, {"amplitude": 0.3, "share": 3}, "share must lie between 0 and 1, got 3"),
        (RandomLeadMask, {"probability": 1.5}, "probability must lie between 0 and 1, got 1.5"),
        (LeadSubset, {"leads": LEADS, "keep": []}, "keep must name at least one lead, got none"),
        (LeadSubset, {"leads": LEADS, "keep": ["V6"]}, r"keep may name only the signal's leads .* got \['V6'\]"),
        (LeadSubset, {"leads": ["I", "II"], "keep": ["limb"]}, "keep may name only the signal's leads"),
        (
            RandAugment,
            AUGMENT | {"operations": ["shfit"]},
            "operation 'shfit' is unknown: it must be one of erase, .* did you mean shift",
        ),
        (RandAugment, AUGMENT | {"operations": ["flip", "flip"]}, "operations must not repeat"),
        (RandAugment, AUGMENT | {"level": 11}, "level must lie between 0 and 10, got 11"),
        (RandAugment, AUGMENT | {"num_layers": 9}, r"num_layers must lie between 0 and the number of operations \(8\)"),
        (RandAugment, AUGMENT | {"probability": -1}, "probability must lie between 0 and 1, got -1"),
    ],
)
def test_a_parameter_out_of_range_is_refused_in_one_line(build, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        build(**arguments)
    assert "\n" not in str(error.value)


def test_standardising_over_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="standardize must be record, lead or none, got 'row'"):
        standardize(noise_of(1, 1, 2), "row")


@settings(max_examples=200, deadline=None)
@given(
    window=st.integers(1, 50), slacks=st.lists(st.integers(0, 300), min_size=1, max_size=4), num_crops=st.integers(1, 9)
)
def test_n_crops_are_as_many_as_asked_equally_spaced_and_reach_both_ends(window, slacks, num_crops):
    starts = n_crop_starts(np.array(slacks) + window, window, num_crops)
    assert starts.shape == (len(slacks), num_crops)
    for row, slack in zip(starts, slacks, strict=True):
        if num_crops == 1:
            assert row.tolist() == [slack // 2]
        else:
            assert (row[0], row[-1]) == (0, slack)
            assert np.abs(row - np.linspace(0, slack, num_crops)).max() <= 0.5 + 1e-9
            assert np.diff(row).min() >= 0


@pytest.mark.parametrize(
    ("slack", "num_crops", "expected"),
    [(250, 3, [0, 125, 250]), (0, 3, [0, 0, 0]), (1, 3, [0, 1, 1]), (5, 4, [0, 2, 3, 5]), (7, 1, [3]), (0, 1, [0])],
)
def test_n_crops_start_where_they_should(slack, num_crops, expected):
    assert n_crop_starts(np.array([2250 + slack]), 2250, num_crops).tolist() == [expected]


def test_random_crops_reach_every_start_and_no_other():
    starts = random_crop_starts(np.array([12, 10] * 300), 10, np.random.default_rng(0))
    assert set(starts[::2].tolist()) == {0, 1, 2}
    assert set(starts[1::2].tolist()) == {0}


def test_the_middle_window_leaves_as_much_on_either_side():
    assert center_crop_starts(np.array([10, 13, 14]), 10).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (lambda: random_crop_starts(np.array([12, 9, 8]), 10, np.random.default_rng(0)), "got 2 shorter .*has 8"),
        (lambda: center_crop_starts(np.array([9]), 10), "at least as long as the window of 10 samples, got 1 shorter"),
        (lambda: n_crop_starts(np.array([9]), 10, 3), "at least as long as the window of 10 samples"),
        (lambda: n_crop_starts(np.array([9]), 9, 0), "num_crops must be at least 1, got 0"),
    ],
)
def test_crops_that_cannot_be_made_are_refused(starts, message):
    with pytest.raises(ValueError, match=message):
        starts()
