"""What a record's codes say under a named protocol: which classes there are and who carries them.

Figures of two protocols are never to be compared: they keep different records and ask different questions.
Shapes: n records, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from data.record import DataError, one_of

Kind = Literal["multilabel", "single_label"]


@dataclass(frozen=True)
class LabelProtocol:
    """How codes become classes.

    Attributes:
        name: what a configuration calls it (`task.labels`).
        kind: `multilabel`, any number of classes a record; `single_label`, only records with exactly one count.
        classes: K class names, in the order of the targets' columns.
        classes_of_code: the classes that each code stands for. A code that stands for none still says that somebody
            labelled the record; a code that is not here says nothing under this protocol.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    classes_of_code: Mapping[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """Everything in plain containers."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The protocol that `to_json` wrote."""
        codes = {code: tuple(classes) for code, classes in content["classes_of_code"].items()}
        return cls(content["name"], content["kind"], tuple(content["classes"]), codes)


@dataclass(frozen=True)
class Labels:
    """Targets of every record of a store under one protocol.

    Attributes:
        protocol: the protocol's name.
        kind: as in `LabelProtocol`.
        classes: K class names.
        targets: (n, K) float32, 1 where the record carries the class.
        labelled: (n,) whether the record counts under the protocol: for `multilabel` it carries a code that the
            protocol knows, for `single_label` exactly one class, and that one among `classes`.
    """

    protocol: str
    kind: Kind
    classes: tuple[str, ...]
    targets: NDArray[np.float32]
    labelled: NDArray[np.bool_]


def read_labels(
    codes: Iterable[Sequence[str]], protocol: LabelProtocol, classes: Sequence[str] | None = None
) -> Labels:
    """Read every record's codes under `protocol`.

    A subset of classes changes the targets' columns, not who is labelled: a record whose only class is left out is
    still known to carry none of the others, so under `multilabel` it stays, as a negative. Under `single_label` it
    has no class to be told and goes.

    Args:
        codes: the codes of each of n records.
        protocol: how to read them.
        classes: which classes to keep, in this order; all of the protocol's where None.

    Raises:
        DataError: if `classes` is empty, repeats one or names one that the protocol lacks.
    """
    chosen = _chosen_classes(protocol, classes)
    column = {name: position for position, name in enumerate(protocol.classes)}
    columns_of_code = {code: [column[name] for name in names] for code, names in protocol.classes_of_code.items()}
    records = [[code for code in record if code in columns_of_code] for record in codes]
    whole = np.zeros((len(records), len(column)), dtype=np.float32)
    for row, known in enumerate(records):
        for code in known:
            whole[row, columns_of_code[code]] = 1
    targets = whole[:, [column[name] for name in chosen]]
    if protocol.kind == "single_label":
        labelled = (whole.sum(axis=1) == 1) & (targets.sum(axis=1) == 1)
    else:
        labelled = np.array([bool(known) for known in records], dtype=np.bool_)
    return Labels(protocol.name, protocol.kind, chosen, targets, labelled)


def _chosen_classes(protocol: LabelProtocol, classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        return protocol.classes
    for name in classes:
        if name not in protocol.classes:
            known = one_of(protocol.classes, name)
            raise DataError(f"labels {protocol.name} have no class {name!r}: each of task.classes {known}")
    fewest = 2 if protocol.kind == "single_label" else 1
    if len(set(classes)) != len(classes) or len(classes) < fewest:
        raise DataError(
            f"task.classes must name at least {fewest} of the classes of {protocol.name} once each, got {list(classes)}"
        )
    return tuple(classes)
