"""What the keys of ST-MEM's configuration files are called here.

One mapping for the hint that a typed old key gets and for the table in docs/from_st_mem.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Former:
    """One of ST-MEM's keys.

    Attributes:
        keys: what says the same here; none where nothing needs to be said.
        note: where the meaning or the unit differs.
    """

    keys: tuple[str, ...]
    note: str = ""


def _both(key: str) -> tuple[str, ...]:
    return (f"task.pretrain.{key}", f"task.finetune.{key}")


FORMER_NAMES: dict[str, Former] = {
    "seed": Former(("seed",), "draws follow from it and the epoch alone, for any number of workers"),
    "output_dir": Former(("study_dir",), "the study's own folder: output_dir and exp_name in one"),
    "exp_name": Former(("study_dir",), "the last part of the folder"),
    "resume": Former(("resume",), "auto, never or must; the same line goes on where it stopped, no file is named"),
    "start_epoch": Former((), "a study knows where it stopped"),
    "encoder_path": Former(("task.encoder",), "the folder of a checkpoint, not a file"),
    "mode": Former(("task.finetune.mode",), "finetune, linprobe or scratch, as there"),
    "model_name": Former(
        ("model", "model.encoder.size"),
        "the kind of model and its size apart: model=st_mem model.encoder.size=base",
    ),
    "model.seq_len": Former(("data.window_s",), "in seconds: 2250 samples at 250 Hz are 9.0"),
    "model.patch_size": Former(("model.encoder.patch_duration_s",), "in seconds: 75 samples at 250 Hz are 0.3"),
    "model.num_leads": Former(("data.leads",), "names, in any order: data.leads=[II] for one lead"),
    "model.num_classes": Former(("task.labels", "task.classes"), "follows from the label protocol, or a subset of it"),
    "model.drop_path_rate": Former(("task.finetune.drop_path",)),
    "model.norm_pix_loss": Former(("model.norm_pix_loss",)),
    "dataset.filename_col": Former(("data.reader.filename_column",)),
    "dataset.fs_col": Former(("data.reader.sampling_rate_column",)),
    "dataset.label_col": Former(("data.reader.label_columns",), "always a list"),
    "dataset.fs": Former(("data.sampling_rate_hz",)),
    "dataset.lead": Former(("data.leads",), "names, in any order"),
    "dataset.label_dtype": Former((), "follows from the kind of the label protocol"),
    "dataset.index_dir": Former(
        ("data.reader.index_dir",), "as all keys of data.reader here, with data=index_csv; relative to data.root"
    ),
    "dataset.ecg_dir": Former(("data.reader.ecg_dir",)),
    "dataset.train_csv": Former(("data.reader.train_csv",)),
    "dataset.valid_csv": Former(("data.reader.valid_csv",)),
    "dataset.test_csv": Former(("data.reader.test_csv",)),
    "dataset.rand_augment": Former(
        ("task.finetune.transforms",),
        "an entry data.transforms.RandAugment: op_names is operations, prob is probability; levels mean the same",
    ),
    "dataset.train_transforms": Former(
        ("model.transforms", "task.finetune.transforms"),
        "augmentations only; crop, filters and standardisation are data.window_s, data.highpass_hz, data.lowpass_hz "
        "and data.standardize",
    ),
    "dataset.eval_transforms": Former(
        ("data.eval_crops",),
        "crop_length is data.window_s, num_segments is data.eval_crops; a moving window of n places is "
        "data.eval_crops=n; filters as for training",
    ),
    "dataloader.batch_size": Former(_both("batch_size"), "over all workers together, there per process"),
    "dataloader.num_workers": Former((), "recordings are memory-mapped and cropped in batches: no loader processes"),
    "dataloader.pin_memory": Former((), "decided by the device"),
    "train.epochs": Former(_both("num_epochs")),
    "train.accum_iter": Former(_both("accumulation_steps")),
    "train.warmup_epochs": Former(_both("warmup_share"), "as a share of the stage: 3 of 10 epochs are 0.3"),
    "train.min_lr": Former(_both("min_lr")),
    "train.blr": Former(
        _both("base_lr"),
        "lr = base_lr * effective batch / 256, as there, with base_lr_rule=batch_over_256; set lr=null with it",
    ),
    "train.lr": Former(_both("lr"), "absolute, as there"),
    "train.weight_decay": Former(
        _both("weight_decay"), "not on biases and norms, unless optimizer.decay_biases_and_norms"
    ),
    "train.max_norm": Former(_both("clip_norm"), "for both stages, there for fine-tuning alone"),
    "train.optimizer": Former(_both("optimizer.name"), "adamw or sgd, as there"),
    "train.optimizer_kwargs": Former(
        (*_both("optimizer.betas"), *_both("optimizer.momentum")), "betas are AdamW's, momentum is SGD's"
    ),
    "train.use_amp": Former(_both("precision"), "auto, float32 or bfloat16"),
    "loss": Former(("task.labels",), "cross entropy or binary cross entropy follows from the label protocol"),
    "metric.target_metrics": Former(("task.metrics",), "torchmetrics class names, as there"),
    "test.target_metric": Former(("search.metric",), "as logged: val/auroc; there the loss unless said"),
}
"""By dotted name, as in ST-MEM's YAML files."""


def former_name(key: str) -> str | None:
    """The hint for a key that there is not here, if it is one of ST-MEM's or below one; None for others.

    A key without a dot is also looked for by the last part of ST-MEM's names: `blr` is `train.blr`.
    """
    by_last_part = {name.rpartition(".")[2]: name for name in FORMER_NAMES}
    name: str | None = key
    while name and name not in FORMER_NAMES:
        name = name.rpartition(".")[0]
    name = name or by_last_part.get(key)
    if name is None:
        return None
    former = FORMER_NAMES[name]
    here = f"here {' or '.join(former.keys)}" if former.keys else "here nothing needs to be said"
    return f"ST-MEM's name; {here}" + (f" ({former.note})" if former.note else "")
