"""A gang of two processes on this machine, for tests of what workers compute together; no Ray."""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing


def run_by_two(work, *arguments):
    """Call `work(rank, *arguments)` in both processes; what either raises is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_member, (Path(folder, "rendezvous"), work, arguments), nprocs=2)


def _member(rank, rendezvous, work, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    work(rank, *arguments)
    dist.barrier()  # the other one may still need this one
    # not by the interpreter's end: a thread of Gloo that then still lets go of a tensor aborts the process
    os._exit(0)
