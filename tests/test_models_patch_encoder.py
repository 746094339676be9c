"""What holds of every encoder of patches: the grid, and that a part of it can be given alone."""

import math

import pytest
import torch

from models.encoder import LEADS
from models.mlae import MLAEEncoder
from models.mtae import MTAEEncoder
from models.patch_encoder import SIZES, dimensions_of, num_patches_of
from models.signal_vit import SignalViT
from models.st_mem import STMEMEncoder
from models.vit import ViT1d

INPUT = {"leads": ["V1", "II", "aVF"], "num_samples": 30, "sampling_rate_hz": 10, "size": "laptop"}
"""Three leads of six columns of five samples."""

OWN_KEYS = {
    STMEMEncoder: {"patch_duration_s": 0.5, "num_sep_tokens": 2, "standardize_patches": False},
    MTAEEncoder: {"patch_duration_s": 0.5, "standardize_patches": False},
    MLAEEncoder: {"standardize_patches": False},
    SignalViT: {"patch_duration_s": 0.5},
    ViT1d: {"patch_duration_s": 0.5},
}
every_encoder = pytest.mark.parametrize("kind", list(OWN_KEYS))
cuts_time = pytest.mark.parametrize("kind", [kind for kind in OWN_KEYS if kind is not MLAEEncoder])
tells_leads_apart = pytest.mark.parametrize("kind", [STMEMEncoder, MLAEEncoder, SignalViT])


def built(kind, **changes):
    """An encoder whose every parameter matters."""
    torch.manual_seed(0)
    encoder = kind(**(INPUT | OWN_KEYS[kind] | changes)).requires_grad_(False)
    for name, parameter in encoder.named_parameters():
        if name != "positions":
            torch.nn.init.normal_(parameter, std=0.2)
    return encoder.double()


def signals(num_records=2, num_leads=3, num_samples=30, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_records, num_leads, num_samples, generator=generator, dtype=torch.float64)


def samples_of(encoder, row, column):
    """The (lead, time) of each value of the patch at a place of the grid."""
    length = 30 // encoder.num_columns
    leads = [row] if encoder.num_rows > 1 else range(3)
    return [(lead, time) for lead in leads for time in range(column * length, (column + 1) * length)]


def place_of(encoder, row, column):
    """Group and position in it of the patch at a place of the grid."""
    return (row, column) if encoder.num_groups > 1 else (0, row * encoder.num_columns + column)


GRIDS = {
    STMEMEncoder: (3, 6, 3, 6, 5, 2),
    MTAEEncoder: (1, 6, 1, 6, 15, 1),
    MLAEEncoder: (3, 1, 1, 3, 30, 1),
    SignalViT: (3, 6, 1, 18, 5, 1),
    ViT1d: (1, 6, 1, 6, 15, 0),
}
"""Rows, columns, groups, patches of a group, their values, tokens of its own."""


@every_encoder
def test_the_grid_has_the_rows_columns_and_groups_that_the_encoder_says(kind):
    encoder = built(kind)
    sizes = (encoder.num_rows, encoder.num_columns, encoder.num_groups)
    assert (*sizes, encoder.num_patches, encoder.patch_size, encoder.num_own_tokens) == GRIDS[kind]
    assert encoder.segment_samples == 30 // encoder.num_columns
    assert (encoder.width, encoder.depth, encoder.num_heads) == SIZES["laptop"]


@every_encoder
def test_every_sample_is_where_the_grid_says(kind):
    encoder, signal = built(kind), signals()
    patches = encoder.patches(signal)
    assert patches.shape == (2, encoder.num_groups, encoder.num_patches, encoder.patch_size)
    for row in range(encoder.num_rows):
        for column in range(encoder.num_columns):
            group, position = place_of(encoder, row, column)
            for index, (lead, time) in enumerate(samples_of(encoder, row, column)):
                assert torch.equal(patches[:, group, position, index], signal[:, lead, time])


@every_encoder
@pytest.mark.parametrize("leads", [["I"], ["II", "V1"], list(LEADS)])
def test_patches_and_the_signal_of_patches_are_each_others_reverse(kind, leads):
    encoder = built(kind, leads=leads)
    for num_samples in (30,) if kind is MLAEEncoder else (30, 20, 5):
        signal = signals(num_leads=len(leads), num_samples=num_samples)
        patches = encoder.patches(signal)
        assert torch.equal(encoder.signal_of(patches), signal)
        other = torch.randn(patches.shape, dtype=torch.float64)
        assert torch.equal(encoder.patches(encoder.signal_of(other)), other)


@every_encoder
def test_rows_and_columns_of_the_grid_are_found_in_their_groups(kind):
    encoder = built(kind)
    rows = torch.tensor([[0, 2], [1, 0]]) if encoder.num_rows > 1 else torch.zeros(2, 1, dtype=torch.int64)
    columns = torch.tensor([[1, 4, 5], [0, 3, 2]]) if encoder.num_columns > 1 else torch.zeros(2, 1, dtype=torch.int64)
    positions = encoder.positions_at(rows, columns)
    for record in range(2):
        expected = [
            [place_of(encoder, row, column) for column in columns[record].tolist()] for row in rows[record].tolist()
        ]
        if encoder.num_groups == encoder.num_rows:  # each row a group
            assert positions[record].tolist() == [[position for _, position in of_row] for of_row in expected]
        else:
            assert positions[record].tolist() == [[position for of_row in expected for _, position in of_row]]


def shown_of(encoder):
    """Rows and columns that two records show, each others."""
    shown = {}
    if encoder.num_rows > 1:
        shown["rows"] = torch.tensor([[0, 2], [1, 2]])
    if encoder.num_columns > 1:
        shown["columns"] = torch.tensor([[1, 4, 5], [0, 2, 3]])
    return shown


def encoded_alone(encoder, signal, rows, columns):
    """(1, D) tokens of one record's patches at these places, gathered one by one: a dict from (row, column)."""
    groups = sorted({place_of(encoder, row, column)[0] for row in rows for column in columns})
    members = {
        group: [(row, column) for row in rows for column in columns if place_of(encoder, row, column)[0] == group]
        for group in groups
    }
    patches = [
        [torch.stack([signal[place] for place in samples_of(encoder, *member)]) for member in members[group]]
        for group in groups
    ]
    kept = [[place_of(encoder, *member)[1] for member in members[group]] for group in groups]
    tokens = encoder.encode(
        torch.stack([torch.stack(of_group) for of_group in patches])[None],
        kept=torch.tensor([kept]),
        groups=torch.tensor([groups]),
    )[0]
    return {
        member: tokens[index, encoder.num_own_tokens + position]
        for index, group in enumerate(groups)
        for position, member in enumerate(members[group])
    }


@every_encoder
def test_what_is_shown_of_the_grid_is_encoded_as_its_patches_gathered_by_hand(kind):
    encoder, signal = built(kind), signals()
    everything = shown_of(encoder)
    choices = [everything, *({name: values} for name, values in everything.items())]
    for shown in choices:
        tokens = encoder.tokens(signal, **shown)
        in_one_sequence = encoder.patch_tokens(signal, **shown)
        for record in range(2):
            rows = shown["rows"][record].tolist() if "rows" in shown else range(encoder.num_rows)
            columns = shown["columns"][record].tolist() if "columns" in shown else range(encoder.num_columns)
            alone = encoded_alone(encoder, signal[record], rows, columns)
            torch.testing.assert_close(in_one_sequence[record], torch.stack(list(alone.values())))
            cut = tokens[record, :, encoder.num_own_tokens :].flatten(0, 1)
            assert torch.equal(cut, in_one_sequence[record])


@every_encoder
def test_what_is_not_shown_is_not_seen(kind):
    encoder, signal, other = built(kind), signals(), signals(seed=2)
    shown = shown_of(encoder)
    visible = torch.zeros(signal.shape, dtype=torch.bool)
    for record in range(2):
        rows = shown["rows"][record].tolist() if "rows" in shown else [0]
        for row in rows:
            for column in shown["columns"][record].tolist() if "columns" in shown else [0]:
                for place in samples_of(encoder, row, column):
                    visible[record][place] = True
    embedding = encoder(signal, **shown)
    assert torch.equal(encoder(torch.where(visible, signal, other), **shown), embedding)
    assert not torch.allclose(encoder(torch.where(visible, other, signal), **shown), embedding)
    assert not torch.allclose(encoder(signal), embedding)


@every_encoder
def test_a_grid_that_is_shown_whole_is_the_signal(kind):
    encoder, signal = built(kind), signals()
    rows, columns = (torch.arange(number).expand(2, -1) for number in (encoder.num_rows, encoder.num_columns))
    torch.testing.assert_close(encoder.tokens(signal, rows=rows, columns=columns), encoder.tokens(signal))
    torch.testing.assert_close(encoder(signal, rows=rows), encoder(signal))


@cuts_time
def test_a_shorter_signal_is_encoded_as_the_first_columns_of_a_whole_one(kind):
    encoder, signal = built(kind), signals()
    for num_columns in (1, 2, 4):
        short = signal[..., : 5 * num_columns]
        columns = torch.arange(num_columns).expand(2, -1)
        torch.testing.assert_close(encoder.tokens(short), encoder.tokens(signal, columns=columns))
        torch.testing.assert_close(encoder(short), encoder(signal, columns=columns))
    assert not torch.allclose(encoder(signal[..., :20]), encoder(signal))


@cuts_time
def test_of_a_shorter_signal_parts_can_be_shown_too(kind):
    encoder, signal = built(kind), signals()
    shown = shown_of(encoder) | {"columns": torch.tensor([[1, 3], [2, 0]])}
    torch.testing.assert_close(encoder.tokens(signal[..., :20], **shown), encoder.tokens(signal, **shown))


@every_encoder
def test_the_order_in_which_patches_are_given_does_not_matter(kind):
    encoder, signal = built(kind), signals()
    patches = encoder.patches(signal)
    order = torch.randperm(encoder.num_patches, generator=torch.Generator().manual_seed(2))
    kept = order.expand(*patches.shape[:2], -1)
    own = encoder.num_own_tokens
    permuted, plain = encoder.encode(patches[:, :, order], kept=kept), encoder.encode(patches)
    torch.testing.assert_close(permuted[:, :, own:], plain[:, :, own:][:, :, order])
    torch.testing.assert_close(permuted[:, :, :own], plain[:, :, :own])
    # but where they lie does
    assert not torch.allclose(encoder.encode(patches[:, :, order])[:, :, own:], plain[:, :, own:][:, :, order])


@tells_leads_apart
def test_a_lead_is_known_by_its_name_whichever_others_there_are(kind):
    three = built(kind)
    two = built(kind, leads=["aVF", "V1"])
    signal = signals()
    state = {name: value for name, value in three.state_dict().items() if "positions" not in name}
    missing, unexpected = two.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["positions"], [])
    rows = torch.tensor([[2, 0]]).expand(2, -1)
    own = three.num_own_tokens
    of_two = two.tokens(signal[:, [2, 0]])
    torch.testing.assert_close(of_two[:, :, own:], three.tokens(signal, rows=rows)[:, :, own:])
    torch.testing.assert_close(two(signal[:, [2, 0]]), three(signal, rows=rows))


@every_encoder
def test_the_embedding_is_the_norm_of_the_mean_over_patches_or_of_the_class_token(kind):
    encoder, signal = built(kind), signals()
    tokens = encoder.tokens(signal)
    if kind in (MTAEEncoder, MLAEEncoder):
        expected = tokens[:, 0, 0]
    else:
        patches = [
            tokens[:, group, encoder.num_own_tokens + position]
            for group in range(encoder.num_groups)
            for position in range(encoder.num_patches)
        ]
        expected = sum(patches) / len(patches)
    torch.testing.assert_close(encoder(signal), encoder.norm(expected))
    assert encoder(signal).shape == (2, encoder.width)


@every_encoder
def test_a_records_embedding_is_its_own(kind):
    encoder, signal = built(kind), signals(num_records=3)
    changed = signal.clone()
    changed[1] += 3.0
    assert torch.equal(encoder(changed)[[0, 2]], encoder(signal)[[0, 2]])
    torch.testing.assert_close(encoder(signal[2:]), encoder(signal)[2:])


@every_encoder
def test_a_dropped_branch_leaves_the_tokens_as_they_are_and_each_record_has_its_own(kind):
    encoder, signal = built(kind), signals(num_records=3)
    factors = torch.ones(3, 3, 2, dtype=torch.float64)
    factors[1] = 0.0
    tokens = encoder.tokens(signal, factors)
    torch.testing.assert_close(tokens[[0, 2]], encoder.tokens(signal)[[0, 2]])
    entered = []
    encoder.blocks[0].register_forward_pre_hook(lambda block, inputs: entered.append(inputs[0]))
    dropped = encoder.tokens(signal, factors)[1]
    assert torch.equal(dropped.flatten(0, 1), entered[0][1])


@every_encoder
def test_layers_are_numbered_from_the_patches_to_the_last_norm(kind):
    encoder = built(kind)
    for name, _ in encoder.named_parameters():
        part = name.split(".")
        expected = int(part[1]) + 1 if part[0] == "blocks" else 4 if part[0] == "norm" else 0
        assert encoder.layer_of(name) == expected


@every_encoder
def test_positions_are_fixed_before_a_classifier_trains_them(kind):
    torch.manual_seed(0)
    encoder = kind(**(INPUT | OWN_KEYS[kind]))
    assert {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad} == {"positions"}


@every_encoder
def test_a_position_table_for_a_decoder_has_a_row_for_each_patch_of_a_group_and_no_two_alike(kind):
    encoder = built(kind)
    table = encoder.position_table(32)
    assert table.shape == (encoder.num_patches, 32)
    assert len({tuple(row) for row in table.tolist()}) == encoder.num_patches


@every_encoder
@pytest.mark.parametrize("shape", [(2, 4, 30), (2, 2, 30), (2, 3, 35), (2, 3, 0), (3, 30), (2, 3, 30, 1)])
def test_a_signal_of_another_shape_is_refused_in_one_line(kind, shape):
    message = r"the signal must be \(records, 3 leads, 30 samples\) with the leads V1, II, aVF, got \("
    with pytest.raises(ValueError, match=message) as caught:
        built(kind)(torch.zeros(shape, dtype=torch.float64))
    assert "\n" not in str(caught.value)


@every_encoder
def test_a_signal_of_no_whole_number_of_patches_is_refused_in_one_line(kind):
    length = 30 if kind is MLAEEncoder else 5
    message = f"the signal must be a whole number of patches of {length} samples, got 24"
    for method in ("forward", "patches", "tokens"):
        with pytest.raises(ValueError, match=message) as caught:
            getattr(built(kind), method)(signals(num_samples=24))
        assert "\n" not in str(caught.value)


@every_encoder
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leads": []}, "leads must name at least one lead"),
        ({"leads": ["II", "X"]}, "leads must be among .*, got 'X'"),
        ({"leads": ["II", "II"]}, "leads must not repeat"),
        ({"size": "huge"}, "size must be one of laptop, .*, got 'huge'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line_that_names_the_key(kind, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        built(kind, **changes)
    assert "\n" not in str(caught.value)


@cuts_time
@pytest.mark.parametrize("duration_s", [0.1, 0.55, 0.4, 0.0, -0.5, 4.0, math.nan, math.inf])
def test_patches_that_do_not_fit_the_window_are_refused_in_one_line_by_name(kind, duration_s):
    with pytest.raises(ValueError, match="patch_duration_s must") as caught:
        built(kind, patch_duration_s=duration_s)
    assert "\n" not in str(caught.value)


def test_patches_are_counted_in_whole_samples_whatever_the_floats_make_of_a_duration():
    assert num_patches_of(5000, 500.0, 0.05) == 200
    assert num_patches_of(1000, 100.0, 0.07000000000000001 * 10 / 7) == 100
    assert num_patches_of(2250, 250.0, 0.3) == 30  # 0.3 * 250 is 75 but for the float


def test_sizes_are_width_depth_and_heads_of_64():
    for width, _, heads in SIZES.values():
        assert width == 64 * heads
    assert dimensions_of("small") == (384, 12, 6)
