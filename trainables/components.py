"""From a `_target_` in the configuration to an object: which classes may be named, and what they may be told.

A configuration can come from a stranger's checkpoint, so a name is looked up and never evaluated: only classes that are
defined in a module of models, data or trainables can be reached. Workers build their models here and need no Hydra.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from trainables.settings import Component, Data, Model, Run

if TYPE_CHECKING:
    from data.transforms import Transform
    from models.encoder import Encoder
    from models.pretext import PretextTask

PACKAGES = ("models", "data", "trainables")
"""Where a `_target_` may point to."""


class ComponentError(ValueError):
    """The configuration names a class that there is not, or tells it something it does not take; one line."""


class MisfitError(ComponentError):
    """A pretext task needs what its encoder does not give; one line, but for the encoders that do."""

    def __init__(self, message: str, needs: Collection[str]) -> None:
        super().__init__(message)
        self.needs = frozenset(needs)


def meant(word: str, options: Iterable[str]) -> str | None:
    """The option that a mistyped word is most like, if it is like any."""
    folded = {option.lower(): option for option in sorted(set(options))}
    return next((folded[match] for match in difflib.get_close_matches(word.lower(), folded, n=1)), None)


def nearest(word: str, options: Iterable[str]) -> str:
    """A hint that ends an error about `word`: the option that was meant, or all of them where none is like it."""
    options = sorted(set(options))
    if close := meant(word, options):
        return f"did you mean {close}?"
    return f"there is {', '.join(options)}" if options else "there is none"


def said_plainly(detail: Mapping[str, Any]) -> str:
    """One of pydantic's error details as our messages begin: what must hold."""
    kind, message = str(detail["type"]), str(detail["msg"]).removeprefix("Value error, ")
    for prefix, plain in _PLAIN.items():
        if kind.startswith(prefix):
            return plain
    return message.replace("Input should be", "must be").replace("should", "must")


_PLAIN = {
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list such as [A,B]",
    "tuple_type": "must be a list such as [A,B]",
    "sequence_str": "must be a list such as [A,B]",
    "missing": "must hold more values",
    "is_instance_of": "must be a list such as [A,B]",
    "dict_type": "must hold keys of its own",
    "model_type": "must hold keys of its own",
}
"""By the beginning of pydantic's error type."""


def resolve(target: str | None) -> type:
    """The class that a `_target_` names.

    Args:
        target: package.module.Class, the package being one of PACKAGES.

    Raises:
        ComponentError: if it is none of ours; the message says what exists.
    """
    package, _, rest = (target or "").partition(".")
    module, _, name = rest.rpartition(".")
    if package not in PACKAGES or not module or not name:
        raise ComponentError(
            f"_target_ must be {', '.join(PACKAGES[:-1])} or {PACKAGES[-1]}.MODULE.CLASS, got {target!r}"
        )
    modules = modules_of(package)
    if module not in modules:
        raise ComponentError(f"{target}: there is no module {package}.{module}; {nearest(module, modules)}")
    classes = _classes_of(f"{package}.{module}")
    if name not in classes:
        raise ComponentError(f"{target}: there is no class {name} to build; {nearest(name, classes)}")
    return classes[name]


def modules_of(package: str) -> list[str]:
    """The modules of one of PACKAGES, found without importing them."""
    return [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]


def _classes_of(module_name: str) -> dict[str, type]:
    """The classes that a module defines itself and that can be built."""
    module = importlib.import_module(module_name)
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module_name
        and not name.startswith("_")
        and not inspect.isabstract(value)
    }


def check(component: Component, provided: Collection[str], *, at: str = "_target_") -> None:
    """Hold a component's arguments against the signature of its class.

    Args:
        component: the class and what the configuration tells it.
        provided: keywords that the program adds itself.
        at: the component's key in the configuration, for messages.

    Raises:
        ComponentError: naming the key that is unknown, missing or of another type than the signature says.
    """
    _arguments(component, provided, at=at)


def build(component: Component, **provided: Any) -> Any:
    """Call a component's class with the configuration's arguments and those provided here.

    Arguments arrive as the types that the signature names: a text becomes a Path, a whole number a float, and what has
    a `_target_` of its own an object.

    Raises:
        ComponentError: as `check`.
        ValueError: whatever the class itself refuses.
    """
    arguments = _arguments(component, provided, at="_target_")
    built = {key: build(value) if isinstance(value, Component) else value for key, value in arguments.items()}
    return resolve(component.target)(**built, **provided)


def _arguments(component: Component, provided: Collection[str], *, at: str) -> dict[str, Any]:
    """What the configuration tells the class, in the types of its signature."""
    try:
        cls = resolve(component.target)
    except ComponentError as error:
        raise ComponentError(f"{at}: {error}" if at != "_target_" else str(error)) from error
    parameters = _parameters(cls)
    told = component.arguments
    theirs = [name for name in parameters if name not in provided]
    if untold := [name for name in provided if name not in parameters]:
        raise ComponentError(f"{at}: {component.target} must take {', '.join(untold)}, which the program tells it")
    for key in told:
        if key in provided:
            raise ComponentError(f"{at}.{key}: {cls.__name__} is told this by the program; leave it out")
        if key not in parameters:
            raise ComponentError(f"{at}.{key}: {cls.__name__} takes no such key; {nearest(key, theirs)}")
    for name in theirs:
        if name not in told and parameters[name].default is inspect.Parameter.empty:
            raise ComponentError(f"{at}.{name} is missing: {component.target} needs it")
    return {key: _converted(cls, key, value, at=at) for key, value in told.items()}


@functools.cache
def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """What a class can be told by keyword; annotations are resolved where they can be."""
    try:
        parameters = inspect.signature(cls, eval_str=True).parameters
    except NameError:  # an annotation that only type checkers import
        parameters = inspect.signature(cls).parameters
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in by_keyword}


def _converted(cls: type, key: str, value: Any, *, at: str) -> Any:
    if isinstance(value, Mapping) and "_target_" in value:
        nested = Component.model_validate(value)
        check(nested, (), at=f"{at}.{key}".removeprefix("_target_."))
        return nested
    adapter = _adapter(cls, key)
    if adapter is None:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        problems = dict.fromkeys(said_plainly(detail) for detail in error.errors())
        raise ComponentError(f"{at}.{key}: {' or '.join(problems)}, got {value!r}") from error


@functools.cache
def _adapter(cls: type, key: str) -> TypeAdapter[Any] | None:
    """What turns a plain value into a parameter's type; None where the annotation is no plain type."""
    annotation = _parameters(cls)[key].annotation
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return None
    try:
        return TypeAdapter(annotation)
    except PydanticUserError:  # a class of ours, say
        return None


def encoder_inputs(data: Data) -> dict[str, Any]:
    """What every encoder is told about its input, beside its own keys."""
    return {
        "leads": tuple(data.leads),
        "num_samples": data.window_samples,
        "sampling_rate_hz": data.sampling_rate_hz,
    }


def build_encoder(run: Run) -> Encoder:
    """The run's encoder, with weights drawn from torch's global generator.

    Raises:
        ComponentError: as `check`, or if it is no encoder.
        ValueError: whatever the class itself refuses.
    """
    from models.encoder import Encoder

    encoder = build(run.model.encoder, **encoder_inputs(run.data))
    if not isinstance(encoder, Encoder):
        raise ComponentError(
            f"model.encoder._target_: must be an encoder (models.encoder.Encoder), got {run.model.encoder.target}"
        )
    return encoder


def build_pretext_on(model: Model, encoder: Encoder) -> PretextTask:
    """A model's pretext task around an encoder, with weights drawn from torch's global generator.

    Raises:
        MisfitError: if the task needs what the encoder does not give.
        ComponentError, ValueError: as `build_encoder`.
    """
    from models.pretext import PretextTask

    assert model.target is not None, "settings refuse pre-training without a pretext task"
    task = resolve(model.target)
    if not issubclass(task, PretextTask):
        raise ComponentError(f"model._target_: must be a pretext task (models.pretext.PretextTask), got {model.target}")
    if lacking := task.needs - encoder.gives:
        raise MisfitError(
            f"model.encoder: {task.__name__} needs an encoder that gives {' and '.join(sorted(lacking))}, "
            f"{type(encoder).__name__} gives {' and '.join(sorted(encoder.gives))}",
            task.needs,
        )
    pretext: PretextTask = build(model, encoder=encoder)
    return pretext


def check_model(run: Run, *, sharded: bool = False) -> None:
    """Build the run's encoder, pretext task and classifier without filling weights: in milliseconds, whatever the size.

    Args:
        run: whose model it is.
        sharded: whether its weights are to be shared out over workers.

    Raises:
        ComponentError: if arguments do not fit their class, a class is of the wrong kind, or the encoder does not give
            what is asked of it.
        ValueError: whatever a class refuses.
    """
    import torch  # only here: the mistakes that need no model are found without it

    from trainables.sharding import check_shardable

    check(run.model.encoder, encoder_inputs(run.data), at="model.encoder")
    if run.model.target is not None:
        check(run.model, ("encoder",), at="model")
    try:
        with torch.random.fork_rng(devices=[]), _unfilled():
            encoder = build_encoder(run)
            built: torch.nn.Module = encoder
            if run.model.target is not None:
                built = pretext = build_pretext_on(run.model, encoder)
                _check_batch(pretext, run)
            if sharded:
                check_shardable(built)
            if run.task.stages != "pretrain":
                _check_classifier(run, encoder)
    except (RuntimeError, OverflowError) as error:  # sizes that no tensor can have
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ComponentError(f"model: {run.model.target} cannot be built with its keys: {reason}") from error


def _check_batch(pretext: PretextTask, run: Run) -> None:
    """Refuse batches from which the task can learn nothing."""
    size = run.task.pretrain.batch_size
    if run.task.num_pretrain_epochs and size < pretext.least_batch:
        raise ComponentError(
            f"task.pretrain.batch_size: {type(pretext).__name__} holds records against each other, so it must be at "
            f"least {pretext.least_batch}, got {size}"
        )


def _check_classifier(run: Run, encoder: Encoder) -> None:
    """Refuse a way of fine-tuning that the encoder cannot do."""
    from models.classifier import Classifier

    stage = run.task.finetune
    if stage.pool == "attention" and "patches" not in encoder.gives:
        raise MisfitError(
            f"task.finetune.pool: attention needs an encoder that gives patches, {type(encoder).__name__} gives "
            f"{' and '.join(sorted(encoder.gives))}; type task.finetune.pool=encoder or",
            {"patches"},
        )
    ratios = {"mask_c_ratio": stage.mask_c_ratio, "mask_t_ratio": stage.mask_t_ratio}
    try:
        Classifier(encoder, 1, drop_path=0.0, head_init_std=0.0, **ratios)
    except ValueError as error:
        raise ComponentError(f"task.finetune.{error}") from error


def _unfilled() -> AbstractContextManager[Any]:
    """While it lasts, tensors are not filled in place, so that their memory is reserved but never touched.

    The meta device would do, but its first `arange` loads a second's worth of torch's compiler.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    in_place = {getattr(torch.Tensor, f"{name}_") for name in ("uniform", "normal", "fill", "zero")}
    in_place |= {value for name, value in vars(torch.nn.init).items() if name.endswith("_") and callable(value)}

    class Unfilled(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = kwargs or {}
            if func in in_place:
                return args[0] if args else given["tensor"]
            return func(*args, **given)

    return Unfilled()


def check_components(run: Run) -> None:
    """Build the run's reader and transforms, and try each transform on one silent crop; nothing is read or changed.

    Raises:
        ComponentError: naming the key that cannot be, or whose transform cannot take the run's signals.
    """
    _check_built("data.reader", run.data.reader, {"root": None, "source_rate_hz": run.data.source_rate_hz}, "table")
    for holder, transforms in (("model", run.model.transforms), ("task.finetune", run.task.finetune.transforms)):
        for number, transform in enumerate(transforms):
            key = f"{holder}.transforms.{number}"
            _check_applied(key, _check_built(key, transform, {}, "draw"), run.data)


def _check_applied(key: str, transform: Transform, data: Data) -> None:
    """Change one crop of zeros, of shape (1, C, T), as training would."""
    import torch  # only here: a run without transforms is checked without it

    shape = (1, len(data.leads), data.window_samples)
    told = getattr(transform, "sampling_rate_hz", data.sampling_rate_hz)
    if told != data.sampling_rate_hz:
        raise ComponentError(
            f"{key}.sampling_rate_hz: must be that of the data, {data.sampling_rate_hz:g}, got {told:g}; in a YAML "
            "${data.sampling_rate_hz} is"
        )
    try:
        # a generator of its own: the numbers of a run must not depend on whether it was checked
        transform.apply(torch.zeros(shape), transform.draw(shape, torch.Generator().manual_seed(0)))
    except ValueError as error:
        raise ComponentError(f"{key}: {error}") from error


def _check_built(key: str, component: Component, provided: dict[str, Any], does: str) -> Any:
    """Build a component that must have a method called `does`."""
    check(component, provided, at=key)
    try:
        built = build(component, **provided)
    except ValueError as error:
        raise ComponentError(f"{key}: {error}") from error
    if not hasattr(built, does):
        raise ComponentError(f"{key}._target_: must be a class that can {does}, got {component.target}")
    return built
