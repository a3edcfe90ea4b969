"""Methods with a few settings changed, each by one name: ``hystar+loss=info_nce``, ``lora+styles=outline-lowres``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from hystar_fast.experiments.learning_rates import Rates, grid_of
from hystar_fast.methods.adapted import Adapted
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.interface import Method
from hystar_fast.methods.shuffled_style import BANK
from hystar_fast.methods.suite import FITTED, METHODS, OWN_STEPS, UNTRAINED, create_method, hystar_size
from hystar_fast.models.config import HystarConfig
from hystar_fast.nn.losses import LOSSES, create_loss, style_nce_options

_FIELDS = {field.name for field in fields(HystarConfig)}
_LOSS, _STYLES, _STYLE_ORDER = "loss", "styles", "style_order"
_SHUFFLED = "shuffled"
_BACKBONE_FIELDS = {"backbone", "pretrained", "pretrained_tag", "image_size"}
_LOSS_FIELDS = {"temperature", "gamma", "lam", "epsilon", "n_iter", "weights", "plan_grad"}
_OWN_FIELDS = {"static": {"rank"}, "freestyle": {"style", "style_pretrained"}}  # FreestyleRet reads the style's VGG
_SEPARATOR = re.compile(r"\+(?=[a-z_]+=)")  # a path may contain a plus sign


@dataclass(frozen=True)
class Variant:
    """A method with changed fields of the configuration, another loss, or other training styles.

    Attributes:
        method: one of `METHODS`.
        changes: fields of :class:`HystarConfig`.
        loss: one of `nn.losses.LOSSES`; None for the configuration's StyleNCE.
        styles: query styles of the training pairs, so that the others are unseen; None for all styles of the data.
        is_shuffled: whether every picture gets the style of another one (`ShuffledStyle`).
    """

    method: str
    changes: Mapping[str, Any]
    loss: str | None = None
    styles: tuple[str, ...] | None = None
    is_shuffled: bool = False

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Read ``<method>+<field>=<value>+…``; a list is written ``blocks=1-2-3``, no block ``blocks=none``.

        Beside fields of the configuration there are ``loss``, ``styles`` and, for "hystar", ``style_order=shuffled``.

        Raises:
            ValueError: an unknown method, field or loss, a field that changes nothing of the method, or a field given
                twice. Styles are not checked: they depend on the data.

        Example:
            >>> Variant.parse("hystar+blocks=4-5+gamma=10").changes
            {'blocks': (4, 5), 'gamma': 10}
        """
        first, *parts = _SEPARATOR.split(name)
        method, plus, rest = first.partition("+")
        parts = [rest, *parts] if plus else parts
        if method in OWN_STEPS:
            raise ValueError(
                f"methods must be trained by the steps that all share, which {method} is not, got {name!r}: `python "
                f"bench/systems.py` in the repository compares it with them, and `python bench/{method}_demo.py` with "
                "its controls"
            )
        if method not in METHODS:
            raise ValueError(f"methods must be some of {METHODS}, with optional +field=value, got {name!r}")
        changes: dict[str, Any] = {}
        for part in parts:
            key, _, value = part.partition("=")
            if key not in (_LOSS, _STYLES, _STYLE_ORDER, *_FIELDS) or not value:
                raise ValueError(
                    f"{name!r} must change fields of HystarConfig, the loss, the training styles or the style_order, "
                    f"as field=value, got {part!r}"
                )
            if key in changes:
                raise ValueError(f"{name!r} must give each field once, got {key} twice")
            if key in _FIELDS and key not in changeable_fields(method):
                raise ValueError(f"{name!r} must change a field that {method} uses, got {key}")
            changes[key] = _value(key, value)
        loss, styles, order = (changes.pop(key, None) for key in (_LOSS, _STYLES, _STYLE_ORDER))
        if order is not None and (order != _SHUFFLED or method != "hystar" or changes.get("blocks") == ()):
            raise ValueError(f"style_order must be {_SHUFFLED}, for a hystar with a style, got {order!r} in {name!r}")
        if loss is not None and loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {loss!r}")
        if method in UNTRAINED and (loss is not None or styles is not None):
            raise ValueError(
                f"{method} must have no loss and no training styles, because it is not trained, got {name!r}"
            )
        if method in FITTED and loss is not None:
            raise ValueError(f"{method} must have no loss, because it is trained without one, got {name!r}")
        return cls(method, changes, loss, styles, order is not None)

    @property
    def is_trained(self) -> bool:
        """Return whether it depends on the training part, so that there is an adapter of it."""
        return self.method not in UNTRAINED

    @property
    def is_tuned(self) -> bool:
        """Return whether it is trained by gradient steps, and so has learning rates and seeds."""
        return self.method not in (*UNTRAINED, *FITTED)

    def grid(self, backbone: str = "tiny") -> list[Rates]:
        """Return the learning rates it is tuned on; none if it has none.

        Args:
            backbone: of the configuration; larger backbones than the tiny one have other rates.
        """
        if not self.is_tuned:
            return []
        grids = grid_of(self.changes.get("backbone", backbone))
        if self.method == "hystar":
            if self.changes.get("static") is False or self.changes.get("design") == "dynamic-all":
                return grids["dynamic"]
            if self.changes.get("blocks") == ():
                return grids["static"]
        return grids[self.method]


def changeable_fields(method: str) -> set[str]:
    """Return the fields of :class:`HystarConfig` that change something of a method.

    Example:
        >>> sorted(changeable_fields("frozen")), "rank" in changeable_fields("hystar")
        (['backbone', 'image_size', 'pretrained', 'pretrained_tag'], True)
    """
    if method == "hystar":
        return _FIELDS
    if method in ("frozen", *FITTED):
        return _BACKBONE_FIELDS
    if method in UNTRAINED:
        return set()
    return _BACKBONE_FIELDS | _LOSS_FIELDS | _OWN_FIELDS.get(method, set[str]())


def create_variant(name: str, config: HystarConfig, *, seed: int = 0) -> Method:
    """Build a method or a variant, which changes `config`; see `create_method`.

    A variant of LoRA is as large as the Hystar of `config`.

    Raises:
        ValueError: an unknown name, or settings out of range.
        TypeError: a value of the wrong type.
    """
    variant = Variant.parse(name)
    changed = replace(config, **variant.changes)
    size = hystar_size(config) if variant.method == "lora" else None
    settings = {"bank": BANK} if variant.is_shuffled else None
    method = create_method(variant.method, changed, seed=seed, parameters=size, settings=settings)
    if variant.loss is not None:
        assert isinstance(method, (HystarMethod, Adapted))
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
