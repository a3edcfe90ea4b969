"""The settings of a training run: model, loss, data, optimiser and run, checked when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from hystar_fast.data.nearest_name import with_nearest
from hystar_fast.methods.suite import METHODS, OWN_STEPS
from hystar_fast.models.config import HystarConfig
from hystar_fast.nn.losses import LOSSES, create_loss, loss_options
from hystar_fast.train.optim import SCHEDULES
from hystar_fast.train.recipe import MAX_SEED
from hystar_fast.train.setting_keys import Key, check_sections, keys_of, kinds_of, shown_values
from hystar_fast.train.settings_file import read_sections, shipped_files

# TOML has no null: these words stand for None.
NONE_WORDS = {
    "model.pretrained": "random",
    "model.pretrained_tag": "unknown",
    "model.style_pretrained": "random",
    "model.blocks": "default",
    "model.rank": "full",
    "model.image_size": "default",
    "model.hypernetwork_width": "default",
    "fgan.image_weights": "random",
    "fgan.teacher_weights": "random",
}


@dataclass(frozen=True)
class DataSettings:
    """The training data.

    Attributes:
        source: the data set, as `data.open.open_images` takes it.
        styles: query styles, "text" for captions; empty for all picture styles.
        gallery_style: for folders, shards and icons, the style of the gallery; empty for their default.
        validation: the split that selects the model, "none", or the share of the training pictures to hold out.
        unseen: for a method that trains by category, the categories that take no part, as `CategorySplit.of` names
            them; empty for those that the data set itself marks.
        limit: at most so many training and validation pictures of each style; 0 for all.
        jitter: largest random shift and change of size of a picture, as a share of its side, below 1.
    """

    source: str = "emoji"
    styles: list[str] = field(default_factory=list)
    gallery_style: str = ""
    validation: str | float = "val"
    unseen: str = ""
    limit: int = 0
    jitter: float = 0.0


@dataclass(frozen=True)
class OptimSettings:
    """The optimiser.

    Attributes:
        batch_size: pairs a step, over all processes.
        epochs: passes over the training pictures.
        steps: optimiser steps; 0 to use `epochs`.
        static_lr, dynamic_lr: peak rates of Hystar's static offsets and hypernetworks, above 0. To train without one of
            them, leave it out of the model (`static`, `blocks`).
        learning_rate: peak rate of any other method, above 0.
        schedule: "constant" or "cosine".
        warmup: steps of linear warm-up.
        weight_decay: of matrices.
        clip_norm: largest gradient norm; 0 does not clip.
        bf16: run the encoder in bfloat16 where the device has such instructions.
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
    """Output, device, checkpoints and logging.

    Attributes:
        output: folder for everything that is written.
        seed: of all random numbers.
        device: "auto", "cpu" or "cuda".
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations; 0 for once an epoch.
        patience: stop after so many validations without a new best; 0 for never.
        tensorboard: also write TensorBoard events.
        wandb: also send everything to this wandb project; empty for none.
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
class Settings:
    """A training run.

    Attributes:
        method: "hystar" or another trained method.
        model: the model, or the backbone of the other method.
        loss: arguments of `nn.losses.create_loss`.
        data, optim, run: see their classes.
        own: the section of a method that makes its own steps, such as [acnet]; None for the others.
    """

    method: str
    model: HystarConfig
    loss: dict[str, Any]
    data: DataSettings
    optim: OptimSettings
    run: RunSettings
    own: Any = None

    @property
    def steps(self) -> int:
        """The steps that the settings name: `optim.steps`, or those of a method whose section has them; 0 for none."""
        return self.optim.steps or (self.own.steps if self.own is not None else 0)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "settings") -> Settings:
        """Check sections of keys, as a TOML file gives them, and fill in the defaults.

        Raises:
            ValueError: an unknown section, key or name (the nearest one is suggested), or a value out of range.
            TypeError: a value of the wrong type.
        """
        parts = check_sections(values, ALL_KEYS, where)
        method, loss, optim = parts["model"].pop("method"), parts["loss"], parts["optim"]
        shared = {name: value for name, value in loss.items() if name in _CONFIG_FIELDS}
        _check_name("model.method", method, (*METHODS, *OWN_STEPS), where)
        _check_name("loss.name", loss["name"], LOSSES, where)
        _check_name("optim.schedule", optim["schedule"], SCHEDULES, where)
        try:
            create_loss(**{**loss, "name": "style_nce"})
            model = HystarConfig(**parts["model"], **shared)
            if model.lacks_style_weights:
                word = NONE_WORDS["model.style_pretrained"]
                raise ValueError(
                    f'model.style_pretrained must be a torchvision weights name, a file or "{word}" for '
                    'model.style = "vgg", got none'
                )
            own = _own(method, parts)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from error
        for name, least in _LEAST.items():
            section, _, field = name.partition(".")
            if parts[section][field] < least:
                raise ValueError(f"{where}: {name} must be at least {least}, got {parts[section][field]}")
        if parts["run"]["seed"] > MAX_SEED:
            raise ValueError(f"{where}: run.seed must be at most {MAX_SEED}, got {parts['run']['seed']}")
        for field in _RATES:
            if optim[field] <= 0:
                raise ValueError(f"{where}: optim.{field} must be greater than 0, got {optim[field]}")
        if not 0 <= parts["data"]["jitter"] < 1:
            raise ValueError(f"{where}: data.jitter must be at least 0 and below 1, got {parts['data']['jitter']}")
        if not optim["steps"] and optim["epochs"] < 1:
            raise ValueError(f"{where}: optim.epochs must be at least 1 if optim.steps is 0, got {optim['epochs']}")
        data, chosen, run = (kind(**parts[section]) for section, kind in _CLASSES.items())
        return cls(method, model, loss, data, chosen, run, own)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return every key with its value, in the form that `of` reads."""
        config = self.model.to_dict()
        model = {"method": self.method} | {k: config[k] for k in config if f"model.{k}" in KEYS}
        parts = {"model": model, "loss": self.loss}
        parts |= {section: vars(getattr(self, section)) for section in _CLASSES}
        return shown_values(parts if self.own is None else parts | {self.method: self.own.to_dict()}, ALL_KEYS)


_CLASSES: dict[str, type[Any]] = {"data": DataSettings, "optim": OptimSettings, "run": RunSettings}
_LEAST = {
    "data.limit": 0,
    "optim.batch_size": 2,
    "optim.steps": 0,
    "optim.epochs": 0,
    "optim.warmup": 0,
    "optim.weight_decay": 0,
    "optim.clip_norm": 0,
    "optim.chunk_size": 0,
    "run.seed": 0,
    "run.checkpoint_every": 1,
    "run.validate_every": 0,
    "run.patience": 0,
}
_RATES = ("static_lr", "dynamic_lr", "learning_rate")
_CONFIG_FIELDS = frozenset(f.name for f in fields(HystarConfig))


def _keys() -> dict[str, Key]:
    loss = loss_options()
    found = {"model.method": Key("model.method", (str,), "hystar")}
    for name, kind in get_type_hints(HystarConfig).items():
        if name not in loss:
            # The default blocks depend on the backbone's depth.
            default = None if name == "blocks" else getattr(HystarConfig, name)
            key = f"model.{name}"
            found[key] = Key(key, kinds_of(kind), default, NONE_WORDS.get(key, ""))
    for name, (kind, default) in loss.items():
        found[f"loss.{name}"] = Key(f"loss.{name}", kinds_of(kind), default)
    return found | keys_of(_CLASSES)


KEYS = _keys()
ALL_KEYS = KEYS | keys_of(OWN_STEPS, NONE_WORDS)  # with the sections of single methods


def read_settings(config: str, changes: Sequence[str] = ()) -> Settings:
    """Read the settings of a training run.

    Args:
        config: a TOML file, or the name of a shipped one ("emoji", "paper", "acnet", "fgan-emoji").
        changes: "section.key=value", the value as in TOML; quotes around a word may be left out.

    Raises:
        ValueError: no such file, not TOML, an unknown section or key, or a value out of range; the message names the
            file or ``--set``.
        TypeError: a value of the wrong type.
    """
    return Settings.of(*read_sections(config, changes, ALL_KEYS, shipped_files("hystar_fast.train")))


def _own(method: str, parts: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the settings of a method that makes its own steps; None for the others.

    Raises:
        ValueError: a value out of range, or settings that this method does not use.
    """
    for name in OWN_STEPS:
        if name != method and any(value != ALL_KEYS[f"{name}.{key}"].default for key, value in parts[name].items()):
            raise ValueError(f"[{name}] must be left out for model.method = {method!r}, got settings of {name}")
    if method not in OWN_STEPS and parts["data"]["unseen"]:
        raise ValueError(
            f"data.unseen must be left out for model.method = {method!r}, which does not train by category, got "
            f"{parts['data']['unseen']!r}"
        )
    if method not in OWN_STEPS:
        return None
    for name, value in parts["loss"].items():
        if value != KEYS[f"loss.{name}"].default:
            raise ValueError(f"loss.{name} must be left out for model.method = {method!r}, got {value!r}")
    own = OWN_STEPS[method](**parts[method])
    if parts["optim"]["gradient_checkpointing"] and not own.checkpoints_gradients:
        raise ValueError(f"optim.gradient_checkpointing must be false for model.method = {method!r}, got true")
    if own.stages:
        named = " and ".join(f"{method}.{stage}" for stage in own.stages)
        for key in ("steps", "epochs"):
            if parts["optim"][key] != KEYS[f"optim.{key}"].default:
                raise ValueError(
                    f"optim.{key} must be left out for model.method = {method!r}, whose stages have {named}, got "
                    f"{parts['optim'][key]}"
                )
    return own


def _check_name(key: str, name: str, known: Iterable[str], where: str) -> None:
    if name not in (names := list(known)):
        raise ValueError(f"{where}: {key} must be one of {', '.join(names)}, got {with_nearest(name, names)}")
