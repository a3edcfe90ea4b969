"""Methods with a few settings changed, by one name each: ``hystar+loss=info_nce``, ``lora+styles=outline-lowres``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hystar_fast.methods.adapted import Adapted
from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.hystar import HystarMethod
from hystar_fast.methods.interface import Method
from hystar_fast.methods.lora import LoRA
from hystar_fast.methods.recipes import BASELINE_GRID, DYNAMIC_GRID, GRID, LARGE_GRID
from hystar_fast.methods.suite import TRAINED, UNTRAINED, create_method, hystar_size
from hystar_fast.models.config import HystarConfig
from hystar_fast.nn.losses import LOSSES, create_loss, style_nce_options

COMPARED = (*UNTRAINED, *BASELINES, *TRAINED)
_FIELDS = {field.name for field in fields(HystarConfig)}
_LOSS, _STYLES = "loss", "styles"
_OF_BACKBONE = {"backbone", "pretrained", "image_size"}
_OF_STYLE_NCE = {"temperature", "gamma", "lam", "epsilon", "n_iter", "weights", "plan_grad"}
_OF_STYLE = {"style", "style_pretrained"}  # FreestyleRet's Gram matrices read the VGG that a style of Hystar would
_NEXT = re.compile(r"\+(?=[a-z_]+=)")  # a path may hold a plus sign


@dataclass(frozen=True)
class Variant:
    """A method, the fields of the configuration that are changed for it, its loss and what it is trained on.

    Attributes:
        method: one of `COMPARED`.
        changes: fields of :class:`HystarConfig`.
        loss: one of `nn.losses.LOSSES`; None for the configuration's StyleNCE.
        styles: query styles of the training pairs, so that the others are unseen; None for all that the data has.
    """

    method: str
    changes: Mapping[str, Any]
    loss: str | None = None
    styles: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Read ``<method>+<field>=<value>+…``; a list is written ``blocks=1-2-3``, no block ``blocks=none``.

        Raises:
            ValueError: an unknown method, field or loss, a field that changes nothing of the method, or one given
                twice. Which styles there are is the data's to say.

        Example:
            >>> Variant.parse("hystar+blocks=4-5+gamma=10").changes
            {'blocks': (4, 5), 'gamma': 10}
        """
        first, *parts = _NEXT.split(name)
        method, plus, rest = first.partition("+")
        parts = [rest, *parts] if plus else parts
        if method not in COMPARED:
            raise ValueError(f"methods must be some of {COMPARED}, perhaps with +field=value, got {name!r}")
        changes: dict[str, Any] = {}
        for part in parts:
            key, _, value = part.partition("=")
            if key not in (_LOSS, _STYLES, *_FIELDS) or not value:
                raise ValueError(
                    f"{name!r} must change fields of HystarConfig, the loss or the styles trained on, as field=value, "
                    f"got {part!r}"
                )
            if key in changes:
                raise ValueError(f"{name!r} must give each field once, got {key} twice")
            if key in _FIELDS and key not in changeable(method):
                raise ValueError(f"{key} changes nothing of {method}, got {name!r}")
            changes[key] = _value(key, value)
        loss, styles = changes.pop(_LOSS, None), changes.pop(_STYLES, None)
        if loss is not None and loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {loss!r}")
        if method in UNTRAINED and (loss is not None or styles is not None):
            raise ValueError(f"{method} does not train, so it has no loss and no styles, got {name!r}")
        return cls(method, changes, loss, styles)

    def grid(self, backbone: str = "tiny") -> list[dict[str, float]]:
        """The settings it is tuned on, as many as for any other; none for what does not train.

        Args:
            backbone: of the configuration; all but the tiny one have rates of their own.
        """
        if self.method in UNTRAINED:
            return []
        tiny = {**GRID, **BASELINE_GRID, "dynamic": DYNAMIC_GRID}
        grids = tiny if self.changes.get("backbone", backbone) == "tiny" else LARGE_GRID
        if self.method == "hystar":
            if self.changes.get("static") is False or self.changes.get("design") == "dynamic-all":
                return grids["dynamic"]
            if self.changes.get("blocks") == ():
                return grids["static"]
        return grids[self.method]


def changeable(method: str) -> set[str]:
    """The fields of :class:`HystarConfig` that change something of a method.

    Example:
        >>> sorted(changeable("frozen")), "rank" in changeable("hystar")
        (['backbone', 'image_size', 'pretrained'], True)
    """
    if method == "hystar":
        return _FIELDS
    if method == "frozen":
        return _OF_BACKBONE
    if method in UNTRAINED:
        return set()
    of_method = {"static": {"rank"}, "freestyle": _OF_STYLE}.get(method, set[str]())
    return _OF_BACKBONE | _OF_STYLE_NCE | of_method


def is_variant(name: str) -> bool:
    """Whether a name changes something of its method."""
    return Variant.parse(name).method != name


def create_variant(name: str, config: HystarConfig, *, seed: int = 0) -> Method:
    """Build a method by its name or that of a variant, which changes `config`; see `create_method`.

    A variant of LoRA is as large as the Hystar of `config`.

    Raises:
        ValueError: an unknown name, or settings that cannot be.
        TypeError: a value of the wrong type.
    """
    variant = Variant.parse(name)
    changed = replace(config, **variant.changes)
    size = hystar_size(config) if variant.method == "lora" else None
    method = create_method(variant.method, changed, seed=seed, parameters=size)
    if variant.loss is not None:
        assert isinstance(method, (HystarMethod, Adapted, LoRA))
        method.criterion = create_loss(variant.loss, **style_nce_options(changed))
    return method


def _value(key: str, text: str) -> Any:
    if key == _STYLES:
        styles = tuple(text.split("-"))
        if not all(styles) or len(set(styles)) < len(styles):
            raise ValueError(f"styles must be different names with - between, got {text!r}")
        return styles
    if key == "blocks":
        try:
            return () if text == "none" else tuple(int(number) for number in text.split("-"))
        except ValueError as error:
            raise ValueError(f"blocks must be numbers as in 1-2-3, or none, got {text!r}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
