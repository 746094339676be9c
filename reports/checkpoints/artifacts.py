"""What a checkpoint made of records: embeddings, a map of them, what answers rest on, and what was reconstructed.

Each checkpoint's files lie in its own folder, `artifacts/NAME/`; the page of several lies in that of the first. A pass
over the test fold is recorded as any other is (reports.evaluate).

Shapes: n records, C leads, T samples, D width, K classes.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from data.labels import Labels
from data.store import Store
from reports.checkpoints.ecg_sheet import draw, legend_for
from reports.checkpoints.embedding_map import groups_of, neighbours_map, principal_components, scatter
from reports.checkpoints.error_sheets import Seen, band_of, seen
from reports.checkpoints.reconstruction import reconstructed
from reports.checkpoints.saliency import along_record, attention_rollout, attribution, patches_of, smoothed
from reports.evaluate import evaluate_checkpoint
from trainables.checkpoint import Checkpoint
from trainables.ensemble import digest_at
from trainables.files import write_atomically
from trainables.probe import crop_embeddings
from trainables.recordings import window_of
from trainables.workers import Workers

EMBEDDINGS, TABLE, LIST, PAGE = "embeddings.npy", "embeddings.parquet", "artifacts.json", "index.html"
ROLLOUT_LEGEND = "Orange: reaches the embedding by attention more than the median sample does. Darker: more."


@dataclass(frozen=True)
class Source:
    """A checkpoint and the records that are shown of it.

    Attributes:
        folder: of the checkpoint.
        checkpoint: loaded from it.
        store: prepared as its contract says.
        labels: of the store's rows, a column for each of its classes.
        split: "valid" or "test", what the rows count as.
        rows: (n,) of the store.
    """

    folder: Path
    checkpoint: Checkpoint
    store: Store
    labels: Labels
    split: str
    rows: NDArray[np.int64]


def make_artifacts(sources: Sequence[Source], *, name: str, num_records: int, workers: Workers) -> Path:
    """Write every checkpoint's files and one page of all.

    Args:
        sources: one or several.
        name: of the folder under each checkpoint's `artifacts/`.
        num_records: whose saliency, attention and reconstruction are drawn.
        workers: this process.

    Returns:
        The page.

    Raises:
        StorageError: if something cannot be written.
    """
    views = [_make(source, name, num_records, workers) for source in sources]
    if len({source.folder.name for source in sources}) < len(sources):  # .../train/checkpoint of several runs
        for source, view in zip(sources, views, strict=True):
            view["checkpoint"] = "/".join(source.folder.absolute().parts[-3:])
    page = sources[0].folder / "artifacts" / name / PAGE
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_atomically(page, environment.get_template("artifacts.html").render(name=name, views=views).encode())
    return page


def _make(source: Source, name: str, num_records: int, workers: Workers) -> dict[str, Any]:
    """One checkpoint's files; what the page shows of it."""
    folder = source.folder / "artifacts" / name
    checkpoint, rows = source.checkpoint, source.rows
    predictions = evaluate_checkpoint(
        checkpoint, source.folder, source.store, source.labels, rows, source.split, workers
    )
    embeddings = embeddings_of(source, workers)
    components, shares = principal_components(embeddings)
    maps = [(f"Principal components ({shares[0]:.0%} and {shares[1]:.0%} of the variance)", components)]
    neighbours = neighbours_map(embeddings)
    table = predictions.drop(columns="patient_id").assign(pc_1=components[:, 0], pc_2=components[:, 1])
    if not isinstance(neighbours, str):
        maps.append(("t-SNE (distances between groups mean nothing)", neighbours))
        table = table.assign(tsne_1=neighbours[:, 0].astype(float), tsne_2=neighbours[:, 1].astype(float))
    _write_array(folder / EMBEDDINGS, embeddings)
    write_atomically(folder / TABLE, table.to_parquet(index=False))
    groups = groups_of(source.labels.targets[rows], checkpoint.classes)
    drawn = [
        _sheets(source, chosen, predictions, folder, workers)
        for chosen in _chosen(predictions, checkpoint.classes, num_records)
    ]
    content = {
        "checkpoint": source.folder.name,
        "trial": checkpoint.description.get("trial"),
        "weights_sha256": digest_at(source.folder),
        "store": source.store.hash,
        "split": source.split,
        "num_records": len(rows),
        "width": int(embeddings.shape[1]),
        "explained_variance": shares.tolist(),
        "no_second_map": neighbours if isinstance(neighbours, str) else None,
        "records": drawn,
    }
    write_atomically(folder / LIST, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    return content | {
        "encoder": type(checkpoint.classifier.encoder).__name__,
        "maps": [{"name": of, "svg": Markup(scatter(places, groups, of))} for of, places in maps],
        "groups": [{"name": g.name, "colour": g.colour, "shape": g.shape, "size": len(g.rows)} for g in groups],
        "records": [
            record | {"sheets": [sheet | {"svg": _inline(folder / sheet["file"])} for sheet in record["sheets"]]}
            for record in drawn
        ],
    }


def embeddings_of(source: Source, workers: Workers) -> NDArray[np.float32]:
    """(n, D) the mean embedding of each record's evaluation crops."""
    checkpoint = source.checkpoint
    encoder = checkpoint.classifier.to(workers.device).encoder
    crops = crop_embeddings(encoder, source.store, source.rows, window_of(checkpoint.run.data), workers)
    with torch.no_grad():
        return np.concatenate([part.mean(dim=1).cpu().numpy() for part in crops])


def _chosen(predictions: pd.DataFrame, classes: Sequence[str], num_records: int) -> list[tuple[int, str]]:
    """Rows of the predictions and the class each is shown for: class by class, the surest right answers first."""
    chosen: list[tuple[int, str]] = []
    ranked = {
        name: predictions.index[predictions[f"y_{name}"] == 1][
            np.argsort(-predictions.loc[predictions[f"y_{name}"] == 1, f"p_{name}"].to_numpy(), kind="stable")
        ].tolist()
        for name in classes
    }
    for rank in range(len(predictions)):
        for name in classes:
            if len(chosen) < num_records and rank < len(ranked[name]):
                chosen.append((ranked[name][rank], name))
        if len(chosen) >= num_records:
            break
    return chosen


def _sheets(
    source: Source, chosen: tuple[int, str], predictions: pd.DataFrame, folder: Path, workers: Workers
) -> dict[str, Any]:
    """Draw one record: what its answer rests on, where attention led, what was reconstructed."""
    place, label = chosen
    checkpoint, data = source.checkpoint, source.checkpoint.run.data
    row = int(source.rows[place])
    record = seen(source.store, row, data, workers.device)
    record_id = str(predictions.loc[place, "record_id"])
    probability = float(predictions.loc[place, f"p_{label}"])
    title = f"Record {record_id}: {label}, to which the model gives {probability:.3f}"
    classifier = checkpoint.classifier.to(workers.device)
    why = attribution(
        classifier, record.crops, record.starts, record.signal_mv.shape[1], checkpoint.classes.index(label)
    )
    found: list[tuple[str, dict[str, Any]]] = [
        ("integrated gradients", {"saliency": smoothed(why.values, data.sampling_rate_hz), "legend": legend_for(label)})
    ]
    reasons = []
    if patches_of(classifier.encoder) is None:
        reasons.append(f"no attention rollout: {type(classifier.encoder).__name__} has no attention between patches")
    else:
        found.append(("attention rollout", {"saliency": _rolled(source, record), "legend": ROLLOUT_LEGEND}))
    rebuilt = reconstructed(source.folder, checkpoint.run, record, seed=row)
    if isinstance(rebuilt, str):
        reasons.append(f"no reconstruction: {rebuilt}")
    else:
        found.append(("reconstruction", rebuilt))
    sheets = []
    for number, (method, how) in enumerate(found, start=1):
        sheet = draw(
            record.signal_mv,
            data.leads,
            data.sampling_rate_hz,
            title=title,
            notes=[f"{method.capitalize()} · {band_of(data)}"],
            layout="12x1",
            **how,
        )
        name = f"{place:06d}_{number}_{method.replace(' ', '_')}.svg"
        write_atomically(folder / name, sheet.encode())
        sheets.append({"method": method, "file": name})
    return {
        "record_id": record_id,
        "class": label,
        "probability": probability,
        "explains": why.total,
        "error": why.error,
        "sheets": sheets,
        "reasons": reasons,
    }


def _rolled(source: Source, record: Seen) -> NDArray[np.float32]:
    """(C, T) the rollout above its median, the mean over the crops that hold a sample; 0 elsewhere."""
    rolled = attention_rollout(source.checkpoint.classifier.encoder, record.crops)
    num_samples = record.signal_mv.shape[1]
    covered = along_record(torch.ones_like(rolled), record.starts, num_samples)
    mean = along_record(rolled, record.starts, num_samples) / covered.clamp(min=1)
    above = (mean - mean[covered > 0].median()).clamp(min=0)
    values: NDArray[np.float32] = (above * (covered > 0)).numpy()
    return values


def _write_array(path: Path, values: NDArray[np.float32]) -> None:
    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    write_atomically(path, content.getvalue())


def _inline(path: Path) -> str:
    """A sheet of our own as an image of the page."""
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
