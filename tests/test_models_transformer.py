import math

import pytest
import torch
from torch import nn

from models.transformer import Attention, Block, PatchEmbedding, initialize, sin_cos_grid, sin_cos_table


def normalized(norm, vector):
    mean = sum(vector.tolist()) / len(vector)
    variance = sum((value - mean) ** 2 for value in vector.tolist()) / len(vector)
    return (vector - mean) / math.sqrt(variance + norm.eps) * norm.weight + norm.bias


def attended(attention, tokens, visible=None, head_width=64):
    """Every token's attention output, one head, one query and one key at a time."""
    queries, keys, values = zip(
        *[
            (attention.qkv.weight @ token + attention.qkv.bias).split(attention.num_heads * head_width)
            for token in tokens
        ],
        strict=True,
    )
    seen = range(len(tokens)) if visible is None else visible
    outputs = []
    for query in queries:
        mixed = []
        for head in range(attention.num_heads):
            part = slice(head_width * head, head_width * (head + 1))
            weights = {index: math.exp(query[part] @ keys[index][part] / math.sqrt(head_width)) for index in seen}
            mixed.append(sum(w * values[index][part] for index, w in weights.items()) / sum(weights.values()))
        outputs.append(attention.out.weight @ torch.cat(mixed) + attention.out.bias)
    return outputs


def transformed(block, tokens):
    """A block's output for a list of tokens."""
    outputs = attended(block.attention, [normalized(block.attention_norm, token) for token in tokens])
    tokens = [token + output for token, output in zip(tokens, outputs, strict=True)]
    changed = []
    for token in tokens:
        hidden = block.mlp[0].weight @ normalized(block.mlp_norm, token) + block.mlp[0].bias
        hidden = torch.stack([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in hidden])
        changed.append(token + block.mlp[2].weight @ hidden + block.mlp[2].bias)
    return changed


@pytest.fixture
def block():
    torch.manual_seed(0)
    block = Block(width=10, num_heads=2).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.requires_grad_(False)


@pytest.fixture
def tokens():
    return torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_position_table_is_its_formula_in_plain_loops():
    table = sin_cos_table(7, 6)
    for position in range(7):
        for index in range(3):
            angle = position / 10000 ** (2 * index / 6)
            assert table[position, index].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[position, 3 + index].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_a_position_table_of_odd_width_is_refused():
    with pytest.raises(ValueError, match="the width of a sin/cos position table must be even, got 5") as caught:
        sin_cos_table(3, 5)
    assert "\n" not in str(caught.value)


def test_a_grid_tells_the_column_by_its_first_half_and_the_row_by_its_second():
    grid = sin_cos_grid(3, 5, 8)
    assert grid.shape == (15, 8)
    for row in range(3):
        for column in range(5):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (2 * index / 4) for index in range(2)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            assert grid[5 * row + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_grid_whose_width_is_no_multiple_of_four_is_refused():
    with pytest.raises(ValueError, match="must be a multiple of 4, got 6") as caught:
        sin_cos_grid(2, 2, 6)
    assert "\n" not in str(caught.value)


def test_a_block_is_its_formula_in_plain_loops(block, tokens):
    expected = torch.stack([torch.stack(transformed(block, list(sequence))) for sequence in tokens])
    torch.testing.assert_close(block(tokens), expected, rtol=1e-9, atol=1e-9)


def test_drop_path_multiplies_the_branches_of_each_record(block, tokens):
    factors = torch.tensor([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    output = block(tokens, factors)
    torch.testing.assert_close(output[0], block(tokens)[0])
    torch.testing.assert_close(output[1], tokens[1] + 2 * block.mlp(block.mlp_norm(tokens[1])))
    assert torch.equal(output[2], tokens[2])


def test_heads_may_have_any_width(tokens):
    torch.manual_seed(0)
    attention = Attention(width=10, num_heads=3, head_width=5).double().requires_grad_(False)
    expected = torch.stack([torch.stack(attended(attention, list(sequence), head_width=5)) for sequence in tokens])
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-9, atol=1e-9)


def test_tokens_attend_to_visible_ones_alone_and_to_all_where_nothing_is_visible(tokens):
    torch.manual_seed(0)
    attention = Attention(width=10, num_heads=2).double().requires_grad_(False)
    visible = torch.tensor([[True, False, True, False], [True] * 4, [False] * 4])
    expected = [attended(attention, list(tokens[0]), visible=[0, 2])]
    expected += [attended(attention, list(sequence)) for sequence in tokens[1:]]
    torch.testing.assert_close(
        attention(tokens, visible), torch.stack([torch.stack(rows) for rows in expected]), rtol=1e-9, atol=1e-9
    )


def test_what_is_not_visible_does_not_reach_the_others_through_a_block(block, tokens):
    visible = torch.tensor([True, True, False, True]).expand(3, -1)
    changed = tokens.clone()
    changed[:, 2] *= -2
    before, after = block(tokens, visible=visible), block(changed, visible=visible)
    assert torch.equal(after[:, [0, 1, 3]], before[:, [0, 1, 3]])
    assert not torch.allclose(block(changed)[:, 0], block(tokens)[:, 0])


def test_attention_does_not_see_the_order_of_tokens(tokens):
    attention = Attention(width=10, num_heads=1).double()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(attention(tokens[:, order]), attention(tokens)[:, order])


def test_a_standardised_patch_is_embedded_by_shape_alone_and_another_by_amplitude_too():
    patches = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    for standardize in (True, False):
        torch.manual_seed(0)
        embedding = PatchEmbedding(20, 8, standardize=standardize)
        same = torch.allclose(embedding(5 * patches + 2), embedding(patches), rtol=1e-3, atol=1e-3)
        assert same is standardize


def test_initialisation_is_xavier_uniform_with_zero_biases_and_identity_norms():
    layers = nn.Sequential(nn.Linear(100, 300), nn.LayerNorm(300))
    for parameter in layers.parameters():
        nn.init.constant_(parameter, 9.0)
    initialize(layers)
    weight, bound = layers[0].weight, math.sqrt(6 / 400)
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not layers[0].bias.any()
    assert (layers[1].weight == 1).all()
    assert not layers[1].bias.any()
