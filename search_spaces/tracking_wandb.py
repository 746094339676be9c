"""Weights & Biases beside a search: one run a trial.

Offline, a run is a folder `wandb/offline-run-*` of the study, which `wandb sync` sends.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import shutil
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from search_spaces.schema import WandbTracking
from search_spaces.tracking import ToldTrials, study_id
from trainables.study import StudyFolder

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 30, 60  # of W&B's server, for a run's beginning and for its last data
INTERRUPTED = 255  # W&B's exit code for Ctrl-C: the trial goes on with the next launch
FORMER_HOST = {"api.forge.coreweave.com": "api.wandb.ai"}  # a key for W&B's former host serves its present one


class WandbRuns:
    """The W&B runs of the trials that have not ended.

    A run's id follows from the study's first event and the trial's number: a study that goes on, or has moved, finds
    its runs again, and a new study in an old one's place does not. Trials that W&B has been told all of are listed in
    `wandb/told.json`; the others are told from their beginning, in the place of what a killed launch left of them.

    Args:
        tracking: project, entity and mode.
        folder: the study's; W&B's files go to its subfolder `wandb`.
    """

    def __init__(self, tracking: WandbTracking, folder: StudyFolder) -> None:
        # else W&B reports its own troubles over the network, in offline mode too; it is read when W&B is imported
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._tracking = tracking
        self._folder = folder
        self._mode: Literal["online", "offline"] = tracking.mode
        self._place = folder.path / "wandb"
        self._told = ToldTrials(self._place / "told.json")
        self._study: str | None = None
        self._runs: dict[int, Any] = {}

    def connect(self) -> None:
        """Start W&B's process, which writes nothing to the terminal; without a key, stay offline."""
        base_url = self._wandb.setup(settings=self._wandb.Settings(silent=True)).settings.base_url
        if self._mode == "online" and not has_key(base_url):
            self._mode = "offline"
            logger.warning(
                "tracking offline, no key for %s in WANDB_API_KEY or ~/.netrc: log in with `wandb login`, then send "
                "the runs with `wandb sync %s`",
                base_url,
                self._place / "offline-run-*",
            )

    def take_in(self, event: Mapping[str, Any]) -> None:
        """Tell W&B of one event of the study; they come in order, from the first one on."""
        if self._study is None:
            self._study = study_id(event)
        number, kind = event.get("trial"), event["event"]
        if number is None or number in self._told:
            return
        if kind == "trial_started":
            self._runs[number] = self._open(number, event["params"])
        elif number not in self._runs:
            return
        elif kind == "epoch" and event["epoch"] >= self._runs[number].starting_step:  # else W&B has it from before
            self._runs[number].log(event["metrics"], step=event["epoch"], commit=True)
        elif kind == "exploit":
            self._runs[number].config.update(event["params"], allow_val_change=True)
        elif kind == "trial_ended":
            self._end(number, event)

    def settle(self) -> None:
        """Nothing is kept back."""

    def _open(self, number: int, params: Mapping[str, Any]) -> Any:
        run_id = f"{self._study}-{number:04d}"
        for told_in_part in self._place.glob(
            f"offline-run-*-{run_id}"
        ):  # by a launch that was killed: it is told whole
            shutil.rmtree(told_in_part)
        return self._wandb.init(
            project=self._tracking.project,
            entity=self._tracking.entity,
            group=self._folder.path.name,
            name=f"trial {number}",
            id=run_id,
            config=dict(params),
            dir=self._folder.path,
            mode=self._mode,
            reinit="create_new",  # several trials run at a time
            # offline there is nothing to resume: `wandb sync` lets a later run replace an earlier one of the same id
            resume="allow" if self._mode == "online" else None,
            settings=self._settings(),
        )

    def _settings(self) -> Any:
        """Nothing of the driver's: its output, load and packages say nothing of a trial, and the study records them."""
        return self._wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            x_disable_stats=True,
            x_save_requirements=False,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=True,
        )

    def _end(self, number: int, event: Mapping[str, Any]) -> None:
        run = self._runs.pop(number)
        run.summary.update({key: event[key] for key in ("state", "value", "reason", "epochs", "seconds")})
        run.finish(exit_code=1 if event["state"] == "FAIL" else 0)
        self._told.add(number)

    def close(self) -> None:
        """End what is open as interrupted, and W&B's process; never raises."""
        with contextlib.suppress(Exception, SystemExit):  # the latter where W&B's process has died
            for run in self._runs.values():  # else threads of theirs ask the process after its end
                run.finish(exit_code=INTERRUPTED)
        with contextlib.suppress(Exception, SystemExit):
            self._wandb.teardown(exit_code=INTERRUPTED)


def has_key(base_url: str) -> bool:
    """Whether W&B would find a key for its server, so that it never comes to ask for one.

    Args:
        base_url: the server's.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(base_url).netloc
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    path = next(filter(os.path.exists, map(os.path.expanduser, names)), None)
    return path is not None and any(_has_entry(path, known) for known in (host, FORMER_HOST.get(host, host)))


def _has_entry(path: str, host: str) -> bool:
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return entry is not None and bool(entry[2])
