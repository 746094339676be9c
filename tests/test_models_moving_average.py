import math

import pytest
import torch
from torch import nn

from models.moving_average import check_momentum, follow, following, momentum_at


@pytest.fixture
def online():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network(torch.randn(8, 3))  # moves the running statistics
    return network


def moved(network):
    """The network after a step of training, in place."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape))
    network(torch.randn(8, 3) + 5)
    return network


def test_a_follower_starts_as_a_copy_that_no_gradient_reaches(online):
    target = following(online)
    torch.testing.assert_close(target.state_dict(), online.state_dict(), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())
    before = {name: value.clone() for name, value in target.state_dict().items()}
    moved(online)
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_weights_follow_by_the_momentum_and_buffers_all_the_way(online, momentum):
    target = following(online)
    before = {name: value.clone() for name, value in target.named_parameters()}
    moved(online)
    follow(target, online, momentum)
    weights = dict(online.named_parameters())
    for name, value in target.named_parameters():
        torch.testing.assert_close(value, momentum * before[name] + (1 - momentum) * weights[name])
    for name, value in target.named_buffers():
        assert torch.equal(value, dict(online.named_buffers())[name])
    assert int(target[1].num_batches_tracked) == 2


def test_at_its_ends_the_momentum_leaves_weights_as_they_are_or_copies_them(online):
    target = following(online)
    before = {name: value.clone() for name, value in target.named_parameters()}
    moved(online)
    follow(target, online, 1.0)
    torch.testing.assert_close(dict(target.named_parameters()), before, rtol=0, atol=0)
    follow(target, online, 0.0)
    torch.testing.assert_close(target.state_dict(), online.state_dict(), rtol=0, atol=0)


def test_following_leaves_the_online_network_and_its_gradients_alone(online):
    target = following(online)
    online(torch.randn(8, 3)).square().sum().backward()
    state = {name: value.clone() for name, value in online.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in online.parameters()]
    follow(target, online, 0.5)
    torch.testing.assert_close(online.state_dict(), state, rtol=0, atol=0)
    assert all(torch.equal(p.grad, g) for p, g in zip(online.parameters(), gradients, strict=True))


def test_the_momentum_goes_from_the_first_step_to_the_last_in_a_straight_line():
    values = [momentum_at(step, 5, 0.9, 1.0) for step in range(5)]
    assert values == pytest.approx([0.9, 0.925, 0.95, 0.975, 1.0])
    assert values[0] == 0.9
    assert values[-1] == 1.0
    assert momentum_at(0, 1, 0.9, 1.0) == 0.9  # of a single step


@pytest.mark.parametrize(("start", "end"), [(-0.1, 0.5), (0.5, 1.1), (0.9, 0.8), (math.nan, 1.0), (0.5, math.nan)])
def test_momenta_that_do_not_rise_between_0_and_1_are_refused_in_one_line_that_names_the_keys(start, end):
    with pytest.raises(ValueError, match="momentum_start and momentum_end must rise between 0 and 1, got ") as caught:
        check_momentum(start, end)
    assert "\n" not in str(caught.value)
    check_momentum(0.0, 1.0)
    check_momentum(0.996, 0.996)
