"""What a study's models are called: the pretext task and the encoder, from the classes in its configuration."""

from __future__ import annotations

from typing import Any

from reports.folder import Study, at_path
from reports.words import listed

PRETEXTS = {
    "models.jepa.JEPA": "jepa",
    "models.simclr.SimCLR": "simclr",
    "models.byol.BYOL": "byol",
    "models.clocs.CLOCS": "clocs",
    "models.clip.CLIP": "meclip",
}
MASKED = "models.masked_autoencoder.MaskedAutoencoder"
MASKED_BY_ENCODER = {"st_mem": "st_mem", "mtae": "mtae", "mlae": "mlae", "signal_vit": "signal_mae"}
"""What is hidden follows from the patches of the encoder; any other one makes a plain masked autoencoder."""
ENCODERS = {
    "models.st_mem.STMEMEncoder": "st_mem",
    "models.mtae.MTAEEncoder": "mtae",
    "models.mlae.MLAEEncoder": "mlae",
    "models.signal_vit.SignalViT": "signal_vit",
    "models.vit.ViT1d": "vit1d",
    "models.resnet.ResNet1d": "resnet1d",
    "models.xresnet.XResNet1d": "xresnet1d",
    "models.s4d.S4D": "s4d",
}
UNKNOWN = "unknown"


def pretexts_and_encoders(study: Study) -> tuple[list[str], list[str]]:
    """The names of all pretext tasks and all encoders that the study trained or searched among, each once.

    A model of the user's own goes by the name of its class.
    """
    models = [study.setting("model")]
    searched = study.setting("options.model")  # searched for: the option that `model` holds is one of them
    if isinstance(searched, dict) and searched:
        models = list(searched.values())
    pairs = [names_of(model) for model in models if isinstance(model, dict)]
    options = at_path(study.config, "options", {})
    others = options.get("model.encoder") if isinstance(options, dict) else None
    encoders = [encoder for _, encoder in pairs]
    if isinstance(others, dict) and others:
        encoders = [_encoder(tree) for tree in others.values()]
    return list(dict.fromkeys(pretext for pretext, _ in pairs)), list(dict.fromkeys(encoders))


def method_of(study: Study) -> str:
    """The pretext task and the encoder in a few words."""
    pretexts, encoders = pretexts_and_encoders(study)
    return in_words(pretexts, encoders)


def in_words(pretexts: list[str], encoders: list[str]) -> str:
    """Pretext tasks and encoders in a few words."""
    if not pretexts:
        return UNKNOWN
    said = listed(pretexts) if len(pretexts) < 4 else f"{len(pretexts)} methods"
    if encoders == pretexts:
        return said
    return f"{said} with {listed(encoders) if len(encoders) < 4 else f'{len(encoders)} encoders'}"


def names_of(model: dict[str, Any]) -> tuple[str, str]:
    """The names of one model's pretext task and encoder, from its part of a configuration."""
    return _pretext(model), _encoder(at_path(model, "encoder"))


def _pretext(model: dict[str, Any]) -> str:
    target = model.get("_target_")
    if target is None:
        return "supervised"
    if target == MASKED:
        return MASKED_BY_ENCODER.get(_encoder(at_path(model, "encoder")), "mae")
    return PRETEXTS.get(str(target), str(target).rpartition(".")[2])


def _encoder(tree: Any) -> str:
    target = at_path(tree, "_target_")
    return UNKNOWN if target is None else ENCODERS.get(str(target), str(target).rpartition(".")[2])
