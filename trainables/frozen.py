"""Embeddings of an encoder that no trial of a study changes: computed by the first of them, mapped by the others.

Where fine-tuning starts from a checkpoint (task=finetune), every trial embeds the training records with the same
weights for its first head, and a linear probe by steps embeds them and the validation records for all its epochs:

    STUDY/embeddings/<digest>/embeddings.npy

by a digest of all that they depend on, whole or not there; trials that begin at the same moment may each compute them.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.encoder import Encoder
from trainables.files import write_atomically, writing_to
from trainables.pretrained import PLACES, code_of_this_process
from trainables.probe import EVAL_BATCH_SIZE, crop_embeddings
from trainables.recordings import Recordings, window_of
from trainables.room import make_room, used
from trainables.settings import Run
from trainables.workers import Workers

FILE = "embeddings.npy"


def frozen_embeddings(
    run: Run, encoder: Encoder, recordings: Recordings, rows: NDArray[np.int64], workers: Workers, *, num_crops: int
) -> Tensor:
    """Embeddings of equally spaced crops of `rows`, from the encoder as it is now.

    Args:
        run: the encoder's.
        encoder: is not changed as long as the embeddings are used.
        recordings: the run's; where they name a folder (`embeddings`), what lies there is not computed again.
        rows: of the store.
        workers: of a gang, each computes its own share.
        num_crops: of each record; 1 is the middle one.

    Returns:
        (n, num_crops, D) float32 on the CPU, of this worker's share of `rows`.

    Raises:
        StorageError: on a full or read-only disk.
    """
    kept = recordings.embeddings
    if kept is None or workers.world_size > 1:
        return _computed(run, encoder, recordings, rows, workers, num_crops)
    path = kept.folder / digest_of(run, encoder, recordings, rows, num_crops, workers.device) / FILE
    if (found := _mapped(path)) is None:
        found = _computed(run, encoder, recordings, rows, workers, num_crops)
        content = io.BytesIO()
        np.save(content, found.numpy())
        write_atomically(path, content.getvalue(), flush=False)  # after a crash they are computed again
        with writing_to(path):
            make_room(kept.folder, kept.max_bytes)
    used(path.parent)
    return found


def in_batches(embeddings: Tensor, workers: Workers) -> list[Tensor]:
    """Embeddings as `crop_embeddings` gives them: on the worker's device, a batch after the other."""
    return [batch.to(workers.device) for batch in torch.split(embeddings, EVAL_BATCH_SIZE)]


def digest_of(
    run: Run,
    encoder: Encoder,
    recordings: Recordings,
    rows: NDArray[np.int64],
    num_crops: int,
    device: torch.device,
) -> str:
    """A digest of all that the embeddings of some rows depend on."""
    weights = hashlib.blake2b()
    for name, tensor in sorted(encoder.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # as bytes, since NumPy knows no bfloat16; a number alone, as batch norm's counter, has no bytes to view
        weights.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    made_of = {
        "code": code_of_this_process(),
        "weights": weights.hexdigest(),
        "encoder": run.model.encoder.model_dump(mode="json", by_alias=True),
        "pool": run.task.finetune.pool,
        "data": run.data.model_dump(mode="json", by_alias=True, exclude=PLACES),
        "store": recordings.store.hash,
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "num_crops": num_crops,
        "device": device.type,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _computed(
    run: Run, encoder: Encoder, recordings: Recordings, rows: NDArray[np.int64], workers: Workers, num_crops: int
) -> Tensor:
    window = replace(window_of(run.data), num_crops=num_crops)
    shares = [crops.cpu() for crops in crop_embeddings(encoder, recordings.store, rows, window, workers)]
    return torch.cat(shares) if shares else torch.empty((0, num_crops, encoder.width))


def _mapped(path: Path) -> Tensor | None:
    """What lies at a path, its pages shared with all who map it; None where nothing whole does."""
    try:
        # no page is written, but torch warns of arrays that cannot be
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return torch.from_numpy(found)
