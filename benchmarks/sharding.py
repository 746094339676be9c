"""What a gang's worker holds when the model is shared out (cluster.sharding=full) and when it is not (none), on a CPU.

Pre-trains ST-MEM on noise for a few steps, in 1, 2 and 4 processes of this machine over gloo, and tells for the fullest
worker the bytes of parameters and optimiser state, the most memory that it had beyond what it began with, and the time
of a step. The processes share this machine's processors, so the times tell of what sharding costs beside DDP with as
many workers, and nothing of what workers bring.

python benchmarks/sharding.py [--size small] [--workers 1 2 4] [--json FILE]
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from figures import Figure, parse_arguments, publish

STEPS = 4
BATCH_SIZE = 8


def run_of(size: str) -> Any:
    """The run whose steps are timed."""
    from search_spaces.compose import compose_choices
    from search_spaces.schema import checked

    typed = ["command=train", "search=stmem_ptbxl", "data=synthetic", f"model.encoder.size={size}"]
    return checked(compose_choices([*typed, f"task.pretrain.batch_size={BATCH_SIZE}"]).tree).run


def peak_bytes(*, since_now: bool = False) -> int:
    """The most resident memory of this process, since it began or since it was last asked to forget."""
    if since_now:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): resets the peak
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def held_bytes(state: Any) -> int:
    """Bytes of parameters and optimiser state on this worker."""
    tensors = [*state.model.parameters()]
    tensors += [value for values in state.optimizer.state.values() for value in values.values()]
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def measure(rank: int, num_workers: int, sharding: Any, run_json: str, folder: str) -> None:
    """A worker: take the steps, and write down what they took."""
    import torch
    import torch.distributed as dist

    from data.loaders import worker_share
    from trainables.pretrain import enter_pretrain
    from trainables.settings import Run
    from trainables.state import TrainState
    from trainables.steps import Share, train_epoch
    from trainables.workers import Workers

    torch.set_num_threads(1)
    run = Run.model_validate_json(run_json)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_workers)
    if sharding == "full":
        import torch.distributed.fsdp  # its own memory is no model's
    before = peak_bytes(since_now=True)
    workers = Workers.of_this_process(sharding=sharding)
    state = TrainState("val/auroc", maximize=True)
    enter_pretrain(run, state, workers)
    pretext: Any = state.model
    module = workers.together(pretext)
    share = worker_share(BATCH_SIZE, rank, num_workers)
    signal = torch.randn((len(share), len(run.data.leads), run.data.window_samples))
    laps = []

    def loss() -> Any:
        laps.append(time.perf_counter())
        draws = pretext.draw(BATCH_SIZE, torch.Generator().manual_seed(0))
        return module(signal, {name: draw[share.start : share.stop] for name, draw in draws.items()})

    shares = (Share(loss, len(share), BATCH_SIZE) for _ in range(STEPS))
    stage = run.task.pretrain
    assert state.optimizer is not None
    train_epoch(
        shares,
        num_batches=STEPS,
        module=module,
        optimizer=state.optimizer,
        stage=stage,
        stage_epoch=0,
        workers=workers,
    )
    seconds = (laps[-1] - laps[1]) / (STEPS - 2)  # the first step makes the optimiser's state
    found = {"held": held_bytes(state), "peak": peak_bytes() - before, "seconds": seconds}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()  # another one may still need this one
    # not by the interpreter's end: a thread of Gloo that then still lets go of a tensor aborts the process
    os._exit(0)


def measured(num_workers: int, sharding: str, run_json: str) -> dict[str, float]:
    """The largest figures of a gang's workers."""
    import torch
    import torch.multiprocessing

    with TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (num_workers, sharding, run_json, folder), nprocs=num_workers)
        found = [torch.load(f"{folder}/{rank}.pt") for rank in range(num_workers)]
    return {name: max(worker[name] for worker in found) for name in found[0]}


def main() -> None:
    """Measure gangs of each size, sharded and not."""
    arguments = parse_arguments(
        __doc__ or "",
        ("--size", {"default": "small", "help": "of the encoder: laptop, tiny, small, base (small)"}),
        ("--workers", {"type": int, "nargs": "+", "default": [1, 2, 4], "metavar": "N", "help": "gangs of so many"}),
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "131072")  # else glibc keeps what is freed, and the peak with it
    run_json = run_of(arguments.size).model_dump_json(by_alias=True)
    figures = []
    for num_workers in arguments.workers:
        whole = measured(num_workers, "none", run_json)
        figures += [
            Figure(f"whole_{num_workers}_held", whole["held"] / 2**20, "MiB/worker"),
            Figure(f"whole_{num_workers}_peak", whole["peak"] / 2**20, "MiB/worker"),
            Figure(f"whole_{num_workers}_step", whole["seconds"], "s"),
        ]
        if num_workers == 1:
            continue
        shared = measured(num_workers, "full", run_json)
        for name, unit, scale in (("held", "MiB/worker", 2**20), ("peak", "MiB/worker", 2**20), ("seconds", "s", 1)):
            figures.append(
                Figure(
                    f"sharded_{num_workers}_{'step' if name == 'seconds' else name}",
                    shared[name] / scale,
                    unit,
                    baseline=whole[name] / scale,
                    ratio=whole[name] / shared[name],
                )
            )
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
