"""Where a result comes from: the code's revision, the versions of what it runs on, the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil
import torch

PACKAGES = (
    *("heartsweep", "ray", "torch", "optuna", "hydra-core", "omegaconf", "pydantic", "numpy", "pandas", "pyarrow"),
    *("scipy", "safetensors", "wfdb", "torchmetrics"),
)
REVISION = "revision.txt"
"""Beside this file where the code has left its repository, as in a job on a cluster: what git_revision() said there."""


@functools.cache
def git_revision() -> str | None:
    """The commit of this code, with "+changes" where files differ from it; None where that is not known."""
    folder = Path(__file__).parent
    if (folder / REVISION).exists():
        return (folder / REVISION).read_text(encoding="utf-8").strip()
    try:
        git("ls-files", "--error-unmatch", Path(__file__).name, folder=folder)  # installed inside another repository?
        revision = git("rev-parse", "HEAD", folder=folder).strip()
        changed = git("status", "--porcelain", "--untracked-files=no", folder=folder)
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+changes" if changed else "")


def git(*arguments: str, folder: Path) -> str:
    """What git answers.

    Raises:
        OSError, subprocess.CalledProcessError: if it is not there, or refuses.
    """
    answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True)
    return answer.stdout.decode(errors="replace")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that results depend on, where they are installed."""
    found = {"python": platform.python_version()}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str | int | float]:
    """The machine of this process, without a name that would tell whose it is."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu,
        "num_gpus": torch.cuda.device_count(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
