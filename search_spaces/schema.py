"""The whole configuration of one command: the only reader of what Hydra composes, and its messages.

`trainables.settings` holds the part that a worker needs (Run); here is what surrounds it. Every field is read by
something; an unknown key is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from search_spaces.former_names import former_name
from search_spaces.tracking_uri import tracking_problem_of
from trainables.components import meant, said_plainly
from trainables.remote_url import problem_of
from trainables.settings import Cluster, Data, Model, Run, Settings, Task, check_pretext


class ChoiceError(ValueError):
    """What was typed or written cannot be run; the message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Confirm(Settings):
    """The best trials are trained again, with seeds that the search has not seen (docs/confirmation.md)."""

    top_k: int = Field(ge=0)
    """How many of them; 0 is none."""
    seeds: int = Field(ge=1)
    """How often each."""


class Reuse(Settings):
    """What the trials of a study compute once (docs/reuse_and_packing.md)."""

    pretraining: bool
    """Whether joint trials whose pre-training has equal settings share its epochs."""
    embeddings: bool
    """Whether trials that start from one checkpoint share what its encoder gives as long as it is frozen."""
    max_gb: float = Field(gt=0)
    """Gigabytes of what is kept for it in the study's folder, of each of the two."""


class Search(Settings):
    """What is optimised, and for how long."""

    name: str
    metric: str
    direction: Literal["maximize", "minimize"]
    num_trials: int = Field(ge=1)
    """Trials that end for a reason of their own; an interrupted one goes on and counts once."""
    keep_best: int = Field(ge=1)
    max_hours: float | None = Field(gt=0)
    max_device_hours: float | None = Field(gt=0)
    confirm: Confirm = Confirm(top_k=0, seeds=3)  # studies of earlier versions do not say
    reuse: Reuse = Reuse(pretraining=False, embeddings=False, max_gb=20.0)  # studies of earlier versions do not say
    ensemble: int | None = Field(default=None, ge=0)
    """Models whose averaged probabilities the report shows, too: as many as keep_best where null, none where 0."""


class TpeSampler(Settings):
    """A tree-structured Parzen estimator (parzen.py)."""

    name: Literal["tpe"]
    num_startup_trials: int = Field(ge=0)


class GpSampler(Settings):
    """A Gaussian process (gaussian.py)."""

    name: Literal["gp"]
    num_startup_trials: int = Field(ge=1)


class CmaEsSampler(Settings):
    """CMA-ES; needs a space of numbers without conditions."""

    name: Literal["cmaes"]
    num_startup_trials: int = Field(ge=0)


class Nsga2Sampler(Settings):
    """NSGA-II, here a genetic algorithm with one objective."""

    name: Literal["nsga2"]
    population_size: int = Field(ge=2)


class PlainSampler(Settings):
    """Uniformly at random, or every combination of the choices once."""

    name: Literal["random", "grid"]


Sampler = Annotated[
    TpeSampler | GpSampler | CmaEsSampler | Nsga2Sampler | PlainSampler,
    Field(discriminator="name"),
]


class EndsPlateaus(Settings):
    """A scheduler that can end a trial which no longer improves; studies of before have neither key."""

    plateau_epochs: int | None = Field(default=None, ge=1)
    plateau_tolerance: float = Field(default=0.0, ge=0)


class FifoScheduler(EndsPlateaus):
    """Every trial runs to its end."""

    name: Literal["fifo"]


class AshaScheduler(EndsPlateaus):
    """Asynchronous successive halving."""

    name: Literal["asha"]
    grace_epochs: int | None = Field(ge=1)
    """The first rung; where it is null, `checked` puts `first_rung`."""
    reduction_factor: int = Field(ge=2)


class AshaPromotionScheduler(EndsPlateaus):
    """Asynchronous successive halving in which a trial waits at each rung until it is promoted."""

    name: Literal["asha_promotion"]
    grace_epochs: int | None = Field(ge=1)
    """The first rung; where it is null, `checked` puts `first_rung`."""
    reduction_factor: int = Field(ge=2)


class MedianScheduler(EndsPlateaus):
    """Stop what lies below the median of the others."""

    name: Literal["median"]
    grace_epochs: int = Field(ge=1)
    min_trials: int = Field(ge=1)


class PbtScheduler(Settings):
    """Population-based training: the worst trials go on from the best ones' weights with other choices."""

    name: Literal["pbt"]
    interval_epochs: int = Field(ge=1)
    quantile: float = Field(gt=0, le=0.5)
    resample_probability: float = Field(ge=0, le=1)
    factors: tuple[float, float]
    """What a number may be multiplied with when an exploiting trial changes it."""

    @field_validator("factors")
    @classmethod
    def _down_and_up(cls, factors: tuple[float, float]) -> tuple[float, float]:
        if not 0 < factors[0] < 1 < factors[1]:
            raise ValueError(f"factors must be one between 0 and 1 and one above 1, got {list(factors)}")
        return factors


Scheduler = Annotated[
    FifoScheduler | AshaScheduler | AshaPromotionScheduler | MedianScheduler | PbtScheduler,
    Field(discriminator="name"),
]


class NoTracking(Settings):
    """The study's own folder is all."""

    name: Literal["none"]


class WandbTracking(Settings):
    """Weights & Biases, one run a trial."""

    name: Literal["wandb"]
    project: str
    entity: str | None
    mode: Literal["online", "offline"]


class TensorboardTracking(Settings):
    """TensorBoard's event files in the study's folder, one run a trial."""

    name: Literal["tensorboard"]


class MlflowTracking(Settings):
    """MLflow, one run a trial."""

    name: Literal["mlflow"]
    uri: str | None
    """Of a server or a database; none: a database in the study's folder."""

    @field_validator("uri")
    @classmethod
    def _names_no_secret_and_no_folder(cls, uri: str | None) -> str | None:
        if uri is not None and (problem := tracking_problem_of(uri)) is not None:
            raise ValueError(problem)
        return uri


Tracking = Annotated[NoTracking | WandbTracking | TensorboardTracking | MlflowTracking, Field(discriminator="name")]


class Scale(Settings):
    """Which scale the values come from; part of the study folder's default name."""

    name: str


class Debug(Settings):
    """How much is said while running."""

    enabled: bool
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class Evaluate(Settings):
    """Which records an evaluation is made on."""

    fold: Literal["valid", "test"] | int
    num_resamples: int = Field(ge=1)
    """Bootstrap resamples (by patient) behind the bias of AUPRCs, calibration and differences of subgroups."""
    threshold: Literal["f1", "youden", "sensitivity"] = "f1"
    """How each class's threshold is chosen on validation."""
    min_sensitivity: float = Field(default=0.9, gt=0, le=1)
    """For threshold=sensitivity: the largest threshold that reaches it on validation."""
    beta: float | None = Field(default=None, gt=0)
    """Of F-beta and G-beta, where the data set's convention asks for them (2 on CPSC2018); null shows neither."""
    protocol: Literal["ptb_xl_benchmark"] | None = None
    """A published protocol whose figure is shown too, so that it stands beside the literature's."""
    earlier_studies: list[str] = []
    """Folders of studies: the best of their models on the same records has a row in the report."""
    cost_per_device_hour: float | None = Field(default=None, ge=0)
    """The report multiplies it with the device-hours; None: no cost is shown."""
    currency: str = "EUR"
    num_mistakes: int = Field(default=2, ge=0)
    """The most confident mistakes on the test fold that are drawn, of each class and kind."""


class Artifacts(Settings):
    """What command=artifacts draws beside the embeddings."""

    num_records: int = Field(default=4, ge=0)
    """Records whose saliency, attention and reconstruction are drawn."""


Command = Literal[
    "search",
    "train",
    "evaluate",
    "artifacts",
    "export",
    "report",
    "compare",
    "index",
    "dashboard",
    "prepare",
    "show",
    "preflight",
    "import",
]
OF_A_CHECKPOINT = ("evaluate", "artifacts", "export")
"""Commands that need checkpoint=DIR."""

UNCHANGED_BY = {"name", "root", "store_dir", "download", "max_unreadable_share"}
"""Keys of `data` that say where the recordings are, not what they are: a study may move."""


class Launch(Settings):
    """One command line, resolved.

    A key that studies of earlier versions do not have needs a default, else they cannot be resumed.
    """

    command: Command
    study_dir: str
    storage: str | None
    """A folder in an object store, of which study_dir is then a working copy."""
    resume: Literal["auto", "never", "must"]
    trial: int | None = Field(ge=0)
    trial_seed: int | None = Field(default=None, ge=1)
    checkpoint: str | list[str] | None
    """A folder; several for command=artifacts."""
    weights: str | None
    mapping: str | None
    study_dirs: list[str] | None = Field(default=None, min_length=2)
    port: int | None = Field(default=None, ge=0, le=65535)
    seed: int = Field(ge=0)
    search: Search
    space: dict[str, Any]
    options: dict[str, dict[str, dict[str, Any]]]
    """Composed subtrees of the groups that the space chooses among: key of the group -> option -> subtree."""
    model: Model
    data: Data
    task: Task
    cluster: Cluster
    sampler: Sampler
    scheduler: Scheduler
    scale: Scale
    tracking: Tracking
    debug: Debug
    evaluate: Evaluate
    artifacts: Artifacts = Artifacts()

    @field_validator("storage")
    @classmethod
    def _names_a_folder_of_a_store(cls, storage: str | None) -> str | None:
        if storage is not None and (problem := problem_of(storage)) is not None:
            raise ValueError(problem)
        return storage

    @model_validator(mode="after")
    def _reads_the_encoder(self) -> Self:
        reads = self.task.stages == "finetune" and self.task.finetune.mode != "scratch"
        if self.task.encoder is not None and not reads:
            raise ValueError(
                "task.encoder must be null unless fine-tuning alone starts from it (task=finetune, and "
                f"task.finetune.mode finetune or linprobe), got {self.task.encoder}"
            )
        return self

    @model_validator(mode="after")
    def _can_pretrain(self) -> Self:
        check_pretext(self.model, self.task)
        return self

    @model_validator(mode="after")
    def _can_confirm(self) -> Self:
        if self.search.confirm.top_k and self.scheduler.name == "pbt":
            raise ValueError(
                "search.confirm.top_k must be 0 with scheduler=pbt, where a trial that took over others' weights "
                f"cannot be trained again alone, got {self.search.confirm.top_k}"
            )
        return self

    @model_validator(mode="after")
    def _read_by_the_command(self) -> Self:
        if self.trial_seed is not None and self.trial is None:
            raise ValueError("trial_seed goes with trial=N, the trial that was confirmed")
        if self.checkpoint is not None and self.command not in OF_A_CHECKPOINT:
            raise ValueError(f"checkpoint goes with command={', '.join(OF_A_CHECKPOINT)}, got command={self.command}")
        if isinstance(self.checkpoint, list) and self.command != "artifacts":
            raise ValueError(f"command={self.command} takes one checkpoint, got {len(self.checkpoint)}")
        read_by = {"trial": "train", "weights": "import", "mapping": "import"}
        read_by |= {"study_dirs": "compare", "port": "dashboard"}
        for key, command in read_by.items():
            if getattr(self, key) is not None and self.command != command:
                raise ValueError(f"{key} goes with command={command}, got command={self.command}")
            if getattr(self, key) is None and self.command == command == "import":
                raise ValueError(f"command=import needs {key}=FILE")
        if self.command == "compare" and self.study_dirs is None:
            raise ValueError("command=compare needs study_dirs=[DIR1,DIR2], the folders of two studies or more")
        of_a_study = self.command in ("search", "report", "show", "preflight", "dashboard") or (
            self.command == "train" and self.trial is not None
        )
        if self.storage is not None and not of_a_study:
            said = "storage goes with a study: command=search, preflight, report, or train with trial=N"
            raise ValueError(f"{said}, got {self.command}")
        return self

    @model_validator(mode="after")
    def _submitted_as_a_job(self) -> Self:
        if self.cluster.submit and self.command not in ("search", "show", "report"):
            raise ValueError(f"cluster=job goes with command=search, got command={self.command}: leave cluster=job out")
        return self

    @property
    def checkpoints(self) -> list[Path]:
        """The folders that `checkpoint` names."""
        named = [self.checkpoint] if isinstance(self.checkpoint, str) else self.checkpoint or []
        return [Path(folder) for folder in named]

    @property
    def run(self) -> Run:
        """The part of the configuration that a trial needs."""
        return Run(seed=self.seed, model=self.model, data=self.data, task=self.task)

    def identity(self) -> dict[str, Any]:
        """All that changes a trial's numbers, as plain values: two studies with equal identities are one study.

        Budgets, cluster, tracking and places on a disk are left out, so that they may change between two launches.
        The recordings and the weights to start from are the caller's to compare, by their hashes.
        """
        tree = self.model_dump(mode="json", by_alias=True)
        search = {key: tree["search"][key] for key in ("metric", "direction")}
        kept = ("space", "options", "model", "seed", "sampler", "scheduler")
        return {"search": search, **without_places(self)} | {key: tree[key] for key in kept}


def tree_of(launch: Launch) -> dict[str, Any]:
    """The resolved configuration as plain values."""
    return launch.model_dump(mode="json", by_alias=True)


def without_places(settings: Launch | Run) -> dict[str, Any]:
    """`data` and `task` as plain values, without the keys that say where something lies."""
    data, task = (part.model_dump(mode="json", by_alias=True) for part in (settings.data, settings.task))
    del task["encoder"]
    if task["folds"] == 1:
        del task["folds"]  # as studies of earlier versions have it
    if data["subsample_seed"] is None:
        del data["subsample_seed"]
    return {"data": {key: value for key, value in data.items() if key not in UNCHANGED_BY}, "task": task}


def checked(tree: Mapping[str, Any]) -> Launch:
    """Hold a composed configuration against the schema.

    Raises:
        ChoiceError: one line that names the keys that cannot be, what must hold and what came.
    """
    for key, value in dotted(tree).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ChoiceError(f"{key}: must be finite, got {value}")
    try:
        launch = Launch.model_validate(tree)
    except ValidationError as error:
        raise ChoiceError(problems(error, tree)) from error
    scheduler = launch.scheduler
    if scheduler.name in ("asha", "asha_promotion") and scheduler.grace_epochs is None:
        scheduler = scheduler.model_copy(
            update={"grace_epochs": first_rung(launch.task.num_epochs, scheduler.reduction_factor)}
        )
    return launch.model_copy(update={"scheduler": scheduler})


def first_rung(num_epochs: int, reduction_factor: int) -> int:
    """Where halving first decides unless it is told: a quarter of the trial where the best half of a rung goes on.

    So a trial passes two rungs. One that decides earlier decides by chance (docs/choosing_a_scheduler.md).
    """
    return math.ceil(num_epochs / reduction_factor**2)


def problems(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """A validation error in one line, with the keys as they are typed.

    Args:
        error: from a model that mirrors `tree`.
        tree: what was validated.
    """
    lines: dict[str, list[str]] = {}
    for detail in error.errors():
        key = ".".join(_typed_path(detail["loc"], tree))
        lines.setdefault(key, []).append(_said(detail, key, tree))
    return "; ".join(
        f"{key}: {said}" if key else said for key, said in ((key, _joined(said)) for key, said in lines.items())
    )


def _joined(said: list[str]) -> str:
    """What the members of a union say of one key; what came is said once."""
    heads = dict.fromkeys(line.partition(", got ")[0] for line in said)
    came = next((f", got {line.partition(', got ')[2]}" for line in said if ", got " in line), "")
    return " or ".join(heads).replace(" or must be ", " or ") + came if len(said) > 1 else said[0]


def _typed_path(location: tuple[int | str, ...], tree: Mapping[str, Any]) -> list[str]:
    """A location as keys of the tree, without the tags that unions put in between."""
    path: list[str] = []
    node: Any = tree
    for part in location:
        keys = node if isinstance(node, Mapping) else range(len(node)) if isinstance(node, list | tuple) else ()
        if part in keys:
            node = node[part]
        elif not isinstance(node, Mapping) or part != location[-1]:
            continue  # the last part may be missing from the tree: that may be what is wrong
        path.append(str(part))
    return path


def _said(detail: Any, key: str, tree: Mapping[str, Any]) -> str:
    """What must hold and what came."""
    kind = detail["type"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return unknown_key(key, _names_beside(key, tree))
    if kind == "union_tag_invalid":
        allowed = detail["ctx"]["expected_tags"].replace("'", "")
        return f"name must be one of {allowed}, got {detail['ctx']['tag']!r}"
    if kind == "value_error":  # our own, which says what came
        return said_plainly(detail)
    came = repr(detail["input"])
    return f"{said_plainly(detail)}, got {came if len(came) <= 80 else came[:77] + '...'}"


def _names_beside(key: str, tree: Mapping[str, Any]) -> list[str]:
    """All keys that can be typed, without `key` and what lies in it."""
    inside = (f"{key}.", "options.")  # the options of searched groups: nobody types them
    return [name for name in dotted(tree) if not f"{name}.".startswith(inside)]


def unknown_key(key: str, known: Collection[str]) -> str:
    """What to say of a key that there is not: its name here if it is ST-MEM's, the one meant, or those beside it.

    Args:
        key: dotted.
        known: dotted names of all keys, without this one.
    """
    if (former := former_name(key)) is not None:
        return former
    head, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == head}
    elsewhere = sorted(name for name in known if name.endswith(f".{last}"))[:3]
    if (close := meant(last, beside)) is not None:
        return f"no such key; did you mean {beside[close]}?"
    if elsewhere:
        return f"no such key; did you mean {' or '.join(elsewhere)}?"
    if head not in known and (close := meant(key, known)) is not None:
        return f"no such key; did you mean {close}?"
    while head and head not in known:
        head = head.rpartition(".")[0]
    inside = sorted(name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == head)
    return f"no such key; {head or 'the configuration'} holds {', '.join(inside) or 'no other'}"


def dotted(tree: Mapping[str, Any] | list[Any], prefix: str = "") -> dict[str, Any]:
    """Every key of a configuration by its dotted name; the keys of a list are its positions."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    flat: dict[str, Any] = {}
    for part, value in items:
        key = f"{prefix}{part}"
        flat[key] = value
        if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(item, Mapping) for item in value)):
            flat |= dotted(value, f"{key}.")
    return flat
