"""SIGTERM, as `ray job stop` sends it, ends a search as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def sigterm_as_ctrl_c(at_once: Callable[[], None]) -> Iterator[None]:
    """While the block lasts, do on the first SIGTERM what must not wait, then what Ctrl-C does at that moment.

    `ray job stop` sends SIGKILL 3 s after SIGTERM, unless the cluster's head was started with a larger
    RAY_JOB_STOP_WAIT_TIME_S, and Tune may wait longer than that for the trials to end. To be entered after ray.init(),
    which sets a handler of its own that exits at once. The signal is not sent on as SIGINT: Ray blocks that in whatever
    a job starts.

    Args:
        at_once: called in the main thread, between two of its steps.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    told = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            at_once()
        on_ctrl_c = signal.getsignal(signal.SIGINT)  # Tune's own while it runs
        if not callable(on_ctrl_c):
            raise KeyboardInterrupt
        on_ctrl_c(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
