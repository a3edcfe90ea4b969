"""The settings of an experiment: data, model, training, and options of single commands, as TOML with ``--set``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hystar_fast.methods.device import select_device
from hystar_fast.models.config import HystarConfig
from hystar_fast.train.setting_keys import check_sections, keys_of, shown_values
from hystar_fast.train.settings_file import read_sections, shipped_files

NONE_WORDS = {
    "model.pretrained": "random",
    "model.pretrained_tag": "unknown",
    "model.style_pretrained": "random",
    "model.blocks": "default",
}


@dataclass(frozen=True)
class Data:
    """The data of an experiment.

    Attributes:
        source: the data set for training, validation and test, as `data.open.open_images` takes it.
        test: another data set for Tables 2 and 3 and Figures 9 to 11; empty for the test part of `source`.
        gallery_style: for folders, shards and icons, the style of the gallery; empty for their default.
        limit: at most so many pictures of each style in every part, to try things out; 0 for all.
        protocol: of the test part: "full", or "batch24" (the published one, in batches of 24).
        displaced: shift, scale and turn the queries of validation and test (`data.displacement`) where the data set's
            queries are drawn in the frame of the gallery: "emoji" and "icons". The queries of other data are unchanged.
        classes: the data set of few-shot classification, as `data.classes.open_classes` takes it.
    """

    source: str = "emoji"
    test: str = ""
    gallery_style: str = ""
    limit: int = 0
    protocol: str = "full"
    displaced: bool = False
    classes: str = "emoji:subgroup"


@dataclass(frozen=True)
class Model:
    """The backbone and the style extractor: fields of :class:`HystarConfig`.

    Attributes:
        vgg, dinov2: weights of these style extractors for Table 10, and of FreestyleRet's VGG; empty for none.
    """

    backbone: str = "tiny"
    pretrained: str | None = "packaged"
    pretrained_tag: str | None = None
    style: str = "clip"
    style_pretrained: str | None = HystarConfig.style_pretrained
    blocks: list[int] | None = None
    vgg: str = ""
    dinov2: str = ""


@dataclass(frozen=True)
class Training:
    """Training and tuning, the same for every method.

    Attributes:
        methods: names, or variants such as "hystar+gamma=10"; empty for all methods.
        steps: of every trial and run; 0 to use `epochs`.
        epochs: passes over the training pictures if `steps` is 0.
        batch_size: pairs a step.
        schedule, warmup, clip_norm, jitter: see :class:`hystar_fast.train.recipe.Recipe`.
        seeds: runs of each trained method on the test part, with seeds 0, 1, ...
        tuning_seeds: trials of each setting on the validation part.
        tune_variants: tune every variant itself; if false, it takes the rates of its method where both train the same
            parameters.
    """

    methods: list[str] = field(default_factory=list)
    steps: int = 120
    epochs: int = 0
    batch_size: int = 48
    schedule: str = "cosine"
    warmup: int = 10
    clip_norm: float = 1.0
    jitter: float = 0.15
    seeds: int = 3
    tuning_seeds: int = 3
    tune_variants: bool = True


@dataclass(frozen=True)
class FewShot:
    """Few-shot classification.

    Attributes:
        methods: "frozen" is zero-shot CLIP.
        shots: training pictures of each base class.
        steps: of training.
        template: sentence for class names with one ``{}``; empty for the data set's own.
        tuning: a ``tuning.json`` of `compare` with learning rates; empty for the defaults.
        limit: test at most so many pictures of each half; 0 for all.
    """

    methods: list[str] = field(default_factory=lambda: ["frozen", "static", "lora", "hystar"])
    shots: int = 16
    steps: int = 60
    template: str = ""
    tuning: str = ""
    limit: int = 0


@dataclass(frozen=True)
class Run:
    """Output and machine.

    Attributes:
        output: folder for everything that is written; earlier runs in it are continued.
        device: "auto", "cpu" or "cuda".
        jobs: trainings at a time, each in a process with its share of the cores.
        projection: of Figures 3 and 5: "tsne", "umap" or "pca".
    """

    output: str = "runs/experiments"
    device: str = "auto"
    jobs: int = 1
    projection: str = "tsne"


_SECTIONS: dict[str, type[Any]] = {
    "data": Data,
    "model": Model,
    "training": Training,
    "few_shot": FewShot,
    "run": Run,
}
KEYS = keys_of(_SECTIONS, NONE_WORDS)
_AT_LEAST_ONE = {
    "training": ("batch_size", "seeds", "tuning_seeds"),
    "few_shot": ("shots", "steps"),
    "run": ("jobs",),
}
# Results with different values of these belong together.
_NOT_OF_THE_RESULTS = {"data.test", "data.classes", "model.vgg", "model.dinov2", "training.methods", "training.seeds"}
_NOT_OF_THE_RESULTS |= {"training.tuning_seeds", "training.tune_variants"}


@dataclass(frozen=True)
class ExperimentSettings:
    """All settings of an experiment; see the classes of its sections."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    few_shot: FewShot = field(default_factory=FewShot)
    run: Run = field(default_factory=Run)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "settings") -> ExperimentSettings:
        """Check sections of keys, as a TOML file gives them, and fill in the defaults.

        Raises:
            ValueError: an unknown section or key (the nearest one is suggested), or a value out of range.
            TypeError: a value of the wrong type.
        """
        parts = check_sections(values, KEYS, where)
        settings = cls(**{section: kind(**parts[section]) for section, kind in _SECTIONS.items()})
        for section, names in _AT_LEAST_ONE.items():
            for name in names:
                if parts[section][name] < 1:
                    raise ValueError(f"{where}: {section}.{name} must be at least 1, got {parts[section][name]}")
        if settings.training.steps < 1 and settings.training.epochs < 1:
            raise ValueError(f"{where}: training.steps or training.epochs must be at least 1, got neither")
        try:
            if settings.config().lacks_style_weights:
                raise ValueError(
                    'model.style_pretrained must be a torchvision weights name or a file for model.style = "vgg", '
                    "got none"
                )
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from error
        return settings

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return every key with its value, in the form that `of` reads."""
        return shown_values({section: vars(getattr(self, section)) for section in _SECTIONS}, KEYS)

    def identity(self, *, with_protocol: bool = True) -> dict[str, Any]:
        """Return the settings that results in one file must share."""
        left_out = _NOT_OF_THE_RESULTS | (set() if with_protocol else {"data.protocol"})
        return {
            section: {name: value for name, value in values.items() if f"{section}.{name}" not in left_out}
            for section, values in self.to_dict().items()
            if section in ("data", "model", "training")
        }

    def config(self) -> HystarConfig:
        """Return the configuration that methods and variants are built from."""
        model = self.model
        blocks = None if model.blocks is None else tuple(model.blocks)
        return HystarConfig(
            model.backbone,
            model.pretrained,
            model.style,
            model.style_pretrained,
            blocks,
            pretrained_tag=model.pretrained_tag,
        )

    def device(self) -> torch.device:
        """Return the device that everything runs on."""
        return select_device(self.run.device)

    @property
    def output(self) -> Path:
        return Path(self.run.output)

    @property
    def seeds(self) -> range:
        return range(self.training.seeds)

    def with_training(self, **changes: Any) -> ExperimentSettings:
        """Return the settings with other values in the section [training]."""
        return replace(self, training=replace(self.training, **changes))


def read_experiment(config: str, changes: Sequence[str] = ()) -> ExperimentSettings:
    """Read the settings of an experiment.

    Args:
        config: a TOML file, or the name of a shipped one: "emoji" (the embedded drawings on a CPU), "lean"
            (adapters with and without the style) or "paper".
        changes: "section.key=value", the value as in TOML; quotes around a word may be left out.

    Raises:
        ValueError: no such file, not TOML, an unknown section or key, or a value out of range; the message names the
            file or ``--set``.
        TypeError: a value of the wrong type.
    """
    return ExperimentSettings.of(*read_sections(config, changes, KEYS, shipped_files("hystar_fast.experiments")))
