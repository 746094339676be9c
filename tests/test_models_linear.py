import pytest
import torch
import torch.nn.functional as F

from models.linear import Linear

LARGE = (8, 96, 384, 512)  # records, tokens, values in and out
SMALL = (2, 9, 64, 32)


@pytest.fixture
def convolutions(monkeypatch):
    """The shapes of what goes through a convolution."""
    shapes, convolve = [], F.conv2d
    monkeypatch.setattr(
        F, "conv2d", lambda *values, **keys: shapes.append(values[0].shape) or convolve(*values, **keys)
    )
    return shapes


def layer(num_in, num_out, *, bias=True):
    torch.manual_seed(0)
    return Linear(num_in, num_out, bias=bias)


def computed(layer, values, gradient):
    """What a layer gives, and the gradients of all that it is given."""
    values = values.detach().requires_grad_()
    out = layer(values)
    return [out.detach(), *torch.autograd.grad(out, [values, *layer.parameters()], gradient)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [LARGE, (31, 25, 100, 200), SMALL], ids=["large", "odd", "small"])
@pytest.mark.parametrize("threads", [1, 2])
def test_it_computes_what_torchs_layer_does_in_float64(shape, bias, threads):
    torch.set_num_threads(threads)
    records, tokens, num_in, num_out = shape
    generator = torch.Generator().manual_seed(1)
    ours = layer(num_in, num_out, bias=bias)
    exact = torch.nn.Linear(num_in, num_out, bias=bias).double()
    exact.load_state_dict(ours.state_dict())
    # neither lies in memory as it is read: a slice of tokens, and leading axes that were swapped
    values = torch.randn(records, tokens + 1, num_in, generator=generator)[:, 1:]
    gradient = torch.randn(tokens, records, num_out, generator=generator).transpose(0, 1)
    found, wanted = computed(ours, values, gradient), computed(exact, values.double(), gradient.double())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("shape", [LARGE, LARGE[1:]], ids=["records of tokens", "tokens"])
def test_what_is_large_goes_through_a_convolution(convolutions, shape):
    *leading, num_in, num_out = shape
    assert layer(num_in, num_out)(torch.zeros(*leading, num_in)).shape == (*leading, num_out)
    assert convolutions == [(1, num_in, 1, torch.Size(leading).numel())]


@pytest.mark.parametrize("case", ["small", "narrow", "float64", "autocast", "switched off"])
def test_all_else_stays_torchs_own(convolutions, monkeypatch, case):
    records, tokens, num_in, num_out = SMALL if case == "small" else LARGE
    ours = layer(num_in, 2 if case == "narrow" else num_out)
    values = torch.randn(records, tokens, num_in)
    if case == "float64":
        ours, values = ours.double(), values.double()
    if case == "switched off":
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"):
        torch.testing.assert_close(ours(values), F.linear(values, ours.weight, ours.bias), rtol=0, atol=0)
    assert not convolutions


def test_an_exported_program_keeps_the_plain_operation():
    records, tokens, num_in, num_out = LARGE
    exported = torch.export.export(layer(num_in, num_out), (torch.zeros(records, tokens, num_in),))
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert called == {"aten.linear.default"}
