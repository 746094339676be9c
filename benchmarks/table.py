"""One table of what benchmarks have measured: each figure, its baseline in the same run, its ratio, its target.

What could not be measured has a row that says why.

    python benchmarks/table.py FILE.json [FILE.json ...]

The machines that the files name must be the same; figures of two are not put side by side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("figure", "value", "unit", "baseline", "ratio", "target", "")


def rows_of(files: Sequence[Path]) -> list[tuple[str, ...]]:
    """A row for each figure of each file, as text; first the one that names the columns.

    Raises:
        ValueError: if the files are of different machines or versions.
    """
    documents = {path: json.loads(path.read_text(encoding="utf-8")) for path in files}
    machines = {json.dumps(document["machine"], sort_keys=True) for document in documents.values()}
    if len(machines) > 1:
        raise ValueError(f"all files must be of one machine and its versions, got {' and '.join(sorted(machines))}")
    rows = [COLUMNS]
    for path, document in documents.items():
        rows += [_row(path.stem, figure) for figure in document["figures"]]
        rows += [(f"{path.stem}: {missing}", *[""] * 5, "not measured") for missing in document["not_measured"]]
    return rows


def _row(benchmark: str, figure: dict[str, Any]) -> tuple[str, ...]:
    numbers = {name: "" if figure[name] is None else f"{figure[name]:.4g}" for name in ("baseline", "ratio", "target")}
    verdict = {None: "", True: "met", False: "MISSED"}[figure["met"]]
    return (f"{benchmark}: {figure['name']}", f"{figure['value']:.4g}", figure["unit"], *numbers.values(), verdict)


def table_of(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows in columns; numbers end below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_number = [name in ("value", "baseline", "ratio", "target") for name in COLUMNS]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in rows
    )


def main() -> None:
    """Print the table of the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    print(table_of(rows_of(parser.parse_args().files)))


if __name__ == "__main__":
    main()
