"""The training loop: pairs in one query style and the gallery style, one encoder call and one loss a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import AdamW

from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.embed import embed_styles, to_float
from hystar_fast.retrieval.placement import place_randomly
from hystar_fast.retrieval.protocol import GALLERY_STYLE, IMAGE_STYLES, StyledConcepts
from hystar_fast.train.checkpoint import load_checkpoint, save_checkpoint
from hystar_fast.train.optim import cosine_factor, parameter_groups, set_rates
from hystar_fast.train.pairs import PairSampler


@dataclass(frozen=True)
class Recipe:
    """How a method is trained. The defaults are the demo's; the learning rates are each method's own.

    Attributes:
        learning_rates: peak rate of every parameter group.
        steps: optimiser steps.
        batch_size: pairs a step (48 in the paper).
        warmup: steps of linear warm-up.
        weight_decay: of matrices.
        clip_norm: largest gradient norm.
        styles: query styles; as in the paper, none of them is text.
        jitter: largest shift (share of the side), and relative change of size, of the random placement of each
            drawing; 0 leaves the drawings as they are.
        seed: of the order of the pairs and of the placement.
        bf16: products of the encoder in bfloat16 (autocast) where `multiplies_bf16`; the loss stays in float32.
    """

    learning_rates: Mapping[str, float]
    steps: int = 200
    batch_size: int = 48
    warmup: int = 10
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    styles: tuple[str, ...] = IMAGE_STYLES
    jitter: float = 0.06
    seed: int = 0
    bf16: bool = True


@dataclass
class PairImages:
    """The drawings of a training set as one tensor, with the style vector of each (computed once: it never changes).

    Attributes:
        images: uint8 [styles, n, 3, H, W], the gallery style last.
        styles: float [styles, n, d], or None for a method without style.
        texts: n captions.
        text_column: the index of "text" among the styles, or -1.
    """

    images: Tensor
    styles: Tensor | None
    texts: list[str] = field(repr=False)
    text_column: int

    @classmethod
    def of(cls, method: Method, concepts: StyledConcepts, styles: tuple[str, ...]) -> PairImages:
        # The column of "text" is never drawn from: it stands there so that columns and styles have one numbering.
        drawn = [GALLERY_STYLE if style == "text" else style for style in (*styles, GALLERY_STYLE)]
        vectors = {style: embed_styles(method, concepts.images[style]) for style in dict.fromkeys(drawn)}
        found = [vector for style in drawn if (vector := vectors[style]) is not None]
        return cls(
            images=torch.stack([concepts.images[style] for style in drawn]),
            styles=torch.stack(found) if len(found) == len(drawn) else None,
            texts=concepts.texts,
            text_column=styles.index("text") if "text" in styles else -1,
        )


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 products; a CPU without them is several times slower in it."""
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def pair_loss(method: Method, data: PairImages, concepts: Tensor, columns: Tensor, recipe: Recipe, step: int) -> Tensor:
    """The loss of one batch: queries and targets go through the image encoder in one call, texts beside them."""
    drawn = (columns != data.text_column).nonzero().flatten()
    written = (columns == data.text_column).nonzero().flatten()
    rows = torch.cat([concepts[drawn], concepts])
    sources = torch.cat([columns[drawn], torch.full_like(concepts, len(data.images) - 1)])
    generator = torch.Generator().manual_seed(recipe.seed * 7_368_787 + step)
    images = place_randomly(to_float(data.images[sources, rows]), recipe.jitter, generator)
    style = None if data.styles is None else data.styles[sources, rows]
    # Where CPUs have it bf16 halves the products.
    halved = recipe.bf16 and multiplies_bf16(images.device)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=halved):
        embedded = method.encode_image(images, style).float()
    query, target = embedded[: len(drawn)], embedded[len(drawn) :]
    if len(written):
        texts = method.encode_text([data.texts[row] for row in concepts[written].tolist()])
        if texts is None:
            raise ValueError(f"styles must not contain 'text' for method {method.name!r}: it takes no text")
        query = torch.cat([query, texts.to(query.dtype)])
    return method.loss(query, target[torch.cat([drawn, written])])


def train(
    method: Method,
    concepts: StyledConcepts,
    recipe: Recipe,
    *,
    progress: Callable[[int, float], object] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
) -> list[float]:
    """Train a method on pairs of the concepts.

    Args:
        method: what to train; it is left in evaluation mode.
        concepts: training concepts.
        recipe: see `Recipe`.
        progress: called after every step with the number of steps done and the loss.
        checkpoint: file written every `checkpoint_every` steps and at the end.
        resume: go on from `checkpoint` if it exists.

    Returns:
        The loss of every step.

    Raises:
        ValueError: a recipe that does not fit the method or the data.
        FloatingPointError: the loss is not finite any more.
    """
    if recipe.steps < 0:
        raise ValueError(f"steps must not be negative, got {recipe.steps}")
    sampler = PairSampler(concepts, recipe.styles, recipe.batch_size, recipe.seed)
    groups = parameter_groups(method.parameter_groups(), recipe.learning_rates, recipe.weight_decay)
    if not groups:
        raise ValueError(f"method {method.name!r} has nothing to train")
    trainable = [p for group in groups for p in group["params"]]
    optimizer = AdamW(groups, fused=trainable[0].device.type in ("cpu", "cuda"))
    losses: list[float] = []
    start = 0
    if resume and checkpoint is not None and Path(checkpoint).exists():
        start, losses = load_checkpoint(checkpoint, method, optimizer)
    data = PairImages.of(method, concepts, recipe.styles)
    method.train(True)
    for step in range(start, recipe.steps):
        batch = sampler.batch(step)
        set_rates(optimizer, cosine_factor(step, recipe.steps, recipe.warmup))
        optimizer.zero_grad(set_to_none=True)
        loss = pair_loss(method, data, batch.concepts, batch.styles, recipe, step)
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of {method.name!r} is {value} at step {step}: lower its learning rates")
        torch.nn.utils.clip_grad_norm_(trainable, recipe.clip_norm)
        optimizer.step()
        losses.append(value)
        if progress is not None:
            progress(step + 1, value)
        if checkpoint is not None and ((step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps):
            save_checkpoint(checkpoint, method, optimizer, step + 1, losses)
    method.train(False)
    return losses
