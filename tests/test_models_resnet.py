import pytest
import torch
import torch.nn.functional as F

from models.encoder import LEADS, has_weight_decay
from models.resnet import ResidualBlock, ResNet1d, projection

LAPTOP = {"leads": LEADS, "num_samples": 300, "sampling_rate_hz": 100.0, "size": "laptop", "kernel_size": 3}


def built(**changes):
    """An encoder of random weights whose every parameter and running statistic matters."""
    torch.manual_seed(0)
    encoder = ResNet1d(**(LAPTOP | changes))
    randomize(encoder)
    return encoder


def randomize(module):
    for name, value in module.state_dict().items():
        if not name.endswith("num_batches_tracked") and value.ndim == 1:
            value.uniform_(0.5, 1.5)


def signals(num_records=3, num_leads=12, num_samples=300):
    return torch.randn(num_records, num_leads, num_samples, generator=torch.Generator().manual_seed(1))


def normalized(state, name, values):
    """Batch norm as in evaluation."""
    mean, variance, weight, bias = (
        state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    scaled = (values - mean[:, None]) / (variance[:, None] + 1e-5).sqrt()
    return scaled * weight[:, None] + bias[:, None]


def convolved(state, name, values, stride=1):
    weight = state[f"{name}.0.weight"]
    return normalized(state, f"{name}.1", F.conv1d(values, weight, stride=stride, padding=weight.shape[2] // 2))


@pytest.mark.parametrize(
    ("size", "parameters", "width", "depth"),
    [
        ("laptop", 243_360, 128, 8),
        ("resnet18", 3_848_832, 512, 8),
        ("resnet34", 7_223_168, 512, 16),
        ("resnet50", 15_959_168, 2048, 16),
    ],
)
def test_parameters_count_as_published(size, parameters, width, depth):
    with torch.device("meta"):
        encoder = ResNet1d(**(LAPTOP | {"size": size}))
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
        ({"size": "resnet19"}, "size must be one of laptop, resnet18, resnet34, resnet50, got 'resnet19'"),
        ({"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
        ({"kernel_size": -1}, "kernel_size must be odd and positive, got -1"),
        ({"leads": ["I", "V9"]}, "leads must be among"),
        ({"leads": []}, "leads must name"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        ResNet1d(**(LAPTOP | changes))


def test_the_stem_is_a_strided_convolution_with_norm_relu_and_max_pool():
    encoder = built().eval()
    values = F.relu(convolved(encoder.state_dict(), "stem.0", signals(), stride=2))
    torch.testing.assert_close(encoder.stem(signals()), F.max_pool1d(values, 3, stride=2, padding=1))
    assert encoder.stem[0][0].weight.shape == (16, 12, 7)


@pytest.mark.parametrize(("channels_in", "stride"), [(8, 1), (6, 2), (6, 1)])
def test_a_basic_block_is_two_convolutions_added_to_its_shortcut(channels_in, stride):
    torch.manual_seed(0)
    block = ResidualBlock(channels_in, 8, 1, 5, stride, projection).eval()
    randomize(block)
    state, values = block.state_dict(), signals(num_leads=channels_in, num_samples=21)
    hidden = F.relu(convolved(state, "branch.0", values, stride))
    kept = values if channels_in == 8 else convolved(state, "shortcut", values, stride)
    torch.testing.assert_close(block(values), F.relu(convolved(state, "branch.2", hidden) + kept))


@pytest.mark.parametrize(("channels_in", "stride"), [(32, 1), (16, 2), (8, 1)])
def test_a_bottleneck_is_three_convolutions_added_to_its_shortcut(channels_in, stride):
    torch.manual_seed(0)
    block = ResidualBlock(channels_in, 8, 4, 3, stride, projection).eval()
    randomize(block)
    state, values = block.state_dict(), signals(num_leads=channels_in, num_samples=21)
    hidden = F.relu(convolved(state, "branch.0", values))
    hidden = F.relu(convolved(state, "branch.2", hidden, stride))
    kept = values if channels_in == 32 else convolved(state, "shortcut", values, stride)
    torch.testing.assert_close(block(values), F.relu(convolved(state, "branch.4", hidden) + kept))
    assert [state[f"branch.{index}.0.weight"].shape[2] for index in (0, 2, 4)] == [1, 3, 1]


def test_the_embedding_is_the_mean_over_time_of_the_last_block():
    encoder = built().eval()
    values = encoder.stem(signals())
    for block in encoder.blocks:
        values = block(values)
    assert values.shape == (3, 128, 10)  # 300 / 32, rounded up
    torch.testing.assert_close(encoder(signals()), values.mean(dim=2))


def test_drop_path_multiplies_each_records_branches_and_leaves_a_block_out_at_0():
    encoder, signal = built().eval(), signals()
    factors = torch.ones(3, 8, 2)
    factors[:, :, 1] = torch.nan  # blocks have one branch
    torch.testing.assert_close(encoder(signal, factors), encoder(signal))
    factors[1, 1, 0], factors[2, 2, 0] = 0.0, 0.0
    values = encoder.stem(signal)
    for index, block in enumerate(encoder.blocks):
        after = block(values)
        if index == 1:
            after[1] = values[1]
        if index == 2:
            after[2] = F.relu(block.shortcut(values)[2])
        values = after
    torch.testing.assert_close(encoder(signal, factors), values.mean(dim=2))
    factors[0, 3, 0] = 2.0
    assert not torch.allclose(encoder(signal, factors)[0], encoder(signal)[0])


@pytest.mark.parametrize("size", ["laptop", "resnet50"])
def test_every_parameter_receives_a_gradient(size):
    encoder = built(size=size, leads=["I", "II"], num_samples=64)
    encoder(signals(4, 2, 64), torch.ones(4, encoder.depth, 2)).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_a_record_is_embedded_the_same_in_any_company():
    encoder, signal = built().eval(), signals()
    together = encoder(signal)
    for record in range(3):
        torch.testing.assert_close(encoder(signal[record : record + 1])[0], together[record])


@pytest.mark.parametrize("size", ["laptop", "resnet34", "resnet50"])
def test_layers_count_the_stem_and_the_blocks_in_order(size):
    with torch.device("meta"):
        encoder = ResNet1d(**(LAPTOP | {"size": size}))
    layers = [encoder.layer_of(name) for name, _ in encoder.named_parameters()]
    assert layers == sorted(layers)
    assert set(layers) == set(range(encoder.depth + 1))
    assert encoder.layer_of("stem.0.0.weight") == 0
    assert encoder.layer_of("blocks.0.branch.0.0.weight") == 1


def test_weight_decay_is_for_convolutions_alone():
    encoder = built()
    decayed = {name for name, parameter in encoder.named_parameters() if has_weight_decay(name, parameter)}
    assert decayed == {name for name, value in encoder.state_dict().items() if value.ndim == 3}


def test_convolutions_are_drawn_kaiming_normal_from_the_global_generator():
    encoder = ResNet1d(**LAPTOP)
    torch.manual_seed(0)
    again, other = ResNet1d(**LAPTOP), ResNet1d(**LAPTOP)
    assert not torch.equal(again.stem[0][0].weight, other.stem[0][0].weight)
    weight = encoder.blocks[7].branch[2][0].weight
    assert weight.std().item() == pytest.approx((2 / (128 * 3)) ** 0.5, rel=0.02)
    norm = encoder.blocks[7].last_norm
    assert (norm.weight == 1).all()
    assert not norm.bias.any()


def test_the_same_seed_gives_the_same_weights():
    torch.testing.assert_close(built().state_dict(), built().state_dict(), rtol=0, atol=0)


def test_a_state_moves_to_another_encoder():
    encoder, other = built().eval(), ResNet1d(**LAPTOP).eval()
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(signals()), encoder(signals()))


def test_bfloat16_gives_about_the_same():
    encoder = built()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = encoder(signals(), torch.ones(3, 8, 2))
    embedding.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    torch.testing.assert_close(embedding.float(), encoder(signals()), rtol=0.1, atol=0.1)
