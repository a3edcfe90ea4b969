"""Build the compared methods by name, all from one configuration of the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from hystar_fast.methods.acnet.acnet_config import ACNetConfig
from hystar_fast.methods.acnet.acnet_method import ACNet
from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.fgan.create_fgan import create_fgan
from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.frozen import Frozen
from hystar_fast.methods.hog import HOG
from hystar_fast.methods.hystar_method import HystarMethod, create_criterion
from hystar_fast.methods.interface import Method
from hystar_fast.methods.lora import LoRA
from hystar_fast.methods.ma_sbir.create_ma_sbir import create_ma_sbir
from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.methods.mean_shift import MeanShift
from hystar_fast.methods.own_settings import OwnSettings
from hystar_fast.methods.pixels import Pixels
from hystar_fast.methods.shuffled_style import ShuffledStyle
from hystar_fast.methods.static_only import StaticOnly
from hystar_fast.methods.tki.tki_config import TKIConfig
from hystar_fast.methods.tki.tki_method import create_tki
from hystar_fast.models.backbone_identity import backbone_fingerprints
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar, weightless

UNTRAINED = ("pixels", "hog", "frozen")
FITTED = ("mean_shift",)  # to the training data without gradient steps: no learning rates, and no seed
DEMO_TRAINED = ("static", "lora", "hystar")
DEMO_METHODS = (*UNTRAINED, *DEMO_TRAINED)
METHODS = (*UNTRAINED, *FITTED, *BASELINES, *DEMO_TRAINED)
OWN_STEPS: dict[str, type[OwnSettings]] = {
    "acnet": ACNetConfig,
    "fgan": FGANConfig,
    "ma_sbir": MASBIRConfig,
    "tki": TKIConfig,
}  # trained by their own steps, with their settings


def tiny_config(pretrained: str | None = "packaged") -> HystarConfig:
    """Return the Hystar of the demo: the tiny backbone, and its own frozen embedding as the style."""
    return HystarConfig(backbone="tiny", pretrained=pretrained, style="clip", blocks=None)


def create_hystar(config: HystarConfig, *, seed: int = 0) -> HystarMethod:
    """Build Hystar with hypernetworks initialised from `seed`."""
    torch.manual_seed(seed)
    return HystarMethod(Hystar(config))


def hystar_size(config: HystarConfig) -> int:
    """Count the trainable parameters of the Hystar of a configuration; LoRA gets as many.

    The model is built on the meta device: no weight is read or factored.
    """
    with weightless(config) as sizes:
        model = Hystar(sizes)
    return sum(parameter.numel() for parameter in model.trainable_parameters())


def uses_backbone(name: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a method of these settings, of a run or a saved one, reads the backbone of its configuration."""
    return _own_network(name, settings) is None


def network_name(method: Method) -> str:
    """Return the network that a method reads, such as "resnet18 (random)" or the name of its backbone; "" for none."""
    backbone = "" if method.config is None else method.config.backbone
    return _own_network(method.name, method.settings) or backbone


def _own_network(name: str, settings: Mapping[str, Any]) -> str | None:
    """Return what a method of these settings reads in place of the backbone; None where it reads the backbone."""
    if name not in OWN_STEPS:
        return None
    kind = OWN_STEPS[name]
    known = {entry.name for entry in fields(kind)}
    return kind(**{key: value for key, value in settings.items() if key in known}).own_network


def create_method(
    name: str,
    config: HystarConfig,
    *,
    seed: int = 0,
    parameters: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Method:
    """Build one method.

    Args:
        name: one of `METHODS` or of `OWN_STEPS`.
        config: of the Hystar it is, or is compared with: backbone, loss and style.
        seed: for random initialisation (hypernetworks, LoRA, prompts).
        parameters: for "lora", how many parameters to train; by default as many as Hystar.
        settings: what a saved method of this name was built with (`Method.settings`), instead of the defaults; for a
            method of `OWN_STEPS`, some or all of its settings.

    Raises:
        ValueError: an unknown name, or a backbone that cannot be loaded or adapted.
        TypeError: `settings` that this method does not have.
    """
    if name not in (*METHODS, *OWN_STEPS):
        raise ValueError(f"name must be one of {(*METHODS, *OWN_STEPS)}, got {name!r}")
    if name == "lora" and parameters is None and not settings:
        parameters = hystar_size(config)
    torch.manual_seed(seed)
    match name:
        case "pixels":
            return Pixels()
        case "hog":
            return HOG()
        case "hystar":
            return ShuffledStyle(Hystar(config), **settings) if settings else create_hystar(config, seed=seed)
        case "static":
            return StaticOnly(config)
        case "acnet":
            own = dict(settings or {})
            return ACNet(config, categories=own.pop("categories", 0), own=ACNetConfig.from_dict(own))
        case "fgan":
            return create_fgan(config, settings or {})
        case "ma_sbir":
            return create_ma_sbir(config, settings or {})
        case "tki":
            return create_tki(config, settings or {})
    backbone = create_backbone(config)
    fingerprints = backbone_fingerprints(backbone)
    method = _adapted(name, backbone, config, parameters, settings or {})
    method.config, method.fingerprints = config, {**fingerprints, **method.fingerprints}
    return method


def _adapted(
    name: str, backbone: TowerBackbone, config: HystarConfig, parameters: int | None, settings: Mapping[str, Any]
) -> Frozen:
    if name == "frozen":
        return Frozen(backbone)
    if name == "mean_shift":
        return MeanShift(backbone, **settings)
    if name == "lora":
        size: Mapping[str, int | None] = settings or {"parameters": parameters}
        return LoRA(backbone, create_criterion(config), **size)
    weights = {"vgg": config.style_pretrained} if name == "freestyle" and config.style == "vgg" else {}
    return BASELINES[name](backbone, create_criterion(config), **weights, **settings)
