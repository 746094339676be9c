r"""A published encoder's weights, brought into the form of our own checkpoints by a declared mapping of keys.

Nothing is guessed and nothing is lost without a word: every key of the file is taken, or declared as unused; every
tensor of our encoder is filled, or declared as kept; and the mapping states for which recordings the weights are
meant. A file is read as plain tensors: loading one executes nothing.

A mapping is YAML:

    source: where the weights come from, and their licence
    state: model            # under which key of the file the tensors lie; left out where the file is they
    rename:                 # regular expressions on the file's keys, in order, to the names of our encoder's tensors
      - ['^blocks\.(\d+)\.norm1\.', 'blocks.\1.attention_norm.']
    unused: ['^head\.']     # keys of the file, as it has them, that are left out
    kept: ['^positions$']   # tensors of our encoder that stay as they are initialised
    reshape: ['^patch_embedding\.weight$']  # our tensors that the file holds with other axes of the same order
    contract: {sampling_rate_hz: 250.0, ...}  # how recordings must be prepared; keys as in CONTRACT
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, ValidationError
from torch import Tensor

from data.record import DataError
from trainables.checkpoint import WEIGHTS, describe
from trainables.files import StorageError, read_tensors, write_tensors
from trainables.pretrain import fresh_encoder
from trainables.settings import Run, Settings

CONTRACT = ("sampling_rate_hz", "highpass_hz", "lowpass_hz", "filter_order", "standardize", "window_s", "leads")
"""What a mapping must state of the recordings: keys of `data`. Amplitudes are in mV before they are standardised."""


class Mapped(Settings):
    """A mapping, as its YAML says it."""

    source: str
    state: str | None = None
    rename: list[tuple[str, str]] = Field(default_factory=list)
    unused: list[str] = Field(default_factory=list)
    kept: list[str] = Field(default_factory=list)
    reshape: list[str] = Field(default_factory=list)
    contract: dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """What became of the tensors of a file and of our encoder.

    Attributes:
        taken: our names of those that were filled.
        unused: keys of the file that were left out, as declared.
        kept: our names of those that stay as initialised, as declared.
    """

    taken: list[str]
    unused: list[str]
    kept: list[str]


def import_encoder(run: Run, weights: Path, mapping: Path, folder: Path) -> Imported:
    """Make a checkpoint of a foreign file, from which `task.encoder` can start.

    Args:
        run: whose encoder is filled, and whose `data` must be prepared as the mapping's contract says.
        weights: a safetensors file, or one of torch that holds nothing but tensors in plain containers.
        mapping: a YAML file.
        folder: of the checkpoint; it holds an encoder alone, without a head.

    Raises:
        StorageError: if a file cannot be read, or the folder not be written.
        DataError: naming every key that the mapping does not account for, or the part of the contract that the run's
            recordings do not meet.
    """
    mapped = read_mapping(mapping)
    _check_contract(mapped, run, mapping)
    encoder = fresh_encoder(run)
    ours = encoder.state_dict()
    state, imported = fitted(ours, _tensors_in(weights, mapped.state), mapped, mapping)
    write_tensors(folder / WEIGHTS, {f"encoder.{name}": tensor for name, tensor in state.items()}, {})
    contract = run.data.model_dump(mode="json", include=set(CONTRACT)) | {"unit": "mV"}
    describe(
        folder,
        {
            "trial": None,
            "imported": {"source": mapped.source, "kept": imported.kept, "unused": imported.unused},
            "contract": contract,
            "run": run.model_dump(mode="json", by_alias=True),
        },
    )
    return imported


def read_mapping(path: Path) -> Mapped:
    """A mapping from its file.

    Raises:
        DataError: if it is no mapping; the message names the keys.
    """
    try:
        mapped = Mapped.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        for pattern in (*(old for old, _ in mapped.rename), *mapped.unused, *mapped.kept, *mapped.reshape):
            re.compile(pattern)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise DataError(f"{path} is no mapping of keys: {told}") from error
    except (yaml.YAMLError, UnicodeDecodeError, re.error) as error:
        raise DataError(f"{path} is no mapping of keys: {' '.join(str(error).split())}") from error
    if missing := [key for key in CONTRACT if key not in mapped.contract]:
        raise DataError(f"{path}: contract must state {', '.join(missing)} of the recordings that the weights are for")
    return mapped


def fitted(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], mapped: Mapped, path: Path
) -> tuple[dict[str, Tensor], Imported]:
    """Our tensors with those of the file in their places, under a mapping that accounts for every key.

    Raises:
        DataError: naming all keys that it does not account for, or tensors of another shape.
    """
    unused = [key for key in theirs if _matches(key, mapped.unused)]
    renamed = {_renamed(key, mapped): tensor for key, tensor in theirs.items() if key not in unused}
    strangers = sorted(key for key in theirs if key not in unused and _renamed(key, mapped) not in ours)
    missing = sorted(name for name in ours if name not in renamed and not _matches(name, mapped.kept))
    if strangers or missing or len(renamed) < len(theirs) - len(unused):
        twice = "" if len(renamed) == len(theirs) - len(unused) else "; two of its keys get one name"
        raise DataError(
            f"{path} must account for every key: of the file, neither renamed to a tensor of the encoder nor unused: "
            f"{', '.join(strangers) or 'none'}; of the encoder, neither filled nor kept: "
            f"{', '.join(missing) or 'none'}{twice}"
        )
    state = dict(ours)
    for name, tensor in renamed.items():
        wanted = ours[name].shape
        if tensor.shape != wanted and _matches(name, mapped.reshape) and tensor.numel() == wanted.numel():
            tensor = tensor.reshape(wanted)
        if tensor.shape != wanted:
            raise DataError(
                f"{path}: {name} must be {tuple(wanted)}, the file's is {tuple(tensor.shape)}: set model.encoder.* as "
                "the weights were trained, or list it under reshape where only axes of the same order differ"
            )
        state[name] = tensor.to(ours[name].dtype)
    taken, kept = sorted(renamed), sorted(ours.keys() - renamed.keys())
    return state, Imported(taken, sorted(unused), kept)


def _check_contract(mapped: Mapped, run: Run, path: Path) -> None:
    data = run.data.model_dump(mode="json")
    differing = [
        f"data.{key}={yaml.safe_dump(mapped.contract[key], default_flow_style=True).split(chr(10))[0]}"
        for key in CONTRACT
        if mapped.contract[key] != data[key]
    ]
    if differing:
        raise DataError(f"{path}: the weights are for recordings prepared otherwise; type {' '.join(differing)}")


def _tensors_in(path: Path, under: str | None) -> dict[str, Tensor]:
    """The tensors of a file, by its keys."""
    content: Any = read_tensors(path)[0] if path.suffix == ".safetensors" else _torch_file(path)
    if under is not None:
        if not isinstance(content, Mapping) or under not in content:
            held = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
            raise DataError(f"{path} must hold the key {under} that the mapping's state names, it holds {held[:200]}")
        content = content[under]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path} must hold tensors by name: say in the mapping's state under which key they lie")
    return {str(key): tensor for key, tensor in content.items()}


def _torch_file(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of pickle that it may then refuse anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise StorageError(
            f"{path} cannot be read as plain tensors ({reason}): save its state dict anew, with tensors alone"
        ) from error


def _renamed(key: str, mapped: Mapped) -> str:
    for pattern, replacement in mapped.rename:
        key = re.sub(pattern, replacement, key)
    return key


def _matches(name: str, patterns: list[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
