"""Everything one run can be told: validated once, frozen, and handed down as it is.

These models are the schema of the `model`, `data`, `task` and `cluster` trees of the configuration. Field names are the
keys that a user types (`task.pretrain.lr=1e-3`); an unknown key is refused by name. Values that follow from others are
properties, so that nothing can disagree.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

STANDARD_LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
"""The order in which data.record.LEADS names them too; a test holds the two together."""

RANGE = re.compile(r"\(?\d+[\s,:.-]+\d+\)?")
"""How a range of numbers may be typed: 2-4, 2..4, 2:4, '2,4', '(2, 4)'."""


class Settings(BaseModel):
    """A frozen piece of configuration that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), populate_by_name=True)


class Component(BaseModel):
    """A class of ours, named by `_target_`, with the keyword arguments that the configuration gives it.

    The arguments are checked against the class's own signature (trainables.components), not here: a new model
    or reader then needs no line in this file.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=(), populate_by_name=True)

    target: str = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the class is called with, by keyword."""
        return dict(self.model_extra or {})


class Model(Component):
    """A pretext task around an encoder; without a class it is the encoder alone, to be trained with labels."""

    target: str | None = Field(alias="_target_")  # type: ignore[assignment]
    encoder: Component
    transforms: list[Component]
    """Augmentations of each crop, or of each view of a record, that the pretext task sees, in order."""


class Data(Settings):
    """Which recordings, prepared how, and who trains, validates and tests."""

    name: str
    reader: Component
    root: str | None
    """Folder of the recordings as published; `$ECG_DATA` unless given."""
    source_rate_hz: int
    """Which of the published sampling rates is read."""
    download: bool
    """Whether `command=prepare` may fetch what is missing."""
    store_dir: str
    """Folder under which prepared stores are kept, one for each source and preparation."""
    max_unreadable_share: float = Field(ge=0, lt=1)
    sampling_rate_hz: float = Field(gt=0)
    leads: list[str] = Field(min_length=1)
    highpass_hz: float | None = Field(gt=0)
    lowpass_hz: float | None = Field(gt=0)
    filter_order: int = Field(ge=1, le=10)
    standardize: Literal["record", "lead", "none"]
    window_s: float = Field(gt=0)
    """Length of the crop that a model sees."""
    eval_crops: int = Field(ge=1)
    """Equally spaced crops whose probabilities are averaged in an evaluation."""
    train_folds: list[int] = Field(min_length=1)
    valid_folds: list[int] = Field(min_length=1)
    test_folds: list[int] = Field(min_length=1)
    max_train_patients: int | None = Field(ge=1)
    max_valid_patients: int | None = Field(ge=1)
    subsample_seed: int | None = Field(default=None, ge=0)  # studies of earlier versions do not say
    """Draws the patients of both; the run's own seed where null."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.leads)) != len(self.leads):
            raise ValueError(f"leads must not repeat, got {self.leads}")
        nyquist_hz = self.sampling_rate_hz / 2
        for key in ("highpass_hz", "lowpass_hz"):
            cutoff_hz = getattr(self, key)
            if cutoff_hz is not None and cutoff_hz >= nyquist_hz:
                raise ValueError(f"{key} must lie below half of sampling_rate_hz ({nyquist_hz:g}), got {cutoff_hz:g}")
        if self.highpass_hz and self.lowpass_hz and self.highpass_hz >= self.lowpass_hz:
            raise ValueError(f"highpass_hz must lie below lowpass_hz, got {self.highpass_hz:g} and {self.lowpass_hz:g}")
        if abs(self.window_s * self.sampling_rate_hz - self.window_samples) > 1e-6:
            raise ValueError(
                f"window_s times sampling_rate_hz must be whole, got {self.window_s:g} s at {self.sampling_rate_hz} Hz"
            )
        for first, second in (("train", "valid"), ("train", "test"), ("valid", "test")):
            if both := set(getattr(self, f"{first}_folds")) & set(getattr(self, f"{second}_folds")):
                raise ValueError(f"{first}_folds and {second}_folds must not share a fold, both hold {sorted(both)}")
        return self

    @property
    def window_samples(self) -> int:
        """T, the samples of one crop."""
        return round(self.window_s * self.sampling_rate_hz)


class Optimizer(Settings):
    """Which optimiser steps, with its own constants."""

    name: Literal["adamw", "sgd"]
    betas: tuple[float, float]
    momentum: float = Field(ge=0, lt=1)
    decay_biases_and_norms: bool
    """Weight decay is kept off biases, norms, tokens and position tables unless this is set."""

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must both be at least 0 and below 1, got {list(betas)}")
        return betas


class Stage(Settings):
    """What a pre-training and a fine-tuning stage have in common."""

    num_epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    """Records of one forward pass over all workers together."""
    accumulation_steps: int = Field(ge=1)
    lr: float | None = Field(gt=0)
    base_lr: float | None = Field(gt=0)
    """Used where `lr` is null: a rate that grows with the batch, by `base_lr_rule`."""
    base_lr_rule: Literal["batch_over_256", "batch_over_4"] | None
    """What `base_lr` is multiplied with: the effective batch over 256 (MAE, ST-MEM), or over 4 (Turgut et al.)."""
    start_lr: float = Field(ge=0)
    """The rate of the first step of a warm-up."""
    min_lr: float = Field(ge=0)
    warmup_share: float = Field(ge=0, le=1)
    """Share of the stage's optimiser steps over which the rate rises to `lr`."""
    weight_decay: float = Field(ge=0)
    final_weight_decay: float | None = Field(ge=0)
    """Where the weight decay ends, along half a cosine; null where it stays as it is."""
    clip_norm: float | None = Field(gt=0)
    optimizer: Optimizer
    precision: Literal["auto", "float32", "bfloat16"]
    """`auto` is bfloat16 autocast on devices that have it, else float32."""

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if (self.lr is None) == (self.base_lr is None):
            raise ValueError(f"exactly one of lr and base_lr must be set, got lr={self.lr} and base_lr={self.base_lr}")
        if (self.base_lr is None) != (self.base_lr_rule is None):
            raise ValueError(
                "base_lr_rule must say what base_lr is multiplied with, batch_over_256 or batch_over_4, and be null "
                f"without it; got base_lr={self.base_lr} and base_lr_rule={self.base_lr_rule}"
            )
        for key in ("min_lr", "start_lr"):
            if (rate := getattr(self, key)) > self.peak_lr:
                raise ValueError(f"{key} must not exceed the peak rate {self.peak_lr:g}, got {rate:g}")
        return self

    @property
    def effective_batch_size(self) -> int:
        """Records that one optimiser step averages over."""
        return self.batch_size * self.accumulation_steps

    @property
    def peak_lr(self) -> float:
        """The absolute rate at the end of the warm-up: lr, or base_lr times the effective batch by its rule.

        Source: the linear rule, Goyal et al. 2017, arXiv:1706.02677; over 4 in Turgut et al. 2025, arXiv:2308.05764.
        """
        if self.lr is not None:
            return self.lr
        assert self.base_lr is not None
        return self.base_lr * self.effective_batch_size / (256 if self.base_lr_rule == "batch_over_256" else 4)


class Probe(Settings):
    """The linear probe on frozen embeddings: the `val/auroc` of a pre-training epoch, and where fine-tuning begins."""

    l2: float = Field(gt=0)
    max_train_records: int | None = Field(ge=1)


class Collapse(Settings):
    """Where pre-training ends because its encoder no longer tells records apart (trainables.collapse)."""

    min_feature_std: float | None = Field(ge=0)
    min_effective_rank: float | None = Field(ge=0)


class Pretrain(Stage):
    """Self-supervised pre-training: the pretext loss is minimised, the probe is what the search sees."""


class Finetune(Stage):
    """Supervised training of an encoder with a linear head."""

    mode: Literal["finetune", "linprobe", "scratch"]
    pool: Literal["encoder", "attention"]
    """What makes one embedding of a record: the encoder's own way, or attention over its patches, trained here."""
    mask_c_ratio: float = Field(ge=0, lt=1)
    """Share of the leads that are hidden from each record while training; needs an encoder that tells leads apart."""
    mask_t_ratio: float = Field(ge=0, lt=1)
    """Share of the patches in time that are hidden, likewise."""
    layer_decay: float = Field(gt=0, le=1)
    drop_path: float = Field(ge=0, lt=1)
    label_smoothing: float = Field(ge=0, lt=1)
    head_init: Literal["probe", "normal"]
    """Whether the head begins as the linear probe of the encoder, or drawn from N(0, head_init_std)."""
    head_init_std: float = Field(ge=0)
    transforms: list[Component]
    """Augmentations of every training crop, in order (classes of data.transforms)."""

    @model_validator(mode="after")
    def _trains_its_pool(self) -> Self:
        if self.pool == "attention" and self.mode == "linprobe":
            raise ValueError("pool must be encoder where mode is linprobe, which trains the head alone; got attention")
        return self


class Task(Settings):
    """What is learnt: the label protocol, the stages and the metrics."""

    name: str
    stages: Literal["joint", "pretrain", "finetune"]
    """`joint` pre-trains and then fine-tunes in one trial."""
    labels: str
    """Label protocol of the data, e.g. `superdiagnostic`."""
    classes: list[str] | None
    """A subset of the protocol's classes; all of them where null."""
    metrics: list[str] = Field(min_length=1)
    """torchmetrics class names, logged as val/<snake_case>."""
    encoder: str | None
    """Folder of a checkpoint whose encoder `finetune` starts from."""
    folds: int = Field(default=1, ge=1)  # studies of earlier versions do not say
    """1: one validation split. k: a trial trains k models, each validated on its own part of all that is not tested."""
    probe: Probe
    collapse: Collapse
    pretrain: Pretrain
    finetune: Finetune

    @model_validator(mode="after")
    def _has_an_encoder(self) -> Self:
        if self.stages == "finetune" and self.finetune.mode != "scratch" and self.encoder is None:
            raise ValueError(
                f"encoder must name a checkpoint's folder (task.encoder=DIR) where finetune.mode is "
                f"{self.finetune.mode}, got none"
            )
        if self.stages == "joint" and self.finetune.mode == "scratch":
            raise ValueError("finetune.mode must be finetune or linprobe where stages is joint, got scratch")
        return self

    @property
    def num_epochs(self) -> int:
        """Epochs of a whole trial, on the one axis that schedulers see."""
        return self.num_pretrain_epochs + (0 if self.stages == "pretrain" else self.finetune.num_epochs)

    @property
    def num_pretrain_epochs(self) -> int:
        """Epochs of the first stage; 0 where there is none."""
        return 0 if self.stages == "finetune" else self.pretrain.num_epochs


class Cluster(Settings):
    """Where trials run; nothing here changes what a trial computes, but for float rounding."""

    address: str | None
    submit: bool = False  # studies of earlier versions do not say
    """Whether launch.py hands itself to the cluster as a job instead of driving the search from this machine."""
    num_cpus: int | None = Field(ge=1)
    """CPUs of the Ray instance that launch.py starts; all of the machine where null."""
    workers_per_trial: int = Field(ge=1)
    sharding: Literal["none", "full"]
    """Whether each worker of a trial holds the whole model (DDP), or a share of its weights, their gradients and the
    optimiser's state (fully_shard)."""
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"]
    """Where the workers of a trial lie: on few nodes or many where that can be, on one, or on a node each."""
    cpus_per_worker: int = Field(ge=1)
    gpus_per_worker: float | Literal["auto"]
    memory_gb_per_worker: float | None = Field(default=None, gt=0)  # studies of earlier versions do not say
    """Gigabytes of main memory that Ray sets aside for each worker; null sets nothing aside."""
    packing: Literal["none", "measured"] = "none"
    """Whether what a trial takes is measured first, and the CPUs, GPUs and memory of a worker follow from it."""
    max_concurrent_trials: int | Literal["auto"]
    max_failures: int = Field(ge=0)
    """How often a trial is tried again whose process died or whose disk was full; a machine that goes never counts."""

    @field_validator("workers_per_trial", mode="before")
    @classmethod
    def _one_number(cls, workers: Any) -> Any:
        """Refuse what Ray Train knows as an elastic range, with the reason that a search has none."""
        if isinstance(workers, list | tuple | dict) or (isinstance(workers, str) and RANGE.fullmatch(workers.strip())):
            raise ValueError(
                f"must be one number, got {workers}: within a search an elastic trial would take the workers that "
                "other trials wait for, begin anew at each change, and follow the cluster's load with its rounding, so "
                "that it could not be repeated; type the smallest of them, and more trials run at a time instead"
            )
        return workers

    @model_validator(mode="after")
    def _of_the_right_kind(self) -> Self:
        of_a_dashboard = self.address is not None and self.address.startswith(("http://", "https://"))
        if self.submit and not of_a_dashboard:
            raise ValueError(f"address must be http://HOST:PORT, the dashboard's, with cluster=job, got {self.address}")
        if of_a_dashboard and not self.submit:
            raise ValueError(f"address must be HOST:PORT or auto, or type cluster=job, got {self.address}")
        return self

    @model_validator(mode="after")
    def _possible(self) -> Self:
        gpus = 0.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker
        if not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
            raise ValueError(f"gpus_per_worker must be auto, a share of one GPU or a whole number, got {gpus}")
        if self.max_concurrent_trials != "auto" and self.max_concurrent_trials < 1:
            raise ValueError(f"max_concurrent_trials must be auto or at least 1, got {self.max_concurrent_trials}")
        return self

    @model_validator(mode="after")
    def _of_a_gang(self) -> Self:
        if self.workers_per_trial == 1:
            for key, usual in (("sharding", "none"), ("placement", "pack")):
                if (typed := getattr(self, key)) != usual:
                    raise ValueError(
                        f"{key} is about the workers of a trial together: it must be {usual} where workers_per_trial "
                        f"is 1, got {typed}; raise workers_per_trial"
                    )
        elif self.packing == "measured" or self.memory_gb_per_worker is not None:
            raise ValueError(
                "packing must be none and memory_gb_per_worker null where workers_per_trial is above 1: they are for "
                f"trials that share a machine, got {self.packing} and {self.memory_gb_per_worker}"
            )
        elif self.sharding == "full" and self.gpus_per_worker != "auto" and 0 < self.gpus_per_worker < 1:
            raise ValueError(
                "sharding must be none where workers share a GPU: NCCL takes each GPU once, and gloo cannot scatter "
                f"what lies on one; got full and gpus_per_worker={self.gpus_per_worker:g}; make that a whole number"
            )
        return self

    def gpus_of_worker(self, available: float) -> float:
        """GPUs of each worker: as typed, or one where any are `available`."""
        if self.gpus_per_worker == "auto":
            return 1.0 if available > 0 else 0.0
        return self.gpus_per_worker


def backend_of(num_gpus: float) -> Literal["nccl", "gloo"]:
    """What the workers of a gang talk through, given the GPUs of each.

    Two workers with a share of a GPU may have the same one, and NCCL refuses a device that comes twice. gloo takes what
    DDP and our own sums ask of it on a GPU as well, by way of main memory.
    """
    return "nccl" if num_gpus >= 1 else "gloo"


class Run(Settings):
    """One run: what a trial needs to know, whoever chose it."""

    seed: int = Field(ge=0)
    model: Model
    data: Data
    task: Task

    @model_validator(mode="after")
    def _can_pretrain(self) -> Self:
        check_pretext(self.model, self.task)
        return self


def check_pretext(model: Model, task: Task) -> None:
    """Refuse a stage of pre-training without a pretext task.

    Raises:
        ValueError: that says what to type.
    """
    if model.target is None and task.num_pretrain_epochs:
        raise ValueError(
            f"model has no pretext task, so task.stages must be finetune, got {task.stages}: choose another model=NAME "
            "or task=supervised"
        )
