"""From a leaf of the space in YAML to a distribution of Optuna, and from a trial's parameters to a run.

A leaf takes the place of the run's value:

    {uniform: [LOW, HIGH]}, {log_uniform: [LOW, HIGH]}   a number, both ends in; uniform may have a `step`
    {int_uniform: [LOW, HIGH]}, {log_int: [LOW, HIGH]}   a whole number, both ends in; int_uniform may have a `step`
    {choice: [A, B, C]}                                  any values; at the name of a group, its options
    when: {other.key: VALUE or [VALUES]}                 beside any of them: searched only where this was chosen

A leaf that is null is not searched.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial
from pydantic import ValidationError

from search_spaces.fitting import encoders_that_give
from search_spaces.schema import ChoiceError, Launch, dotted, problems, unknown_key
from trainables.components import ComponentError, MisfitError, check_components, check_model, nearest
from trainables.settings import Run

KINDS = ("uniform", "log_uniform", "int_uniform", "log_int", "choice")
BESIDE = ("step", "when")
GROUP_CHOICES = {"model": "model", "model.encoder": "encoder", "task": "task"}
"""Keys at which a space may choose among a group's options. All trials of a study share their data, prepared once."""
OF_THE_MODEL = ("model", "data", "task.pretrain.batch_size", "task.finetune.pool", "task.finetune.mask_")
"""How the keys begin that decide whether a model can be built."""
TWO_DECADES = 100.0
STUDY_WIDE = (
    "seed",
    "data.reader",
    "data.root",
    "data.store_dir",
    "data.source_rate_hz",
    "data.sampling_rate_hz",
    "data.leads",
    "data.highpass_hz",
    "data.lowpass_hz",
    "data.filter_order",
    "data.window_s",
    "data.valid_folds",
    "data.test_folds",
    "data.max_valid_patients",
    "task.stages",
    "task.labels",
    "task.classes",
    "task.metrics",
    "task.pretrain.num_epochs",
    "task.finetune.num_epochs",
)
"""What all trials of a study share: their recordings are prepared once, and they are compared epoch by epoch."""


@dataclass(frozen=True)
class Leaf:
    """One searched key.

    Attributes:
        key: its dotted name in the run, or the name of a group.
        distribution: Optuna's; lists and mappings are held as JSON text.
        when: keys with the values of which one must have been chosen for this leaf to be searched; all must hold.
    """

    key: str
    distribution: BaseDistribution
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the leaf is searched once `values` have been chosen."""
        return all(key in values and _among(values[key], allowed) for key, allowed in self.when)

    @property
    def text(self) -> str:
        """The distribution as it is written in YAML."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return f"{{choice: [{', '.join(map(written, distribution.choices))}]}}"
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        whole = isinstance(distribution, IntDistribution)
        kinds = ("int_uniform", "log_int") if whole else ("uniform", "log_uniform")
        step = f", step: {distribution.step}" if distribution.step != (1 if whole else None) else ""
        return f"{{{kinds[distribution.log]}: [{distribution.low}, {distribution.high}]{step}}}"


@dataclass(frozen=True)
class Space:
    """What a study searches: every key with its distribution, each after those that it depends on."""

    leaves: tuple[Leaf, ...]

    def ask(self, trial: BaseTrial) -> dict[str, Any]:
        """Draw a trial's values, asking for no leaf whose condition does not hold.

        Returns:
            values by dotted key, as the run takes them.
        """
        values: dict[str, Any] = {}
        for leaf in self.leaves:
            if leaf.holds(values):
                values[leaf.key] = decoded(_suggest(trial, leaf))
        return values

    def defaults(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """The run's own values, encoded for `study.enqueue_trial`."""
        values: dict[str, Any] = {}
        for leaf in self.leaves:
            if leaf.holds(values):
                values[leaf.key] = default_of(leaf.key, tree)
        return {leaf.key: _as_kept(leaf, values[leaf.key]) for leaf in self.leaves if leaf.key in values}

    def first_points(self, tree: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The choices of the first trials, encoded: the run's own values, then each other option of a searched group.

        A sampler may never meet an option, or never return to one that it has met at unlucky values; so each is tried
        once with its own keys' defaults, where they lie in the ranges searched. What is the task's stays as the run has
        it.
        """
        points = [self.defaults(tree)]
        for leaf in self.leaves:
            if leaf.key in options and leaf.key in points[0]:
                others = [option for option in extremes(leaf) if option != points[0][leaf.key]]
                points += [self.defaults(apply(tree, {leaf.key: option}, options)) for option in others]
        return [points[0], *(point for point in points[1:] if self.contains(point))]

    def contains(self, point: Mapping[str, Any]) -> bool:
        """Whether encoded choices lie in the ranges searched."""
        distribution = {leaf.key: leaf.distribution for leaf in self.leaves}
        return all(_contains(distribution[key], value) for key, value in point.items())

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's parameters as Optuna keeps them, decoded: what `ask` returned for it."""
        return {key: decoded(value) for key, value in params.items()}

    def grid(self) -> list[dict[str, Any]]:
        """All combinations once, encoded for `study.enqueue_trial`, in the order written.

        Raises:
            ChoiceError: if a leaf has no finite number of values.
        """
        points: list[dict[str, Any]] = [{}]
        for leaf in self.leaves:
            options = _grid_values(leaf)
            points = [
                {**point, **chosen}
                for point in points
                for chosen in ([{leaf.key: option} for option in options] if leaf.holds(point) else [{}])
            ]
        return [{key: encoded(value) for key, value in point.items()} for point in points]


# ---- leaves as written -------------------------------------------------------------------------------------------


def is_leaf(node: Any) -> bool:
    """Whether a node of the space's tree is a leaf, well written or not."""
    return not isinstance(node, Mapping) or any(kind in node for kind in KINDS)


def leaves_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a space's tree by dotted key, as written; those that are null are left out.

    At the name of a group a list stands for a choice, and a choice may have the group's searched keys beside it.
    """
    flat: dict[str, Any] = {}
    _collect("", tree, flat)
    return flat


def _collect(key: str, node: Any, flat: dict[str, Any]) -> None:
    if key in GROUP_CHOICES and isinstance(node, list):
        node = {"choice": node}
    if isinstance(node, Mapping) and (not key or not is_leaf(node) or key in GROUP_CHOICES):
        leaf = {part: value for part, value in node.items() if key and part in (*KINDS, *BESIDE)}
        for part in [part for part in node if part not in leaf]:
            _collect(f"{key}.{part}" if key else str(part), node[part], flat)
        node = leaf
    # what is no mapping is no leaf either: it is kept for `parse` to refuse
    values = [node.get(kind) for kind in KINDS] if isinstance(node, Mapping) else [node]
    if any(value is not None for value in values):
        flat[key] = node


def settled(leaves: Mapping[str, Any], tree: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
    """Decide the conditions on keys that are not searched, by the values that they have in this run.

    Args:
        leaves: by dotted key, as written.
        tree: the run.
        choices: the option of every group.

    Returns:
        The leaves whose decided conditions hold, without these conditions.

    Raises:
        ChoiceError: if a condition names a key that there is not.
    """
    known = dotted(tree) | dict(choices)
    kept: dict[str, Any] = {}
    for key in _in_order(leaves):
        undecided, holds = {}, True
        for other, allowed in _conditions_written(leaves[key]).items():
            if other in kept:
                undecided[other] = allowed
            elif other in leaves:  # what it depends on is out itself
                holds = False
            elif other in known:
                holds = holds and _among(known[other], _listed(allowed))
            else:
                raise ChoiceError(f"space.{key}: when {other}: {unknown_key(str(other), known)}")
        if holds and _conditions_written(leaves[key]):
            rest = {part: value for part, value in leaves[key].items() if part != "when"}
            kept[key] = rest | ({"when": undecided} if undecided else {})
        elif holds:
            kept[key] = leaves[key]
    return {key: kept[key] for key in leaves if key in kept}


def _conditions_written(leaf: Any) -> Mapping[Any, Any]:
    """What stands under `when`; nothing where that is malformed, of which `parse` speaks."""
    when = leaf.get("when") if isinstance(leaf, Mapping) else None
    return when if isinstance(when, Mapping) else {}


def _listed(allowed: Any) -> list[Any]:
    return list(allowed) if isinstance(allowed, list | tuple) else [allowed]


def _in_order(leaves: Mapping[str, Any]) -> list[str]:
    """The keys, each after those that its condition names; ChoiceError on a circle."""
    ordered: list[str] = []

    def visit(key: str, path: tuple[str, ...]) -> None:
        if key in path:
            raise ChoiceError(f"space.{key}: its condition depends on itself, through {' <- '.join((*path, key))}")
        if key in ordered:
            return
        for other in _conditions_written(leaves[key]):
            if other in leaves:
                visit(other, (*path, key))
        ordered.append(key)

    for key in leaves:
        visit(key, ())
    return ordered


def parse(tree: Mapping[str, Any]) -> Space:
    """Read a space.

    Args:
        tree: nested as in YAML, or the leaves by dotted key.

    Raises:
        ChoiceError: one line that names the leaf, what must hold and what came.
    """
    leaves = leaves_of(tree)
    parsed: dict[str, Leaf] = {}
    for key in _in_order(leaves):
        written = _checked_leaf(key, leaves[key])
        kind = next(kind for kind in KINDS if written.get(kind) is not None)
        distribution = _distribution(key, kind, written)
        parsed[key] = Leaf(key, distribution, _conditions(key, written.get("when"), parsed))
    return Space(tuple(parsed.values()))


def _checked_leaf(key: str, leaf: Any) -> Mapping[str, Any]:
    """The leaf, if it is one distribution."""
    if not isinstance(leaf, Mapping):
        raise ChoiceError(
            f"space.{key}: must be a distribution such as {{uniform: [LOW, HIGH]}} or {{choice: [A, B]}}, got "
            f"{written(leaf)}; a fixed value is typed as {key}={written(leaf)}"
        )
    for part in leaf:
        if part not in (*KINDS, *BESIDE):
            raise ChoiceError(f"space.{key}: no such distribution {part}; {nearest(str(part), KINDS)}")
    kinds = [kind for kind in KINDS if leaf.get(kind) is not None]
    if len(kinds) != 1:
        raise ChoiceError(
            f"space.{key}: must hold exactly one distribution, got {' and '.join(kinds)}; "
            "where they come from two files, set one to null"
        )
    if leaf.get("step") is not None and kinds[0] not in ("uniform", "int_uniform"):
        raise ChoiceError(f"space.{key}: step goes with uniform and int_uniform, got {kinds[0]}")
    return leaf


def _distribution(key: str, kind: str, leaf: Mapping[str, Any]) -> BaseDistribution:
    if kind == "choice":
        return CategoricalDistribution(_choices(key, leaf["choice"]))
    whole, log = kind in ("int_uniform", "log_int"), kind in ("log_uniform", "log_int")
    low, high = _bounds(key, kind, leaf[kind], whole=whole)
    if log and low <= 0:
        raise ChoiceError(f"space.{key}: {kind} must lie above 0, got [{low}, {high}]")
    if not log and low > 0 and high / low > TWO_DECADES:
        better = "log_int" if whole else "log_uniform"
        raise ChoiceError(f"space.{key}: a range over two decades must be {better}, got {kind}: [{low}, {high}]")
    step = _step(key, leaf.get("step"), low, high, whole=whole)
    if whole:
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=step)


def _step(key: str, step: Any, low: float, high: float, *, whole: bool) -> float | None:
    if step is None:
        return None
    _check_number(f"space.{key}: step", step, whole=whole)
    # in decimals as written, as Optuna does: 0.3 is three times 0.1
    if step <= 0 or step > high - low + 1e-9 or (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)) != 0:
        raise ChoiceError(f"space.{key}: step must be positive and divide {high} - {low}, got {step}")
    return float(step)


def _bounds(key: str, kind: str, bounds: Any, *, whole: bool) -> tuple[float, float]:
    if not isinstance(bounds, Sequence) or isinstance(bounds, str) or len(bounds) != 2:
        raise ChoiceError(f"space.{key}: {kind} must be [LOW, HIGH], got {bounds!r}")
    low, high = bounds
    for bound in bounds:
        _check_number(f"space.{key}: an end of {kind}", bound, whole=whole)
    if not low < high:
        raise ChoiceError(f"space.{key}: {kind} must be [LOW, HIGH] with LOW below HIGH, got [{low}, {high}]")
    return low, high


def _check_number(what: str, value: Any, *, whole: bool) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        raise ChoiceError(f"{what} must be a {'whole' if whole else 'finite'} number, got {value!r}")


def _choices(key: str, values: Any) -> list[Any]:
    """The values of a choice, encoded."""
    if not isinstance(values, list) or not values:
        raise ChoiceError(f"space.{key}: choice must be a list of values, got {values!r}")
    choices = [encoded(value) for value in values]
    for number, value in enumerate(choices):
        if not isinstance(value, bool | int | float | str | None):
            raise ChoiceError(f"space.{key}: choice must hold numbers, texts, lists or mappings, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ChoiceError(f"space.{key}: choice must hold finite numbers, got {value}")
        if value in choices[:number]:  # 1, 1.0 and True are one value to Optuna
            raise ChoiceError(f"space.{key}: choice must hold every value once, got {values}")
        if isinstance(values[number], str) and values[number][:1] in ("[", "{"):
            raise ChoiceError(f"space.{key}: choice holds the text {value!r}; write a list or a mapping without quotes")
    return choices


def _conditions(key: str, when: Any, parents: Mapping[str, Leaf]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if when is None:
        return ()
    if not isinstance(when, Mapping) or not when:
        raise ChoiceError(f"space.{key}: when must be {{OTHER.KEY: VALUE or [VALUES]}}, got {when!r}")
    conditions = []
    for other, values in when.items():
        parent = parents.get(other)
        if parent is None:
            raise ChoiceError(f"space.{key}: when {other}: not searched; {nearest(str(other), parents)}")
        if not isinstance(parent.distribution, CategoricalDistribution):
            raise ChoiceError(f"space.{key}: when {other}: must be a choice, got {parent.text}")
        allowed = tuple(_listed(values))
        known = [decoded(choice) for choice in parent.distribution.choices]
        for value in allowed:
            if not _among(value, known):
                raise ChoiceError(
                    f"space.{key}: when {other}: must be among {', '.join(map(written, known))}, got {written(value)}"
                )
        conditions.append((str(other), allowed))
    return tuple(conditions)


# ---- values ------------------------------------------------------------------------------------------------------


def encoded(value: Any) -> Any:
    """A value as Optuna keeps it: lists and mappings as JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple | Mapping) else value


def decoded(value: Any) -> Any:
    """The reverse of `encoded`; no text of a choice begins like JSON (parse sees to that)."""
    return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value


def written(value: Any) -> str:
    """A value as it is typed."""
    return json.dumps(value) if value is None or isinstance(value, bool | list | Mapping) else str(value)


def _among(value: Any, allowed: Iterable[Any]) -> bool:
    """Whether `value` is one of `allowed`, where True and 1 are two values."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed)


def _suggest(trial: BaseTrial, leaf: Leaf) -> Any:
    distribution = leaf.distribution
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            leaf.key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            leaf.key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(leaf.key, distribution.choices)


def _as_kept(leaf: Leaf, value: Any) -> Any:
    """A value as Optuna keeps it: of equal choices the one that is listed ([0, 0.9] where the run has [0.0, 0.9])."""
    choices = leaf.distribution.choices if isinstance(leaf.distribution, CategoricalDistribution) else ()
    listed = isinstance(value, list | dict)
    return next((choice for choice in choices if listed and decoded(choice) == value), encoded(value))


def _grid_values(leaf: Leaf) -> list[Any]:
    distribution = leaf.distribution
    if isinstance(distribution, CategoricalDistribution):
        return [decoded(choice) for choice in distribution.choices]
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        steps = round((distribution.high - distribution.low) / distribution.step)
        return [round(distribution.low + number * distribution.step, 12) for number in range(steps + 1)]
    raise ChoiceError(
        f"space.{leaf.key}: sampler=grid needs values that can be counted, got {leaf.text}; type "
        f"{leaf.key}=A,B,C, or space=none to search only what is typed"
    )


def default_of(key: str, tree: Mapping[str, Any]) -> Any:
    """The run's own value of a searched key; of a group, the option whose subtree the run holds."""
    own, options = dotted(tree)[key], tree.get("options", {})
    if key not in options:
        return own
    inner = [other.removeprefix(f"{key}.") for other in options if other.startswith(f"{key}.")]  # searched by itself
    return next(
        (name for name, subtree in options[key].items() if _without(subtree, inner) == _without(own, inner)), None
    )


def _without(subtree: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in subtree.items() if key not in keys}


def apply(
    tree: Mapping[str, Any], values: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A run with a trial's values put in: the options of groups first, then single keys.

    Args:
        tree: the configuration; it stays as it is.
        values: by dotted key, decoded (Space.ask, Space.values).
        options: key of a group -> option -> subtree (Launch.options).

    Raises:
        ChoiceError: if a key does not exist in the run that the options make.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(tree))
    for key in sorted((key for key in values if key in options), key=len):  # a model before the encoder within it
        put(changed, key, copy.deepcopy(options[key][values[key]]))
    known: dict[str, Any] | None = None
    for key in [key for key in values if key not in options]:
        if known is None:
            known = dotted({name: changed[name] for name in Run.model_fields if name in changed})
        if key not in known:
            raise ChoiceError(f"space.{key}: {unknown_key(key, known)}")
        put(changed, key, copy.deepcopy(values[key]))
        if isinstance(values[key], Mapping | list):  # which brings keys of its own
            known = None
    return changed


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of an existing dotted key, in place."""
    *path, last = key.split(".")
    node: Any = tree
    for part in path:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value


def run_with(launch: Launch, values: Mapping[str, Any]) -> Run:
    """The run of one trial.

    Args:
        launch: the study's.
        values: the trial's choices by dotted key, decoded.

    Raises:
        ChoiceError: if they cannot go together.
    """
    changed = apply(launch.model_dump(mode="json", by_alias=True), values, launch.options)
    tree = {key: changed[key] for key in Run.model_fields}
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        raise ChoiceError(problems(error, tree)) from error


# ---- checking against the run ------------------------------------------------------------------------------------


def check_space(tree: Mapping[str, Any], space: Space, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Try every end of every range and every choice as if it were typed, and the run's own values.

    Nothing is trained or read; models are built without memory.

    Args:
        tree: a composed configuration that the schema has passed.
        space: what is searched.
        options: group -> option -> subtree.

    Raises:
        ChoiceError: one line that names the searched key and the value that cannot be.
    """
    _try(tree, None)
    for leaf in space.leaves:
        for context in contexts(leaf, space):
            for value in extremes(leaf):
                try:
                    changed = apply(tree, context | {leaf.key: value}, options)
                except ChoiceError as error:
                    raise ChoiceError(
                        f"{error}; take it out with ~space.{leaf.key}, or search it only `when`"
                    ) from error
                _check_comparable(tree, changed, leaf)
                _try(changed, leaf, value)
    _check_defaults(tree, space)


def _check_comparable(tree: Mapping[str, Any], changed: Mapping[str, Any], leaf: Leaf) -> None:
    ours, theirs = dotted(tree), dotted(changed)
    for key in STUDY_WIDE:
        if ours[key] != theirs.get(key):
            raise ChoiceError(
                f"space.{leaf.key}: every trial of a study must have the same {key} (the recordings are prepared once, "
                f"trials are compared epoch by epoch), got {written(ours[key])} and {written(theirs.get(key))}"
            )


def contexts(leaf: Leaf, space: Space) -> list[dict[str, Any]]:
    """Values under which a leaf is searched: what it depends on, and each option of the groups that it belongs to."""
    found = [_satisfied(leaf, space)]
    for choice in space.leaves:
        if choice.key in GROUP_CHOICES and leaf.key.startswith(f"{choice.key}."):
            allowed = dict(leaf.when).get(choice.key, tuple(extremes(choice)))
            found = [context | {choice.key: option} for context in found for option in allowed]
    return found


def _try(tree: Mapping[str, Any], leaf: Leaf | None, value: Any = None) -> None:
    """Hold one run against the schema and its classes."""
    prefix = "" if leaf is None else f"space.{leaf.key}: "
    run_tree = {key: tree[key] for key in Run.model_fields}
    try:
        run = Run.model_validate(run_tree)
        check_components(run)
        # a model is built for its own keys and for those of its input; a learning rate is none of its business
        if leaf is None or leaf.key.startswith(OF_THE_MODEL):
            check_model(run, sharded=tree["cluster"]["sharding"] == "full")
    except ValidationError as error:
        raise ChoiceError(_blamed(prefix, leaf, value, problems(error, run_tree))) from error
    except MisfitError as error:
        fitting = ", ".join(encoders_that_give(error.needs))
        raise ChoiceError(f"{_blamed(prefix, leaf, value, str(error))}; encoder=NAME with one of {fitting}") from error
    except ComponentError as error:
        raise ChoiceError(_blamed(prefix, leaf, value, str(error))) from error
    except ValueError as error:
        raise ChoiceError(_blamed(prefix, leaf, value, str(error) if leaf else f"model: {error}")) from error


def _blamed(prefix: str, leaf: Leaf | None, value: Any, message: str) -> str:
    """The message with the searched key in front, said once, and the value tried where the message lacks it."""
    if leaf is None:
        return message
    message = message.removeprefix(f"{leaf.key}: ")
    return f"{prefix}{message}" + ("" if str(value) in message else f" (tried {written(value)})")


def _satisfied(leaf: Leaf, space: Space) -> dict[str, Any]:
    """Values under which a leaf is searched: the first allowed ones of what it depends on."""
    parents = {other.key: other for other in space.leaves}
    values: dict[str, Any] = {}
    for key, allowed in leaf.when:
        values |= _satisfied(parents[key], space) | {key: allowed[0]}
    return values


def extremes(leaf: Leaf) -> list[Any]:
    """Both ends of a range, or every value of a choice, decoded."""
    distribution = leaf.distribution
    if isinstance(distribution, CategoricalDistribution):
        return [decoded(choice) for choice in distribution.choices]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]


def _check_defaults(tree: Mapping[str, Any], space: Space) -> None:
    for key, value in space.defaults(tree).items():
        leaf = next(leaf for leaf in space.leaves if leaf.key == key)
        if not _contains(leaf.distribution, value):
            raise ChoiceError(
                f"{key}: the run's own value, which trial 0 takes, must lie in the range searched, {leaf.text}, "
                f"got {written(value)}; type '{key}=VALUE' and 'space.{key}={leaf.text}', with VALUE in the range"
            )


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return _among(value, distribution.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(distribution, IntDistribution) and value != int(value):
        return False
    return distribution._contains(value)
