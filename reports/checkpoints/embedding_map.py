"""Embeddings on a plane: projections, and a drawing of them coloured by label.

Shapes: n records, D width of an embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette; each has a shape of its own besides."""
SHAPES = (
    "m-3 0a3 3 0 106 0a3 3 0 10-6 0z",  # disc
    "m-2.7-2.7h5.4v5.4h-5.4z",  # square
    "m0-3.6l3.4 6h-6.8z",  # triangle
    "m0-3.8l3.8 3.8l-3.8 3.8l-3.8-3.8z",  # diamond
    "m0 3.6l3.4-6h-6.8z",  # triangle downwards
    "m-3.5-1h2.5v-2.5h2v2.5h2.5v2h-2.5v2.5h-2v-2.5h-2.5z",  # plus
    "m-3-.9h6v1.8h-6z",  # bar
)
OTHERS = "#8a8580"
WIDTH, HEIGHT, PAD = 520, 420, 14
MOST_POINTS = 4000
LEAST_FOR_TSNE, MOST_FOR_TSNE = 10, 5000


@dataclass(frozen=True)
class Group:
    """Records of one colour.

    Attributes:
        name: their only class, or what they have instead.
        colour: of their marks.
        shape: path data of a mark, relative to its place.
        rows: which they are.
    """

    name: str
    colour: str
    shape: str
    rows: NDArray[np.int64]


def principal_components(embeddings: Floats, num_components: int = 2) -> tuple[Floats, Floats]:
    """Project on the directions of largest variance.

    The sign of a component is that in which its largest weight is positive, so that it is the same on every machine.

    Args:
        embeddings: (n, D).
        num_components: of the projection; those that n or D does not hold are 0.

    Returns:
        (n, num_components) places, and the share of the variance of each.
    """
    centred = np.asarray(embeddings, np.float64) - np.mean(embeddings, axis=0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.where(directions[np.arange(len(directions)), largest] < 0, -1, 1)[:, None]
    kept = min(num_components, len(directions))
    places, shares = np.zeros((len(centred), num_components)), np.zeros(num_components)
    places[:, :kept] = centred @ directions[:kept].T
    total = np.square(sizes).sum()
    shares[:kept] = np.square(sizes[:kept]) / total if total > 0 else 0.0
    return places, shares


def neighbours_map(embeddings: Floats, seed: int = 0) -> Floats | str:
    """t-SNE where scikit-learn is installed: (n, 2), or why there is none.

    Source: van der Maaten & Hinton 2008, JMLR 9:2579; scikit-learn's implementation.
    """
    num_records = len(embeddings)
    if not LEAST_FOR_TSNE <= num_records <= MOST_FOR_TSNE:
        return f"t-SNE is made of {LEAST_FOR_TSNE} to {MOST_FOR_TSNE} records, these are {num_records}"
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        return "t-SNE needs scikit-learn: pip install 'heartsweep[maps]'"
    perplexity = min(30.0, (num_records - 1) / 3)
    places: Floats = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(
        np.asarray(embeddings, np.float32)
    )
    return places


def groups_of(targets: Floats, classes: Sequence[str]) -> list[Group]:
    """Records by their only class; the largest classes have a colour, then come other ones, several and none.

    Args:
        targets: (n, K) 0 or 1.
        classes: names of the columns.
    """
    number = targets.sum(axis=1)
    alone = np.where(number == 1, targets.argmax(axis=1), -1)
    sizes = [int((alone == column).sum()) for column in range(len(classes))]
    coloured = sorted(range(len(classes)), key=lambda column: -sizes[column])[: len(COLOURS)]
    coloured = sorted(column for column in coloured if sizes[column])
    found = [
        Group(classes[column], COLOURS[place], SHAPES[place], np.flatnonzero(alone == column))
        for place, column in enumerate(coloured)
    ]
    rest = {
        "another class": (alone >= 0) & ~np.isin(alone, coloured),
        "several classes": number > 1,
        "none of the classes": number == 0,
    }
    small = "m-1.6 0a1.6 1.6 0 103.2 0a1.6 1.6 0 10-3.2 0z"
    return [Group(name, OTHERS, small, np.flatnonzero(rows)) for name, rows in rest.items() if rows.any()][::-1] + found


def scatter(places: Floats, groups: Sequence[Group], label: str) -> str:
    """A drawing of the map as SVG; of many records MOST_POINTS equally spaced ones.

    Args:
        places: (n, 2).
        groups: later ones lie over earlier ones.
        label: what it shows, for those who do not see it.
    """
    low, high = places.min(axis=0), places.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled = (places - low) / span * (WIDTH - 2 * PAD, HEIGHT - 2 * PAD) + PAD
    x, y = np.round(scaled[:, 0], 1), np.round(HEIGHT - scaled[:, 1], 1)
    shown = np.zeros(len(places), bool)
    shown[np.unique(np.linspace(0, len(places) - 1, min(len(places), MOST_POINTS)).round().astype(int))] = True
    paths = []
    for group in groups:
        marks = "".join(f"M{x[row]:g} {y[row]:g}{group.shape}" for row in group.rows if shown[row])
        paths.append(f'<path d="{marks}" fill="{group.colour}" fill-opacity=".72" stroke="#fff" stroke-width=".4"/>')
    box = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff" stroke="#d9d3ca"/>'
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">{box}{"".join(paths)}</svg>'
