"""What a masked method made of what it was not shown: its reconstruction of a record's hidden patches, in mV.

Shapes: C leads, T samples of a record, T' of a crop, G groups, N patches, H hidden ones, P samples of a patch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.masked_autoencoder import MaskedAutoencoder
from reports.checkpoints.error_sheets import Seen
from trainables.files import StorageError, read_tensors
from trainables.pretrain import build_pretext
from trainables.settings import Run
from trainables.state import PRETEXT

LEGEND = "Blue: reconstructed where hidden, with each patch's own mean and size. Black: recorded. First crop alone."
LEGEND_PLAIN = "Blue: reconstructed where hidden. Black: recorded. First crop alone."


def reconstructed(folder: Path, run: Run, record: Seen, *, seed: int) -> dict[str, Any] | str:
    """The reconstruction of a record's first crop, as `ecg_sheet.draw` takes it, or why there is none.

    The patches are hidden as in pre-training. A task that learns standardised patches says nothing of their means and
    sizes: these are then the recorded ones, as is usual in such figures.

    Args:
        folder: of the checkpoint; the pretext task's weights lie in it where they were kept.
        run: that trained it.
        record: as its model sees it.
        seed: of what is hidden.
    """
    if not (folder / PRETEXT).exists():
        return f"the checkpoint holds no {PRETEXT}, which a masked method's run leaves beside the classifier"
    pretext = build_pretext(run)
    if not isinstance(pretext, MaskedAutoencoder):
        return f"{type(pretext).__name__} reconstructs nothing"
    try:
        pretext.load_state_dict(read_tensors(folder / PRETEXT)[0])
    except (StorageError, RuntimeError) as error:
        return f"{PRETEXT} does not fit the run: {' '.join(str(error).split())[:200]}"
    crop = record.crops[:1].cpu()
    pretext.eval()
    with torch.no_grad():
        draws = pretext.draw(1, torch.Generator().manual_seed(seed))
        predicted, hidden = pretext.reconstruct(crop, draws)
        patches = pretext.encoder.patches(crop)
        places = hidden.unsqueeze(-1).expand_as(predicted)
        if pretext.norm_pix_loss:
            true = patches.gather(2, places)
            predicted = predicted * true.std(dim=-1, keepdim=True, correction=0) + true.mean(dim=-1, keepdim=True)
        whole = torch.full_like(patches, torch.nan).scatter(2, places, predicted)
        signal = pretext.encoder.signal_of(whole)[0].numpy()
    start = record.starts[0]
    cut = record.signal_mv[:, start : start + signal.shape[1]]
    overlay = np.full(record.signal_mv.shape, np.nan, np.float32)
    overlay[:, start : start + signal.shape[1]] = signal * _scale(cut, run.data.standardize) + _mean(
        cut, run.data.standardize
    )
    return {"overlay_mv": overlay, "legend": LEGEND if pretext.norm_pix_loss else LEGEND_PLAIN}


def _axes(over: str) -> tuple[int, ...]:
    return (0, 1) if over == "record" else (1,)


def _mean(crop_mv: Any, over: str) -> Any:
    return 0.0 if over == "none" else crop_mv.mean(axis=_axes(over), keepdims=True)


def _scale(crop_mv: Any, over: str) -> Any:
    return 1.0 if over == "none" else crop_mv.std(axis=_axes(over), keepdims=True)
