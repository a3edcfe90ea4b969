"""Configuration of Hystar: frozen, checked, and readable as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

BACKBONE_FORMS = '"tiny", "open_clip:<name>", "transformers:<id or path>" or "albef:<path>"'
_PREFIXES = ("open_clip", "transformers", "albef")
_CHOICES = {
    "style": ("dinov2", "clip", "vgg", "prefix"),
    "design": ("original", "reversed", "dynamic-all"),
    "hypernetwork_init": ("kaiming", "zero"),
    "style_normalization": ("backbone", "own"),
    "weights": ("paper", "authors", "uniform"),
    "plan_grad": ("none", "unroll", "implicit"),
}
_DEEPEST = 64  # linear layers of a hypernetwork
_LARGEST = 2**31 - 1  # of any count
_POSITIVE = ("temperature", "lam", "epsilon")


@dataclass(frozen=True)
class HystarConfig:
    """Settings of a :class:`Hystar` and of its StyleNCE loss.

    Args:
        backbone: ``"open_clip:<name>"`` (any name of open_clip, also ``local-dir:<path>``),
            ``"transformers:<id or path>"`` (CLIP, SigLIP, SigLIP 2, or BLIP for retrieval),
            ``"albef:<path>"`` (a published checkpoint) or ``"tiny"``.
        pretrained: a tag, a local path, or None for random weights, the same ones every time.
            For ``"transformers:"`` and ``"albef:"`` any value but None means the weights that are stored there.
            For ``"tiny"``: ``"packaged"``, a local path, or None.
        pretrained_tag: for a model of open_clip whose `pretrained` is a local file: the tag whose weights it holds, or
            was tuned from. The activation and the pixel statistics are the tag's, as no file of weights holds them.
            None means those that all tags of the model share, or, with a warning, the model's own.
            :func:`hystar_fast.models.backbones.move_weights` fills it in.
        style: the source of the style vector z. ``"dinov2"``: the class token of DINOv2, as in the paper. ``"clip"``:
            the image embedding of the frozen backbone. ``"vgg"``: Gram matrices of VGG-16. ``"prefix"``: statistics of
            the tokens that enter the first modulated block, see :class:`hystar_fast.models.style.PrefixStyle`.
        style_pretrained: for ``"dinov2"`` the id or local path of a DINOv2, with or without registers, or None for
            small random weights. For ``"vgg"``, which has no default, the name of torchvision weights, a local state
            dict, or None. Not used by ``"clip"`` and ``"prefix"``.
        style_normalization: ``"backbone"``: the extractor gets the same pixels as the backbone, as in the published
            system. ``"own"``: they are normalised with the statistics that the extractor was trained with.
        blocks: 1-based visual blocks that the style modulates: their packed qkv weight, unless `design` says otherwise.
            None means the default of the backbone's depth, see :func:`default_blocks`. ``()`` modulates none; the model
            then has no style.
        static: give every MLP linear of every visual block a learned static offset.
        design: the layers with dynamic and with static offsets (Table 6). ``"original"``: dynamic attention in
            `blocks`, static MLPs everywhere. ``"reversed"``: the first MLP linear is dynamic in `blocks`, and the
            packed qkv is static everywhere. ``"dynamic-all"``: the packed qkv and the first MLP linear are dynamic in
            `blocks`, and nothing is static. For this one the paper does not say which of the MLP's linears; the first
            is the one that it names for the reversed design.
        hypernetwork_width: width of the hidden layers; None means twice the rank (Table 9).
        hypernetwork_depth: number of linear layers; 1 means no hidden layer (Table 9).
        rank: number of leading singular directions that are modulated; None means all.
        image_size: pixels a side, for ``"open_clip:"`` and ``"albef:"``; their position embeddings are resized. None
            means the size that the weights were trained at.
        hypernetwork_init: initialisation of the last layer, see :class:`hystar_fast.Hypernetwork`.
        temperature, gamma, lam, epsilon, n_iter, weights, plan_grad: StyleNCE, see :func:`hystar_fast.style_nce`.

    Raises:
        ValueError, TypeError: a field has the wrong value or type; the message says what it must be.

    Source: Hystar, sections 3.2 and 4.

    >>> HystarConfig(blocks=[4, 10]).blocks
    (4, 10)
    """

    backbone: str = "open_clip:ViT-L-14"
    pretrained: str | None = "openai"
    style: str = "dinov2"
    style_pretrained: str | None = "facebook/dinov2-base"
    blocks: tuple[int, ...] | None = (4, 7, 10, 13)
    rank: int | None = None
    temperature: float = 0.07
    gamma: float | Literal["auto"] = 80.0
    lam: float = 1.0
    epsilon: float = 0.1
    n_iter: int = 50
    weights: str = "paper"
    plan_grad: str = "none"
    static: bool = True
    style_normalization: str = "backbone"
    image_size: int | None = None
    hypernetwork_init: str = "kaiming"
    hypernetwork_width: int | None = None
    hypernetwork_depth: int = 2
    design: str = "original"
    pretrained_tag: str | None = None

    def __post_init__(self) -> None:
        _check_backbone(self.backbone)
        for name in ("pretrained", "style_pretrained", "pretrained_tag"):
            value = getattr(self, name)
            if isinstance(value, Path):
                object.__setattr__(self, name, str(value))
            elif value is not None and not (isinstance(value, str) and value):
                raise TypeError(f"{name} must be a non-empty string, a path or None, got {value!r}")
        if self.pretrained_tag is not None and not self.backbone.startswith("open_clip:"):
            raise ValueError(f"pretrained_tag must be None for backbone {self.backbone!r}, got {self.pretrained_tag!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {getattr(self, name)!r}")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", _checked_blocks(self.blocks))
        if not isinstance(self.static, bool):
            raise TypeError(f"static must be True or False, got {self.static!r}")
        for name in ("rank", "image_size", "hypernetwork_width"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name in ("n_iter", "hypernetwork_depth"):
            _check_count(name, getattr(self, name))
        if self.hypernetwork_depth > _DEEPEST:
            raise ValueError(f"hypernetwork_depth must be at most {_DEEPEST}, got {self.hypernetwork_depth}")
        for name in _POSITIVE:
            _check_positive(name, getattr(self, name))
        if self.gamma != "auto":
            _check_positive("gamma", self.gamma)

    @property
    def lacks_style_weights(self) -> bool:
        """True where the style is VGG's and `style_pretrained` is still the default, which is a DINOv2."""
        return self.style == "vgg" and self.style_pretrained == HystarConfig.style_pretrained

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        values = asdict(self)
        values["blocks"] = None if self.blocks is None else list(self.blocks)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HystarConfig:
        """Return the configuration of the fields in `values`, as :meth:`to_dict` wrote them.

        Raises:
            ValueError: a field is unknown; the message names it.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"values must be a mapping of HystarConfig fields, got {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(map(str, set(values) - set(known)))
        if unknown:
            raise ValueError(f"values must hold fields of HystarConfig ({', '.join(known)}), got {', '.join(unknown)}")
        return cls(**values)


def default_blocks(depth: int) -> tuple[int, ...]:
    """Return the modulated blocks for a backbone of `depth` blocks: the paper's for 24 and 12, else in proportion.

    Source: Hystar, section 4 (4, 7, 10, 13 of 24) and appendix E.2 (2, 4, 6 of 12).

    >>> default_blocks(24), default_blocks(12), default_blocks(6)
    ((4, 7, 10, 13), (2, 4, 6), (1, 2, 3))
    """
    fractions = (4 / 24, 7 / 24, 10 / 24, 13 / 24) if depth > 16 else (2 / 12, 4 / 12, 6 / 12)
    return tuple(sorted({max(1, round(depth * fraction)) for fraction in fractions}))


def resolve_blocks(blocks: tuple[int, ...] | None, depth: int, backbone: str) -> tuple[int, ...]:
    """Return `blocks`, or for None the default of the depth; raise where a block is outside the backbone."""
    if blocks is None:
        return default_blocks(depth)
    if any(block > depth for block in blocks):
        raise ValueError(
            f"blocks must lie within 1..{depth}, the visual blocks of backbone {backbone!r}, got {blocks}; "
            f"blocks=None means its default {default_blocks(depth)}"
        )
    return blocks


def _check_backbone(backbone: object) -> None:
    if not isinstance(backbone, str):
        raise TypeError(f"backbone must be a string, {BACKBONE_FORMS}, got {backbone!r}")
    prefix, _, name = backbone.partition(":")
    if backbone != "tiny" and not (prefix in _PREFIXES and name):
        raise ValueError(f"backbone must be {BACKBONE_FORMS}, got {backbone!r}")


def _checked_blocks(blocks: object) -> tuple[int, ...]:
    if isinstance(blocks, (str, bytes, int)) or not hasattr(blocks, "__iter__"):
        raise TypeError(f"blocks must be a sequence of 1-based block numbers or None, got {blocks!r}")
    numbers = tuple(blocks)
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise TypeError(f"blocks must hold integers, got {numbers}")
    if any(number < 1 for number in numbers):
        raise ValueError(f"blocks must be 1-based, each at least 1, got {numbers}")
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"blocks must not repeat a number, got {numbers}")
    return tuple(sorted(numbers))


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    if value > _LARGEST:
        raise ValueError(f"{name} must be at most {_LARGEST}, got {value}")


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and greater than 0, got {value}")
