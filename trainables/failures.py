"""Why a trial ended before its time: for a reason of its own, or because what it ran on failed.

A trial is deterministic: an error of its own would come again, so it fails at once and the others go on. A machine, a
process or a disk is another matter: the trial is interrupted and goes on from its last saved epoch. A machine that goes
is nobody's fault and does not count. What may have been the trial's doing after all does (its process died, a disk is
full, machines are lost at one and the same epoch again and again), and is tried again `cluster.max_failures` times.
What Ray says of a failure is read in trainables.diagnosis.
"""

from __future__ import annotations

from typing import Literal

Cause = Literal["node_lost", "node_draining", "process_died", "storage"]
COUNTS: frozenset[Cause] = frozenset({"process_died", "storage"})
MAX_REASON = 500  # characters of a reason that are kept


class InterruptedTrial(RuntimeError):
    """What a trial runs on failed or is about to go; the trial goes on from its last state, here or elsewhere."""

    def __init__(self, cause: Cause, reason: str, nodes: tuple[str, ...] = ()) -> None:
        super().__init__(cause, reason, nodes)  # so that it can be sent between processes
        self.cause: Cause = cause
        self.reason = one_line(reason)
        self.nodes = nodes

    def __str__(self) -> str:
        return f"{self.cause}: {self.reason}"


def one_line(text: str) -> str:
    """The text in one line of bounded length."""
    return " ".join(text.split())[:MAX_REASON]
