"""What every benchmark hands over: its figures, and the machine they were measured on, as one JSON file.

Named for its one job. A benchmark takes `parse_arguments`, measures, and gives its `Figure`s to `publish`; the machine
is described by its parts alone (never by a host name, a user or a path), so that the file may be shared as it is.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

# A benchmark is run as a file: Python then looks for imports beside it, where our packages are not. Importing this
# module first, which lies there, lets a benchmark find them uninstalled.
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))


Bound = Literal["at least", "at most", "ratio at least"]


@dataclass(frozen=True)
class Figure:
    """One measured number, with what it is compared with.

    Args:
        name: what was measured, e.g. `records_per_second`.
        value: the number.
        unit: of `value` and `baseline`, e.g. `s/trial`.
        baseline: the same quantity for the usual way of doing it; None where nothing is compared.
        ratio: how many times better than `baseline` the value is (above 1 is better); None without a baseline.
        target: the limit that `value` or `ratio` is held against.
        bound: what of the figure must be how to it; None without a target, or where nothing but the eye can say.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    target: float | None = None
    bound: Bound | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is held."""
        if self.target is None or self.bound is None:
            return None
        if self.bound == "at most":
            return self.value <= self.target
        held = self.ratio if self.bound == "ratio at least" else self.value
        return held is not None and held >= self.target


def parse_arguments(description: str, *options: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Read a benchmark's command line: `--json FILE`, which all have, and its own options.

    Args:
        description: what the benchmark measures, for --help.
        options: each a flag and the keyword arguments of `ArgumentParser.add_argument`.

    Returns:
        The parsed values; `json` is a Path, or None where the figures are only printed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures to FILE")
    for flag, settings in options:
        parser.add_argument(flag, **settings)
    return parser.parse_args()


def publish(figures: Sequence[Figure], json_file: Path | None, *, not_measured: Sequence[str] = ()) -> None:
    """Print one line a figure, and write `{"machine", "figures", "not_measured"}` where a file is asked for.

    Args:
        figures: what was measured.
        json_file: where to write it.
        not_measured: what could not be measured here, each with its reason.

    Raises:
        ValueError: if a figure is not finite; nothing is written then.
    """
    measured = [asdict(figure) | {"met": figure.met} for figure in figures]
    document = json.dumps(
        {"machine": machine(), "figures": measured, "not_measured": [*not_measured]}, indent=2, allow_nan=False
    )
    for figure in figures:
        print(line(figure))
    for missing in not_measured:
        print(f"not measured: {missing}")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(document + "\n", encoding="utf-8")


def unless_on_gpu(what: str) -> tuple[str, ...]:
    """What needs a GPU, as not measured; nothing where there is one."""
    import torch

    return () if torch.cuda.is_available() else (f"{what}: there is no GPU",)


def line(figure: Figure) -> str:
    """One figure as text, e.g. `in_process: 0.34 s/trial (baseline 24, ratio 71, target 0.3, MISSED)`."""
    compared = {"baseline": figure.baseline, "ratio": figure.ratio, "target": figure.target}
    said = [f"{name} {value:.3g}" for name, value in compared.items() if value is not None]
    if figure.met is not None:
        said.append("met" if figure.met else "MISSED")
    return f"{figure.name}: {figure.value:.4g} {figure.unit}" + (f" ({', '.join(said)})" if said else "")


def machine() -> dict[str, Any]:
    """Parts of this machine, and versions of what a figure depends on."""
    from trainables.provenance import hardware, versions  # torch, seconds to import: --help does without

    return hardware() | {"system": platform.system()} | versions()
