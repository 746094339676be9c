"""YAHPO's surrogate of LCBench as a source of learning curves: 34 tasks, 7 hyperparameters, 52 epochs.

A network that was fitted to real learning curves of small networks on tabular data gives validation accuracy and time
for any configuration, without noise. Its values of the first epoch hardly go with those of the last: rank correlations
of -0.5 to 0.4, and of 0.4 to 0.9 from the third epoch on (300 random configurations each of 24 tasks).

Source: YAHPO Gym, Pfisterer et al. 2022, arXiv:2109.03670; LCBench, Zimmer et al. 2021, arXiv:2006.13799. The files
lie in `yahpo_lcbench/` of the folder that HEARTSWEEP_DATASETS names, or of shared/datasets/ beside the checkout.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution, IntDistribution

from search_spaces.distributions import Leaf, Space
from search_spaces.simulation import Curve, Epoch

NUM_EPOCHS = 52
SPACE = Space(
    (
        Leaf("batch_size", IntDistribution(16, 512, log=True)),
        Leaf("learning_rate", FloatDistribution(1e-4, 1e-1, log=True)),
        Leaf("momentum", FloatDistribution(0.1, 0.99)),
        Leaf("weight_decay", FloatDistribution(1e-5, 1e-1)),
        Leaf("num_layers", IntDistribution(1, 5)),
        Leaf("max_units", IntDistribution(64, 1024, log=True)),
        Leaf("max_dropout", FloatDistribution(0.0, 1.0)),
    )
)
"""As published, in the order in which the surrogate takes them."""
CHUNKS = (0, 4, 16, NUM_EPOCHS)
"""Epochs are computed up to the next of these: most trials are stopped early."""


def folder() -> Path | None:
    """Where the surrogate lies; None where it is not."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    found = Path(os.environ.get("HEARTSWEEP_DATASETS") or beside) / "yahpo_lcbench" / "lcbench"
    return found if (found / "model.onnx").is_file() else None


class LcBench:
    """The surrogate, opened once for all tasks."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path / "model.onnx"), options)
        self._codes = json.loads((path / "encoding.json").read_text())["OpenML_task_id"]
        space = json.loads((path / "config_space.json").read_text())["hyperparameters"]
        self.tasks: list[str] = next(part["choices"] for part in space if part["name"] == "OpenML_task_id")

    def epochs(self, task: str, points: NDArray[np.float32], epochs: range) -> NDArray[np.float32]:
        """Cumulative seconds and validation accuracy (N, len(epochs), 2) of N points (N, 7)."""
        of_all = np.tile(np.array(epochs, np.float32), len(points))
        numbers = np.concatenate([of_all[:, None], points.repeat(len(epochs), axis=0)], axis=1)
        tasks = np.full((len(numbers), 1), self._codes[task], np.int32)
        (found,) = self._session.run(["output"], {"x_cat": tasks, "x_cont": numbers.astype(np.float32)})
        return np.asarray(found[:, :2]).reshape(len(points), len(epochs), 2)


class LcBenchTask:
    """The curves of one task; what has been computed is kept."""

    space = SPACE
    num_epochs = NUM_EPOCHS

    def __init__(self, surrogate: LcBench, task: str) -> None:
        self._surrogate, self.task = surrogate, task
        self._known: dict[tuple[float, ...], list[Epoch]] = {}

    def of(self, choices: Mapping[str, Any], taken: set[int]) -> Curve:
        """See search_spaces.simulation.Curves."""
        point = tuple(float(choices[leaf.key]) for leaf in SPACE.leaves)
        known = self._known.setdefault(point, [])

        def epoch(number: int) -> Epoch:
            if number > len(known):
                self._compute(point, known, number)
            return known[number - 1]

        return Curve(choices, epoch)

    def _compute(self, point: tuple[float, ...], known: list[Epoch], number: int) -> None:
        until = next(chunk for chunk in CHUNKS if chunk >= number)
        first = max(len(known), 1)  # one epoch more, for its time is the difference of two
        found = self._surrogate.epochs(self.task, np.array([point], np.float32), range(first, until + 1))[0]
        times = np.concatenate([[0.0] if not known else [], found[:, 0]])
        # a handful of its times run backwards
        seconds = np.maximum(np.diff(times), 1e-3)
        known += [Epoch(float(v), float(s)) for v, s in zip(found[-len(seconds) :, 1], seconds, strict=True)]
