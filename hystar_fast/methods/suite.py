"""The methods of the demo by name, all from one description of the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.frozen import Frozen
from hystar_fast.methods.hog import HOG
from hystar_fast.methods.hystar import HystarMethod, criterion
from hystar_fast.methods.interface import Method
from hystar_fast.methods.lora import LoRA
from hystar_fast.methods.pixels import Pixels
from hystar_fast.methods.static_only import StaticOnly
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.checkpoint import fingerprint
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar

FLOORS = ("pixels", "hog")
TRAINED = ("static", "lora", "hystar")
UNTRAINED = (*FLOORS, "frozen")
METHODS = (*UNTRAINED, *TRAINED)


def create_hystar(config: HystarConfig, *, seed: int = 0) -> HystarMethod:
    """Build Hystar with its hypernetworks drawn from `seed`."""
    torch.manual_seed(seed)
    return HystarMethod(Hystar(config))


def hystar_size(config: HystarConfig) -> int:
    """How many parameters the Hystar of a configuration trains, which LoRA beside it gets too.

    It is counted on the meta device: no weight is read, and none is factored.
    """
    extractor = config.style_pretrained if config.style == "dinov2" else None
    with torch.device("meta"):
        model = Hystar(replace(config, pretrained=None, style_pretrained=extractor))
    return sum(parameter.numel() for parameter in model.trainable_parameters())


def create_method(
    name: str,
    config: HystarConfig,
    *,
    seed: int = 0,
    parameters: int | None = None,
    settings: Mapping[str, int] | None = None,
) -> Method:
    """Build one method.

    Args:
        name: one of `METHODS` or `BASELINES`.
        config: the Hystar it is, or is compared with: the backbone, the loss, the style.
        seed: of what is drawn at random (hypernetworks, LoRA, prompts).
        parameters: for "lora", how many parameters to train; by default as many as Hystar.
        settings: what a method of this name says it was built with (`Method.settings`), instead of its defaults.

    Raises:
        ValueError: an unknown name, or a backbone that cannot be had or adapted.
        TypeError: `settings` that this method does not have.
    """
    if name == "lora" and parameters is None and not settings:
        parameters = hystar_size(config)
    torch.manual_seed(seed)
    if name == "pixels":
        return Pixels()
    if name == "hog":
        return HOG()
    if name == "hystar":
        return create_hystar(config, seed=seed)
    if name == "static":
        return StaticOnly(config)
    if name not in ("frozen", "lora", *BASELINES):
        raise ValueError(f"name must be one of {(*METHODS, *BASELINES)}, got {name!r}")
    backbone = create_backbone(config)
    fingerprints = {"backbone": fingerprint(backbone.state_dict().items())}
    method = _adapted(name, backbone, config, parameters, settings or {})
    method.config, method.fingerprints = config, {**fingerprints, **method.fingerprints}
    return method


def _adapted(
    name: str, backbone: TowerBackbone, config: HystarConfig, parameters: int | None, settings: Mapping[str, int]
) -> Frozen:
    if name == "frozen":
        return Frozen(backbone, backbone.preprocess, backbone.tokenizer)
    if name in BASELINES:
        weights = {"vgg": config.style_pretrained} if name == "freestyle" and config.style == "vgg" else {}
        return BASELINES[name](backbone, criterion(config), **weights, **settings)
    if settings:
        return LoRA(backbone, criterion(config), **settings)
    return LoRA(backbone, criterion(config), parameters=parameters)
