"""TensorBoard beside a search: one run a trial, as event files under `tensorboard/trial_NNNN` of the study's folder.

The event files are written by the tracker's own thread: tensorboardX's SummaryWriter hands them to a thread whose
failure, on a full disk, nobody hears of, and for which the process then waits without end.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from search_spaces.tracking import ToldTrials
from trainables.study import StudyFolder

VALUE = "trial/value"
"""The trial's value as the search sees it; TensorBoard's table of hyperparameters shows it."""


class TensorboardRuns:
    """The event files of the trials that have not ended.

    A trial whose end is written is never touched again; every other one is written anew from its first event, so that
    nothing is in a file twice, however the driver before was ended.

    Args:
        folder: the study's.
    """

    def __init__(self, folder: StudyFolder) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._make_writer = EventsWriter
        self._place = folder.path / "tensorboard"
        self._told = ToldTrials(self._place / "told.json")
        self._writers: dict[int, Any] = {}
        self._changed: set[int] = set()

    def connect(self) -> None:
        """Nothing is to be reached."""

    def take_in(self, event: Mapping[str, Any]) -> None:
        """Write one event of the study."""
        number, kind = event.get("trial"), event["event"]
        if number is None or number in self._told:
            return
        if kind == "trial_started":
            self._open(number, event)
        elif number not in self._writers:
            return
        elif kind == "epoch":
            self._write(number, event, event["epoch"], **event["metrics"])
        elif kind == "exploit":
            self._say(number, event, event["epoch"], "exploit", {"donor": event["donor"], **event["params"]})
        elif kind == "trial_ended":
            self._end(number, event)

    def settle(self) -> None:
        """Bring what was written to the disk."""
        for number in sorted(self._changed):
            self._writers[number].flush()
        self._changed.clear()

    def close(self) -> None:
        """Close what is open; never raises."""
        for writer in self._writers.values():
            with contextlib.suppress(Exception):
                writer.close()

    def _open(self, number: int, event: Mapping[str, Any]) -> None:
        from tensorboardX.summary import hparams

        folder = self._place / f"trial_{number:04d}"
        if folder.exists():  # of a launch that was killed
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        self._writers[number] = self._make_writer(str(folder / "events"))
        for summary in hparams({name: _plain(value) for name, value in event["params"].items()}, {VALUE: 0.0})[:2]:
            self._add(number, event, 0, summary)

    def _end(self, number: int, event: Mapping[str, Any]) -> None:
        from tensorboardX.summary import hparams

        ended = {key: event[key] for key in ("state", "value", "reason", "epochs", "seconds")}
        if event["value"] is not None:
            self._write(number, event, event["epochs"], **{VALUE: event["value"]})
        self._say(number, event, event["epochs"], "end", ended)
        if event["state"] != "FAIL":
            self._add(number, event, event["epochs"], hparams({}, {})[2])  # the session's end, with success
        self._changed.discard(number)
        self._writers[number].close()  # flushes; only then is it out of the list of what is open
        del self._writers[number]
        self._told.add(number)

    def _write(self, number: int, event: Mapping[str, Any], step: int, **values: float) -> None:
        from tensorboardX.summary import Summary, scalar

        self._add(number, event, step, Summary(value=[scalar(name, value).value[0] for name, value in values.items()]))

    def _say(self, number: int, event: Mapping[str, Any], step: int, name: str, values: Mapping[str, Any]) -> None:
        from tensorboardX.summary import text

        rows = "".join(f"| {key} | {_cell(value)} |\n" for key, value in values.items())
        self._add(number, event, step, text(f"trial/{name}", f"| | |\n|---|---|\n{rows}"))

    def _add(self, number: int, event: Mapping[str, Any], step: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        at = datetime.fromisoformat(event["time"]).timestamp()  # of the epoch, whenever it comes to be written
        self._writers[number].write_event(Event(wall_time=at, step=step, summary=summary))
        self._changed.add(number)


def _plain(value: Any) -> Any:
    """A value as a hyperparameter of TensorBoard's: a number, a truth or a text."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _cell(value: Any) -> str:
    """A value in a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
