"""How many trials share a machine or a GPU: as many as fit by what the largest of them was measured to take.

A trial that runs out of memory takes others down with it, so nothing is guessed: the largest run of the space is looked
for, a fresh process of the cluster goes through a piece of it (trainables.peak), and a margin is added. Threads are
shared out so that all trials of a node together have as many as it has CPUs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from search_spaces.distributions import Space, extremes, parse, run_with
from search_spaces.estimate import StageSteps, made_up_signals, steps_of
from search_spaces.schema import ChoiceError, Launch
from search_spaces.tuning import concurrency
from trainables.nodes import usable_nodes
from trainables.peak import Need, measure
from trainables.settings import Cluster, Run
from trainables.study import StudyError

MARGIN = 0.2
"""What is set aside beyond what was measured, as a share of it: for other shapes of batches, and fragmentation."""
MOST_PER_GPU = 8
"""Trials that share a GPU. Ray's shares have four decimals: smaller ones would no longer add up to whole GPUs."""
PARTS = 10_000
"""Of a GPU: the least share that Ray gives."""
RECORDS = 2  # of the step by which runs are compared
WEIGHTS = 4  # tensors of a model's size in a step: the weights, their gradients and AdamW's two moments


def packed(launch: Launch, store: Path) -> tuple[Cluster, str]:
    """The launch's cluster with what a worker of its trials takes, measured on the connected Ray.

    Args:
        launch: with cluster.packing=measured.
        store: the prepared recordings.

    Returns:
        The cluster with cpus_per_worker, gpus_per_worker and memory_gb_per_worker set, and what a user is told of it.

    Raises:
        StudyError: if the largest trial could not be tried, or fits on no node.
    """
    nodes = list(usable_nodes().values())
    whole_gpus = launch.cluster.gpus_of_worker(sum(node.get("GPU", 0.0) for node in nodes))
    run = largest_run(launch, parse(launch.space))
    need = measured_on(launch.cluster, run, store, num_gpus=math.ceil(whole_gpus))
    kinds = {key for node in nodes for key in node if key.startswith("accelerator_type:")}
    share = share_of_gpu(need) if launch.cluster.gpus_per_worker == "auto" and len(kinds) < 2 else whole_gpus
    most = launch.search.num_trials
    if launch.cluster.max_concurrent_trials != "auto":
        most = min(most, launch.cluster.max_concurrent_trials)
    cluster = shared_out(launch.cluster, need, nodes, num_gpus=share if whole_gpus else 0.0, most=most)
    return cluster, _said(cluster, need, concurrency(cluster, nodes, float(cluster.gpus_of_worker(whole_gpus))))


def _said(cluster: Cluster, need: Need, at_a_time: int) -> str:
    gpu = ""
    if need.gpu_memory:
        gpu = f" and {need.gpu_memory / 1e9:.3g} of {need.gpu_total / 1e9:.3g} GB of a GPU"
        gpu += f", of which it gets {cluster.gpus_per_worker:g}"
    threads = f"{cluster.cpus_per_worker} thread{'s' if cluster.cpus_per_worker > 1 else ''}"
    return (
        f"packing: the largest trial takes {need.memory / 1e9:.3g} GB{gpu} (measured; {MARGIN:.0%} more is set aside), "
        f"so {at_a_time} at a time, {threads} each"
    )


# -------- arithmetic


def share_of_gpu(need: Need) -> float:
    """The share of a GPU that Ray is asked for, so that as many trials share it as fit; 0 without one.

    Rounded down to what Ray can give, so that all of them fit into one.
    """
    if need.gpu_memory == 0:
        return 0.0
    fitting = math.floor(need.gpu_total / ((1 + MARGIN) * need.gpu_memory))
    return PARTS // min(max(fitting, 1), MOST_PER_GPU) / PARTS


def shared_out(
    cluster: Cluster, need: Need, nodes: Sequence[Mapping[str, float]], *, num_gpus: float, most: int
) -> Cluster:
    """A cluster whose workers have what they need, and whose nodes' CPUs are shared out among them.

    Args:
        cluster: whose `cpus_per_worker` is the least that a worker gets.
        need: of a worker.
        nodes: the resources of each.
        num_gpus: of a worker.
        most: trials that there may be at a time.

    Raises:
        StudyError: if a worker fits on no node.
    """
    gb = math.ceil(need.memory * (1 + MARGIN) / 1e6) / 1e3
    given = cluster.model_copy(update={"gpus_per_worker": num_gpus, "memory_gb_per_worker": gb})
    alone = given.model_copy(update={"max_concurrent_trials": most})
    concurrency(alone, nodes, num_gpus)  # refuses what fits nowhere
    threads = []
    for node in nodes:
        try:
            at_a_time = concurrency(alone, [node], num_gpus)
        except StudyError:  # it holds none
            continue
        threads.append(math.floor(node["CPU"] / at_a_time))
    return given.model_copy(update={"cpus_per_worker": max(cluster.cpus_per_worker, min(threads))})


# -------- measuring


def measured_on(cluster: Cluster, run: Run, store: Path, *, num_gpus: float) -> Need:
    """What a fresh process of the connected Ray takes for a run, on a whole GPU where workers have any.

    Raises:
        StudyError: if it fails, as it does for want of memory.
    """
    trying = ray.remote(num_cpus=cluster.cpus_per_worker, num_gpus=num_gpus, max_retries=0, max_calls=1)(measure)
    try:
        need: Need = ray.get(trying.remote(run, store, num_gpus=num_gpus, num_threads=cluster.cpus_per_worker))
    except RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]
        raise StudyError(
            f"the largest trial of the space could not be tried ({reason}): make its model or its batches smaller, or "
            "type cluster.packing=none"
        ) from error
    return need


def largest_run(launch: Launch, space: Space) -> Run:
    """The run of the space that takes most memory: each choice, one after the other, at the end that takes more.

    By what a step keeps for its backward pass, which is counted; so a larger batch, a larger model and more patches are
    found without being told which keys these are.
    """
    chosen: dict[str, object] = {}
    for leaf in space.leaves:
        if not leaf.holds(chosen):
            continue
        sizes: dict[int, object] = {}
        for value in extremes(leaf):
            try:
                run = run_with(launch, {**chosen, leaf.key: value})
            except ChoiceError:  # it does not go with those before
                continue
            sizes.setdefault(step_bytes(run), value)
        if sizes:
            chosen[leaf.key] = sizes[max(sizes)]
    return run_with(launch, chosen)


def step_bytes(run: Run) -> int:
    """About what a step of a run keeps, of the stage that keeps more: for runs to be compared by."""
    return _step_bytes(shape_of(run).model_dump_json(by_alias=True))


def shape_of(run: Run) -> Run:
    """The run without what no tensor's shape depends on, so that runs of the same shapes are equal."""
    rates = {"lr": 1.0, "base_lr": None, "base_lr_rule": None, "start_lr": 0.0, "min_lr": 0.0, "num_epochs": 1}
    rates |= {"warmup_share": 0.0, "weight_decay": 0.0, "final_weight_decay": None, "clip_norm": None}
    task = run.task
    stages = {
        "pretrain": task.pretrain.model_copy(update=rates),
        "finetune": task.finetune.model_copy(update=rates | {"layer_decay": 1.0, "label_smoothing": 0.0}),
    }
    return run.model_copy(update={"seed": 0, "task": task.model_copy(update=stages)})


@functools.lru_cache(maxsize=256)
def _step_bytes(run_json: str) -> int:
    run = Run.model_validate_json(run_json)
    return max(_kept_by(steps, run) for steps in steps_of(run, torch.device("cpu")))


def _kept_by(steps: StageSteps, run: Run) -> int:
    """Bytes of a step of a stage: what its records keep for the backward pass, its weights and what goes with them."""
    weights = {parameter.untyped_storage().data_ptr(): parameter.nbytes for parameter in steps.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = steps.loss_of(RECORDS)(made_up_signals(run, RECORDS, steps.num_views))
    of_records = sum(size for place, size in kept.items() if place not in weights)
    del loss  # until now it has held what was kept, so that no place was used twice
    return of_records * steps.stage.batch_size // RECORDS + WEIGHTS * sum(weights.values())
