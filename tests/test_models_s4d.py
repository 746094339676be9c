import cmath
import math

import pytest
import torch
import torch.nn.functional as F

from models.encoder import LEADS, has_weight_decay
from models.s4d import S4D, DiagonalStateSpace, convolve

LAPTOP = {
    "leads": LEADS,
    "num_samples": 120,
    "sampling_rate_hz": 100.0,
    "size": "laptop",
    "state_size": 8,
    "bidirectional": True,
    "min_memory_s": 0.2,
    "max_memory_s": 20.0,
}


def built(**changes):
    torch.manual_seed(0)
    return S4D(**(LAPTOP | changes))


def signals(num_records=3, num_leads=12, num_samples=120):
    return torch.randn(num_records, num_leads, num_samples, generator=torch.Generator().manual_seed(1))


def state_space(*, bidirectional, width=3, state_size=6):
    """A layer of random weights in double precision."""
    torch.manual_seed(0)
    layer = DiagonalStateSpace(width, state_size, (2.0, 50.0), bidirectional).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, mean=-0.5, std=0.5)
    return layer.requires_grad_(False)


def recurrence(layer, inputs, channel, direction):
    """The states of one channel, one input after another: 2 Re(C x) after each."""
    step = math.exp(layer.log_step[channel])
    rates = [complex(-math.exp(a), b) for a, b in zip(layer.log_decay[channel], layer.frequency[channel], strict=True)]
    weights = [complex(*pair) for pair in layer.output[direction, channel].tolist()]
    states, outputs = [0j] * len(rates), []
    for value in inputs:
        states = [
            cmath.exp(step * rate) * state + (cmath.exp(step * rate) - 1) / rate * value
            for rate, state in zip(rates, states, strict=True)
        ]
        outputs.append(2 * sum(weight * state for weight, state in zip(weights, states, strict=True)).real)
    return outputs


@pytest.mark.parametrize(
    ("changes", "parameters", "width"),
    [
        ({}, 152_960, 128),
        ({"size": "s4d"}, 2_166_272, 512),
        ({"size": "s4d", "bidirectional": False}, 2_149_888, 512),
    ],
)
def test_parameters_width_and_depth_are_those_of_the_size(changes, parameters, width):
    with torch.device("meta"):
        encoder = S4D(**(LAPTOP | changes))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert (encoder.width, encoder.depth, len(encoder.blocks)) == (width, 4, 4)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("leads", [["V2"], ["II", "V1", "V5"], LEADS])
@pytest.mark.parametrize("num_samples", [1, 118, 120])
def test_signals_of_any_length_and_leads_become_vectors(leads, num_samples):
    encoder = built(leads=leads)
    embedding = encoder(signals(num_leads=len(leads), num_samples=num_samples))
    assert embedding.shape == (3, 128)
    assert embedding.isfinite().all()
    assert encoder.gives == {"vector", "segments"}


@pytest.mark.parametrize("shape", [(3, 11, 120), (3, 12, 121), (3, 12, 0)])
def test_signals_of_other_leads_or_more_samples_are_refused(shape):
    with pytest.raises(ValueError, match="12 leads, 120 samples"):
        built()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "s4"}, "size must be one of laptop, s4d, got 's4'"),
        ({"state_size": 7}, "state_size must be even and positive, got 7"),
        ({"state_size": 0}, "state_size must be even and positive, got 0"),
        ({"min_memory_s": 0.0}, "min_memory_s must be positive"),
        ({"min_memory_s": 30.0}, "min_memory_s must be positive and at most max_memory_s, got .*30.0.*20.0"),
        ({"max_memory_s": math.inf}, "max_memory_s"),
        ({"max_memory_s": math.nan}, "max_memory_s"),
        ({"leads": ["I", "V9"]}, "leads must be among"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        S4D(**(LAPTOP | changes))


def test_the_layer_is_the_recurrence_of_its_states():
    layer = state_space(bidirectional=False)
    tokens = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = layer.skip * tokens
    for record in range(2):
        for channel in range(3):
            outputs = recurrence(layer, tokens[record, :, channel].tolist(), channel, 0)
            expected[record, :, channel] += torch.tensor(outputs, dtype=torch.float64)
    torch.testing.assert_close(layer(tokens), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.float()(tokens.float()), expected.float(), rtol=1e-4, atol=1e-4)


def test_the_second_direction_is_the_recurrence_from_the_end_up_to_the_next_token():
    layer = state_space(bidirectional=True)
    tokens = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = layer.skip * tokens
    for channel in range(3):
        inputs = tokens[0, :, channel].tolist()
        past, future = (recurrence(layer, order, channel, way) for way, order in enumerate((inputs, inputs[::-1])))
        expected[0, :, channel] += torch.tensor(past, dtype=torch.float64)
        expected[0, :-1, channel] += torch.tensor(future[-2::-1], dtype=torch.float64)
    torch.testing.assert_close(layer(tokens), expected, rtol=1e-9, atol=1e-9)


def test_convolution_is_its_sum_in_plain_loops():
    generator = torch.Generator().manual_seed(0)
    inputs, kernels = (torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = torch.zeros_like(inputs)
    for at in range(7):
        for source in range(7):
            kernel = kernels[0, :, at - source] if source <= at else kernels[1, :, source - at - 1]
            expected[:, :, at] += kernel * inputs[:, :, source]
    torch.testing.assert_close(convolve(inputs, kernels), expected)


def test_a_token_is_told_of_later_ones_in_both_directions_alone():
    for bidirectional in (False, True):
        encoder = built(bidirectional=bidirectional)
        tokens = torch.randn(1, 20, 128, generator=torch.Generator().manual_seed(1))
        changed = tokens.clone()
        changed[:, 12:] = 0
        before, after = (encoder.blocks[0](values)[:, :12] for values in (tokens, changed))
        assert torch.allclose(before, after, atol=1e-4) is not bidirectional


def test_states_begin_as_s4d_lin_with_the_memories_asked_for():
    encoder = built(size="s4d", leads=["I"], min_memory_s=0.5, max_memory_s=4.0, sampling_rate_hz=250.0)
    layer = encoder.blocks[0].state_space
    torch.testing.assert_close(layer.log_decay.exp(), torch.full((512, 4), 0.5))
    torch.testing.assert_close(layer.frequency[5], torch.tensor([0, math.pi, 2 * math.pi, 3 * math.pi]))
    memory_s = 1 / (0.5 * layer.log_step.exp()) / 250  # until exp(-t / 2) is 1 / e
    assert memory_s.min().item() == pytest.approx(0.5, rel=0.05)
    assert memory_s.max().item() == pytest.approx(4.0, rel=0.05)
    assert memory_s.log().mean().exp().item() == pytest.approx(math.sqrt(2), rel=0.1)


def test_the_published_steps_are_those_of_the_configuration_at_100_hz():
    log_step = built(size="s4d", leads=["I"]).blocks[0].state_space.log_step
    assert log_step.min().exp().item() == pytest.approx(0.001, rel=0.05)
    assert log_step.max().exp().item() == pytest.approx(0.1, rel=0.05)


def test_a_memory_is_as_many_seconds_at_any_rate_and_stride():
    slow, fast = built(), built(sampling_rate_hz=400.0)
    one_by_one = built(size="s4d")
    steps = [encoder.blocks[0].state_space.log_step for encoder in (slow, fast)]
    torch.testing.assert_close(steps[0], steps[1] + math.log(4))
    longest = [encoder.blocks[0].state_space.log_step.min().item() for encoder in (slow, one_by_one)]
    assert longest[0] == pytest.approx(longest[1] + math.log(4), abs=0.1)


def test_a_block_adds_its_gated_state_spaces_to_the_tokens():
    block = built().blocks[1]
    tokens = torch.randn(2, 15, 128, generator=torch.Generator().manual_seed(1))
    hidden = F.gelu(block.state_space(F.layer_norm(tokens, (128,), block.norm.weight, block.norm.bias)))
    value, gate = F.linear(hidden, block.mix.weight, block.mix.bias).chunk(2, dim=-1)
    torch.testing.assert_close(block(tokens), tokens + value * torch.sigmoid(gate))


def test_the_embedding_is_the_mean_over_time_of_the_normed_tokens_of_a_padded_signal():
    encoder = built()
    padded = F.pad(signals(num_samples=118), (0, 2))
    patches = padded.unflatten(2, (30, 4)).permute(0, 2, 1, 3).flatten(2)  # four samples of every lead
    tokens = patches @ encoder.stem.weight.flatten(1).T + encoder.stem.bias
    for block in encoder.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(encoder(signals(num_samples=118)), encoder.norm(tokens).mean(dim=1))


def test_drop_path_multiplies_each_records_branches_and_leaves_a_block_out_at_0():
    encoder, signal = built(), signals()
    factors = torch.ones(3, 4, 2)
    factors[:, :, 1] = torch.nan  # blocks have one branch
    torch.testing.assert_close(encoder(signal, factors), encoder(signal))
    factors[1, 2, 0] = 0.0
    tokens = encoder.stem(signal).transpose(1, 2)
    for index, block in enumerate(encoder.blocks):
        after = block(tokens)
        if index == 2:
            after[1] = tokens[1]
        tokens = after
    torch.testing.assert_close(encoder(signal, factors), encoder.norm(tokens).mean(dim=1))
    assert not torch.allclose(encoder(signal, factors)[1], encoder(signal)[1])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_parameter_receives_a_gradient(bidirectional):
    encoder = built(bidirectional=bidirectional)
    weights = torch.randn(128, generator=torch.Generator().manual_seed(2))  # a plain sum is constant after a norm
    (encoder(signals(), torch.ones(3, 4, 2)) @ weights).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_a_record_is_embedded_the_same_in_any_company():
    encoder, signal = built().eval(), signals()
    together = encoder(signal)
    for record in range(3):
        torch.testing.assert_close(encoder(signal[record : record + 1])[0], together[record], rtol=1e-4, atol=1e-5)


def test_layers_count_the_stem_the_blocks_and_the_norm_in_order():
    encoder = built()
    layers = [encoder.layer_of(name) for name, _ in encoder.named_parameters()]
    assert layers == sorted(layers)
    assert set(layers) == set(range(6))
    assert encoder.layer_of("blocks.0.norm.weight") == 1
    assert encoder.layer_of("norm.weight") == 5


def test_weight_decay_is_for_the_stem_and_the_mixtures_alone():
    encoder = built()
    decayed = {name for name, parameter in encoder.named_parameters() if has_weight_decay(name, parameter)}
    assert decayed == {"stem.weight"} | {f"blocks.{index}.mix.weight" for index in range(4)}


def test_the_same_seed_gives_the_same_weights():
    torch.testing.assert_close(built().state_dict(), built().state_dict(), rtol=0, atol=0)


def test_a_state_moves_to_another_encoder():
    encoder, other = built(), S4D(**LAPTOP)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(signals()), encoder(signals()))


def test_the_layer_stays_in_float32_under_bfloat16():
    layer = built().blocks[0].state_space
    tokens = torch.randn(2, 30, 128, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(tokens)
        rounded = layer(tokens.bfloat16())
    assert torch.equal(inside, layer(tokens))
    assert rounded.dtype == torch.bfloat16


def test_bfloat16_gives_about_the_same():
    encoder = built()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = encoder(signals(), torch.ones(3, 4, 2))
    embedding.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    torch.testing.assert_close(embedding.float(), encoder(signals()), rtol=0.1, atol=0.1)
