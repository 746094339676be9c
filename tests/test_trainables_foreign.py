"""A published encoder becomes a checkpoint of ours: no key of it, and none of ours, is lost without a word."""

import pickle
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from data.record import DataError
from trainables.checkpoint import load, read_description
from trainables.files import StorageError
from trainables.foreign import CONTRACT, import_encoder, read_mapping
from trainables.loops import first_encoder
from trainables.pretrain import fresh_encoder

PAGE = Path(__file__).parents[1] / "docs" / "foreign_weights.md"


@pytest.fixture
def run(compose_run):
    """A vision transformer whose patches are 0.1 s of all leads."""
    return compose_run("model=jepa", "model.num_targets=1", "task=pretrain")


@pytest.fixture
def mapping(run):
    """The mapping that the documentation shows, for weights named as timm names them."""
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1])
    data = run.data.model_dump(mode="json")
    return shown | {"contract": {key: data[key] for key in CONTRACT}}


def published(run):
    """Weights of an encoder like ours, under timm's names, in a checkpoint of a training."""
    torch.manual_seed(5)
    ours = {name: torch.randn(tensor.shape) for name, tensor in fresh_encoder(run).state_dict().items()}
    theirs = {}
    for name, tensor in ours.items():
        name = (
            name.replace("attention_norm", "norm1").replace("mlp_norm", "norm2").replace("attention.out", "attn.proj")
        )
        name = name.replace("attention.qkv", "attn.qkv").replace("mlp.0", "mlp.fc1").replace("mlp.2", "mlp.fc2")
        name = name.replace("patch_embedding", "patch_embed.proj").replace("positions", "pos_embed")
        if name == "patch_embed.proj.weight":
            tensor = tensor.reshape(tensor.shape[0], 2, -1)  # a convolution's: (D, C, samples)
        theirs[f"module.{name}"] = tensor[None] if name == "pos_embed" else tensor
    theirs["module.head.weight"] = torch.zeros(3, 64)
    return ours, {"model": theirs, "epoch": 3}


@pytest.fixture
def files(run, mapping, tmp_path):
    """The published file and its mapping."""
    ours, content = published(run)
    torch.save(content, tmp_path / "published.pth")
    return ours, tmp_path / "published.pth", written(mapping, tmp_path)


def written(mapping, folder):
    path = folder / "mapping.yaml"
    path.write_text(yaml.safe_dump(mapping), encoding="utf-8")
    return path


def test_every_tensor_arrives_in_its_place_and_can_be_started_from(run, files, tmp_path):
    ours, weights, mapping = files
    imported = import_encoder(run, weights, mapping, tmp_path / "imported")
    assert imported.taken == sorted(ours)
    assert (imported.unused, imported.kept) == (["module.head.weight"], [])
    task = run.task.model_copy(update={"stages": "finetune", "encoder": str(tmp_path / "imported")})
    started = first_encoder(run.model_copy(update={"task": task})).state_dict()
    for name, tensor in ours.items():
        assert torch.equal(started[name], tensor), name
    description = read_description(tmp_path / "imported")
    assert description["imported"]["source"].startswith("https://")
    assert description["contract"]["sampling_rate_hz"] == run.data.sampling_rate_hz
    with pytest.raises(StorageError, match="holds an encoder without a head: fine-tune it first, task.encoder="):
        load(tmp_path / "imported")


def test_safetensors_are_read_too(run, files, mapping, tmp_path):
    ours, weights, _ = files
    save_file(torch.load(weights, weights_only=True)["model"], tmp_path / "published.safetensors")
    path = written({key: value for key, value in mapping.items() if key != "state"}, tmp_path)
    assert import_encoder(run, tmp_path / "published.safetensors", path, tmp_path / "x").taken == sorted(ours)


def test_all_keys_that_are_not_accounted_for_are_named_at_once(run, files, mapping, tmp_path):
    _, weights, _ = files
    without = mapping | {"unused": [], "rename": mapping["rename"][1:]}
    with pytest.raises(DataError) as caught:
        import_encoder(run, weights, written(without, tmp_path), tmp_path / "x")
    told = str(caught.value)
    assert "\n" not in told
    assert "module.head.weight" in told
    assert "module.blocks.2.norm2.bias" in told
    assert "patch_embedding.weight" in told.partition("of the encoder")[2]
    assert not (tmp_path / "x").exists()


def test_what_is_declared_as_kept_stays_as_it_is_initialised(run, files, mapping, tmp_path):
    _, weights, _ = files
    kept = mapping | {"unused": [*mapping["unused"], "pos_embed"], "kept": ["^positions$"]}
    imported = import_encoder(run, weights, written(kept, tmp_path), tmp_path / "x")
    assert imported.kept == ["positions"]
    assert read_description(tmp_path / "x")["imported"]["kept"] == ["positions"]


def test_two_keys_with_one_name_are_refused(run, files, mapping, tmp_path):
    _, weights, _ = files
    doubled = mapping | {"unused": [], "rename": [*mapping["rename"], ["^head.weight$", "norm.weight"]]}
    with pytest.raises(DataError, match="two of its keys get one name"):
        import_encoder(run, weights, written(doubled, tmp_path), tmp_path / "x")


def test_another_shape_is_refused_unless_only_axes_differ_and_it_is_said(run, files, mapping, compose_run, tmp_path):
    _, weights, _ = files
    with pytest.raises(DataError, match="must be .* set model.encoder"):
        import_encoder(run, weights, written(mapping | {"reshape": []}, tmp_path), tmp_path / "x")
    longer = compose_run("model=jepa", "model.num_targets=1", "task=pretrain", "model.encoder.patch_duration_s=0.2")
    with pytest.raises(DataError, match="must be"):
        import_encoder(longer, weights, written(mapping, tmp_path), tmp_path / "x")


def test_recordings_that_the_weights_are_not_for_are_refused_with_what_to_type(run, files, mapping, tmp_path):
    _, weights, _ = files
    other = mapping | {"contract": mapping["contract"] | {"sampling_rate_hz": 500.0, "standardize": "lead"}}
    with pytest.raises(DataError, match=r"type data.sampling_rate_hz=500.0 data.standardize=lead$"):
        import_encoder(run, weights, written(other, tmp_path), tmp_path / "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contract": {"window_s": 9.0}}, "contract must state sampling_rate_hz, highpass_hz"),
        ({"rename": [["(", "x"]]}, "is no mapping of keys"),
        ({"renamed": []}, "renamed: Extra inputs are not permitted"),
        ({"source": None}, "source: Input should be a valid string"),
        ({"state": "weights"}, "must hold the key weights that the mapping's state names, it holds model, epoch"),
        ({"state": None}, "must hold tensors by name"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused_in_one_line(run, files, mapping, tmp_path, changes, message):
    _, weights, _ = files
    with pytest.raises(DataError, match=message) as caught:
        import_encoder(run, weights, written(mapping | changes, tmp_path), tmp_path / "x")
    assert "\n" not in str(caught.value)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_file_that_would_execute_something_is_refused_and_does_not(run, files, tmp_path, monkeypatch):
    _, _, mapping = files
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Malicious()))
    torch.save({"model": {"x": torch.zeros(1)}, "args": Malicious()}, tmp_path / "worse.pth")
    for name in ("bad.pth", "worse.pth", "missing.pth"):
        with pytest.raises(StorageError, match="cannot be read"):
            import_encoder(run, tmp_path / name, mapping, tmp_path / "x")
    assert not (tmp_path / "executed").exists()


def test_a_missing_mapping_is_said(tmp_path):
    with pytest.raises(StorageError, match="cannot be read"):
        read_mapping(tmp_path / "none.yaml")
