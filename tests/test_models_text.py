import json
import math
import sys

import pytest
import torch

from models.text import PADDING, UNKNOWN, PretrainedText, SmallText, vocabulary, words_of

REPORTS = [
    "sinus rhythm. normal ecg",
    "Sinus rhythm, left axis deviation",
    "atrial fibrillation; QRS 0.12 s, left axis deviation",
    "",
]


def small_text(**changes):
    torch.manual_seed(0)
    encoder = SmallText(**({"width": 64, "depth": 2, "vocabulary_size": 20, "max_tokens": 6} | changes))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def test_words_are_letters_and_numbers_in_lower_case():
    assert words_of("Sinus-rhythm, QRS 0.12 s; PR 1,5\tÜberleitung (normal).") == [
        "sinus",
        "rhythm",
        "qrs",
        "0.12",
        "s",
        "pr",
        "1,5",
        "überleitung",
        "normal",
    ]
    assert words_of(" .,;- ") == []


def test_the_most_frequent_words_have_numbers_of_their_own_and_the_alphabet_settles_ties():
    reports = [["b", "z", "a"], ["z", "c", "b"], ["z", "d"]]
    assert vocabulary(reports, 5) == {"z": 2, "b": 3, "a": 4}  # a, c and d come once
    assert vocabulary(reports[::-1], 7) == {"z": 2, "b": 3, "a": 4, "c": 5, "d": 6}
    assert list(vocabulary(reports, 100)) == list(vocabulary(reports, 7))


def test_a_word_is_the_same_token_wherever_it_comes_and_rare_words_share_one():
    encoder = small_text(vocabulary_size=7)  # five words
    tokens = encoder.tokens(REPORTS)
    assert tokens.dtype == torch.int64
    # Of the first six words of each report left, rhythm and sinus come twice, all others once, of which the alphabet
    # puts 0.12 and atrial first.
    number = {"left": 2, "rhythm": 3, "sinus": 4, "0.12": 5, "atrial": 6}
    expected = [
        [number["sinus"], number["rhythm"], UNKNOWN, UNKNOWN, PADDING, PADDING],
        [number["sinus"], number["rhythm"], number["left"], UNKNOWN, UNKNOWN, PADDING],
        [number["atrial"], UNKNOWN, UNKNOWN, number["0.12"], UNKNOWN, number["left"]],
        [PADDING] * 6,
    ]
    assert tokens.tolist() == expected


def test_a_report_is_cut_at_max_tokens_and_padded_to_the_longest():
    encoder = small_text(max_tokens=3)
    assert encoder.tokens(REPORTS).shape == (4, 3)
    assert encoder.tokens(["one two", "one"]).tolist() == [[2, 3], [2, PADDING]]
    assert torch.equal(encoder.tokens(["a b c d e f"]), encoder.tokens(["a b c"]))
    assert encoder.tokens(["", ""]).tolist() == [[PADDING], [PADDING]]


def test_tokens_are_all_within_the_vocabulary():
    encoder = small_text(vocabulary_size=4)
    tokens = encoder.tokens(REPORTS)
    assert tokens.max() == 3
    assert encoder.words.shape == (4, 64)


def test_the_embedding_is_the_norm_of_the_mean_over_the_words():
    encoder = small_text()
    tokens = encoder.tokens(REPORTS)
    embeddings = encoder(tokens)
    assert embeddings.shape == (4, 64)
    for row, embedding in zip(tokens[:3], embeddings, strict=False):
        own = [number for number in row.tolist() if number != PADDING]
        sequence = []
        for place, number in enumerate(own):
            angles = [place / 10000 ** (k / 32) for k in range(32)]
            position = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
            sequence.append(encoder.words[number] + position)
        sequence = torch.stack(sequence)[None]
        for block in encoder.blocks:
            sequence = block(sequence)
        mean = sum(sequence[0]) / len(own)
        torch.testing.assert_close(embedding, encoder.norm(mean), rtol=1e-4, atol=1e-5)


def test_padding_has_no_part_in_a_text():
    encoder = small_text(max_tokens=20)
    tokens = encoder.tokens(REPORTS)
    longer = torch.cat([tokens, torch.zeros(4, 7, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(encoder(longer), encoder(tokens))
    for row in range(4):  # nor do other reports of the batch
        torch.testing.assert_close(encoder(longer[row : row + 1])[0], encoder(tokens)[row], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        before = encoder(tokens)
        encoder.words[PADDING] = 7.0
        torch.testing.assert_close(encoder(longer)[:3], before[:3])


def test_a_report_without_words_has_a_finite_embedding_and_gradient():
    encoder = small_text()
    for tokens in (encoder.tokens(["", ""]), encoder.tokens(REPORTS), torch.zeros(2, 3, dtype=torch.int64)):
        embeddings = encoder(tokens)
        assert embeddings.isfinite().all()
        embeddings.square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_the_order_of_words_matters_and_so_does_every_parameter():
    encoder = small_text()
    tokens = encoder.tokens(REPORTS)
    assert not torch.allclose(encoder(tokens.flip(1)[1:3]), encoder(tokens)[1:3])
    encoder(tokens).square().sum().backward()
    assert all(parameter.grad.any() for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 96}, "text_encoder.width must be a positive multiple of 64, got 96"),
        ({"width": 0}, "text_encoder.width must be a positive multiple of 64, got 0"),
        ({"depth": 0}, "text_encoder.depth must be at least 1, got 0"),
        ({"vocabulary_size": 2}, "text_encoder.vocabulary_size must be at least 3, got 2"),
        ({"max_tokens": 0}, "text_encoder.max_tokens must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        small_text(**changes)
    assert "\n" not in str(caught.value)


# Encoders of `transformers`, which is optional.


def test_without_transformers_a_pretrained_encoder_is_refused_in_one_line_that_says_what_to_install(
    monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ValueError, match=r"text_encoder: .* package transformers: pip install 'heartsweep\[text\]'"
    ) as caught:
        PretrainedText(folder=str(tmp_path), max_tokens=8, frozen=True)
    assert "\n" not in str(caught.value)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sinus", "rhythm", "left", "axis", "deviation"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a tiny BERT of random weights and a tokenizer of nine words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def pretrained(folder, **changes):
    return PretrainedText(**({"folder": str(folder), "max_tokens": 8, "frozen": False} | changes))


def test_tokens_are_those_of_the_folders_tokenizer_plus_one_so_that_0_is_padding(bert):
    tokens = pretrained(bert).tokens(["Sinus rhythm", "left axis deviation unheard", ""])
    cls, sep, unknown = 3, 4, 2
    assert tokens.tolist() == [[cls, 5, 6, sep, 0, 0], [cls, 7, 8, 9, unknown, sep], [cls, sep, 0, 0, 0, 0]]
    assert pretrained(bert, max_tokens=4).tokens(["left axis deviation left axis"]).tolist() == [[cls, 7, 8, sep]]


def test_the_pretrained_embedding_is_the_mean_of_the_models_tokens_of_one_report_alone(bert):
    import transformers

    encoder = pretrained(bert)
    assert encoder.width == 16
    reports = ["sinus rhythm", "left axis deviation"]
    embeddings = encoder(encoder.tokens(reports))
    model = transformers.BertModel.from_pretrained(bert).eval()
    for numbers, embedding in zip([[2, 4, 5, 3], [2, 6, 7, 8, 3]], embeddings, strict=True):
        hidden = model(input_ids=torch.tensor([numbers])).last_hidden_state[0]
        torch.testing.assert_close(embedding, sum(hidden) / len(numbers), rtol=1e-4, atol=1e-5)


def test_padding_has_no_part_in_a_pretrained_embedding(bert):
    encoder = pretrained(bert)
    tokens = encoder.tokens(["sinus rhythm", "left axis deviation left axis"])
    longer = torch.cat([tokens, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(encoder(longer), encoder(tokens), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(tokens[:1, :4]), encoder(tokens)[:1], rtol=1e-4, atol=1e-5)


def test_a_report_of_padding_alone_has_a_finite_pretrained_embedding_and_gradient(bert):
    encoder = pretrained(bert)
    tokens = torch.cat([encoder.tokens(["sinus rhythm"]), torch.zeros(1, 4, dtype=torch.int64)])
    embeddings = encoder(tokens)
    embeddings.square().sum().backward()
    assert embeddings.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


def test_a_pretrained_encoder_is_always_as_in_evaluation(bert):
    encoder = pretrained(bert).train()
    tokens = encoder.tokens(["sinus rhythm"])
    assert torch.equal(encoder(tokens), encoder(tokens))
    assert not any(module.training for module in encoder.encoder.modules())
    assert encoder.training


def test_a_frozen_pretrained_encoder_learns_nothing_and_another_all_but_its_pooler(bert):
    for frozen in (True, False):
        encoder = pretrained(bert, frozen=frozen)
        learnt = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
        everything = {name for name, _ in encoder.named_parameters()}
        assert learnt == (set() if frozen else {name for name in everything if "pooler" not in name})
        output = encoder(encoder.tokens(["sinus rhythm"]))
        assert output.requires_grad is not frozen
    output.square().sum().backward()
    reached = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert reached == learnt


def copied(bert, folder, *, but=None):
    """A copy of the folder, of whose files those called `but...` are left out."""
    folder.mkdir()
    for file in bert.iterdir():
        if but is None or not file.name.startswith(but):
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def assert_refused(folder):
    with pytest.raises(ValueError, match="text_encoder.folder") as caught:
        pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("missing", ["config", "model", "tokenizer", ""])
def test_a_folder_that_lacks_a_part_is_refused_in_one_line_that_names_the_key(bert, tmp_path, missing):
    assert_refused(copied(bert, tmp_path / "folder", but=missing))


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_with_a_broken_file_is_refused_in_one_line_that_names_the_key(bert, tmp_path, broken):
    folder = copied(bert, tmp_path / "folder")
    (folder / broken).write_text("{broken")
    assert_refused(folder)


def test_what_is_no_folder_is_refused_in_one_line_that_names_the_key(bert, tmp_path):
    assert "must be a folder that save_pretrained wrote" in assert_refused(tmp_path / "none")
    (tmp_path / "file").write_text("no folder")
    assert_refused(tmp_path / "file")


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"hidden_size": 32}])
def test_weights_of_another_model_are_refused_and_not_made_up_at_random(bert, tmp_path, changes):
    folder = copied(bert, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    message = assert_refused(folder)
    if "num_hidden_layers" in changes:
        assert "its weights lack 16 of the model's, encoder.layer.2." in message


def test_weights_without_the_pooler_that_is_not_used_are_taken(bert, tmp_path):
    import transformers

    folder = copied(bert, tmp_path / "folder")
    model = transformers.BertModel.from_pretrained(bert, add_pooling_layer=False)
    model.save_pretrained(folder)
    reports = ["sinus rhythm", "left axis"]
    ours, theirs = pretrained(folder), pretrained(bert)
    torch.testing.assert_close(ours(ours.tokens(reports)), theirs(theirs.tokens(reports)))


def test_weights_of_half_precision_are_loaded_as_float32(bert, tmp_path):
    import transformers

    folder = copied(bert, tmp_path / "folder")
    transformers.BertModel.from_pretrained(bert).half().save_pretrained(folder)
    encoder = pretrained(folder)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert encoder(encoder.tokens(["sinus rhythm"])).dtype == torch.float32


def test_a_tokenizer_without_padding_or_that_pads_in_front_gives_the_same_tokens(bert, tmp_path):
    reports = ["sinus rhythm", "left axis deviation"]
    expected = pretrained(bert).tokens(reports)
    settings = json.loads((bert / "tokenizer_config.json").read_text())
    for name, changed in (
        ("without", {key: value for key, value in settings.items() if key != "pad_token"}),
        ("in front", settings | {"padding_side": "left"}),
    ):
        folder = copied(bert, tmp_path / name)
        (folder / "tokenizer_config.json").write_text(json.dumps(changed))
        assert torch.equal(pretrained(folder).tokens(reports), expected)


@pytest.mark.parametrize("max_tokens", [0, -1, 2, 13])
def test_lengths_that_the_pretrained_encoder_cannot_take_are_refused_in_one_line_that_names_the_key(bert, max_tokens):
    """Two tokens are special ones; twelve have positions."""
    message = f"text_encoder.max_tokens must lie between 3 and 12 for this encoder, got {max_tokens}"
    with pytest.raises(ValueError, match=message) as caught:
        pretrained(bert, max_tokens=max_tokens)
    assert "\n" not in str(caught.value)
    encoder = pretrained(bert, max_tokens=12)
    assert encoder(encoder.tokens(["left axis " * 20])).isfinite().all()
