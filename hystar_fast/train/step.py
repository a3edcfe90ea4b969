"""One training step: the pictures of a batch, the loss of the whole batch, and the gradients, whole or in chunks.

The gradient goes through the embeddings: dL/dθ = Σ_i (∂L/∂e_i)·(∂e_i/∂θ). The step first embeds the whole batch, then
computes the loss of all embeddings and ∂L/∂e_i, and then runs every chunk of pictures through the encoder with its rows
of ∂L/∂e_i. With chunks, the first pass keeps no graph and the second pass builds it again: memory is that of one chunk,
compute that of one more forward, and loss, negatives and gradients are those of the whole batch (gradient cache: Gao et
al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup). With several processes, each does
this for its part of the pairs, and the loss is that of all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.data.displacement import draw_placements, place
from hystar_fast.data.images import to_float
from hystar_fast.methods.device import multiplies_bf16
from hystar_fast.methods.interface import Method
from hystar_fast.nn.losses import PairLoss, StyleNCELoss
from hystar_fast.retrieval.embed import embed_styles
from hystar_fast.train.pairs import GALLERY, PairBatch, TrainingPairs
from hystar_fast.train.processes import World
from hystar_fast.train.recipe import Recipe

_ALONE = World()


@dataclass(frozen=True)
class Inputs:
    """The part of a batch that one process encodes.

    Attributes:
        images: [Q + b, 3, H, W], the picture queries and then the targets of the b pairs.
        style: [Q + b, d], or None if the method has no style or computes it in `encode_image`.
        texts: the text queries.
        order: int64 [b], the position of each pair's query among the picture queries followed by the text queries.
        usable: bool [b], False where a picture of the pair could not be read.
        same: bool [B, B] over the whole batch, True where target j is relevant to query i; None if only i = j is.
        seed: for random numbers in the encoder.
    """

    images: Tensor
    style: Tensor | None
    texts: list[str]
    order: Tensor
    usable: Tensor
    same: Tensor | None
    seed: int


def prepare(
    method: Method,
    pairs: TrainingPairs,
    batch: PairBatch,
    recipe: Recipe,
    step: int,
    *,
    world: World = _ALONE,
    device: torch.device | None = None,
) -> Inputs:
    """Load this process's share of a batch and place its pictures at random.

    Random numbers are drawn for the whole batch, so that they do not depend on the number of processes.
    """
    total, part = len(batch.items), world.share(len(batch.items))
    pictured = (batch.styles != pairs.text_index).nonzero().flatten()
    mine = pictured[(pictured >= part.start) & (pictured < part.stop)]
    targets = torch.arange(part.start, part.stop)
    # The pictures of the whole batch are ordered: the picture queries, then the targets.
    number = torch.full((total,), -1).index_copy(0, pictured, torch.arange(len(pictured)))
    pictures = torch.cat([number[mine], len(pictured) + targets])
    items = torch.cat([batch.items[mine], batch.items[targets]])
    styles = torch.cat([batch.styles[mine], torch.full_like(targets, GALLERY)])
    loaded = pairs.load(items, styles, torch.cat([batch.draws[mine], batch.draws[targets]]))
    images = loaded.images if device is None else loaded.images.to(device)
    generator = torch.Generator().manual_seed(recipe.seed * 7_368_787 + step)
    placements = draw_placements(len(pictured) + total, recipe.jitter, generator)
    if loaded.style is not None:
        style = loaded.style.to(images.device)
    elif placements is None and method.computes_style_in_encode:
        style = None  # the style of displaced pictures is that of the originals, so it is computed before `place`
    else:
        style = embed_styles(method, images, batch_size=recipe.chunk_size or len(images))
    if placements is not None:
        images = place(to_float(images), placements[pictures])
    written = (batch.styles[part] == pairs.text_index).nonzero().flatten()
    readable = loaded.readable[len(mine) :].clone()
    readable[mine - part.start] &= loaded.readable[: len(mine)]
    labels = None if pairs.labels is None else pairs.labels[batch.items]
    return Inputs(
        images=images,
        style=style,
        texts=[
            pairs.text(item, draw)
            for item, draw in zip(batch.items[part][written].tolist(), batch.draws[part][written].tolist(), strict=True)
        ],
        order=torch.cat([mine - part.start, written]).argsort(),
        usable=readable,
        same=None if labels is None else (labels[:, None] == labels) & ~torch.eye(total, dtype=torch.bool),
        seed=(recipe.seed * 1_000_003 + step) * 4_099 + 1_021 * world.rank,
    )


def pair_loss(method: Method, pairs: TrainingPairs, batch: PairBatch, recipe: Recipe, step: int) -> Tensor:
    """Return the loss of one batch: queries and targets go through the image encoder in one call."""
    inputs = prepare(method, pairs, batch, recipe, step)
    embedded = _encode(method, inputs, slice(None), recipe.bf16)
    return _loss(method.loss, embedded, _texts(method, inputs, embedded), inputs, _ALONE)


def backward(
    method: Method, inputs: Inputs, recipe: Recipe, *, criterion: PairLoss | None = None, world: World = _ALONE
) -> float:
    """Compute the loss of a batch and add its gradients to those of the method's parameters.

    With several processes the loss is that of all pairs; gradients are this process's part until `World.reduce`.

    Args:
        method: in training mode.
        inputs: this process's share.
        recipe: for the chunk size and the precision.
        criterion: loss of (query, target, and a mask if `inputs` has one); by default the method's own.
        world: the processes.

    Returns:
        The loss of the whole batch.
    """
    size = recipe.chunk_size
    count = len(inputs.images)
    chunks = [slice(start, start + size) for start in range(0, count, size)] if 0 < size < count else [slice(None)]
    devices = [inputs.images.device] if inputs.images.device.type == "cuda" else []
    # Random numbers in a forward pass (dropout) depend on the seed, the step and the chunk only.
    with torch.random.fork_rng(devices):
        with torch.set_grad_enabled(len(chunks) == 1):
            made = [_encode(method, inputs, chunk, recipe.bf16, number) for number, chunk in enumerate(chunks)]
        embedded = torch.cat(made).detach().requires_grad_()
        texts = _texts(method, inputs, embedded)
        words = None if texts is None else texts.detach().requires_grad_(texts.requires_grad)
        loss = _loss(criterion or method.loss, embedded, words, inputs, world)
        loss.backward()
        gradient = torch.zeros_like(embedded) if embedded.grad is None else embedded.grad
        for number, chunk in enumerate(chunks):
            again = made[0] if len(chunks) == 1 else _encode(method, inputs, chunk, recipe.bf16, number)
            again.backward(gradient[chunk])
        if texts is not None and words is not None and words.grad is not None:
            texts.backward(words.grad)
    return float(loss.detach())


def _encode(method: Method, inputs: Inputs, rows: slice, bf16: bool, number: int | None = None) -> Tensor:
    images, style = inputs.images[rows], None if inputs.style is None else inputs.style[rows]
    if number is not None:
        torch.manual_seed(inputs.seed + number)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16 and multiplies_bf16(images.device)):
        embedded = method.encode_image(images, style)
    return embedded.to(torch.promote_types(embedded.dtype, torch.float32))


def _texts(method: Method, inputs: Inputs, like: Tensor) -> Tensor | None:
    if not inputs.texts:
        return None
    texts = method.encode_text(inputs.texts)
    if texts is None:
        raise ValueError(f"styles must not contain 'text' for method {method.name!r}: it takes no text")
    return texts.to(like)


def _loss(criterion: PairLoss, embedded: Tensor, texts: Tensor | None, inputs: Inputs, world: World) -> Tensor:
    pairs = len(inputs.order)
    query, target = embedded[:-pairs], embedded[-pairs:]
    if texts is not None:
        query = torch.cat([query, texts])[inputs.order.to(query.device)]
    own = inputs.usable.to(query.device)
    usable = world.gather(own)
    kept = usable.nonzero().flatten()
    if len(kept) < 2:
        raise ValueError(f"a batch must have 2 pairs with readable pictures, got {len(kept)} of {len(usable)}")
    mask = None if inputs.same is None else inputs.same.to(query.device)[kept][:, kept]
    if type(criterion) is StyleNCELoss and world.size > 1 and bool(usable.view(world.size, -1).any(1).all()):
        share = world.share(len(usable))
        rows = (kept >= share.start) & (kept < share.stop)
        return criterion(query[own], target[own], None if mask is None else mask[rows], group=world.group)
    query, target = world.gather(query)[kept], world.gather(target)[kept]
    return criterion(query, target) if mask is None else criterion(query, target, mask)
