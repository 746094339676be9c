"""A checkpoint as an ONNX file, with a JSON that says what must be done before and after it, checked on records.

The graph holds the classifier alone: standardised crops in, logits out. All else is written down in preprocessing.json,
and in ten lines of numpy in the README beside it. The folder appears once the graph has answered as PyTorch does.

Shapes: B crops, C leads, T samples of a crop, K classes, t tokens, D width.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from data.loaders import eval_batches
from data.record import DataError
from data.store import MV_PER_UNIT, Store, filter_sections
from models.classifier import Classifier
from models.s4d import S4D, DiagonalStateSpace
from reports.evaluate import maker_of
from reports.folder import PREDICTIONS, at_path
from trainables.checkpoint import Checkpoint
from trainables.ensemble import digest_at
from trainables.files import write_atomically, writing_to
from trainables.predict import probabilities_of
from trainables.provenance import versions
from trainables.recordings import preparation_of, window_of

MODEL, PREPROCESSING, README = "model.onnx", "preprocessing.json", "README.md"
MOST_RECORDS = 256
"""Records of the fold that the graph is checked on, equally spaced."""
LARGEST_DIFFERENCE = 1e-4
"""Of a probability; float32 leaves 1e-6."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
IGNORED = r"`isinstance\(treespec, LeafSpec\)` is deprecated"  # torch warns itself while it exports


class ExportError(DataError):
    """A checkpoint cannot be exported here; its one line says why and what to do."""


def check_packages() -> None:
    """Refuse to begin without what an export needs.

    Raises:
        ExportError: that names what is missing.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ExportError(
            f"command=export needs {', '.join(missing)}: pip install 'heartsweep[export]', or these alone"
        )


def rows_to_check(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Equally spaced ones of a fold's rows, MOST_RECORDS at most."""
    if len(rows) <= MOST_RECORDS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_RECORDS).round().astype(np.int64)]


def export(
    checkpoint: Checkpoint, source: Path, target: Path, store: Store, predictions: pd.DataFrame, rows: NDArray[np.int64]
) -> dict[str, Any]:
    """Write a checkpoint's ONNX file, its JSON and its README.

    Args:
        checkpoint: loaded from `source`; a classifier of one encoder or of several.
        source: its folder.
        target: the folder to make; one that is there is replaced.
        store: prepared as the checkpoint's contract says.
        predictions: of PyTorch for `rows`, as `reports.evaluate.table` gives them.
        rows: what the graph is checked on.

    Returns:
        What preprocessing.json says.

    Raises:
        ExportError: if the model has no ONNX form, or its graph answers otherwise; nothing is left behind then.
        StorageError: if the folder cannot be written.
    """
    check_packages()
    partial = target.with_name(f".{target.name}.building")
    with writing_to(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        write_graph(checkpoint.classifier, checkpoint.run.data.window_samples, partial / MODEL)
        check = _compared(checkpoint, partial / MODEL, store, predictions, rows)
        described = _description(checkpoint, source, check)
        content = json.dumps(described, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(partial / PREPROCESSING, content.encode() + b"\n")
        write_atomically(partial / README, _readme(described).encode())
        with writing_to(target):
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return described


def write_graph(classifier: Classifier, num_samples: int, path: Path) -> None:
    """Write a classifier's graph: `signal` (B, C, T) float32 -> `logits` (B, K), for any B.

    Raises:
        ExportError: if a part of the model has no ONNX form.
    """
    classifier = _exportable(classifier, num_samples)
    example = torch.zeros(2, len(classifier.encoder.leads), num_samples)
    with _quiet():
        try:
            program = torch.onnx.export(
                classifier,
                (example,),
                dynamo=True,
                input_names=["signal"],
                output_names=["logits"],
                dynamic_shapes={"signal": {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            kind, why = type(classifier.encoder).__name__, str(error.__cause__ or error).strip().splitlines()
            raise ExportError(f"{kind} has no ONNX form: {why[0] if why else type(error).__name__}") from error
        assert program is not None
        program.save(str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own warnings and notes away from the user."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=IGNORED)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


# ---- forms that ONNX has ----------------------------------------------------------------------------------------


class FixedConvolution(nn.Module):
    """A state-space model whose kernels are computed once, as a convolution in time: (B, t, D) -> (B, t, D).

    ONNX has no complex exponentials, and its Fourier transform is slow where it is run. The sum is the same.
    """

    def __init__(self, model: DiagonalStateSpace, length: int) -> None:
        super().__init__()
        with torch.no_grad():
            past, *future = model.kernels(length)
        backwards = future[0].flip(-1) if future else torch.zeros_like(past)
        self.length = length
        self.register_buffer("kernels", torch.cat([backwards, past], dim=-1).flip(-1)[:, None])  # lags t-1 .. -t
        self.register_buffer("skip", model.skip.detach()[:, None])
        self.kernels: Tensor
        self.skip: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Convolve every channel with its kernel."""
        inputs = tokens.transpose(1, 2)
        padded = F.pad(inputs, (self.length - 1, self.length))
        outputs = F.conv1d(padded, self.kernels, groups=inputs.shape[1])[..., : self.length]
        return (outputs + self.skip * inputs).transpose(1, 2)


def _exportable(classifier: Classifier, num_samples: int) -> Classifier:
    """A copy on the CPU whose state-space models have the form that ONNX knows."""
    copied = copy.deepcopy(classifier).cpu().eval()
    for encoder in [module for module in copied.modules() if isinstance(module, S4D)]:
        length = -(-num_samples // encoder.stride)
        for block in encoder.blocks:
            assert isinstance(block.state_space, DiagonalStateSpace)
            block.state_space = FixedConvolution(block.state_space, length)
    return copied


# ---- what is said of it -----------------------------------------------------------------------------------------


def _compared(
    checkpoint: Checkpoint, path: Path, store: Store, predictions: pd.DataFrame, rows: NDArray[np.int64]
) -> dict[str, Any]:
    """How far the graph's probabilities are from PyTorch's, on records."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    window, kind = window_of(checkpoint.run.data), checkpoint.contract["label_kind"]
    answers = []
    for crops, _ in eval_batches(store, rows, window=window, batch_size=32, device=torch.device("cpu")):
        (logits,) = session.run(["logits"], {"signal": crops.flatten(0, 1).numpy()})
        of_crops = probabilities_of(torch.from_numpy(np.asarray(logits)), kind).view(*crops.shape[:2], -1)
        answers.append(of_crops.mean(dim=1).numpy())
    expected = predictions[[f"p_{name}" for name in checkpoint.classes]].to_numpy()
    difference = float(np.abs(np.concatenate(answers) - expected).max())
    if not difference < LARGEST_DIFFERENCE:
        raise ExportError(
            f"the ONNX graph must answer as PyTorch does, to {LARGEST_DIFFERENCE:g}; a probability of {len(rows)} "
            f"records differs by {difference:.2g}: nothing was exported; tell us of this model"
        )
    return {
        "records": len(rows),
        "split": str(predictions["split"].iloc[0]),
        "store": store.hash,
        "max_abs_difference_of_probabilities": difference,
        "versions": versions() | {name: importlib.import_module(name).__version__ for name in PACKAGES},
    }


def _description(checkpoint: Checkpoint, source: Path, check: dict[str, Any]) -> dict[str, Any]:
    """The content of preprocessing.json."""
    contract, data = checkpoint.contract, checkpoint.run.data
    sections = filter_sections(preparation_of(data))
    single = contract["label_kind"] == "single_label"
    return {
        "format": 1,
        "model": MODEL,
        "input": {
            "name": "signal",
            "shape": ["batch", len(contract["leads"]), data.window_samples],
            "dtype": "float32",
            "is": "standardised crops; a batch may hold any number of them",
        },
        "output": {"name": "logits", "shape": ["batch", len(contract["classes"])], "dtype": "float32"},
        "recording": {
            "leads": contract["leads"],
            "unit": contract["unit"],
            "sampling_rate_hz": contract["sampling_rate_hz"],
            "resampled_by": "scipy.signal.resample_poly(x, up, down, axis=-1, padtype='line') of the whole recording",
            "highpass_hz": contract["highpass_hz"],
            "lowpass_hz": contract["lowpass_hz"],
            "filter_order": contract["filter_order"],
            "filtered_by": "scipy.signal.sosfiltfilt(second_order_sections, x), after resampling, before cropping",
            "second_order_sections": sections.tolist(),
            "rounded_to_mv": MV_PER_UNIT,
        },
        "window": {
            "samples": data.window_samples,
            "seconds": contract["window_s"],
            "crops": contract["eval_crops"],
            "starts": "(2 i room + crops - 1) // (2 (crops - 1)) for i = 0 .. crops - 1, where room is the samples of "
            "the recording less those of the window; one crop alone starts at room // 2",
        },
        "standardize": {
            "over": contract["standardize"],
            "means": {
                "record": "each crop less its mean over all leads and samples, over their standard deviation",
                "lead": "each lead of a crop less its mean, over its standard deviation",
                "none": "nothing is done",
            }[contract["standardize"]],
            "what_is_constant": "becomes 0",
        },
        "answers": {
            "classes": contract["classes"],
            "label_kind": contract["label_kind"],
            "label_protocol": contract["label_protocol"],
            "activation": "softmax" if single else "sigmoid",
            "over_crops": "the mean of the crops' probabilities",
        },
        **_of_report(source),
        "made_of": {
            "trial": checkpoint.description.get("trial"),
            "weights_sha256": digest_at(source),
            "git_revision": checkpoint.description.get("git_revision"),
        },
        "checked": check,
    }


def _of_report(source: Path) -> dict[str, Any]:
    """Temperature and thresholds of the study's report, where it is there and about these very weights."""
    report = source.absolute().parent.parent / "report"
    metrics = report / "metrics.json"
    none = {"value": None, "reason": "no report of a study says one for these weights"}
    maker = maker_of(report / PREDICTIONS["best"])
    if maker is None or maker.get("digest") != digest_at(source) or not metrics.exists():
        return {"temperature": none, "thresholds": none}
    try:
        figures = json.loads(metrics.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = f"{metrics.name} cannot be read: {error}"
        return {"temperature": none | {"reason": reason}, "thresholds": none | {"reason": reason}}
    points = at_path(figures, "operating_points.classes", None) or at_path(figures, "best.operating_points.classes", {})
    found = {name: point["threshold"] for name, point in points.items() if point.get("threshold") is not None}
    thresholds = {"value": found, "applies_to": "the probability before any temperature"} if found else none
    return {"temperature": at_path(figures, "calibration.models.best.temperature") or none, "thresholds": thresholds}


def _readme(described: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown
        keep_trailing_newline=True,
    )
    return environment.get_template("export_readme.md").render(**described)
