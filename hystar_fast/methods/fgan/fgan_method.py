"""FGAN as a method: descriptors of pictures, sketches and texts, their similarity, and its training steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn, optim

from hystar_fast.methods.device import multiplies_bf16
from hystar_fast.methods.fgan.encoders import ImageEncoder, TextEncoder, Tokens, WordEncoder
from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.heads import BranchOutput, FGANHeads
from hystar_fast.methods.fgan.label_similarity import LabelSimilarity
from hystar_fast.methods.fgan.pair_labels import PairLabels
from hystar_fast.methods.fgan.selection import evaluation_selector, training_selector
from hystar_fast.methods.fgan.stored_tokens import StoredTokens
from hystar_fast.methods.interface import GALLERY, QUERY, Method, Role
from hystar_fast.methods.step_trained import PairedBatch, StepPlan, StepTrained
from hystar_fast.models.backbones.tower import TowerBackbone

_UNKNOWN_CLASSES = 2  # before a run says how many there are


class FGAN(StepTrained):
    """Retrieval by regions and label distributions on frozen encoders.

    Its vectors are descriptors [x, log g] of width d_x + C, no unit vectors: `similarity` compares them. The heads
    train, on all terms of the loss at once; the encoders and the teacher are frozen.

    Args:
        own: the settings of the method.
        images: the frozen encoder of the pictures.
        texts: the frozen encoder of the texts; None where the other side are pictures, such as sketches.
        backbone: of the run, if an encoder is one of its towers: its embeddings make prototypes of labels.
        classes: number of classes in training, for ``contrast="classify"`` alone.

    Raises:
        ValueError: ``text_encoder="pictures"`` with an encoder of texts, or another one without.

    Source: Ge et al., Fine-Grained Alignment Network for Zero-Shot Cross-Modal Retrieval (ACM TOMM 21(10), 2025).
    """

    name = "fgan"
    follows = frozenset(("schedule", "warmup", "weight_decay"))

    def __init__(
        self,
        own: FGANConfig,
        images: ImageEncoder,
        texts: TextEncoder | None,
        *,
        backbone: TowerBackbone | None = None,
        classes: int | None = None,
    ) -> None:
        if (texts is None) != (own.text_encoder == "pictures"):
            raise ValueError(f"texts must be None with text_encoder='pictures' alone, got {own.text_encoder!r}")
        self.images, self.texts, self.backbone, self.batching = images, texts, backbone, own.batching
        self.select = evaluation_selector(own)
        self.resize = images.resize
        self._build(own, classes)
        self.train(False)

    def _build(self, own: FGANConfig, classes: int | None) -> None:
        """Create the heads, whose width depends on the number of labels, and of classes."""
        side = "pictures" if self.texts is None else "words" if isinstance(self.texts, WordEncoder) else "tokens"
        width = (self.texts or self.images).width
        self.own, self.settings = own, own.to_dict() | {"classes": classes or 0}
        needed = (classes or _UNKNOWN_CLASSES) if own.contrast == "classify" else None
        self.heads = FGANHeads(own, self.images.width, width, side, classes=needed)
        self.modules = (self.heads, self.images, *(() if self.texts is None else (self.texts,)))
        self.similarity = LabelSimilarity(own.embedding, own.retrieval)

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Return descriptors [B, d_x + C] of pictures of the gallery, or of pictures that ask for texts."""
        return self.heads.image(self.images(images), select=self.select).descriptors

    def encode_query(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Return descriptors of query pictures: of sketches by their own heads, of others as `encode_image` does."""
        if self.texts is not None:
            return self.encode_image(images)
        return self.heads.other(self.images(images), select=self.select).descriptors

    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        return None if self.texts is None else self.describe_texts(texts).descriptors

    def describe_texts(self, texts: Sequence[str]) -> BranchOutput:
        """Return embedding, saliency and labels of texts.

        Raises:
            TypeError: the other side are pictures.
        """
        if self.texts is None:
            raise TypeError("text_encoder must be one of texts to describe them, got 'pictures'")
        return self.heads.other(self._moved(self.texts(texts)), select=self.select)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"heads": list(self.heads.parameters())}

    def begin(self, plan: StepPlan) -> None:
        self._check_not_begun()
        if plan.chunk_size:
            raise ValueError(
                f"optim.chunk_size must be 0 for method 'fgan', whose contrast is of the whole batch, got "
                f"{plan.chunk_size}"
            )
        self._plan = plan
        self._labels = PairLabels(self.own, plan, self.images, self.texts, self.backbone)
        torch.manual_seed(plan.seed)
        self._build(replace(self.own, labels=self._labels.count), plan.categories)
        self.modules = (*self.modules, self._labels)
        self._stored: dict[Role, StoredTokens] = {}
        rate, decay = plan.learning_rate, plan.weight_decay
        group = {"name": "heads", "params": [*self.heads.parameters()], "lr": rate, "peak_lr": rate}
        self._optimizer = optim.AdamW([group], lr=rate, weight_decay=decay, fused=True)

    def optimizers(self) -> Mapping[str, optim.Optimizer]:
        self._begun()
        return {"heads": self._optimizer}

    def state(self) -> Mapping[str, nn.Module]:
        return {"heads": self.heads}

    @torch.no_grad()
    def store(self, role: Role, items: Iterable[Tensor] | Iterable[list[str]]) -> None:
        device = next(self.heads.parameters()).device
        stored = StoredTokens()
        for item in items:
            tokens = self._tokens(item if isinstance(item, list) else item.to(device))
            taught = None
            if role == GALLERY and not isinstance(item, list):
                taught = self._labels.of_pictures(item.to(device), tokens)
            stored.add(tokens, taught)
        self._stored[role] = stored

    def step(self, batch: PairedBatch, epoch: int, step: int) -> dict[str, float]:
        plan = self._begun()
        device = next(self.heads.parameters()).device
        seed = plan.seed * 9_176_347 + step
        generator = torch.Generator(device).manual_seed(seed)
        if batch.gallery is None or batch.queries is None:
            image, taught = self._stored[GALLERY].rows(batch.gallery_rows)
            other, _ = self._stored[QUERY].rows(batch.query_rows)
        else:
            image, other = self._tokens(batch.gallery), self._tokens(batch.queries)
            taught = self._labels.of_pictures(batch.gallery, image)
        teacher = self._labels.of_batch(taught, batch.labels, generator)
        self._optimizer.zero_grad(set_to_none=True)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)  # of dropout
            with torch.autocast(device.type, torch.bfloat16, enabled=plan.bf16 and multiplies_bf16(device)):
                select = training_selector(self.own, generator)
                terms = self.heads.losses(image, other, batch.labels, teacher, select=select, generator=generator)
            terms["loss"].backward()
        self._optimizer.step()
        values = torch.stack([value.detach().float() for value in terms.values()]).tolist()
        return dict(zip(terms, values, strict=True))

    def _tokens(self, items: Tensor | list[str]) -> Tokens:
        if isinstance(items, Tensor):
            return self.images(items)
        if self.texts is None:
            raise TypeError("text_encoder must be one of texts for batches of texts, got 'pictures'")
        return self._moved(self.texts(items))

    def _moved(self, tokens: Tokens) -> Tokens:
        device = next(self.heads.parameters()).device
        padding = None if tokens.padding is None else tokens.padding.to(device)
        return tokens._replace(values=tokens.values.to(device), padding=padding)


def choose_retrieval(method: Method, retrieval: str) -> None:
    """Compare the vectors of a method by "joint", "regions" or "labels" from now on.

    Raises:
        ValueError: another word, or a method whose vectors have no such parts.
    """
    inner: Any = getattr(method, "method", method)
    if not isinstance(inner.similarity, LabelSimilarity):
        raise ValueError(
            f"retrieval must be left out for method {inner.name!r}, whose vectors have one part, got {retrieval!r}"
        )
    inner.similarity = method.similarity = replace(inner.similarity, retrieval=retrieval)
