r"""A published encoder's weights, brought into the form of our own checkpoints by a declared mapping of keys.

Nothing is guessed and nothing is lost without a word: every key of the file is taken, or declared as unused; every
tensor of our encoder is filled, or declared as kept; and the mapping states for which recordings the weights are
meant. A file is read as plain tensors: loading one executes nothing.

A mapping is YAML:

    source: where the weights come from, and their licence
    pretraining_data: names of the data sets that they were trained on   # may be left out; the report then says so
    state: model            # under which key of the file the tensors lie; left out where the file is they
    rename:                 # regular expressions on the file's keys, in order, to the names of our encoder's tensors
      - ['^blocks\.(\d+)\.norm1\.', 'blocks.\1.attention_norm.']
    unused: ['^head\.']     # keys of the file, as it has them, that are left out
    kept: ['^positions$']   # tensors of our encoder that stay as they are initialised
    reshape: ['^patch_embedding\.weight$']  # our tensors that the file holds with other axes of the same order
    contract: {sampling_rate_hz: 250.0, ...}  # how recordings must be prepared; keys as in Contract
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError
from torch import Tensor

from data.record import DataError
from trainables.checkpoint import DESCRIPTION, WEIGHTS, describe
from trainables.files import StorageError, read_tensors, write_tensors
from trainables.pretrain import fresh_encoder
from trainables.settings import Run, Settings

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""What our floating tensors may come as. Eight bits and fewer need scales that a file keeps apart."""


class Contract(Settings):
    """What a mapping must state of the recordings that the weights are for: keys of `data`, and the unit."""

    sampling_rate_hz: float
    highpass_hz: float | None
    lowpass_hz: float | None
    filter_order: int
    standardize: Literal["record", "lead", "none"]
    window_s: float
    leads: list[str]
    unit: Literal["mV"] = "mV"
    """Of the amplitudes before they are standardised."""


CONTRACT = tuple(key for key in Contract.model_fields if key != "unit")
"""The keys of a contract that are keys of `data`."""


class Mapped(Settings):
    """A mapping, as its YAML says it."""

    source: str
    pretraining_data: str | None = None
    """Which recordings the weights have seen, in words, for the report: nothing here can check it."""
    state: str | None = None
    rename: list[tuple[str, str]] = Field(default_factory=list)
    unused: list[str] = Field(default_factory=list)
    kept: list[str] = Field(default_factory=list)
    reshape: list[str] = Field(default_factory=list)
    contract: Contract


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
            recordings do not meet; or if the folder holds a checkpoint or a study. Nothing is written then.
    """
    _check_free(folder)
    mapped = read_mapping(mapping)
    _check_contract(mapped, run, mapping)
    encoder = fresh_encoder(run)
    ours = encoder.state_dict()
    state, imported = fitted(ours, _tensors_in(weights, mapped.state), mapped, mapping)
    write_tensors(folder / WEIGHTS, {f"encoder.{name}": tensor for name, tensor in state.items()}, {})
    contract = run.data.model_dump(mode="json", include=set(CONTRACT)) | {"unit": "mV"}
    description = {
        "trial": None,
        "imported": {
            "source": mapped.source,
            "pretraining_data": mapped.pretraining_data,
            "kept": imported.kept,
            "unused": imported.unused,
        },
        "contract": contract,
        "run": run.model_dump(mode="json", by_alias=True),
    }
    try:
        describe(folder, description)
    except StorageError:
        (folder / WEIGHTS).unlink(missing_ok=True)  # else the same line, typed again, would find the folder taken
        raise
    return imported


def read_mapping(path: Path) -> Mapped:
    """A mapping from its file.

    Raises:
        DataError: if it is no mapping; the message names the keys.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        found = "an empty file" if content is None else type(content).__name__
        raise DataError(f"{path} must be a mapping of keys to values, got {found}")
    try:
        mapped = Mapped.model_validate(content)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}{_got(one['input'])}" for one in error.errors()
        )
        raise DataError(f"{path} is no mapping of keys: {' '.join(told.split())}") from error
    patterns = [(pattern, "") for pattern in (*mapped.unused, *mapped.kept, *mapped.reshape)]
    for pattern, replacement in (*mapped.rename, *patterns):
        try:
            re.sub(pattern, replacement, "")  # a replacement is parsed even where nothing matches
        except (re.error, IndexError, OverflowError) as error:  # IndexError: a group's name that the pattern lacks
            told = " ".join(f"{[pattern, replacement] if replacement else pattern}: {error}".split())
            raise DataError(f"{path} is no mapping of keys: {told}") from error
    return mapped


def _got(value: Any) -> str:
    return f", got {value!r}" if isinstance(value, str | int | float) else ""


def fitted(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], mapped: Mapped, path: Path
) -> tuple[dict[str, Tensor], Imported]:
    """Our tensors with those of the file in their places, under a mapping that accounts for every key.

    Raises:
        DataError: naming all keys that it does not account for, or a tensor of another shape or with other values than
            ours may have.
    """
    unused = [key for key in theirs if _matches(key, mapped.unused)]
    renamed = {_renamed(key, mapped): key for key in theirs if key not in unused}
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
    for name, key in renamed.items():
        wanted, tensor = ours[name].shape, _converted(theirs[key], ours[name].dtype, key, path)
        if tensor.shape != wanted and _matches(name, mapped.reshape) and tensor.numel() == wanted.numel():
            tensor = tensor.reshape(wanted)
        if tensor.shape != wanted:
            raise DataError(
                f"{path}: {name} must be {tuple(wanted)}, the file's is {tuple(tensor.shape)}: set model.encoder.* as "
                "the weights were trained, or list it under reshape where only axes of the same order differ"
            )
        state[name] = tensor
    taken, kept = sorted(renamed), sorted(ours.keys() - renamed.keys())
    return state, Imported(taken, sorted(unused), kept)


def _converted(tensor: Tensor, dtype: torch.dtype, key: str, path: Path) -> Tensor:
    """A copy of a file's tensor in our type, with memory of its own.

    Raises:
        DataError: if it is none of plain finite values that our type holds.
    """
    told = f"{path}: {key} of the file must be"
    strange = {
        "quantised": tensor.is_quantized,
        "sparse": tensor.layout is not torch.strided,
        "nested": tensor.is_nested,
        "without values": tensor.is_meta,
    }
    if kinds := [kind for kind, holds in strange.items() if holds]:
        raise DataError(f"{told} a plain tensor, it is {kinds[0]}: ask its authors for plain weights")
    allowed = FLOATS if dtype.is_floating_point else (dtype,)
    if tensor.dtype not in allowed:
        raise DataError(f"{told} of {', '.join(map(_type_name, allowed))}, it is of {_type_name(tensor.dtype)}")
    if not tensor.isfinite().all():
        raise DataError(f"{told} finite, it holds NaN or infinite values")
    converted = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    if not converted.isfinite().all():
        raise DataError(f"{told} within the range of {_type_name(dtype)}, it holds larger values")
    return converted


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_free(folder: Path) -> None:
    for name in (DESCRIPTION, WEIGHTS, "study.yaml", "events.jsonl"):
        if os.path.lexists(folder / name):
            raise DataError(
                f"{folder} must hold no checkpoint and no study, it holds {name}: type another study_dir=DIR"
            )


def _check_contract(mapped: Mapped, run: Run, path: Path) -> None:
    wanted, data = mapped.contract.model_dump(mode="json"), run.data.model_dump(mode="json")
    differing = [shlex.quote(f"data.{key}={_typed(wanted[key])}") for key in CONTRACT if wanted[key] != data[key]]
    if differing:
        raise DataError(f"{path}: the weights are for recordings prepared otherwise; type {' '.join(differing)}")


def _typed(value: Any) -> str:
    """A value as a line of `launch.py` has it."""
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    return value if isinstance(value, str) else json.dumps(value)


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
        path.open("rb").close()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    told = f"{path} cannot be read as plain tensors"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of pickle that it may then refuse anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's words advise to load the file in a way that executes it: not repeated
        raise StorageError(
            f"{told}: it holds other Python objects, or torch did not write it. Nothing of it was executed. Ask its "
            "authors for safetensors, or to re-save the state dict alone with torch.save({name: tensor}, FILE)"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        raise StorageError(
            f"{told}: it is damaged, or a program instead of a state dict. Nothing of it was executed. Fetch it again, "
            "or ask its authors for safetensors"
        ) from None


def _renamed(key: str, mapped: Mapped) -> str:
    for pattern, replacement in mapped.rename:
        key = re.sub(pattern, replacement, key)
    return key


def _matches(name: str, patterns: list[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
