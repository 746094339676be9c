import pytest
import torch
import torch.nn.functional as F

from models.encoder import LEADS, has_weight_decay
from models.resnet import ResidualBlock
from models.xresnet import XResNet1d, averaging_projection

LAPTOP = {"leads": LEADS, "num_samples": 300, "sampling_rate_hz": 100.0, "size": "laptop", "kernel_size": 5}


def built(**changes):
    """An encoder of random weights whose every parameter and running statistic matters."""
    torch.manual_seed(0)
    encoder = XResNet1d(**(LAPTOP | changes))
    randomize(encoder)
    return encoder


def randomize(module):
    for name, value in module.state_dict().items():
        if not name.endswith("num_batches_tracked") and value.ndim == 1:
            value.uniform_(0.5, 1.5)


def signals(num_records=3, num_leads=12, num_samples=300):
    return torch.randn(num_records, num_leads, num_samples, generator=torch.Generator().manual_seed(1))


def convolved(state, name, values, stride=1):
    """A convolution and the batch norm after it, as in evaluation."""
    weight = state[f"{name}.0.weight"]
    values = F.conv1d(values, weight, stride=stride, padding=weight.shape[2] // 2)
    parts = (state[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    mean, variance, scale, shift = (part[:, None] for part in parts)
    return (values - mean) / (variance + 1e-5).sqrt() * scale + shift


@pytest.mark.parametrize(
    ("size", "parameters", "width", "depth"),
    [("laptop", 177_504, 128, 4), ("xresnet50", 18_486_144, 2048, 16), ("xresnet101", 33_021_824, 2048, 33)],
)
def test_parameters_width_and_depth_are_those_of_the_size(size, parameters, width, depth):
    with torch.device("meta"):
        encoder = XResNet1d(**(LAPTOP | {"size": size}))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert (encoder.width, encoder.depth, len(encoder.blocks)) == (width, depth, depth)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("leads", [["V2"], ["II", "V1", "V5"], LEADS])
@pytest.mark.parametrize("num_samples", [1, 299, 300])
def test_signals_of_any_length_and_leads_become_vectors(leads, num_samples):
    encoder = built(leads=leads).eval()
    embedding = encoder(signals(num_leads=len(leads), num_samples=num_samples))
    assert embedding.shape == (3, 128)
    assert embedding.isfinite().all()
    assert encoder.gives == {"vector", "segments"}


@pytest.mark.parametrize("shape", [(3, 11, 300), (3, 12, 301), (3, 12, 0)])
def test_signals_of_other_leads_or_more_samples_are_refused(shape):
    with pytest.raises(ValueError, match="12 leads, 300 samples"):
        built()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "resnet50"}, "size must be one of laptop, xresnet50, xresnet101, got 'resnet50'"),
        ({"kernel_size": 6}, "kernel_size must be odd and positive, got 6"),
        ({"leads": ["I", "I"]}, "leads must not repeat"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        XResNet1d(**(LAPTOP | changes))


def test_the_stem_is_three_convolutions_and_a_max_pool():
    encoder = built(kernel_size=7).eval()
    state, values = encoder.state_dict(), signals()
    for index, stride in ((0, 2), (2, 1), (4, 1)):
        values = F.relu(convolved(state, f"stem.{index}", values, stride))
    torch.testing.assert_close(encoder.stem(signals()), F.max_pool1d(values, 3, stride=2, padding=1))
    assert [state[f"stem.{index}.0.weight"].shape for index in (0, 2, 4)] == [(8, 12, 7), (8, 8, 7), (16, 8, 7)]


def test_the_published_stem_has_32_32_and_64_channels():
    with torch.device("meta"):
        encoder = XResNet1d(**(LAPTOP | {"size": "xresnet50"}))
    assert [encoder.stem[index][0].out_channels for index in (0, 2, 4)] == [32, 32, 64]


@pytest.mark.parametrize(("channels_in", "stride", "num_samples"), [(16, 2, 20), (16, 2, 21), (8, 1, 21), (32, 1, 21)])
def test_a_bottleneck_averages_samples_before_the_convolution_of_its_shortcut(channels_in, stride, num_samples):
    torch.manual_seed(0)
    block = ResidualBlock(channels_in, 8, 4, 5, stride, averaging_projection).eval()
    randomize(block)
    state, values = block.state_dict(), signals(num_leads=channels_in, num_samples=num_samples)
    hidden = F.relu(convolved(state, "branch.0", values))
    hidden = F.relu(convolved(state, "branch.2", hidden, stride))
    kept = values
    if stride == 2:
        pairs = [values[:, :, start : start + 2].mean(dim=2) for start in range(0, num_samples, 2)]
        kept = torch.stack(pairs, dim=2)
    if channels_in != 32:
        kept = convolved(state, "shortcut.1", kept)
    torch.testing.assert_close(block(values), F.relu(convolved(state, "branch.4", hidden) + kept))


def test_the_embedding_is_the_mean_over_time_of_the_last_block():
    encoder = built().eval()
    values = encoder.stem(signals())
    for block in encoder.blocks:
        values = block(values)
    assert values.shape == (3, 128, 10)  # 300 / 32, rounded up
    torch.testing.assert_close(encoder(signals()), values.mean(dim=2))


def test_blocks_begin_as_their_shortcut():
    torch.manual_seed(0)
    encoder = XResNet1d(**LAPTOP).eval()
    values = encoder.stem(signals())
    for block in encoder.blocks:
        assert not block.last_norm.weight.any()
        torch.testing.assert_close(block(values), F.relu(block.shortcut(values)))
        values = block(values)
    assert all((layer.weight == 1).all() for layer in encoder.stem.modules() if isinstance(layer, torch.nn.BatchNorm1d))


def test_drop_path_multiplies_each_records_branches_and_leaves_a_block_out_at_0():
    encoder, signal = built().eval(), signals()
    factors = torch.ones(3, 4, 2)
    factors[:, :, 1] = torch.nan  # blocks have one branch
    torch.testing.assert_close(encoder(signal, factors), encoder(signal))
    factors[1, 2, 0] = 0.0
    values = encoder.stem(signal)
    for index, block in enumerate(encoder.blocks):
        after = block(values)
        if index == 2:
            after[1] = F.relu(block.shortcut(values)[1])
        values = after
    torch.testing.assert_close(encoder(signal, factors), values.mean(dim=2))
    assert not torch.allclose(encoder(signal, factors)[1], encoder(signal)[1])


@pytest.mark.parametrize("size", ["laptop", "xresnet50"])
def test_every_parameter_receives_a_gradient(size):
    encoder = built(size=size, leads=["I", "II"], num_samples=64)
    encoder(signals(4, 2, 64), torch.ones(4, encoder.depth, 2)).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_at_first_too_no_gradient_is_missing():
    encoder = XResNet1d(**LAPTOP)
    encoder(signals()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert all(block.last_norm.weight.grad.any() for block in encoder.blocks)


def test_a_record_is_embedded_the_same_in_any_company():
    encoder, signal = built().eval(), signals()
    together = encoder(signal)
    for record in range(3):
        torch.testing.assert_close(encoder(signal[record : record + 1])[0], together[record])


@pytest.mark.parametrize("size", ["laptop", "xresnet50", "xresnet101"])
def test_layers_count_the_stem_and_the_blocks_in_order(size):
    with torch.device("meta"):
        encoder = XResNet1d(**(LAPTOP | {"size": size}))
    layers = [encoder.layer_of(name) for name, _ in encoder.named_parameters()]
    assert layers == sorted(layers)
    assert set(layers) == set(range(encoder.depth + 1))
    assert encoder.layer_of("stem.4.0.weight") == 0


def test_weight_decay_is_for_convolutions_alone():
    encoder = built()
    decayed = {name for name, parameter in encoder.named_parameters() if has_weight_decay(name, parameter)}
    assert decayed == {name for name, value in encoder.state_dict().items() if value.ndim == 3}


def test_the_same_seed_gives_the_same_weights():
    torch.testing.assert_close(built().state_dict(), built().state_dict(), rtol=0, atol=0)


def test_a_state_moves_to_another_encoder():
    encoder, other = built().eval(), XResNet1d(**LAPTOP).eval()
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(signals()), encoder(signals()))


def test_bfloat16_gives_about_the_same():
    encoder = built()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = encoder(signals(), torch.ones(3, 4, 2))
    embedding.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    torch.testing.assert_close(embedding.float(), encoder(signals()), rtol=0.1, atol=0.1)
