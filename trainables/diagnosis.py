"""Reads from errors of Ray's, or of a gang's workers, whether a trial was interrupted or failed for its own reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError
from torch.distributed import DistError

from trainables.failures import Cause, InterruptedTrial, one_line
from trainables.files import StorageError

OF_A_DEAD_NODE = ("node has died", "node was terminated", "node is dead", "owner has died", "owner's node has crashed")
"""How Ray words the end of an actor whose machine is gone; there is no type for it."""
OF_A_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")
"""What the surviving workers of a gang say when another one has died."""


@dataclass(frozen=True)
class Note:
    """What a worker of a gang says of the error that ends it; plain values only.

    Attributes:
        kind: "own", "peer" (another worker no longer answers), or the cause of an interruption.
        reason: in one line.
        node: where the worker ran.
    """

    kind: str
    reason: str
    node: str

    @classmethod
    def of(cls, error: BaseException, node: str) -> Note:
        """The note of an error in a worker's own process."""
        if (interruption := interruption_in(error, node)) is not None:
            return cls(interruption.cause, interruption.reason, node)
        peer = isinstance(error, DistError) or (
            isinstance(error, RuntimeError) and any(word in str(error) for word in OF_A_LOST_PEER)
        )
        return cls("peer" if peer else "own", said(error), node)


def said(error: BaseException) -> str:
    """An error's own words, in one line, with its kind."""
    return one_line(f"{type(error).__name__}: {error}")


def interruption_in(error: BaseException, node: str) -> InterruptedTrial | None:
    """What interrupts a trial in the process where `error` was raised; None for an error of the trial's own.

    Args:
        error: raised by the trial's epochs.
        node: where.
    """
    if isinstance(error, InterruptedTrial):
        return error
    if isinstance(error, StorageError):
        return InterruptedTrial("storage", str(error), (node,))
    return None


def interruption_of(
    error: BaseException, *, alive: Callable[[str], bool], nodes: Iterable[str]
) -> InterruptedTrial | None:
    """What interrupted a trial, as its driver sees it; None where it failed for a reason of its own.

    Args:
        error: what Ray says of the trial's actor or its method.
        alive: whether a node lives.
        nodes: where the trial ran.
    """
    nodes = tuple(nodes)
    if isinstance(error, RayTaskError):  # first: what Ray raises is of its cause's class, too
        return interruption_of(error.cause, alive=alive, nodes=nodes)
    if isinstance(error, InterruptedTrial):
        return error
    if isinstance(error, RayActorError):
        if error.actor_init_failed:  # its constructor raised
            return None
        if error.preempted:
            return InterruptedTrial("node_draining", _last_line(error), nodes)
        gone = isinstance(error, ActorUnavailableError) or _says(error, OF_A_DEAD_NODE)
        lost = gone or not all(map(alive, nodes))
        return InterruptedTrial("node_lost" if lost else "process_died", _last_line(error), nodes)
    if isinstance(error, RayError):  # the worker crashed, memory ran out, an object was lost
        return InterruptedTrial("process_died", said(error), nodes)
    return None


def interruption_of_gang(
    worker_failures: Mapping[int, BaseException],
    notes: Iterable[Note],
    *,
    alive: Callable[[str], bool],
    nodes: Iterable[str],
) -> InterruptedTrial | None:
    """What interrupted the workers of a gang; None where they failed for a reason of the trial's own.

    One worker's end ends the others too, with errors that say nothing. So a lost machine comes before a lost process,
    this before a disk, and an error of the trial's own counts only where none of these is known.

    Args:
        worker_failures: by rank, as Ray Train has seen them.
        notes: of workers whose error was raised in their own process.
        alive: whether a node lives.
        nodes: where the workers ran.
    """
    notes, nodes = list(notes), tuple(nodes)
    seen = [
        interruption_of(error, alive=alive, nodes=nodes)
        for error in worker_failures.values()
        if isinstance(error, RayError)
    ]
    found: dict[str, InterruptedTrial] = {}
    for interruption in (found for found in seen if found is not None):
        found.setdefault(interruption.cause, interruption)
    for note in notes:
        if note.kind in get_args(Cause):
            found.setdefault(note.kind, InterruptedTrial(note.kind, note.reason, (note.node,)))  # type: ignore[arg-type]
    for cause in get_args(Cause):
        if cause in found:
            return found[cause]
    if any(note.kind == "own" for note in notes):
        return None
    if not all(map(alive, nodes)):
        return InterruptedTrial("node_lost", "a worker's machine is gone", nodes)
    if notes:  # nobody but peers of someone who no longer answered
        return InterruptedTrial("process_died", notes[0].reason, nodes)
    return None


def reason_of(error: BaseException) -> str:
    """The reason kept in the books of a trial that failed for a reason of its own."""
    cause: Any = error.cause if isinstance(error, RayTaskError) else error
    return said(cause) if isinstance(cause, BaseException) else _last_line(error)


def _says(error: BaseException, words: Iterable[str]) -> bool:
    text = str(error)
    return any(word in text for word in words)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return one_line(lines[-1])
