import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.transforms import (
    OPERATIONS,
    AmplitudeWarp,
    BaselineShift,
    BaselineWander,
    Cutout,
    Derivative,
    Drop,
    EMGNoise,
    Erase,
    Flip,
    FourierSurrogate,
    GaussianBlur,
    Jitter,
    LeadSubset,
    LogGain,
    PartialSine,
    PartialSquareWave,
    PartialWhiteNoise,
    PowerlineNoise,
    RandAugment,
    RandomLeadMask,
    Rescale,
    ResizedCrop,
    Reverse,
    Shift,
    Sine,
    SquareWave,
    Standardize,
    TimeWarp,
    Transform,
    WhiteNoise,
    center_crop_starts,
    n_crop_starts,
    random_crop_starts,
    standardize,
)
from data.waveforms import in_stretch, normal_noise, uniform_noise

LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2"]
ST_MEM_OPERATIONS = ["shift", "cutout", "drop", "flip", "erase", "sine", "partial_sine", "partial_white_noise"]


def catalogue(num_leads: int) -> list[Transform]:
    return [
        Standardize(axis="record"),
        Standardize(axis="lead"),
        Flip(),
        Reverse(),
        Derivative(),
        GaussianBlur(max_sigma_samples=2.5),
        FourierSurrogate(magnitude=0.2),
        FourierSurrogate(magnitude=1.0, per="lead"),
        Erase(),
        Drop(share=0.3),
        Cutout(share=0.3),
        Cutout(share=0.6, min_share=0.3),
        Shift(share=0.3),
        TimeWarp(magnitude=0.8, num_waves=3),
        ResizedCrop(min_share=0.3),
        Sine(amplitude=0.3, period_share=0.5),
        PartialSine(amplitude=0.3, period_share=0.5, share=0.3),
        SquareWave(amplitude=0.3, period_share=0.5),
        PartialSquareWave(amplitude=0.3, period_share=0.5, share=0.3),
        WhiteNoise(amplitude=0.3),
        PartialWhiteNoise(amplitude=0.3, share=0.3),
        Jitter(std=0.3, mode="additive"),
        Jitter(std=0.3, mode="multiplicative"),
        EMGNoise(amplitude=0.3, cutoff_hz=20, sampling_rate_hz=100, share=0.9),
        BaselineWander(amplitude=0.3, num_waves=4, max_cycles=5),
        AmplitudeWarp(amplitude=0.3, num_waves=4, max_cycles=5),
        PowerlineNoise(amplitude=0.3, frequency_hz=50, num_harmonics=2, sampling_rate_hz=250),
        BaselineShift(amplitude=0.3, max_segments=3, share=0.5),
        Rescale(std=0.3),
        Rescale(std=0.3, per="lead"),
        LogGain(factor=3),
        LogGain(factor=3, per="record"),
        RandomLeadMask(lead_probability=0.3),
        RandomLeadMask(lead_probability=0.3, restandardize=False),
        LeadSubset(leads=LEADS[:num_leads], keep=["I"]),
        RandAugment(operations=list(OPERATIONS), level=10, num_layers=3, probability=0.7),
    ]


def every_transform(that: Callable[[Transform], bool] = lambda _: True) -> pytest.MarkDecorator:
    names = {position: type(each).__name__ for position, each in enumerate(catalogue(1)) if that(each)}
    return pytest.mark.parametrize("position", names, ids=names.values())


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator_of(seed))


def applied(transform: Transform, signal: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return transform.apply(signal, transform.draw(tuple(signal.shape), generator_of(seed)))


def test_the_catalogue_of_these_tests_holds_every_transform():
    assert {type(each) for each in catalogue(1)} == set(Transform.__subclasses__())
    assert {type(operation(10)) for operation in OPERATIONS.values()} < set(Transform.__subclasses__())


@every_transform()
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_parts_of_a_batch_are_changed_as_the_whole_is(position, data):
    shape = data.draw(st.tuples(st.integers(2, 7), st.integers(1, 8), st.integers(1, 60)), label="shape")
    cut = data.draw(st.integers(1, shape[0] - 1), label="cut")
    probability = data.draw(st.sampled_from([1.0, 0.6]), label="probability")
    transform = dataclasses.replace(catalogue(shape[1])[position], probability=probability)
    signal = noise_of(*shape, seed=data.draw(st.integers(0, 99), label="seed"))
    draws = transform.draw(shape, generator_of(1))
    assert all(len(draw) == shape[0] for draw in draws.values())
    parts = [
        transform.apply(signal[rows], {name: draw[rows] for name, draw in draws.items()})
        for rows in (slice(0, cut), slice(cut, None))
    ]
    torch.testing.assert_close(torch.cat(parts), transform.apply(signal, draws))


@every_transform()
@pytest.mark.parametrize("num_leads", [1, 8])
@pytest.mark.parametrize("num_samples", [1, 2, 5, 50])
def test_crops_of_any_length_and_number_of_leads_can_be_changed(position, num_leads, num_samples):
    transform = catalogue(num_leads)[position]
    for signal in (noise_of(9, num_leads, num_samples), torch.zeros(9, num_leads, num_samples)):
        changed = applied(transform, signal)
        assert changed.shape == signal.shape
        assert changed.isfinite().all()


@every_transform()
def test_a_transform_leaves_its_input_and_keeps_shape_and_type(position):
    for probability in (1.0, 0.5):
        transform = dataclasses.replace(catalogue(8)[position], probability=probability)
        for dtype in (torch.float64, torch.float32, torch.float16):
            signal = noise_of(6, 8, 50).to(dtype)
            before = signal.clone()
            changed = applied(transform, signal)
            assert torch.equal(signal, before)
            assert (changed.shape, changed.dtype) == (signal.shape, signal.dtype)


@every_transform()
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


@every_transform()
@settings(max_examples=12, deadline=None)
@given(level=st.floats(-1e6, 1e6, width=32), num_samples=st.integers(1, 40), num_leads=st.integers(1, 8))
def test_a_flat_record_stays_finite(position, level, num_samples, num_leads):
    signal = torch.full((4, num_leads, num_samples), level)
    assert applied(catalogue(num_leads)[position], signal).isfinite().all()


def leads_are_apart(transform: Transform) -> bool:
    together = isinstance(transform, RandAugment) or transform == Standardize(axis="record")
    return not together and not (isinstance(transform, RandomLeadMask) and transform.restandardize)


@every_transform(leads_are_apart)
def test_what_a_lead_becomes_depends_on_no_other_lead(position):
    transform = catalogue(8)[position]
    signal = noise_of(40, 8, 50)
    other = signal.clone()
    other[:, 3] = 7 * noise_of(40, 50, seed=1)
    draws = transform.draw((40, 8, 50), generator_of(0))
    others = [lead for lead in range(8) if lead != 3]
    torch.testing.assert_close(
        transform.apply(other, draws)[:, others], transform.apply(signal, draws)[:, others], rtol=0, atol=0
    )


@every_transform(lambda each: not isinstance(each, RandAugment))  # which flips coins of its own
def test_a_record_is_changed_with_the_probability_and_then_as_without_one(position):
    always = catalogue(8)[position]
    sometimes = dataclasses.replace(always, probability=0.5)
    signal = noise_of(400, 8, 20)
    every, some = (transform.draw((400, 8, 20), generator_of(0)) for transform in (always, sometimes))
    chosen = some["applied"]
    assert "applied" not in every
    assert all(torch.equal(some[name], every[name]) for name in every)
    assert chosen.float().mean().item() == pytest.approx(0.5, abs=0.1)
    changed = sometimes.apply(signal, some)
    assert torch.equal(changed[~chosen], signal[~chosen])
    torch.testing.assert_close(changed[chosen], always.apply(signal, every)[chosen])


@every_transform()
def test_at_probability_0_nothing_is_changed(position):
    transform = dataclasses.replace(catalogue(8)[position], probability=0)
    signal = noise_of(20, 8, 30)
    assert torch.equal(applied(transform, signal), signal)


@every_transform()
def test_a_probability_that_is_none_is_refused(position):
    for probability in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"^probability must lie between 0 and 1, got {probability}$"):
            dataclasses.replace(catalogue(8)[position], probability=probability)


@pytest.mark.parametrize(
    "transform",
    [
        GaussianBlur(max_sigma_samples=0),
        FourierSurrogate(magnitude=0),
        Drop(share=0),
        Cutout(share=0),
        Shift(share=0),
        TimeWarp(magnitude=0, num_waves=3),
        ResizedCrop(min_share=1),
        Sine(amplitude=0, period_share=0.5),
        SquareWave(amplitude=0, period_share=0.5),
        WhiteNoise(amplitude=0),
        Jitter(std=0, mode="additive"),
        Jitter(std=0, mode="multiplicative"),
        EMGNoise(amplitude=0, cutoff_hz=20, sampling_rate_hz=100, share=1),
        BaselineWander(amplitude=0, num_waves=4, max_cycles=5),
        AmplitudeWarp(amplitude=0, num_waves=4, max_cycles=5),
        PowerlineNoise(amplitude=0, frequency_hz=50, num_harmonics=2, sampling_rate_hz=250),
        BaselineShift(amplitude=0, max_segments=3, share=0.5),
        Rescale(std=0),
        LogGain(factor=1),
        RandomLeadMask(lead_probability=0, restandardize=False),
    ],
)
def test_at_magnitude_0_nothing_is_changed(transform):
    signal = noise_of(20, 8, 51)
    through_a_spectrum = 1e-5 if isinstance(transform, FourierSurrogate) else 0
    torch.testing.assert_close(applied(transform, signal), signal, rtol=0, atol=through_a_spectrum)


def test_erase_zeroes_exactly_one_lead_of_each_record_and_every_lead_in_turn():
    signal = noise_of(200, 8, 10)
    erased = (applied(Erase(), signal) == 0).all(dim=2)
    assert (erased.sum(dim=1) == 1).all()
    assert erased.any(dim=0).all()
    assert torch.equal(applied(Erase(), signal)[~erased], signal[~erased])


def test_noise_is_the_finaliser_of_murmurhash3_of_each_place_and_the_seed():
    def scrambled(word):
        word = word ^ (word >> np.uint32(16))
        word = word * np.uint32(0x85EBCA6B)
        word = word ^ (word >> np.uint32(13))
        word = word * np.uint32(0xC2B2AE35)
        return word ^ (word >> np.uint32(16))

    seeds = np.array([0, 1, 2**31, 2**32 - 1], dtype=np.uint32)
    words = scrambled(scrambled(np.arange(60, dtype=np.uint32).reshape(3, 20)) ^ seeds[:, None, None])
    expected = ((words >> np.uint32(9)).astype(np.float64) + 0.5) / 2**22 - 1
    found = uniform_noise(torch.from_numpy(seeds.astype(np.int64)), 3, 20)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-7)


def test_noise_on_a_stretch_is_that_of_the_whole_crop_there():
    signal = torch.zeros(300, 3, 40)
    partial = PartialWhiteNoise(amplitude=1, share=0.4)
    draws = partial.draw((300, 3, 40), generator_of(0))
    expected = normal_noise(signal, draws) * in_stretch(signal, draws)
    torch.testing.assert_close(partial.apply(signal, draws), expected)
    assert set(expected[:, 0].ne(0).sum(dim=1).tolist()) == set(range(17))  # 0.4 of 40 samples


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


def test_cutout_takes_every_length_from_the_least_share_to_the_most():
    lengths = Cutout(share=0.6, min_share=0.3).draw((600, 1, 20), generator_of(0))["length"]
    assert set(lengths.tolist()) == set(range(6, 13))


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


def test_reverse_turns_time_around():
    signal = noise_of(3, 2, 5)
    assert torch.equal(applied(Reverse(), signal), signal[:, :, [4, 3, 2, 1, 0]])


def test_derivative_is_the_difference_of_both_neighbours():
    signal = torch.tensor([[[1.0, 4.0, 9.0, 7.0]], [[0.0, 0.0, 1.0, 0.0]]])
    expected = torch.tensor([[[3.0, 8.0, 3.0, -2.0]], [[0.0, 1.0, 0.0, -1.0]]])
    assert torch.equal(applied(Derivative(), signal), expected)


def test_blur_follows_its_formula_and_leads_go_on_as_they_end():
    signal = noise_of(2, 3, 20)
    sigma = torch.tensor([0.4, 1.9])
    blurred = GaussianBlur(max_sigma_samples=2).apply(signal, {"sigma": sigma})
    for record in range(2):
        kernel = [math.exp(-0.5 * (step / sigma[record].item()) ** 2) for step in range(-6, 7)]
        for time in range(20):
            near = [signal[record, :, min(max(time + step, 0), 19)] for step in range(-6, 7)]
            expected = sum(weight * value for weight, value in zip(kernel, near, strict=True)) / sum(kernel)
            torch.testing.assert_close(blurred[record, :, time], expected)


def test_an_impulse_at_the_end_of_a_lead_does_not_leak_into_the_next():
    signal = torch.zeros(50, 3, 40)
    signal[:, 1, -1] = 1
    for transform in (GaussianBlur(max_sigma_samples=5), Derivative()):
        changed = applied(transform, signal)
        assert (changed[:, 1] != 0).any()
        assert (changed[:, [0, 2]] == 0).all()


@settings(max_examples=40, deadline=None)
@given(num_samples=st.integers(1, 80), magnitude=st.floats(0, 1), per=st.sampled_from(["record", "lead"]))
def test_a_fourier_surrogate_has_the_amplitude_spectrum_of_its_record(num_samples, magnitude, per):
    signal = noise_of(3, 2, num_samples).double()
    changed = applied(FourierSurrogate(magnitude=magnitude, per=per), signal)
    before, after = torch.fft.rfft(signal), torch.fft.rfft(changed)
    torch.testing.assert_close(after.abs(), before.abs(), rtol=1e-5, atol=1e-9)
    real = [0, -1] if num_samples % 2 == 0 else [0]
    torch.testing.assert_close(after[..., real], before[..., real], rtol=1e-5, atol=1e-9)


def test_a_fourier_surrogate_turns_phases_both_ways_the_same_or_not_on_each_lead():
    signal = noise_of(200, 2, 50).double()

    def angles(per: str) -> torch.Tensor:
        changed = applied(FourierSurrogate(magnitude=0.5, per=per), signal)
        return (torch.fft.rfft(changed) / torch.fft.rfft(signal)).angle()[:, :, 1:-1] / math.pi

    for turned in (angles("record"), angles("lead")):
        assert turned.abs().max().item() == pytest.approx(0.5, abs=0.01)
        assert turned.mean().item() == pytest.approx(0, abs=0.02)
        assert turned.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.01)
    same, own = angles("record"), angles("lead")
    torch.testing.assert_close(same[:, 0], same[:, 1])
    assert torch.corrcoef(torch.stack([own[:, 0].flatten(), own[:, 1].flatten()]))[0, 1].abs() < 0.05


def ramps(num_records: int, num_samples: int) -> torch.Tensor:
    """Two leads that say at each sample when it was: what becomes of them is what a transform does to time."""
    return torch.arange(num_samples).double().expand(num_records, 2, -1)


def test_time_warp_lets_time_run_forward_at_changing_speeds_between_fixed_ends():
    warped = applied(TimeWarp(magnitude=0.6, num_waves=2), ramps(300, 101))
    assert torch.equal(warped[:, 0], warped[:, 1])
    torch.testing.assert_close(warped[:, 0, [0, -1]], ramps(300, 101)[:, 0, [0, -1]])
    speed = warped[:, 0].diff()
    assert speed.min() > 0.4 - 1e-6
    assert speed.max() < 1.6 + 1e-6
    assert speed.min() < 0.5
    assert speed.max() > 1.5
    assert speed.diff().abs().max() < 0.06  # smoothly: pi * 0.6 * (1 + 2) / 2 over a crop of 100 steps
    assert len(warped[:, 0, 50].unique()) == 300


def test_a_resized_crop_is_a_part_at_a_slower_pace():
    transform = ResizedCrop(min_share=0.3)
    draws = transform.draw((300, 2, 101), generator_of(0))
    stretched = transform.apply(ramps(300, 101), draws)
    first, last = stretched[:, 0, 0], stretched[:, 0, -1]
    torch.testing.assert_close((last - first) / 100, draws["part"].double())
    torch.testing.assert_close(stretched[:, 1].diff(), draws["part"].double()[:, None].expand(-1, 100))
    assert draws["part"].min() == pytest.approx(0.3, abs=0.02)
    assert draws["part"].max() == pytest.approx(1, abs=0.02)
    assert first.min() >= 0
    assert last.max() <= 100
    assert (first.min() < 1, last.max() > 99) == (True, True)


def test_additive_jitter_is_white_noise():
    signal = noise_of(5, 3, 40)
    jitter, noise = Jitter(std=0.3, mode="additive"), WhiteNoise(amplitude=0.3)
    assert torch.equal(applied(jitter, signal), applied(noise, signal))


def test_multiplicative_jitter_has_its_std_as_a_share_of_each_sample():
    signal = 1000 * noise_of(50, 8, 100)
    share = (applied(Jitter(std=0.3, mode="multiplicative"), signal) - signal) / signal
    assert share.std().item() == pytest.approx(0.3, abs=0.01)
    assert share.mean().item() == pytest.approx(0, abs=0.01)
    assert (applied(Jitter(std=0.3, mode="multiplicative"), torch.zeros(2, 3, 9)) == 0).all()


@pytest.mark.parametrize("per", ["record", "lead"])
@pytest.mark.parametrize("build", [lambda per: Rescale(std=0.1, per=per), lambda per: LogGain(factor=2, per=per)])
def test_a_gain_stays_the_same_along_time(build, per):
    gain = applied(build(per), torch.ones(100, 8, 30))
    assert (gain == gain[:, :, :1]).all()
    assert len(gain.unique()) == (100 if per == "record" else 800)
    if per == "record":
        assert (gain == gain[:, :1]).all()


def test_gains_are_normal_around_1_or_uniform_on_a_log_scale():
    normal = Rescale(std=0.1).draw((5000, 1, 1), generator_of(0))["gain"]
    assert normal.mean().item() == pytest.approx(1, abs=0.005)
    assert normal.std().item() == pytest.approx(0.1, abs=0.005)
    exponent = LogGain(factor=3).draw((1000, 8, 1), generator_of(0))["gain"].log() / math.log(3)
    assert exponent.abs().max().item() == pytest.approx(1, abs=0.01)
    assert exponent.mean().item() == pytest.approx(0, abs=0.02)
    assert exponent.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.02)


@pytest.mark.parametrize(
    "transform",
    [
        BaselineWander(amplitude=0.4, num_waves=3, max_cycles=5),
        AmplitudeWarp(amplitude=0.4, num_waves=3, max_cycles=5),
        PowerlineNoise(amplitude=0.4, frequency_hz=50, num_harmonics=3, sampling_rate_hz=400),
    ],
)
def test_waves_follow_their_formula(transform):
    draws = transform.draw((4, 2, 40), generator_of(0))
    signal = 1 + torch.arange(2.0)[None, :, None].expand(4, 2, 40)
    changed = transform.apply(signal, draws)
    for record in range(4):
        phases, weights, gains = (draws[name][record].tolist() for name in ("phase", "weight", "gain"))
        cycles = draws["cycles"][record].tolist() if "cycles" in draws else [5, 10, 15]  # 50 Hz for 40 / 400 s
        assert max(cycles) <= 5 or isinstance(transform, PowerlineNoise)
        assert sum(weight**2 for weight in weights) == pytest.approx(1)
        for lead in range(2):
            for time in range(40):
                wave = sum(
                    weight * math.cos(2 * math.pi * (cycle * time / 40 + phase))
                    for weight, cycle, phase in zip(weights, cycles, phases, strict=True)
                )
                value = (changed[record, lead, time] - signal[record, lead, time]).item()
                size = 0.4 * (signal[record, lead, time].item() if isinstance(transform, AmplitudeWarp) else 1)
                assert value == pytest.approx(size * gains[lead] * wave, abs=1e-5)


def test_waves_are_as_strong_however_many_and_differ_from_lead_to_lead():
    for num_waves in (1, 20):
        wander = BaselineWander(amplitude=1, num_waves=num_waves, max_cycles=30)
        added = applied(wander, torch.zeros(400, 8, 100))
        assert added.square().mean().sqrt().item() == pytest.approx(1 / math.sqrt(2 * 3), abs=0.03)
        gain = wander.draw((400, 8, 100), generator_of(0))["gain"]
        assert gain.abs().max() <= 1
        assert gain.mean().item() == pytest.approx(0, abs=0.03)
        assert len(gain.unique()) > 3000


def test_no_wander_is_faster_than_samples_can_show():
    draws = BaselineWander(amplitude=1, num_waves=20, max_cycles=1000).draw((100, 1, 30), generator_of(0))
    assert draws["cycles"].max().item() == pytest.approx(15, abs=0.1)


def test_the_mains_hum_has_its_harmonics_and_no_other_frequency():
    hum = applied(
        PowerlineNoise(amplitude=0.2, frequency_hz=50, num_harmonics=2, sampling_rate_hz=250), torch.zeros(6, 2, 500)
    )
    spectrum = torch.fft.rfft(hum).abs()
    other = [frequency for frequency in range(251) if frequency not in (100, 200)]  # 2 s: 0.5 Hz a step
    assert spectrum[:, :, [100, 200]].min() > 1e-2
    assert spectrum[:, :, other].max() < 1e-2
    double = PowerlineNoise(amplitude=0.4, frequency_hz=50, num_harmonics=2, sampling_rate_hz=250)
    torch.testing.assert_close(applied(double, torch.zeros(6, 2, 500)), 2 * hum)


@pytest.mark.parametrize("num_samples", [10, 101])
def test_muscle_noise_has_its_standard_deviation_and_no_low_frequency(num_samples):
    transform = EMGNoise(amplitude=0.5, cutoff_hz=20, sampling_rate_hz=100, share=1)
    draws = transform.draw((400, 8, num_samples), generator_of(0))
    whole = {"first": torch.zeros(400, dtype=torch.int64), "length": torch.full((400,), num_samples)}
    noise = transform.apply(torch.zeros(400, 8, num_samples), draws | whole)
    assert noise.std().item() == pytest.approx(0.5, abs=0.01)
    power = torch.fft.rfft(noise).abs().square().mean(dim=(0, 1))
    low = torch.fft.rfftfreq(num_samples, 1 / 100) < 20
    assert power[low].max() < 1e-6 * power[~low].max()
    assert power[~low][:-1].min() > 0.8 * power.max()
    assert (noise[:, 1:] * noise[:, :-1]).mean().item() == pytest.approx(0, abs=0.01)


def test_muscle_noise_comes_as_one_burst():
    transform = EMGNoise(amplitude=0.5, cutoff_hz=20, sampling_rate_hz=100, share=0.3)
    draws = transform.draw((300, 3, 40), generator_of(0))
    added = transform.apply(torch.zeros(300, 3, 40), draws) != 0
    assert (added == added[:, :1]).all()
    assert torch.equal(added[:, 0].sum(dim=1), draws["length"])
    assert set(draws["length"].tolist()) == set(range(13))


def test_a_baseline_shift_is_a_sum_of_steps_in_proportion_on_the_leads():
    transform = BaselineShift(amplitude=2.0, max_segments=3, share=0.5)
    draws = transform.draw((300, 4, 30), generator_of(0))
    shifted = transform.apply(torch.zeros(300, 4, 30), draws)
    for record in range(40):
        steps = torch.zeros(30)
        for first, length, step in zip(*(draws[name][record] for name in ("first", "length", "step")), strict=True):
            steps[first : first + length] += step
        torch.testing.assert_close(shifted[record], 2 * draws["gain"][record][:, None] * steps)
    assert set((draws["step"] != 0).sum(dim=1).tolist()) == {0, 1, 2, 3}
    for name in ("step", "gain"):
        assert draws[name].min() < -0.98
        assert draws[name].max() > 0.98
    assert draws["length"].max() == 15


def test_random_lead_mask_keeps_one_lead_at_least_and_its_share_on_average():
    assert (RandomLeadMask(lead_probability=1.0).draw((50, 8, 1), generator_of(0))["kept"].sum(dim=1) == 1).all()
    kept = RandomLeadMask(lead_probability=0.3).draw((2000, 8, 1), generator_of(0))["kept"]
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.02)


def test_random_lead_mask_standardises_the_survivors_together():
    transform = RandomLeadMask(lead_probability=0.5)
    signal = 3 + noise_of(20, 8, 100) * torch.arange(1, 9)[:, None]
    draws = transform.draw((20, 8, 100), generator_of(0))
    changed = transform.apply(signal, draws)
    for record in range(20):
        kept = draws["kept"][record]
        assert (changed[record, ~kept] == 0).all()
        torch.testing.assert_close(changed[record, kept], standardize(signal[record, kept], "record"))


def test_random_lead_mask_can_leave_the_survivors_as_they_are():
    signal = 3 + noise_of(20, 8, 100)
    masked, restandardized = (RandomLeadMask(lead_probability=0.5, restandardize=each) for each in (False, True))
    changed = applied(masked, signal)
    lost = (changed == 0).all(dim=2)
    assert torch.equal(changed[~lost], signal[~lost])
    assert torch.equal(lost, (applied(restandardized, signal) == 0).all(dim=2))


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


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("erase", "flip", "reverse")])
def test_an_operation_fades_out_towards_level_0(name):
    signal = standardize(noise_of(50, 8, 60), "record")
    weak, strong = (applied(OPERATIONS[name](level), signal) for level in (0.001, 10))
    torch.testing.assert_close(weak, signal, rtol=0.01, atol=0.03)
    assert (strong - signal).abs().max() > 0.2


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
        "random_lead_mask": RandomLeadMask(lead_probability=0.3),
        "jitter": Jitter(std=0.24, mode="multiplicative"),
        "rescale": Rescale(std=0.65),
        "fourier_surrogate": FourierSurrogate(magnitude=0.125),
        "reverse": Reverse(),
        "gaussian_blur": GaussianBlur(max_sigma_samples=1.0),
        "log_gain": LogGain(factor=3.0),
        "resized_crop": ResizedCrop(min_share=1 - 0.7),
        "baseline_shift": BaselineShift(amplitude=1.0, max_segments=3, share=0.6),
        "baseline_wander": BaselineWander(amplitude=0.5, num_waves=3, max_cycles=15),
        "amplitude_warp": AmplitudeWarp(amplitude=0.1, num_waves=3, max_cycles=15),
        "lead_mask": RandomLeadMask(lead_probability=0.3, restandardize=False),
        "time_warp": TimeWarp(magnitude=0.3, num_waves=3),
    }
    half = RandAugment(operations=["partial_sine"], level=5, num_layers=1, probability=0.5).built["partial_sine"]
    assert half == PartialSine(amplitude=0.15, period_share=1.0, share=0.15)


def test_rand_augment_must_be_told_its_probability():
    with pytest.raises(TypeError, match="probability"):
        RandAugment(operations=["flip"], level=10, num_layers=1)


AUGMENT = {"operations": ST_MEM_OPERATIONS, "level": 10, "num_layers": 2, "probability": 0.5}
EMG = {"amplitude": 0.3, "cutoff_hz": 20, "sampling_rate_hz": 100, "share": 0.5}
WANDER = {"amplitude": 0.3, "num_waves": 3, "max_cycles": 5}
MAINS = {"amplitude": 0.3, "frequency_hz": 50, "num_harmonics": 1, "sampling_rate_hz": 250}


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
        (RandomLeadMask, {"lead_probability": 1.5}, "lead_probability must lie between 0 and 1, got 1.5"),
        (Cutout, {"share": 0.3, "min_share": 0.4}, r"min_share must be at most share \(0.3\), got 0.4"),
        (GaussianBlur, {"max_sigma_samples": -1}, "max_sigma_samples must be at least 0 and finite, got -1"),
        (FourierSurrogate, {"magnitude": 1.5}, "magnitude must lie between 0 and 1, got 1.5"),
        (FourierSurrogate, {"magnitude": 0.1, "per": "crop"}, "per must be record or lead, got 'crop'"),
        (TimeWarp, {"magnitude": 1, "num_waves": 2}, "magnitude must be at least 0 and below 1, got 1"),
        (TimeWarp, {"magnitude": 0.5, "num_waves": 0}, "num_waves must be at least 1, got 0"),
        (ResizedCrop, {"min_share": 1.5}, "min_share must lie between 0 and 1, got 1.5"),
        (Jitter, {"std": -1, "mode": "additive"}, "std must be at least 0 and finite, got -1"),
        (Jitter, {"std": 1, "mode": "added"}, "mode must be additive or multiplicative, got 'added'"),
        (EMGNoise, EMG | {"cutoff_hz": 50}, r"cutoff_hz must lie above 0 and below half of .* \(50\), got 50"),
        (EMGNoise, EMG | {"amplitude": -1}, "amplitude must be at least 0 and finite, got -1"),
        (EMGNoise, EMG | {"share": 2}, "share must lie between 0 and 1, got 2"),
        (BaselineWander, WANDER | {"max_cycles": math.inf}, "max_cycles must be at least 0 and finite, got inf"),
        (AmplitudeWarp, WANDER | {"num_waves": 0}, "num_waves must be at least 1, got 0"),
        (PowerlineNoise, MAINS | {"num_harmonics": 3}, r"num_harmonics \* frequency_hz, .* \(125\), got 150"),
        (PowerlineNoise, MAINS | {"sampling_rate_hz": 100}, r"below half of sampling_rate_hz \(50\), got 50"),
        (PowerlineNoise, MAINS | {"num_harmonics": 0}, "num_harmonics must be at least 1, got 0"),
        (BaselineShift, {"amplitude": 1, "max_segments": 0, "share": 1}, "max_segments must be at least 1, got 0"),
        (Rescale, {"std": math.inf}, "std must be at least 0 and finite, got inf"),
        (LogGain, {"factor": 0.5}, "factor must be at least 1 and finite, got 0.5"),
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
