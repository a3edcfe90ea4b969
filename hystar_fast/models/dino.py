"""Loader of DINOv2 from transformers, with or without registers, with its weights or with its sizes alone."""

from __future__ import annotations

from typing import Any

import torch

from hystar_fast.models.adapter_format import not_finite

_SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, blocks, heads
_REGISTERS = "with-registers-"


def load_dino(pretrained: str | None) -> Any:
    """Load a Dinov2Model or a Dinov2WithRegistersModel.

    On the meta device no weights are read, and the published models need no file at all.

    Args:
        pretrained: an id, a local path, or None for small random weights.

    Raises:
        OSError, ValueError: the files are missing, hold another network, or lack weights.
    """
    from transformers import AutoConfig, Dinov2Config, Dinov2Model, Dinov2WithRegistersModel

    if pretrained is None:  # the width of the default DINOv2 gives the hypernetworks the paper's shapes
        return Dinov2Model(Dinov2Config(hidden_size=768, num_hidden_layers=2, image_size=56, patch_size=14))
    kinds: dict[str, Any] = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}
    sizes_only = torch.get_default_device().type == "meta"
    settings = _published_config(pretrained) if sizes_only else None
    settings = settings or AutoConfig.from_pretrained(pretrained)
    if settings.model_type not in kinds:
        raise ValueError(f"its type must be {' or '.join(kinds)}, got {settings.model_type!r}")
    if sizes_only:
        return kinds[settings.model_type](settings)
    network, report = kinds[settings.model_type].from_pretrained(pretrained, output_loading_info=True)
    if report["missing_keys"]:  # transformers initialises them at random and only warns
        raise ValueError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
    broken = not_finite(network.named_parameters())
    if broken:
        raise ValueError(f"its weights must be finite, got NaN or inf in {broken}")
    return network


def _published_config(name: str) -> Any:
    """Return the configuration of a published model, or None for a name that is not known here."""
    from transformers import Dinov2Config, Dinov2WithRegistersConfig

    family, _, size = name.partition("facebook/dinov2-")
    if family or size.removeprefix(_REGISTERS) not in _SIZES:
        return None
    width, blocks, heads = _SIZES[size.removeprefix(_REGISTERS)]
    kind: Any = Dinov2WithRegistersConfig if size.startswith(_REGISTERS) else Dinov2Config
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
    return kind(**sizes, image_size=518, patch_size=14)
