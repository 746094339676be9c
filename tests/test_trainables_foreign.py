"""A published encoder becomes a checkpoint of ours: no key of it, and none of ours, is lost without a word."""

import pickle
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from data.record import DataError
from trainables.checkpoint import load, read_description
from trainables.files import StorageError, read_tensors
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
        ({"contract": {"window_s": 9.0}}, "contract.sampling_rate_hz: Field required; contract.highpass_hz: Field"),
        ({"rename": [["(", "x"]]}, "is no mapping of keys"),
        ({"rename": [["never", r"\9x"]]}, r"is no mapping of keys: \['never', .*invalid group reference 9"),
        ({"rename": [["never", r"\g<far>"]]}, "is no mapping of keys: .*unknown group name 'far'"),
        ({"unused": ["x{99999999999}"]}, "is no mapping of keys: .*too large"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windw_s": 9.0}, r"contract\.windw_s: Extra inputs are not permitted"),
        ({"unit": "uV"}, r"contract\.unit: Input should be 'mV', got 'uV'"),
        ({"standardize": "patch"}, r"contract\.standardize: .*got 'patch'"),
        ({"sampling_rate_hz": "fast"}, r"contract\.sampling_rate_hz: .*got 'fast'"),
    ],
)
def test_a_contract_that_makes_no_sense_is_refused_by_name(mapping, tmp_path, changes, message):
    path = written(mapping | {"contract": mapping["contract"] | changes}, tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        read_mapping(path)
    assert "\n" not in str(caught.value)


def test_a_number_may_be_written_as_text(run, files, mapping, tmp_path):
    _, weights, _ = files
    rate = run.data.sampling_rate_hz
    path = written(mapping | {"contract": mapping["contract"] | {"sampling_rate_hz": f"{rate:g}"}}, tmp_path)
    assert read_mapping(path).contract.sampling_rate_hz == rate
    assert read_mapping(path).contract.unit == "mV"
    import_encoder(run, weights, path, tmp_path / "x")


def test_what_to_type_can_be_pasted_into_a_shell(run, files, mapping, tmp_path):
    _, weights, _ = files
    other = mapping | {"contract": mapping["contract"] | {"leads": ["I", "II", "III"], "lowpass_hz": None}}
    with pytest.raises(DataError, match=r"type data.lowpass_hz=null 'data.leads=\[I,II,III\]'$") as caught:
        import_encoder(run, weights, written(other, tmp_path), tmp_path / "x")
    typed = str(caught.value).partition("; type ")[2]
    assert shlex.split(typed) == ["data.lowpass_hz=null", "data.leads=[I,II,III]"]


@pytest.mark.parametrize(("text", "found"), [("[1, 2]", "list"), ("weights", "str"), ("", "an empty file")])
def test_a_file_that_is_no_mapping_is_said(tmp_path, text, found):
    (tmp_path / "mapping.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"must be a mapping of keys to values, got {found}$"):
        read_mapping(tmp_path / "mapping.yaml")


@pytest.mark.parametrize("text", ["a: [", "a: 2001-99-99"])
def test_a_mapping_that_is_no_yaml_is_said_in_one_line(tmp_path, text):
    (tmp_path / "mapping.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="is no YAML") as caught:
        read_mapping(tmp_path / "mapping.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "study.yaml", "events.jsonl"])
def test_a_folder_that_holds_a_checkpoint_or_a_study_is_left_alone(run, files, tmp_path, name):
    _, weights, mapping = files
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / name).write_text("theirs", encoding="utf-8")
    with pytest.raises(DataError, match=f"no study, it holds {name}: type another study_dir=DIR$"):
        import_encoder(run, weights, mapping, tmp_path / "x")
    assert [path.name for path in (tmp_path / "x").iterdir()] == [name]
    assert (tmp_path / "x" / name).read_text(encoding="utf-8") == "theirs"


def test_an_import_that_cannot_end_leaves_its_folder_free(run, files, tmp_path, monkeypatch):
    _, weights, mapping = files

    def full(*_):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("trainables.foreign.describe", full)
        with pytest.raises(StorageError, match="the disk is full"):
            import_encoder(run, weights, mapping, tmp_path / "x")
    import_encoder(run, weights, mapping, tmp_path / "x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_ours(run, files, tmp_path, dtype):
    ours, weights, mapping = files
    content = torch.load(weights, weights_only=True)
    content["model"] = {key: tensor.to(dtype) for key, tensor in content["model"].items()}
    torch.save(content, weights)
    import_encoder(run, weights, mapping, tmp_path / "x")
    arrived = read_tensors(tmp_path / "x" / "model.safetensors")[0]
    for name, tensor in ours.items():
        assert arrived[f"encoder.{name}"].dtype == torch.float32
        assert torch.equal(arrived[f"encoder.{name}"], tensor.to(dtype).float()), name


def quantised(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch gives them up: files of them remain
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tensor: tensor.index_fill(0, torch.tensor([1]), torch.nan), "finite, it holds NaN or infinite values"),
        (lambda tensor: tensor.index_fill(0, torch.tensor([1]), -torch.inf), "finite, it holds NaN or infinite"),
        (lambda tensor: tensor.double() * 1e300, "within the range of float32, it holds larger values"),
        (lambda tensor: tensor.to(torch.complex64), "float32, float64, float16, bfloat16, it is of complex64"),
        (lambda tensor: tensor.to(torch.int8), "bfloat16, it is of int8"),
        (lambda tensor: tensor > 0, "bfloat16, it is of bool"),
        (lambda tensor: tensor.to(torch.float8_e5m2), "bfloat16, it is of float8_e5m2"),
        (lambda tensor: tensor.to_sparse(), "a plain tensor, it is sparse"),
        (quantised, "a plain tensor, it is quantised"),
        (lambda tensor: tensor.to("meta"), "a plain tensor, it is without values"),
    ],
)
def test_values_that_ours_cannot_have_are_refused_by_key(run, files, tmp_path, spoil, message):
    _, weights, mapping = files
    content = torch.load(weights, weights_only=True)
    content["model"]["module.norm.weight"] = spoil(content["model"]["module.norm.weight"])
    torch.save(content, weights)
    with pytest.raises(DataError, match=rf"module\.norm\.weight of the file must be .*{message}") as caught:
        import_encoder(run, weights, mapping, tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_tensors_that_share_memory_arrive(run, files, tmp_path):
    ours, weights, mapping = files
    content = torch.load(weights, weights_only=True)
    content["model"]["module.norm.bias"] = content["model"]["module.norm.weight"]
    torch.save(content, weights)
    import_encoder(run, weights, mapping, tmp_path / "x")
    arrived = read_tensors(tmp_path / "x" / "model.safetensors")[0]
    assert torch.equal(arrived["encoder.norm.bias"], ours["norm.weight"])


def test_the_page_shows_how_a_patch_is_put_into_our_order(run):
    shown = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    encoder = fresh_encoder(run)
    signal = torch.randn(2, len(run.data.leads), run.data.window_samples)
    leads, samples = signal.shape[1], encoder.segment_samples
    by_sample = signal.transpose(1, 2).reshape(2, -1, samples * leads)  # all leads of a sample together
    state = {"patch_embed.weight": torch.randn(encoder.width, samples * leads)}
    expected = by_sample @ state["patch_embed.weight"].T
    names = {"torch": torch, "state": state, "samples": samples, "leads": leads}
    exec("\n".join(line for line in shown.splitlines() if "FILE" not in line), names)
    torch.testing.assert_close(encoder.patches(signal)[:, 0] @ state["patch_embed.weight"].T, expected)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_file_that_would_execute_something_is_refused_and_does_not(run, files, tmp_path, monkeypatch):
    _, _, mapping = files
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Malicious()))
    torch.save({"model": {"x": torch.zeros(1)}, "args": Malicious()}, tmp_path / "worse.pth")
    for name in ("bad.pth", "worse.pth"):
        with pytest.raises(StorageError, match="it holds other Python objects.* Nothing of it was executed") as caught:
            import_encoder(run, tmp_path / name, mapping, tmp_path / "x")
        told = str(caught.value)
        assert told.endswith("re-save the state dict alone with torch.save({name: tensor}, FILE)")
        assert not any(word in told for word in ("\n", "weights_only", "safe_globals", "WeightsUnpickler"))
        assert caught.value.__suppress_context__  # nor where a traceback is shown
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_a_damaged_or_missing_file_is_said(run, files, tmp_path, size):
    _, weights, mapping = files
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(StorageError, match="it is damaged, .* Fetch it again"):
        import_encoder(run, weights, mapping, tmp_path / "x")
    weights.unlink()
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        import_encoder(run, weights, mapping, tmp_path / "x")


def test_a_missing_mapping_is_said(tmp_path):
    with pytest.raises(StorageError, match="cannot be read"):
        read_mapping(tmp_path / "none.yaml")
