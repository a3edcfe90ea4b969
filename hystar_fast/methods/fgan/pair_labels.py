"""Labels of the pairs of a run: what its teacher says about their pictures, or an ablation of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.methods.fgan.encoders import IMAGENET, ImageEncoder, TextEncoder, Tokens
from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.regions import mean_of_regions
from hystar_fast.methods.fgan.teachers import (
    CLASSES,
    NetworkTeacher,
    PrototypeTeacher,
    class_word_labels,
    load_resnet50,
    one_hot_labels,
    random_labels,
)
from hystar_fast.methods.step_trained import StepPlan
from hystar_fast.models.backbones.tower import TowerBackbone

_AT_ONCE = 128


class PairLabels(nn.Module):
    """Labels of pictures, in training alone.

    With prototypes a picture and a prototype are embedded by the backbone of the run, or without one by the mean of
    their tokens, from which the mean over all prototypes is subtracted.

    Args:
        config: `teacher`, `teacher_scale` and `teacher_weights`.
        plan: captions, names and prototypes of the run.
        images, texts: the frozen encoders.
        backbone: of the run.

    Attributes:
        count: C.

    Raises:
        ValueError: the run has nothing that the teacher needs, or its weights cannot be loaded.
    """

    def __init__(
        self,
        config: FGANConfig,
        plan: StepPlan,
        images: ImageEncoder,
        texts: TextEncoder | None,
        backbone: TowerBackbone | None,
    ) -> None:
        super().__init__()
        self.config = config
        self._frozen = (images, texts, backbone)  # in a tuple, so that they are no parts of this module
        self.teacher: nn.Module | None = None
        self.count = config.labels
        self.register_buffer("centre", None)
        self.register_buffer("words", None)
        if not config.label_weight:
            return
        if config.teacher == "class-words":
            self.words = class_word_labels(self._embed_words(_readable(plan.names)), config.teacher_scale)
            self.count = self.words.shape[1]
        elif config.reads_prototypes:
            self._learn_prototypes(plan)
        elif config.teacher == "names":
            names = tuple(dict.fromkeys(plan.captions))
            if len(names) < 2:
                raise ValueError(f"fgan.teacher must be another than 'names' without captions, got {len(names)}")
            if backbone is None or config.image_encoder != "backbone":
                raise ValueError("fgan.image_encoder must be 'backbone' for fgan.teacher = 'names', got another")
            self._set_prototypes(self._embed_words(names))
        elif config.teacher != "random":
            if config.labels != CLASSES:
                raise ValueError(
                    f"fgan.labels must be {CLASSES}, the classes of ResNet-50, for fgan.teacher = {config.teacher!r}, "
                    f"got {config.labels}"
                )
            self.teacher = NetworkTeacher(load_resnet50(config.teacher_weights))

    @torch.no_grad()
    def of_pictures(self, images: Tensor, tokens: Tokens) -> Tensor | None:
        """Return the teacher's probabilities [B, C] of pictures and their tokens; None where no teacher looks at them.

        Args:
            images: as the image encoder takes them.
            tokens: what it made of them.
        """
        if self.teacher is None or self.config.teacher == "random":
            return None
        if isinstance(self.teacher, NetworkTeacher):
            found = self.teacher(IMAGENET(images))
        else:
            found = self.teacher(self._embed(images, tokens))
        return one_hot_labels(found) if self.config.teacher == "one-hot" else found

    def of_batch(self, taught: Tensor | None, classes: Tensor, generator: torch.Generator) -> Tensor | None:
        """Return the labels [M, C] of a batch; None without labels.

        Args:
            taught: of `of_pictures`.
            classes: int64 [M].
            generator: of random labels.
        """
        if not self.config.label_weight:
            return None
        if self.config.teacher == "random":
            return random_labels(len(classes), self.count, generator).to(classes.device)
        return taught if self.words is None else self.words[classes]

    def _learn_prototypes(self, plan: StepPlan) -> None:
        style = self.config.teacher_style
        pictures = None if plan.prototypes is None else plan.prototypes()
        if pictures is None or len(pictures) < 2:
            raise ValueError(f"fgan.teacher_style must be a style of the training pictures, got {style!r} without any")
        self._set_prototypes(torch.cat([self._embed(part, None) for part in pictures.split(_AT_ONCE)]))

    def _set_prototypes(self, prototypes: Tensor) -> None:
        if self.config.image_encoder != "backbone":
            self.centre = prototypes.mean(0)
            prototypes = prototypes - self.centre
        self.teacher, self.count = PrototypeTeacher(prototypes, self.config.teacher_scale), len(prototypes)

    @torch.no_grad()
    def _embed(self, images: Tensor, tokens: Tokens | None) -> Tensor:
        encoder, _, backbone = self._frozen
        if self.config.image_encoder == "backbone" and backbone is not None:
            return F.normalize(backbone.encode_image(encoder.normalise(images)).float(), dim=-1)
        found = mean_of_regions((encoder(images) if tokens is None else tokens).values)
        return found if self.centre is None else found - self.centre

    @torch.no_grad()
    def _embed_words(self, texts: tuple[str, ...]) -> Tensor:
        _, encoder, backbone = self._frozen
        if backbone is not None:
            return F.normalize(backbone.encode_text(backbone.tokenizer(list(texts))).float(), dim=-1)
        if encoder is None:
            raise ValueError(f"fgan.teacher must be another without an encoder of texts, got {self.config.teacher!r}")
        tokens = encoder(texts)
        return mean_of_regions(tokens.values, tokens.padding)


def _readable(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.replace("-", " ").replace("_", " ") for name in names)
