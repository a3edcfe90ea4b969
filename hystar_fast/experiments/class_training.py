"""Train on a few pictures a class, towards the text embeddings of the class names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import AdamW

from hystar_fast.data.displacement import place_randomly
from hystar_fast.data.images import to_float
from hystar_fast.methods.device import on_device
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.embed import embed_styles
from hystar_fast.train.optim import clip_gradients, cosine_factor, parameter_groups, set_rates
from hystar_fast.train.recipe import Recipe


def train_on_classes(
    method: Method,
    pictures: Tensor,
    labels: Tensor,
    classes: Tensor,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> list[float]:
    """Train a method with its own loss on pairs (picture, embedding of the name of its class).

    A batch has one picture each of different classes, so that no two rows match. A contrastive loss is then
    cross-entropy over the classes of the batch, with the loss's weights for negatives.

    Args:
        method: the method to train; it is left in evaluation mode.
        pictures: uint8 [n, 3, H, W].
        labels: int64 [n], rows of `classes`.
        classes: [C, D] unit vectors, from :func:`hystar_fast.retrieval.zero_shot.class_embeddings`.
        recipe: learning rates, steps, batch size, warm-up, jitter and seed.
        device: of the modules of `method`; `pictures` and `classes` may be on another device.
        progress: called after every step with the number of steps done.

    Returns:
        The loss of every step.

    Raises:
        ValueError: a recipe that does not fit the method, or pictures of fewer than two classes.
        FloatingPointError: the loss or a gradient is no longer finite.
    """
    present = labels.unique()
    if len(present) < 2:
        raise ValueError(f"labels must be of at least 2 classes, got {len(present)}")
    groups = parameter_groups(method.parameter_groups(), recipe.learning_rates, recipe.weight_decay)
    if not groups:
        raise ValueError(f"method must have trainable parameters, got {method.name!r}")
    trainable = [p for group in groups for p in group["params"]]
    optimizer = AdamW(groups)
    device = torch.device(device)
    styles = embed_styles(on_device(method, device), pictures)
    losses: list[float] = []
    method.train(True)
    for step in range(recipe.steps):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        rows = _one_per_class(labels, present, recipe.batch_size, generator)
        images = place_randomly(to_float(pictures[rows]), recipe.jitter, generator)
        vectors = method.encode_image(images.to(device), None if styles is None else styles[rows].to(device))
        set_rates(optimizer, cosine_factor(step, recipe.steps, recipe.warmup))
        optimizer.zero_grad(set_to_none=True)
        loss = method.loss(vectors, classes[labels[rows]].to(vectors))
        loss.backward()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss of {method.name!r} is {losses[-1]} at step {step}: lower its rates")
        clip_gradients(trainable, recipe.clip_norm, f"{method.name!r} at step {step}")
        optimizer.step()
        if progress is not None:
            progress(step + 1)
    method.train(False)
    return losses


def _one_per_class(labels: Tensor, present: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draw the row of one picture for each of up to `size` classes."""
    chosen = present[torch.randperm(len(present), generator=generator)[:size]]
    weights = (labels[None] == chosen[:, None]).float()
    return torch.multinomial(weights, 1, generator=generator).flatten()
