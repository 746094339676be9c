"""Batch norm alone; over several workers it is tested with the tasks that use it."""

import pytest
import torch
from torch import nn

from models.batch_norm import BatchNorm


def pair(num_channels=5):
    """Ours and torch's with the same weights."""
    torch.manual_seed(0)
    ours, theirs = BatchNorm(num_channels), nn.BatchNorm1d(num_channels)
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("shape", [(8, 5), (4, 5, 7), (1, 5, 2)])
def test_on_one_worker_it_is_torchs_bit_for_bit(shape):
    ours, theirs = pair()
    for step in range(3):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(step)) * 3 + 1
        inputs = [values.clone().requires_grad_(True) for _ in range(2)]
        outputs = [norm(rows) for norm, rows in zip((ours, theirs), inputs, strict=True)]
        for output in outputs:
            output.square().sum().backward()
        assert torch.equal(*outputs)
        assert torch.equal(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)
    values = torch.randn(shape)
    assert torch.equal(ours.eval()(values), theirs.eval()(values))


def test_its_state_is_torchs():
    ours, theirs = pair()
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_one_row_without_time_is_refused_by_torch_in_one_line():
    with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
        pair()[0](torch.randn(1, 5))
    assert "\n" not in str(caught.value)
