"""The identity of a backbone: its weights, and how it computes and reads its input.

The same weights compute something else with another activation, other pixel statistics or another tokenizer, and no
hash of the weights shows it. So an adapter keeps all of these, and is refused by a backbone that differs in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.models.adapter_format import Hashed, are_same_weights, fingerprint
from hystar_fast.models.backbones.processors import Missing
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.config import HystarConfig

if TYPE_CHECKING:
    from hystar_fast.models.backbones.clip_encoders import CLIPEncoders

_CAPTION = "A photo of 2 Zebras, très près!"
_ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
}
_FIELDS = {"backbone": "pretrained", "style": "style_pretrained", "vgg": "style_pretrained"}
_OWN = ("image encoder", "text encoder", "word vectors")  # of a method that does not take them from the backbone


def backbone_fingerprints(
    backbone: TowerBackbone | CLIPEncoders, hashed: Hashed | None = None
) -> dict[str, str | None]:
    """Describe a backbone as an adapter keeps it.

    Args:
        backbone: before anything was injected.
        hashed: see :func:`fingerprint`.

    Returns:
        "backbone": a hash of every weight; "activation": the names of the functions in its visual blocks;
        "preprocessing": how it resizes and normalises a picture; "tokenizer": a hash of the ids of one caption.
        A value is None where it is not known, as for weights on the meta device and for processors without files.
    """
    is_known = not any(isinstance(part, Missing) for part in (backbone.resize, backbone.normalise))
    return {
        "backbone": fingerprint(backbone.state_dict().items(), hashed),
        "activation": _activations(backbone),
        "preprocessing": f"{backbone.resize!r}, {backbone.normalise!r}" if is_known else None,
        "tokenizer": None if isinstance(backbone.tokenizer, Missing) else _hash_of_caption(backbone),
    }


def check_fingerprints(
    trained_on: Mapping[str, str | None],
    found: Mapping[str, str | None],
    config: HystarConfig,
    directory: str | Path,
) -> None:
    """Raise a ValueError where a part that an adapter was trained on is known and differs from what was loaded.

    Args:
        trained_on: from the description of the adapter. Parts that older versions did not write are not compared.
        found: of the loaded model.
        config: what was loaded.
        directory: of the adapter.
    """
    for part, wanted in trained_on.items():
        if are_same_weights(wanted, found.get(part)):
            continue
        if part in ("activation", "preprocessing"):
            raise ValueError(
                f"directory must hold an adapter of the {part} of {config.backbone!r} with "
                f"pretrained={config.pretrained!r}, which is {found[part]}, got {directory}, which was trained with "
                f"{wanted}"
            )
        if part in _OWN:
            raise ValueError(f"directory must hold an adapter of this {part}, got {directory}, trained with another")
        field = _FIELDS.get(part, "backbone")
        raise ValueError(
            f"directory must hold an adapter of the weights of {field}={getattr(config, field)!r}, got {directory}, "
            f"which was trained on another {part}"
        )


def _activations(backbone: TowerBackbone | CLIPEncoders) -> str | None:
    """Name the functions in the visual blocks by what they compute, as libraries name one function differently."""
    names = set()
    x = torch.linspace(-3, 3, 25, device="cpu")
    with torch.no_grad():
        for module in (part for block in backbone.blocks for part in block.modules()):
            if [*module.children(), *module.parameters(), *module.buffers()]:
                continue
            try:
                values = module(x)
            except Exception:  # a module that is no function of one tensor is no activation
                continue
            if isinstance(values, Tensor) and values.shape == x.shape and not values.is_meta:
                names.add(_name(module, x, values))
    names.discard("")
    return "+".join(sorted(names)) or None


def _name(module: nn.Module, x: Tensor, values: Tensor) -> str:
    if torch.equal(values, x):
        return ""  # patch dropping and its like, in evaluation mode
    near = [name for name, function in _ACTIVATIONS.items() if torch.allclose(values, function(x), atol=1e-5)]
    return near[0] if near else type(module).__name__


def _hash_of_caption(backbone: TowerBackbone | CLIPEncoders) -> str | None:
    tokens = backbone.tokenizer([_CAPTION])
    return fingerprint([("caption", tokens.to(torch.int64))]) if isinstance(tokens, Tensor) else None
