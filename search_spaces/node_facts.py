"""What one node of a cluster says of itself before a search: its disks, the recordings, versions, clock, speed.

This runs on every node. It imports the standard library and Ray alone, so that it answers within a second even where
torch would have to be read from a cold disk first.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from data.fingerprint import fingerprint
from trainables.source import source_digest

OF_A_WORKER = ("data", "models", "reports", "search_spaces", "trainables")
"""The packages that travel to the nodes of a cluster: not the recordings and studies that may lie beside them."""
PACKAGES = (
    "ray",
    "torch",
    "numpy",
    "optuna",
    "pandas",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scipy",
    "torchmetrics",
)
DRIVERS_FILE = "driver"
VISIBLE_AFTER_S = 3.0
"""How long a file may take to be seen on another machine: network file systems remember for a while what was there."""


@dataclass(frozen=True)
class Request:
    """What a node is asked.

    Attributes:
        meeting: a new folder in the study's, in which the driver has put DRIVERS_FILE; None where the study's folder
            is the driver's alone.
        study_dir: the study's folder.
        content: of that file.
        store: of the recordings.
        seed: draws the pages of the store that are looked at.
        probes: further checks by name, called on each node; None where all is well, else one line on what is wrong.
    """

    meeting: Path | None
    study_dir: Path
    content: str
    store: Path
    seed: int
    probes: Mapping[str, Callable[[], str | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Disks:
    """What is left on a node's file systems.

    Attributes:
        study_free: bytes, where the study's folder is.
        temporary_free: bytes, where Ray keeps its logs and objects.
        temporary_used: the share of that file system that is taken, between 0 and 1.
    """

    study_free: int
    temporary_free: int
    temporary_used: float


@dataclass(frozen=True)
class NodeFacts:
    """What a node answers.

    Attributes:
        began: its clock when it began, seconds of the epoch.
        ended: its clock when it ended.
        storage: "same" where it was asked nothing, or read the driver's file and wrote its own; else what went wrong:
            "absent", "another folder", "another content", or the system's words after "cannot read: " or
            "cannot write: ".
        disks: what is left on them.
        data: fingerprint of the store; what went wrong under "error".
        versions: of Python, the packages and our own source.
        cpus: that a process may use.
        gpus: that the machine's driver lists, whether Ray offers them or not; None where that cannot be told.
        probes: answers of the further checks.
        seconds: what each of storage, data, versions and the probes took.
    """

    began: float
    ended: float
    storage: str
    disks: Disks
    data: dict[str, str]
    versions: dict[str, str]
    cpus: int
    gpus: int | None
    probes: dict[str, str | None]
    seconds: dict[str, float]


def facts_of_this_node(request: Request, name: str) -> NodeFacts:
    """Look around on this node.

    Args:
        request: what to look at.
        name: of the file that this node leaves in the meeting folder.
    """
    began = time.time()
    seconds: dict[str, float] = {}

    def timed(what: str, look: Callable[..., Any], *given: Any) -> Any:
        started = time.perf_counter()
        found = look(*given)
        seconds[what] = time.perf_counter() - started
        return found

    storage = timed("storage", met, request, name)
    return NodeFacts(
        storage=storage,
        disks=disks_here(request.study_dir),
        data=timed("data", fingerprint_or_error, request.store, request.seed),
        versions=timed("versions", versions_here),
        cpus=len(os.sched_getaffinity(0)),
        gpus=gpus_here(),
        probes={what: timed(what, answer_of, probe) for what, probe in request.probes.items()},
        seconds=seconds,
        began=began,
        ended=time.time(),
    )


def met(request: Request, name: str) -> str:
    """Read the driver's file and leave one's own beside it; nothing is written where the driver's is not."""
    if request.meeting is None:
        return "same"
    theirs, study = request.meeting / DRIVERS_FILE, request.study_dir
    give_up = time.monotonic() + VISIBLE_AFTER_S
    while True:
        try:
            found = theirs.read_text()
            if found == request.content or time.monotonic() > give_up:
                break
        except FileNotFoundError:
            if time.monotonic() > give_up:
                return "another folder" if study.is_dir() else "absent"
        except (OSError, ValueError) as error:
            return f"cannot read: {reason_of(error)}"
        time.sleep(0.1)
        listed(study)
    if found != request.content:
        return "another content"
    try:
        with (request.meeting / name).open("w") as file:
            file.write(answer_to(request.content, name))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"cannot write: {reason_of(error)}"
    return "same"


def answer_to(content: str, name: str) -> str:
    """What a node writes into its file: only one that has read the driver's can know it."""
    return hashlib.sha256(f"{content} {name}".encode()).hexdigest()


def listed(folder: Path) -> None:
    """List a folder: a network file system then asks its server again what is in it."""
    try:
        os.listdir(folder)
    except OSError:
        return


def listing(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of the files in a folder; none where it is not there."""
    return sorted((path.name, path.stat().st_size) for path in folder.glob("*") if path.is_file())


def other_listing(folder: Path, wanted: list[tuple[str, int]]) -> str | None:
    """What is wrong with this node's copy of a folder, told from its files' names and sizes; None where nothing is."""
    found = listing(folder)
    if found == wanted:
        return None
    differing = sorted({name for name, _ in set(wanted) ^ set(found)})
    return f"{folder} must hold the files that it holds on the driver's machine, {', '.join(differing[:3])} differ"


def reason_of(error: Exception) -> str:
    """An error in the system's words, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def disks_here(study_dir: Path) -> Disks:
    """What is left on the file systems of the study's folder and of Ray's own."""
    total, _, free = usage_of(Path(ray.get_runtime_context().get_temp_dir()))
    return Disks(usage_of(study_dir)[2], free, 1 - free / max(total, 1))


def usage_of(folder: Path) -> tuple[int, int, int]:
    """Bytes in all, used and left for us, where `folder` is or the nearest one above it that can be asked."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place)
        except OSError:
            continue
    return (0, 0, 0)


def fingerprint_or_error(store: Path, seed: int) -> dict[str, str]:
    """A store's fingerprint, or why there is none."""
    try:
        return fingerprint(store, seed=seed)
    except FileNotFoundError as error:
        missing = store if not store.exists() else error.filename
        return {"error": f"there is no {missing}"}
    except OSError as error:
        return {"error": f"{error.filename or store} cannot be read: {reason_of(error)}"}


def versions_here() -> dict[str, str]:
    """What results depend on, as this process has it."""
    found = {
        "Python": platform.python_version(),
        "machine": platform.machine(),
        "our code": source_digest(OF_A_WORKER)[:12],
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def gpus_here() -> int | None:
    """NVIDIA GPUs that the machine's driver lists; None where it lists none, as without a driver or in a container."""
    listing = Path("/proc/driver/nvidia/gpus")
    try:
        return len(list(listing.iterdir())) or None
    except OSError:
        return None


def timed_on_this_node(
    run: dict[str, Any], num_records: int, num_labelled: int, num_gpus: float, num_threads: int, budget_s: float
) -> tuple[float, str]:
    """Seconds that one worker alone would compute at a trial (estimate.seconds_alone), and this node's id."""
    from search_spaces.estimate import seconds_alone  # with torch, which the other questions do without
    from trainables.settings import Run

    alone = seconds_alone(
        Run.model_validate(run),
        num_records,
        num_labelled,
        num_gpus=num_gpus,
        num_threads=num_threads,
        budget_s=budget_s,
    )
    return alone, ray.get_runtime_context().get_node_id()


def answer_of(probe: Callable[[], str | None]) -> str | None:
    """What a further check says; one that fails says so."""
    try:
        return probe()
    except Exception as error:  # noqa: BLE001  whatever it is, it must reach the driver with the node's name
        return f"{type(error).__name__}: {reason_of(error)}"
