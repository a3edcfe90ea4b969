"""The settings of a training run: sections of keys with types and defaults, checked as they are read."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.suite import METHODS
from hystar_fast.models.config import HystarConfig
from hystar_fast.nn.losses import LOSSES, create_loss, loss_options
from hystar_fast.train.optim import SCHEDULES

# TOML has no null: what stands for None.
NONE_WORDS = {
    "model.pretrained": "random",
    "model.style_pretrained": "random",
    "model.blocks": "default",
    "model.rank": "full",
    "model.image_size": "default",
    "model.hypernetwork_width": "default",
}


@dataclass(frozen=True)
class DataSettings:
    """What is trained on.

    Attributes:
        source: "emoji", or what `data.open.open_images` takes.
        styles: query styles, "text" among them if captions should ask; empty for all that are drawn.
        gallery_style: for folders, shards and icons, the style that answers; empty for their default.
        validation: the split that chooses, "none", or the share of the training pictures that is held out for it.
        limit: at most so many training and validation pictures of each style; 0 takes all.
        jitter: largest random shift and change of size of a picture, as a share of its side, below 1.
    """

    source: str = "emoji"
    styles: list[str] = field(default_factory=list)
    gallery_style: str = ""
    validation: str | float = "val"
    limit: int = 0
    jitter: float = 0.0


@dataclass(frozen=True)
class OptimSettings:
    """How the parameters move.

    Attributes:
        batch_size: pairs a step, over all processes.
        epochs: passes over the training pictures.
        steps: optimiser steps; 0 leaves it to `epochs`.
        static_lr, dynamic_lr: peak rates of Hystar's static offsets and hypernetworks, above 0: what should stay as it
            is is left out of the model (`static`, `blocks`).
        learning_rate: peak rate of any other method, above 0.
        schedule: "constant" or "cosine".
        warmup: steps of linear warm-up.
        weight_decay: of matrices.
        clip_norm: largest gradient norm; 0 does not clip.
        bf16: encoder products in bfloat16 where the device has them.
        chunk_size: images an encoder pass; 0 for the whole batch.
        gradient_checkpointing: recompute each block in the backward pass.
    """

    batch_size: int = 48
    epochs: int = 35
    steps: int = 0
    static_lr: float = 1e-3
    dynamic_lr: float = 1e-5
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    bf16: bool = True
    chunk_size: int = 0
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class RunSettings:
    """Where it runs and what is kept.

    Attributes:
        output: folder of everything that is written.
        seed: of everything drawn at random.
        device: "auto", "cpu" or "cuda".
        checkpoint_every: steps from one checkpoint to the next.
        validate_every: steps from one validation to the next; 0 for once an epoch.
        patience: end after so many validations without a new best; 0 for never.
        tensorboard: write for TensorBoard, too.
        wandb: send to this project of wandb; empty for none.
    """

    output: str = "runs/train"
    seed: int = 0
    device: str = "auto"
    checkpoint_every: int = 200
    validate_every: int = 0
    patience: int = 0
    tensorboard: bool = False
    wandb: str = ""


@dataclass(frozen=True)
class Key:
    """One key of a settings file: what it takes, and what it is if left out."""

    name: str
    kinds: tuple[Any, ...]
    default: Any

    @property
    def shown_default(self) -> Any:
        return NONE_WORDS[self.name] if self.default is None else self.default


@dataclass(frozen=True)
class Settings:
    """A training run.

    Attributes:
        method: "hystar", or a method it is compared with.
        model: the model, or the backbone of the other method.
        loss: arguments of `nn.losses.create_loss`.
        data, optim, run: see their classes.
    """

    method: str
    model: HystarConfig
    loss: dict[str, Any]
    data: DataSettings
    optim: OptimSettings
    run: RunSettings

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Check sections of keys, as a TOML file gives them, and fill in the defaults.

        Raises:
            ValueError: an unknown section, key or name (the nearest one is named), or a value that cannot be.
            TypeError: a value of the wrong type.
        """
        found = {name: key.default for name, key in KEYS.items()}
        for section, entries in values.items():
            if not isinstance(entries, Mapping):
                if section not in SECTIONS:
                    raise _unknown(section, where)
                raise TypeError(f"{where}: {section} must be a section of keys, [{section}], got {entries!r}")
            for key, value in entries.items():
                name = f"{section}.{key}"
                if name not in KEYS:
                    raise _unknown(name, where)
                found[name] = _checked(KEYS[name], value, where)
        parts = {s: {k.partition(".")[2]: v for k, v in found.items() if k.startswith(s + ".")} for s in SECTIONS}
        method, loss = parts["model"].pop("method"), parts["loss"]
        shared = {name: value for name, value in loss.items() if name in _CONFIG_FIELDS}
        _check_name("model.method", method, (*METHODS, *BASELINES), where)
        _check_name("loss.name", loss["name"], LOSSES, where)
        _check_name("optim.schedule", found["optim.schedule"], SCHEDULES, where)
        try:
            create_loss(**{**loss, "name": "style_nce"})
            model = HystarConfig(**parts["model"], **shared)
            if model.lacks_style_weights:
                raise ValueError(
                    'model.style = "vgg" needs model.style_pretrained: a torchvision weights name, a file or '
                    f'"{NONE_WORDS["model.style_pretrained"]}"'
                )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from error
        for name, least in _LEAST.items():
            if found[name] < least:
                raise ValueError(f"{where}: {name} must be at least {least}, got {found[name]}")
        for name in _RATES:
            if found[name] <= 0:
                raise ValueError(f"{where}: {name} must be greater than 0, got {found[name]}")
        if not 0 <= found["data.jitter"] < 1:
            raise ValueError(f"{where}: data.jitter must be at least 0 and below 1, got {found['data.jitter']}")
        if not found["optim.steps"] and found["optim.epochs"] < 1:
            raise ValueError(f"{where}: optim.epochs must be at least 1 where optim.steps is 0")
        data, optim, run = (kind(**parts[s]) for s, kind in _CLASSES.items())
        return cls(method, model, loss, data, optim, run)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Every key with its value, as `of` takes them."""
        config = self.model.to_dict()
        model = {"method": self.method} | {k: config[k] for k in config if f"model.{k}" in KEYS}
        parts = {"model": model, "loss": self.loss}
        parts |= {section: dict(vars(getattr(self, section))) for section in _CLASSES}
        return {
            section: {
                key: NONE_WORDS[f"{section}.{key}"] if value is None else list(value) if _is_list(value) else value
                for key, value in part.items()
            }
            for section, part in parts.items()
        }


_CLASSES: dict[str, type[Any]] = {"data": DataSettings, "optim": OptimSettings, "run": RunSettings}
SECTIONS = ("model", "loss", *_CLASSES)
_LEAST = {
    "data.limit": 0,
    "optim.batch_size": 2,
    "optim.steps": 0,
    "optim.epochs": 0,
    "optim.warmup": 0,
    "optim.weight_decay": 0,
    "optim.clip_norm": 0,
    "optim.chunk_size": 0,
    "run.checkpoint_every": 1,
    "run.validate_every": 0,
    "run.patience": 0,
}
_RATES = ("optim.static_lr", "optim.dynamic_lr", "optim.learning_rate")
_CONFIG_FIELDS = frozenset(f.name for f in fields(HystarConfig))


def _keys() -> dict[str, Key]:
    loss = loss_options()
    found = {"model.method": Key("model.method", (str,), "hystar")}
    for name, kind in get_type_hints(HystarConfig).items():
        if name not in loss:
            # Blocks by depth are the paper's on its backbone, and fit every other one.
            default = None if name == "blocks" else getattr(HystarConfig, name)
            found[f"model.{name}"] = Key(f"model.{name}", _kinds(kind), default)
    for name, (kind, default) in loss.items():
        found[f"loss.{name}"] = Key(f"loss.{name}", _kinds(kind), default)
    for section, settings in _CLASSES.items():
        for entry in fields(settings):
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            kind = get_type_hints(settings)[entry.name]
            found[f"{section}.{entry.name}"] = Key(f"{section}.{entry.name}", _kinds(kind), default)
    return found


def _kinds(hint: Any) -> tuple[Any, ...]:
    """str, int, float, bool, list[str], list[int], the words of a Literal, and None for an optional one."""
    if get_origin(hint) is Union or type(hint).__name__ == "UnionType":
        return tuple(kind for part in get_args(hint) for kind in _kinds(part))
    if get_origin(hint) is Literal:
        return (str,)
    if get_origin(hint) in (tuple, list):
        return (list[int],) if int in get_args(hint) else (list[str],)
    return (None,) if hint is type(None) else (hint,)


KEYS = _keys()


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _checked(key: Key, value: Any, where: str) -> Any:
    if None in key.kinds and value == NONE_WORDS[key.name]:
        return None
    for kind in key.kinds:
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{where}: {key.name} must be finite, got {value}")
            return float(value)
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if kind in (str, bool) and isinstance(value, kind):
            return value
        if get_origin(kind) is list and isinstance(value, list):
            of = get_args(kind)[0]
            if all(isinstance(entry, of) and not isinstance(entry, bool) for entry in value):
                return value
    words = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
    needed = [words.get(kind) or f"a list of {get_args(kind)[0].__name__}" for kind in key.kinds if kind is not None]
    if None in key.kinds:
        needed = [word for word in needed if word != "a string" or str in key.kinds]
        needed.append(f'"{NONE_WORDS[key.name]}"')
    raise TypeError(f"{where}: {key.name} must be {' or '.join(needed)}, got {value!r}")


def _check_name(key: str, name: str, known: Iterable[str], where: str) -> None:
    if name not in (names := list(known)):
        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{where}: {key} must be one of {', '.join(names)}, got {name!r}{hint}")


def _unknown(name: str, where: str) -> ValueError:
    section, _, key = name.partition(".")
    if section not in SECTIONS:
        near = difflib.get_close_matches(section, SECTIONS, 1)
        hint = f"did you mean [{near[0]}]?" if near else f"there are {', '.join(f'[{s}]' for s in SECTIONS)}"
        return ValueError(f"{where}: unknown section [{section}]; {hint}")
    elsewhere = [known for known in KEYS if known.partition(".")[2] == key]
    bare = {known.partition(".")[2]: known for known in KEYS if known.startswith(section + ".")}
    near = difflib.get_close_matches(key, bare, 1) or difflib.get_close_matches(
        key, {known.partition(".")[2] for known in KEYS}, 1
    )
    if elsewhere:
        hint = f"it belongs to another section: {elsewhere[0]}"
    elif near:
        hint = f"did you mean {bare.get(near[0]) or next(k for k in KEYS if k.partition('.')[2] == near[0])}?"
    else:
        hint = f"[{section}] takes {', '.join(bare)}"
    return ValueError(f"{where}: unknown key {name}; {hint}")
