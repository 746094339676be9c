"""An exported graph answers as PyTorch does, for every encoder, and its README does what it says."""

import ast
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from models.attention_pool import AttentionPooled
from models.classifier import Classifier
from models.mlae import MLAEEncoder
from models.mtae import MTAEEncoder
from models.resnet import ResNet1d
from models.s4d import S4D
from models.signal_vit import SignalViT
from models.st_mem import STMEMEncoder
from models.vit import ViT1d
from models.xresnet import XResNet1d
from reports.checkpoints import export as export_module
from reports.checkpoints.export import ExportError, export, rows_to_check, write_graph
from reports.evaluate import table
from trainables.checkpoint import load
from trainables.workers import Workers

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

INPUT = {"leads": ("I", "II", "V2"), "num_samples": 120, "sampling_rate_hz": 100.0, "size": "laptop"}
PATCHES = {**INPUT, "patch_duration_s": 0.3}
STATES = {**INPUT, "state_size": 4, "min_memory_s": 0.2, "max_memory_s": 20}
ENCODERS = {
    "vit1d": lambda: ViT1d(**PATCHES),
    "st_mem": lambda: STMEMEncoder(**PATCHES, num_sep_tokens=1, standardize_patches=True),
    "mtae": lambda: MTAEEncoder(**PATCHES, standardize_patches=True),
    "mlae": lambda: MLAEEncoder(**INPUT, standardize_patches=True),
    "signal_vit": lambda: SignalViT(**PATCHES),
    "attention": lambda: AttentionPooled(SignalViT(**PATCHES)),
    "resnet1d": lambda: ResNet1d(**INPUT, kernel_size=3),
    "xresnet1d": lambda: XResNet1d(**INPUT, kernel_size=5),
    "s4d": lambda: S4D(**STATES, bidirectional=True),
    "s4d_one_way": lambda: S4D(**STATES, bidirectional=False),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_graph_answers_as_pytorch_does_for_any_number_of_crops(name, tmp_path):
    torch.manual_seed(0)
    classifier = Classifier(ENCODERS[name](), 4, drop_path=0.1, head_init_std=0.5).eval()
    write_graph(classifier, 120, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for num_crops in (1, 2, 5):
        signal = torch.randn(num_crops, 3, 120)
        (logits,) = session.run(None, {"signal": signal.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, classifier(signal).numpy(), atol=2e-5)


def test_every_encoder_that_can_be_chosen_is_tried():
    from search_spaces.compose import FOLDER

    assert {path.stem for path in (FOLDER / "encoder").glob("*.yaml")} <= ENCODERS.keys()


@pytest.fixture(scope="module")
def kept(put_checkpoint, tiny_recordings, tmp_path_factory):
    """A checkpoint with its predictions on validation."""
    folder = put_checkpoint(tmp_path_factory.mktemp("study") / "checkpoints" / "best_1")
    checkpoint, rows = load(folder), tiny_recordings.split.valid
    predictions = table(
        checkpoint.classifier, checkpoint.run, tiny_recordings.store, tiny_recordings.labels, {"valid": rows}, Workers()
    )
    return folder, checkpoint, rows, predictions


def test_the_readme_of_an_export_computes_the_models_probabilities(kept, tiny_store, tmp_path, monkeypatch):
    folder, checkpoint, rows, predictions = kept
    described = export(checkpoint, folder, tmp_path / "export", tiny_store, predictions, rows)
    assert described["checked"]["max_abs_difference_of_probabilities"] < 1e-4
    assert described == json.loads((tmp_path / "export" / "preprocessing.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    np.save(tmp_path / "export" / "recording.npy", tiny_store.record(int(rows[0])) * 0.001)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "export" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "export")
    program = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = ast.literal_eval(program.stdout)
    assert code.count("\n") <= 16
    expected = predictions.iloc[0][[f"p_{name}" for name in checkpoint.classes]].to_numpy(float)
    np.testing.assert_allclose([said[name] for name in checkpoint.classes], expected, atol=1e-4)


def test_what_is_written_is_the_checkpoints_contract(kept, tiny_store, tmp_path):
    folder, checkpoint, rows, predictions = kept
    described = export(checkpoint, folder, tmp_path / "export", tiny_store, predictions, rows)
    assert described["recording"]["leads"] == checkpoint.contract["leads"]
    assert described["answers"]["classes"] == checkpoint.classes
    assert described["window"]["samples"] == checkpoint.run.data.window_samples
    assert described["temperature"]["value"] is None
    assert described["thresholds"]["value"] is None


def test_temperature_and_thresholds_come_from_the_report_of_the_same_weights(kept, tiny_store, tmp_path):
    from reports.evaluate import write_predictions
    from trainables.checkpoint import weights_digest

    folder, checkpoint, rows, predictions = kept
    report = folder.parent.parent / "report"
    figures = {
        "calibration": {
            "models": {"best": {"temperature": {"value": 1.5, "formula": "sigmoid(logit(p) / T)", "applies_to": "p"}}}
        },
        "operating_points": {"classes": {"MI": {"threshold": 0.3}, "CD": {"threshold": None}}},
    }
    for digest, temperature, thresholds in ((weights_digest(folder), 1.5, {"MI": 0.3}), ("other", None, None)):
        write_predictions(report / "predictions.parquet", predictions, {"trial": 3, "digest": digest})
        (report / "metrics.json").write_text(json.dumps(figures))
        described = export(checkpoint, folder, tmp_path / "export", tiny_store, predictions, rows)
        assert described["temperature"]["value"] == temperature
        assert described["thresholds"]["value"] == thresholds


def test_a_graph_that_answers_otherwise_is_refused_and_leaves_nothing(kept, tiny_store, tmp_path):
    folder, checkpoint, rows, predictions = kept
    wrong = predictions.assign(p_MI=predictions["p_MI"] + 0.01)
    with pytest.raises(ExportError, match="must answer as PyTorch does, to 0.0001; .* differs by 0.01"):
        export(checkpoint, folder, tmp_path / "export", tiny_store, wrong, rows)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_to_export_is_named(monkeypatch):
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ExportError, match="command=export needs onnxscript: pip install"):
        export_module.check_packages()


def test_many_records_are_checked_on_equally_spaced_ones():
    assert rows_to_check(np.arange(9)).tolist() == list(range(9))
    chosen = rows_to_check(np.arange(5000))
    assert len(chosen) == 256
    assert (chosen[0], chosen[-1]) == (0, 4999)
