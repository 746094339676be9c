"""From what is typed to one plain, resolved configuration.

Hydra composes the groups of this folder; the values typed beside them are set here, last. Hydra's own entry point is
not used: it makes output folders, prints its own traces and knows neither a search space nor paths with spaces.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from search_spaces.distributions import GROUP_CHOICES, KINDS, leaves_of, put, settled, written
from search_spaces.schema import OF_A_CHECKPOINT, UNCHANGED_BY, ChoiceError, checked, dotted, unknown_key
from trainables.components import nearest
from trainables.settings import Run

FOLDER = Path(__file__).parent
GROUPS = tuple(sorted(folder.name for folder in FOLDER.iterdir() if any(folder.glob("*.yaml"))))
PLACES = {"encoder": "model.encoder", "text_encoder": "model.text_encoder"}
"""Where the options of a group lie in the configuration, if not under its name."""
KEYS_OF_CHOICES = {group: key for key, group in GROUP_CHOICES.items()}
NAMED_BY_CHOICE = ("search", "data", "task", "scale")
"""Groups whose `name` is that of the chosen option: one written into a copied file would be stale."""
FOLDERS = re.compile(
    r"study_dir|checkpoint|weights|mapping|task\.encoder|model\.text_encoder\.folder|data\.(root|store_dir)"
)
"""Keys that name a place seen from where the command is typed."""
PATHS = re.compile(rf"{FOLDERS.pattern}|storage|tracking\.uri|data\.reader\.(\w+_dir|(\w+_)?csv)")
"""Keys whose values are taken as typed: Hydra's grammar stops at ~ ( ) = # & and at letters beyond ASCII."""
NOT_OF_THE_RUN = (
    "command",
    "study_dir",
    "storage",
    "resume",
    "trial",
    "trial_seed",
    "checkpoint",
    "weights",
    "mapping",
    "study_dirs",
    "port",
    "cluster",
    "tracking",
    "debug",
    "evaluate",
    "artifacts",
)
"""What may be typed beside a stored configuration: nothing that changes what was computed."""
PREPARATION = (
    "sampling_rate_hz",
    "leads",
    "highpass_hz",
    "lowpass_hz",
    "filter_order",
    "standardize",
    "window_s",
    "eval_crops",
)
"""Keys of `data` that a trained model dictates."""
EXAMPLES = (
    ("the main job on PTB-XL", "search=stmem_ptbxl data.root=DIR"),
    ("without recordings, in minutes", "search=stmem_ptbxl data=synthetic scale=laptop"),
    ("a fixed value is not searched", "search=stmem_ptbxl model.mask_ratio=0.6"),
    ("another range", "search=stmem_ptbxl 'space.model.mask_ratio={uniform: [0.5, 0.8]}'"),
    ("exactly these three", "search=stmem_ptbxl space=none sampler=grid model.mask_ratio=0.65,0.75,0.85"),
    ("what would run", "command=show search=stmem_ptbxl"),
    ("as a job of a Ray cluster", "search=stmem_ptbxl cluster=job cluster.address=http://127.0.0.1:8265"),
    ("whether a cluster can run it", "command=preflight search=stmem_ptbxl cluster=ray cluster.address=HOST:PORT"),
    ("a study's report again", "command=report study_dir=DIR"),
    ("studies side by side", "command=compare study_dirs=[DIR1,DIR2]"),
    ("all studies of a folder", "command=index study_dir=runs"),
    ("a study in optuna-dashboard", "command=dashboard study_dir=DIR"),
    ("a study in an object store", "search=stmem_ptbxl storage=s3://bucket/prefix"),
    ("one trial of a study again", "command=train study_dir=DIR trial=N"),
    ("a published encoder's weights", "command=import weights=FILE mapping=FILE study_dir=DIR"),
    ("a checkpoint on the test fold", "command=evaluate checkpoint=DIR evaluate.fold=test"),
    ("what a checkpoint looks at", "command=artifacts checkpoint=DIR"),
    ("several beside one another", "command=artifacts checkpoint=[DIR,DIR]"),
    ("a checkpoint as ONNX", "command=export checkpoint=DIR"),
)
"""What is done, and what is typed for it."""


@dataclass(frozen=True)
class Listed:
    """A comma list as typed: the values to try."""

    values: tuple[Any, ...]


class TakenOut:
    """What is typed as `~space.KEY`."""


@dataclass(frozen=True)
class Line:
    """A command line, read but not yet put over anything.

    Attributes:
        groups: the options typed, by group.
        values: the values typed, by dotted key; the last wins.
        listed_groups: groups typed with several options.
        config_dir: a folder with further options.
        wants_help: --help was typed.
        wants_configuration: --cfg was typed.
    """

    groups: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    listed_groups: dict[str, list[str]] = field(default_factory=dict)
    config_dir: Path | None = None
    wants_help: bool = False
    wants_configuration: bool = False

    def get(self, key: str, default: Any = None) -> Any:
        """The value typed for `key`, in the form in which the configuration would hold it."""
        value = self.values.get(key, default)
        if isinstance(value, list) and key == "checkpoint":
            return [_absolute(folder) for folder in value]
        return _absolute(value) if FOLDERS.fullmatch(key) else value


@dataclass(frozen=True)
class Composed:
    """A resolved configuration.

    Attributes:
        tree: plain values; `space` maps dotted keys to leaves, `options` holds what the space chooses among.
        notes: what was typed but is easily overlooked, for the first lines of output.
        choices: the option of every group.
    """

    tree: dict[str, Any]
    notes: list[str]
    choices: dict[str, str]

    @property
    def options(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Group -> option -> its subtree, for the groups that the space chooses among."""
        options: dict[str, dict[str, dict[str, Any]]] = self.tree["options"]
        return options


# ---- reading -----------------------------------------------------------------------------------------------------


def read_line(arguments: Sequence[str]) -> Line:
    """Read what was typed after `launch.py`, without looking at any configuration.

    Raises:
        ChoiceError: naming the argument that is no KEY=VALUE.
    """
    line = Line()
    waiting = iter(arguments)
    for argument in waiting:
        if argument.startswith("-"):
            line = replace(line, **_read_flag(argument, waiting))
        else:
            _read_argument(argument, line)
    return line


def _read_flag(argument: str, following: Any) -> dict[str, Any]:
    name, equals, text = argument.partition("=")
    if argument in ("--help", "-h"):
        return {"wants_help": True}
    if argument in ("--cfg", "-c"):
        return {"wants_configuration": True}
    if argument in ("-m", "--multirun"):
        raise ChoiceError(f"{argument} is not needed: a launch is a search already, and KEY=A,B,C tries these values")
    if name == "--config-dir":
        text = text if equals else next(following, "")
        folder = Path(_absolute(text) or "")
        if not text or not folder.is_dir():
            raise ChoiceError(f"--config-dir must be followed by a folder that exists, got {text!r}")
        return {"config_dir": folder}
    known = ("--help", "--cfg", "--config-dir")
    raise ChoiceError(f"{argument}: no such flag; {nearest(name, known)}")


def _read_argument(argument: str, line: Line) -> None:
    key, equals, text = argument.partition("=")
    if equals and PATHS.fullmatch(key):
        line.values[key] = _folders(text) if key == "checkpoint" else None if text in ("", "null") else text
        return
    override = _parsed(argument)
    key = override.key_or_group.replace("/", ".")
    value = _value_of(override, argument)
    if key in GROUPS and not override.is_delete():
        _read_group(key, value, argument, line)
        return
    if override.is_delete() and (not key.startswith("space.") or equals):
        raise ChoiceError(f"{argument}: only a key of the space can be taken out, as in '~space.model.mask_ratio'")
    line.values.pop(key, None)  # the last of two equal keys wins, in its own place
    line.values[key] = TakenOut if override.is_delete() else value


def _folders(text: str) -> str | list[str] | None:
    """What was typed for `checkpoint`: a folder, several as [A,B], or none."""
    if text.startswith("[") and text.endswith("]") and not Path(text).exists():
        return [folder.strip() for folder in text[1:-1].split(",") if folder.strip()] or None
    return None if text in ("", "null") else text


def _parsed(argument: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(argument)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ChoiceError(
            f"{argument!r} is no KEY=VALUE; quote the whole argument if it holds a space, {{, [ or (, "
            "as in 'space.model.mask_ratio={uniform: [0.5, 0.8]}'"
        ) from error
    if not override.key_or_group:
        raise ChoiceError(f"{argument!r} is no KEY=VALUE")
    if override.package or override.is_hydra_override() or override.key_or_group.startswith("hydra."):
        raise ChoiceError(f"{argument}: Hydra's own keys and packages are not read here; see --help")
    return override


def _value_of(override: Override, argument: str) -> Any:
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return Listed(tuple(_unquoted(item) for item in value.list))
    if override.is_sweep_override():
        key = override.key_or_group
        raise ChoiceError(f"{argument}: write 'space.{key}={{uniform: [LOW, HIGH]}}' or {key}=A,B,C")
    return value


def _unquoted(item: Any) -> Any:
    """A value of a comma list without the marks that Hydra's grammar keeps."""
    if isinstance(item, QuotedString):
        return item.text
    if isinstance(item, list):
        return [_unquoted(inner) for inner in item]
    return {_unquoted(key): _unquoted(inner) for key, inner in item.items()} if isinstance(item, dict) else item


def _read_group(group: str, value: Any, argument: str, line: Line) -> None:
    names = list(value.values) if isinstance(value, Listed) else [value]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise ChoiceError(f"{argument}: {group} takes the name of an option; see --help")
    if len(names) > 1 and group not in KEYS_OF_CHOICES:
        among = " or ".join(KEYS_OF_CHOICES)
        raise ChoiceError(f"{argument}: {group} takes one name; a search can choose among {among}")
    line.groups[group] = names[0]
    line.listed_groups.pop(group, None)
    if len(names) > 1:
        line.listed_groups[group] = names


# ---- composing ---------------------------------------------------------------------------------------------------


def compose_choices(arguments: Sequence[str]) -> Composed:
    """`compose_line` of `read_line`."""
    return compose_line(read_line(arguments))


def compose_line(line: Line) -> Composed:
    """Compose the groups, put the typed values over them and resolve all.

    What is typed wins over `scale`, which wins over `search`, which wins over the defaults. A value typed for a
    searched key takes it out of the space; a comma list puts it in as a choice, with the first of its values as the
    default where the run's own is not among them.

    Raises:
        ChoiceError: one line; unknown options and keys, malformed files and values.
    """
    config, choices = _hydra(line.groups, line.config_dir)
    space = leaves_of(_plain(config.space))
    notes = _put_all(config, space, line)
    _refuse_missing(config)
    tree = _plain(config)
    del tree["space"]
    _refuse_misplaced_leaves(space, dotted(tree))
    tree["space"] = settled(space, tree, {KEYS_OF_CHOICES.get(group, group): name for group, name in choices.items()})
    notes += [
        f"space.{key}: not searched, its condition {written(leaf['when'])} does not hold"
        for key, leaf in space.items()
        if key not in tree["space"] and f"space.{key}" in line.values
    ]
    chosen = [key for key in GROUP_CHOICES if key in tree["space"]]
    tree["options"] = {key: _options(key, tree["space"][key], choices[GROUP_CHOICES[key]], line) for key in chosen}
    if tree["command"] == "search" and choices["search"] == "none" and not tree["space"]:
        searches = [name for name in _options_of("search", line.config_dir) if name != "none"]
        raise ChoiceError(f"search=NAME is needed, or a space of your own; there is {', '.join(searches)}")
    _resolve_paths(tree)
    return Composed(tree, notes, choices)


def recompose(line: Line, stored: Mapping[str, Any]) -> Composed:
    """Put a command line over a study's or a checkpoint's configuration instead of over the defaults.

    Args:
        line: may name what changes no result: the command, paths, cluster, tracking; and for a checkpoint's commands
            other recordings and their label protocol, which are then prepared as the model asks.
        stored: trees by their top-level keys; what it lacks comes from the defaults.

    Raises:
        ChoiceError: if something else is typed.
    """
    evaluates = line.values.get("command") in OF_A_CHECKPOINT
    _refuse_what_is_stored(line, dotted(stored), evaluates=evaluates)
    config, choices = _hydra(line.groups, line.config_dir)
    tree = _plain(config) | {"options": {}}
    for key, value in copy.deepcopy(dict(stored)).items():
        if key == "evaluate":  # a study of an earlier version lacks its newer keys
            tree[key] |= value
        elif key not in line.groups:
            tree[key] = value
        elif key == "data":
            tree[key] |= {name: value[name] for name in PREPARATION}
    known = dotted(tree)
    for key, value in line.values.items():
        if key not in known:
            raise ChoiceError(f"{key}: {unknown_key(key, known)}")
        if isinstance(known[key], dict) or isinstance(value, Listed):
            raise ChoiceError(f"{key}: takes one value here")
        put(tree, key, value)
    _resolve_paths(tree)
    return Composed(tree, [], choices)


def recompose_to_read(line: Line, stored: Mapping[str, Any]) -> Composed:
    """`recompose` for a command that only looks at a study, which may be of another version.

    Where its configuration is not one of this version, all but the seed and the number of resamples comes from the
    defaults, and a note says so.

    Raises:
        ChoiceError: if what is typed cannot be.
    """
    places = {key: value for key, value in line.values.items() if key in ("command", "study_dir", "storage")}
    try:
        checked(recompose(Line(values=places), stored).tree)
    except ChoiceError as error:
        _refuse_what_is_stored(line, dotted(stored), evaluates=False)
        found = compose_to_read(replace(line, groups={}), stored.get("study_dir"))
        evaluate, seed = stored.get("evaluate"), stored.get("seed")
        resamples = evaluate.get("num_resamples") if isinstance(evaluate, Mapping) else None
        if isinstance(seed, int):
            found.tree["seed"] = seed
        if isinstance(resamples, int) and "evaluate.num_resamples" not in line.values:
            found.tree["evaluate"]["num_resamples"] = resamples
        return replace(found, notes=[f"the study's configuration is of another version ({error})"])
    return recompose(line, stored)


def compose_to_read(line: Line, study_dir: str | None) -> Composed:
    """The defaults under what is typed, for a command that reads whole studies and has no configuration of its own.

    Args:
        line: what was typed.
        study_dir: the folder where none is typed.

    Raises:
        ChoiceError: if a key is typed that there is not, or a group, which nothing here reads.
    """
    if line.groups:
        raise ChoiceError(f"{', '.join(line.groups)}: not read by command={line.get('command')}: leave it out")
    config, choices = _hydra({}, line.config_dir)
    tree = _plain(config) | {"options": {}, "space": {}} | ({"study_dir": study_dir} if study_dir else {})
    known = dotted(tree)
    for key, value in line.values.items():
        if key not in known:
            raise ChoiceError(f"{key}: {unknown_key(key, known)}")
        if isinstance(known[key], dict) or isinstance(value, Listed):
            raise ChoiceError(f"{key}: takes one value here")
        put(tree, key, value)
    _resolve_paths(tree)
    return Composed(tree, [], choices)


def _refuse_what_is_stored(line: Line, stored: Mapping[str, Any], *, evaluates: bool) -> None:
    """Only what changes no result may be typed beside a stored configuration, or what it holds already."""
    for group, option in line.groups.items():
        if group not in ("cluster", "tracking") and not (evaluates and group == "data"):
            raise ChoiceError(
                f"{group}={option}: cannot be chosen, the configuration is that of the study or checkpoint"
            )
    for key, value in line.values.items():
        head, _, rest = key.partition(".")
        place = head == "data" and (rest in UNCHANGED_BY or (evaluates and rest not in PREPARATION))
        labels = evaluates and key == "task.labels"  # of other recordings; they must have the model's classes
        known = key in stored and stored[key] == value
        if not (head in NOT_OF_THE_RUN or place or labels or known):
            raise ChoiceError(f"{key}: cannot be changed, the configuration is the study's or the checkpoint's")


def _hydra(groups: Mapping[str, str], config_dir: Path | None) -> tuple[DictConfig, dict[str, str]]:
    """Compose groups alone; the configuration is not resolved yet."""
    overrides = [f"{_in_its_place(group)}={option}" for group, option in groups.items()]
    if config_dir is not None:
        quoted = str(config_dir).replace("\\", "\\\\").replace("'", "\\'")
        overrides.append(f"hydra.searchpath=['file://{quoted}']")
    try:
        with initialize_config_module("search_spaces", version_base="1.3"):
            config = compose("config", overrides=overrides, return_hydra_config=True)
    except MissingConfigException as error:
        raise ChoiceError(_no_option(error)) from error
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        homeless = next((group for group in groups if f"override '{_in_its_place(group)}'" in str(error)), None)
        if homeless in PLACES:
            told = f"{homeless}={groups[homeless]}: the chosen model has no {homeless.replace('_', ' ')}"
            raise ChoiceError(told) from error
        raise ChoiceError(_one_line(error)) from error
    except AssertionError as error:  # Hydra's own, of a defaults list such as [@space: st_mem]
        raise ChoiceError(
            "a defaults list in the YAML files must hold GROUP: OPTION, got one without a group"
        ) from error
    chosen = {str(group).partition("@")[0]: str(option) for group, option in config.hydra.runtime.choices.items()}
    choices = {group: option for group, option in chosen.items() if group in GROUPS}
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    for group in NAMED_BY_CHOICE:
        OmegaConf.update(config, f"{group}.name", choices[group], force_add=True)
    return config, choices


def _in_its_place(group: str) -> str:
    """A group as Hydra calls it."""
    return f"{group}@{PLACES[group]}" if group in PLACES else group


def _no_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file or "").partition("/")
    if group not in GROUPS:
        return _one_line(error)
    return f"{group}={option}: no such {group}; {nearest(option, _shown(error.options or []))}"


def _shown(options: Sequence[str]) -> list[str]:
    return [option for option in options if not option.startswith("_")]


def _one_line(error: BaseException) -> str:
    """An error's text, or that of what it came from where it has none of its own."""
    text = " ".join(str(error.__cause__ or error).split())
    return text or type(error).__name__


def _plain(config: DictConfig) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise ChoiceError(_one_line(error)) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


# ---- putting what was typed over it ------------------------------------------------------------------------------


def _put_all(config: DictConfig, space: dict[str, Any], line: Line) -> list[str]:
    """Change `config` and `space` as typed; say what the user may not expect."""
    notes: list[str] = []
    known = dotted(_unresolved(config))
    for group, names in line.listed_groups.items():
        space[KEYS_OF_CHOICES[group]] = {"choice": names}
        _narrow_conditions(space, KEYS_OF_CHOICES[group], names)
        notes.append(f"{group}: searched, one of {', '.join(names)}; trial 0 takes {names[0]}")
    for group in line.groups:
        if KEYS_OF_CHOICES.get(group) in space and group not in line.listed_groups:
            del space[KEYS_OF_CHOICES[group]]
            _narrow_conditions(space, KEYS_OF_CHOICES[group], [line.groups[group]])
            notes.append(f"{group}={line.groups[group]}: fixed, no longer searched")
    for key, value in line.values.items():
        if key.partition(".")[0] == "space":
            _put_leaf(space, key, value)
        else:
            _put_value(config, space, key, value, known, line, notes)
    return notes


def _narrow_conditions(space: dict[str, Any], key: str, options: Sequence[str]) -> None:
    """Leave those options out of all conditions that are no longer among a group's, and what is then never searched."""
    for name, leaf in list(space.items()):
        when = leaf.get("when") if isinstance(leaf, Mapping) else None
        if not isinstance(when, Mapping) or key not in when:
            continue
        allowed = when[key] if isinstance(when[key], list) else [when[key]]
        left = [option for option in allowed if option in options]
        if left:
            space[name] = {**leaf, "when": {**when, key: left}}
        else:
            del space[name]


def _unresolved(config: DictConfig) -> dict[str, Any]:
    tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items() if key not in ("space", "options")}


def _put_leaf(space: dict[str, Any], key: str, value: Any) -> None:
    """Set or take out one leaf of the space."""
    target = key.removeprefix("space").removeprefix(".")
    if not target:
        raise ChoiceError(
            "space: set its keys one by one, as in 'space.model.mask_ratio={uniform: [0.5, 0.8]}', or space=none"
        )
    if isinstance(value, Listed):
        raise ChoiceError(f"{key}: write {target}=A,B,C or '{key}={{choice: [A, B, C]}}'")
    if value is TakenOut or value is None:
        gone = [leaf for leaf in space if f"{leaf}.".startswith(f"{target}.")]
        if not gone:
            raise ChoiceError(f"~{key}: not in the space; {nearest(target, space)}")
        for leaf in gone:
            del space[leaf]
        return
    written_leaves = leaves_of({target: value})
    if target not in written_leaves:
        space.pop(target, None)
    space.update(written_leaves)
    options = written_leaves.get(target, {}).get("choice") if target in GROUP_CHOICES else None
    if isinstance(options, list):
        _narrow_conditions(space, target, options)


def _put_value(
    config: DictConfig,
    space: dict[str, Any],
    key: str,
    value: Any,
    known: Mapping[str, Any],
    line: Line,
    notes: list[str],
) -> None:
    """Set one value of the run; a comma list becomes a choice, any other value is fixed."""
    if key not in known:
        raise ChoiceError(f"{key}: {unknown_key(key, known)}")
    if isinstance(known[key], dict):
        inside = ", ".join(known[key])
        raise ChoiceError(f"{key} holds other keys: set {key}.KEY=VALUE, KEY being {inside}")
    if isinstance(value, Listed):
        values = list(value.values)
        space[key] = {"choice": values}
        default = OmegaConf.select(config, key)
        if default not in values:
            default = values[0]
            _set(config, key, default)
        notes.append(f"{key}: searched, one of {', '.join(map(written, values))}; trial 0 takes {written(default)}")
        return
    _set(config, key, value.replace("${", "\\${") if PATHS.fullmatch(key) and value else value)
    if f"space.{key}" in line.values:  # a range typed too: the value is its default
        return
    for leaf in [leaf for leaf in space if f"{leaf}.".startswith(f"{key}.")]:
        del space[leaf]
        below = "" if leaf == key else f"{leaf} "
        notes.append(f"{key}={written(value)}: {below}fixed, no longer searched")


def _refuse_misplaced_leaves(space: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """A leaf must stand where the run has a value, or where another option of a searched group may have one."""
    for key in space:
        first = key.partition(".")[0]
        if first not in Run.model_fields:
            of_a_run = [name for name in known if name.partition(".")[0] in Run.model_fields]
            outside = f"is told to no trial; a space holds keys of {', '.join(Run.model_fields)}"
            raise ChoiceError(f"space.{key}: {outside if first in known else unknown_key(key, of_a_run)}")
        head, _, last = key.rpartition(".")
        if isinstance(known.get(key), dict) and key not in GROUP_CHOICES:
            raise ChoiceError(f"space.{key}: {key} holds other keys: search one of them, space.{key}.KEY")
        inside = any(key.startswith(f"{group}.") for group in GROUP_CHOICES if group in space)
        if key in known or key in GROUP_CHOICES or inside:
            continue
        if head in known and not isinstance(known[head], dict | list):
            raise ChoiceError(f"space.{head}: no such distribution {last}; {nearest(last, KINDS)}")
        raise ChoiceError(f"space.{key}: {unknown_key(key, known)}")


def _set(config: DictConfig, key: str, value: Any) -> None:
    try:
        OmegaConf.update(config, key, value, merge=False)
    except (OmegaConfBaseException, ValueError) as error:
        raise ChoiceError(f"{key}: {_one_line(error)}") from error


def _refuse_missing(config: DictConfig) -> None:
    for key, value in dotted(_unresolved(config)).items():
        if value == "???":
            raise ChoiceError(f"{key}=... is needed; see --help")


def _options(key: str, leaf: Any, chosen: str, line: Line) -> dict[str, dict[str, Any]]:
    """The subtree of every option that the space may choose at a group's key, composed as the run's own was."""
    group = GROUP_CHOICES[key]
    names = leaf.get("choice") if isinstance(leaf, Mapping) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise ChoiceError(f"space.{key}: must be a list of options' names, got {leaf}")
    if chosen not in names:
        raise ChoiceError(
            f"space.{key}: must hold the run's own option, {chosen}, got {written(names)}; or type {group}=NAME"
        )
    subtrees = {}
    for name in names:
        config, _ = _hydra({**line.groups, group: name}, line.config_dir)
        theirs = {typed: value for typed, value in line.values.items() if typed.startswith(f"{key}.")}
        try:
            _put_all(config, {}, Line(values=theirs))
            _refuse_missing(config)
        except ChoiceError as error:
            raise ChoiceError(f"space.{key}: with {group}={name}: {error}") from error
        tree = _plain(config)
        _resolve_paths(tree)
        subtrees[name] = dotted(tree)[key]
        if twin := next((other for other in subtrees if other != name and subtrees[other] == subtrees[name]), None):
            raise ChoiceError(f"space.{key}: with what is typed {twin} and {name} are the same; leave one of them out")
    return subtrees


def _resolve_paths(tree: dict[str, Any]) -> None:
    """Make folders absolute; what a reader is told is relative to data.root."""
    for key, value in dotted(tree).items():
        if key == "checkpoint" and isinstance(value, list):
            put(tree, key, [_absolute(folder) for folder in value])
        elif PATHS.fullmatch(key) and isinstance(value, str):
            # not Path.expanduser, which raises where there is no such user: a folder may be called "~ x"
            put(tree, key, _absolute(value) if FOLDERS.fullmatch(key) else os.path.expanduser(value))


def _absolute(path: str | None) -> str | None:
    return str(Path(os.path.expanduser(path)).absolute()) if path else None


# ---- help --------------------------------------------------------------------------------------------------------


def help_text(config_dir: Path | None = None) -> str:
    """What --help prints: every group with its options, then examples."""
    lines = ["python launch.py [GROUP=OPTION ...] [KEY=VALUE ...] [--cfg] [--config-dir DIR]", "", "Groups:"]
    lines += [f"  {group:<10} {' '.join(_options_of(group, config_dir))}" for group in GROUPS]
    lines += ["", "Examples (--cfg prints every key with its value):"]
    lines += [f"  {'# ' + purpose:<34}python launch.py {typed}" for purpose, typed in EXAMPLES]
    return "\n".join(lines)


def _options_of(group: str, config_dir: Path | None) -> list[str]:
    folders = [FOLDER, *([config_dir] if config_dir else [])]
    return _shown(sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")}))
