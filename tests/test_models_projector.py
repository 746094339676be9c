import pytest
import torch
from torch import nn

from models.batch_norm import BatchNorm
from models.projector import Projector


def layers_of(projector):
    """Kinds and widths, e.g. ("linear", 8, 16, False) with the last telling of a bias."""
    found = []
    for layer in projector:
        if isinstance(layer, nn.Linear):
            found.append(("linear", layer.in_features, layer.out_features, layer.bias is not None))
        elif isinstance(layer, BatchNorm):
            found.append(("norm", layer.num_features))
        else:
            assert isinstance(layer, nn.ReLU)
            found.append(("relu",))
    return found


def test_layers_are_linear_norm_and_relu_and_the_last_is_linear_and_a_norm_where_asked():
    assert layers_of(Projector(8, [16, 12, 4], norm_last=True)) == [
        ("linear", 8, 16, False),
        ("norm", 16),
        ("relu",),
        ("linear", 16, 12, False),
        ("norm", 12),
        ("relu",),
        ("linear", 12, 4, False),
        ("norm", 4),
    ]


def test_a_last_layer_without_a_norm_has_a_bias():
    assert layers_of(Projector(8, [16, 4], norm_last=False)) == [
        ("linear", 8, 16, False),
        ("norm", 16),
        ("relu",),
        ("linear", 16, 4, True),
    ]
    assert layers_of(Projector(8, [4], norm_last=False)) == [("linear", 8, 4, True)]
    assert layers_of(Projector(8, [4], norm_last=True)) == [("linear", 8, 4, False), ("norm", 4)]


def test_widths_that_repeat_make_as_many_layers():
    projector = Projector(8, [8, 8, 8], norm_last=False)
    assert [kind for kind, *_ in layers_of(projector)] == ["linear", "norm", "relu"] * 2 + ["linear"]


def test_a_projection_is_its_layers_one_after_another():
    torch.manual_seed(0)
    projector = Projector(5, [7, 3], norm_last=True)
    rows = torch.randn(6, 5)
    hidden = rows @ projector[0].weight.T
    hidden = ((hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()).clamp(min=0)
    output = hidden @ projector[3].weight.T
    expected = (output - output.mean(0)) / (output.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(projector(rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [[], [0], [8, 0], [-1, 4]])
def test_a_projector_without_layers_or_outputs_is_refused_in_one_line_that_names_the_key(sizes):
    for key in ("projector", "predictor"):
        message = f"{key} must name the widths of one or more layers, each at least 1, got"
        with pytest.raises(ValueError, match=message) as caught:
            Projector(8, sizes, norm_last=True, key=key)
        assert "\n" not in str(caught.value)
