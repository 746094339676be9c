"""How a command is stopped and gone on with: SIGTERM, as `ray job stop` sends it, ends a search as Ctrl-C does."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code of a command that was stopped."""


@contextmanager
def ending_on_sigterm(at_once: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """While the block lasts, have SIGTERM end the search between two of its steps; a second one ends all.

    `ray job stop` sends SIGKILL 3 s after SIGTERM, unless the cluster's head was started with a larger
    RAY_JOB_STOP_WAIT_TIME_S, and Tune may wait longer than that for its trials. To be entered after ray.init(), which
    sets a handler that exits on the spot. SIGTERM is not passed on as SIGINT, which Ray blocks in what a job starts;
    SIGINT itself is Tune's while it runs, and whose it was before at the block's end.

    Args:
        at_once: called once when the search is to end, before anything is waited for.

    Yields:
        whether to end; to be asked often, where the books are in order.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield lambda: False
        return
    told = done = False

    def to_end() -> bool:
        nonlocal done
        if told and not done:
            done = True
            at_once()
        return told

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if told:
            raise KeyboardInterrupt
        told = True

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield to_end
        to_end()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def typed_again() -> str:
    """The line that goes on with a study: the one that was typed, but for what refuses to."""
    return f"python launch.py {shlex.join(word for word in sys.argv[1:] if word != 'resume=never')}"
