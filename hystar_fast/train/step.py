"""One step: the pictures of a batch, its loss over all of it, and the gradients, in one encoder pass or in chunks.

The gradient goes through the embeddings: dL/dθ = Σ_i (∂L/∂e_i)·(∂e_i/∂θ). So the embeddings of the whole batch are made
first, the loss of all of them gives ∂L/∂e_i, and every chunk of pictures is then sent through the encoder with its rows
of it. In chunks the first pass keeps no graph and the second makes it anew, so memory is that of a chunk, compute that
of one more forward, and loss, negatives and gradients are those of the whole batch (cached gradients: Gao et al. 2021,
Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup). With several processes each does this
with its part of the pairs, and the loss takes the embeddings of all (`World.gather`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hystar_fast.methods.interface import Method
from hystar_fast.nn.losses import PairLoss
from hystar_fast.retrieval.embed import embed_styles, to_float
from hystar_fast.retrieval.placement import draw_placements, place
from hystar_fast.train.pairs import GALLERY, PairBatch, Pairs
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.world import World

_ALONE = World()


@dataclass(frozen=True)
class Inputs:
    """What one process encodes of a batch of pairs.

    Attributes:
        images: [Q + b, 3, H, W], the drawn queries and then the targets of the b pairs.
        style: [Q + b, d], or None where the method takes none or reads it on the way.
        texts: the written queries.
        order: int64 [b], where the query of each pair is among the drawn ones and, after them, the texts.
        usable: bool [b], False where a picture of the pair could not be read.
        same: bool [B, B] over the whole batch, True where target j shows what query i asks for; None if none does.
        noise: seeds what the encoder may draw.
    """

    images: Tensor
    style: Tensor | None
    texts: list[str]
    order: Tensor
    usable: Tensor
    same: Tensor | None
    noise: int


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 products; a CPU without them is several times slower in it."""
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def prepare(
    method: Method,
    data: Pairs,
    batch: PairBatch,
    recipe: Recipe,
    step: int,
    *,
    world: World = _ALONE,
    device: torch.device | None = None,
) -> Inputs:
    """Load this process's share of a batch and place its pictures; what is drawn is drawn for the whole batch."""
    total, part = len(batch.concepts), world.share(len(batch.concepts))
    drawn = (batch.styles != data.text_column).nonzero().flatten()
    mine = drawn[(drawn >= part.start) & (drawn < part.stop)]
    pairs = torch.arange(part.start, part.stop)
    # The pictures of the whole batch in one order: the drawn queries, then the targets.
    number = torch.full((total,), -1).index_copy(0, drawn, torch.arange(len(drawn)))
    pictures = torch.cat([number[mine], len(drawn) + pairs])
    rows = torch.cat([batch.concepts[mine], batch.concepts[pairs]])
    columns = torch.cat([batch.styles[mine], torch.full_like(pairs, GALLERY)])
    loaded = data.load(rows, columns, torch.cat([batch.draws[mine], batch.draws[pairs]]))
    images = to_float(loaded.images if device is None else loaded.images.to(device))
    generator = torch.Generator().manual_seed(recipe.seed * 7_368_787 + step)
    placements = draw_placements(len(drawn) + total, recipe.jitter, generator)
    if loaded.styles is not None:
        style = loaded.styles.to(images.device)
    elif placements is None and method.reads_style_on_the_way:
        style = None  # a pass of its own would make the same; where pictures are placed, style is that of the unplaced
    else:
        style = embed_styles(method, images, batch_size=recipe.chunk_size or len(images))
    images = place(images, None if placements is None else placements[pictures])
    written = (batch.styles[part] == data.text_column).nonzero().flatten()
    readable = loaded.readable[len(mine) :].clone()
    readable[mine - part.start] &= loaded.readable[: len(mine)]
    labels = None if data.labels is None else data.labels[batch.concepts]
    return Inputs(
        images=images,
        style=style,
        texts=[data.texts[row] for row in batch.concepts[part][written].tolist()],
        order=torch.cat([mine - part.start, written]).argsort(),
        usable=readable,
        same=None if labels is None else (labels[:, None] == labels) & ~torch.eye(total, dtype=torch.bool),
        noise=(recipe.seed * 1_000_003 + step) * 4_099 + 1_021 * world.rank,
    )


def pair_loss(method: Method, data: Pairs, concepts: Tensor, columns: Tensor, recipe: Recipe, step: int) -> Tensor:
    """The loss of one batch: queries and targets go through the image encoder in one call, texts beside them."""
    batch = PairBatch(concepts, columns, torch.zeros(len(concepts), dtype=torch.float64))
    inputs = prepare(method, data, batch, recipe, step)
    embedded = _encode(method, inputs, slice(None), recipe.bf16)
    return _loss(method.loss, embedded, _texts(method, inputs, embedded), inputs, _ALONE)


def backward(
    method: Method, inputs: Inputs, recipe: Recipe, *, criterion: PairLoss | None = None, world: World = _ALONE
) -> float:
    """Compute the loss of a batch and add its gradients to those of the method's parameters.

    With several processes the loss is that of all pairs; gradients are this process's summand until `World.reduce`.

    Args:
        method: is in training mode.
        inputs: this process's share.
        recipe: says the chunk and the precision.
        criterion: loss of (query, target, and a mask where `inputs` has one); by default the method's own.
        world: the processes.

    Returns:
        The loss of the whole batch.
    """
    size = recipe.chunk_size
    count = len(inputs.images)
    chunks = [slice(start, start + size) for start in range(0, count, size)] if 0 < size < count else [slice(None)]
    devices = [inputs.images.device] if inputs.images.device.type == "cuda" else []
    # What a forward pass draws (dropout) depends on the seed, the step and the chunk alone.
    with torch.random.fork_rng(devices):
        with torch.set_grad_enabled(len(chunks) == 1):
            made = [_encode(method, inputs, chunk, recipe.bf16, noise) for noise, chunk in enumerate(chunks)]
        embedded = torch.cat(made).detach().requires_grad_()
        texts = _texts(method, inputs, embedded)
        words = None if texts is None else texts.detach().requires_grad_(texts.requires_grad)
        loss = _loss(criterion or method.loss, embedded, words, inputs, world)
        loss.backward()
        gradient = torch.zeros_like(embedded) if embedded.grad is None else embedded.grad
        for noise, chunk in enumerate(chunks):
            again = made[0] if len(chunks) == 1 else _encode(method, inputs, chunk, recipe.bf16, noise)
            again.backward(gradient[chunk])
        if texts is not None and words is not None and words.grad is not None:
            texts.backward(words.grad)
    return float(loss.detach())


def _encode(method: Method, inputs: Inputs, rows: slice, bf16: bool, noise: int | None = None) -> Tensor:
    images, style = inputs.images[rows], None if inputs.style is None else inputs.style[rows]
    if noise is not None:
        torch.manual_seed(inputs.noise + noise)
    # Where CPUs have it bf16 halves the products.
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
    query, target, usable = world.gather(query), world.gather(target), world.gather(inputs.usable.to(query.device))
    mask = inputs.same
    if not bool(usable.all()):
        kept = usable.nonzero().flatten()
        if len(kept) < 2:
            raise ValueError(f"a batch needs 2 pairs whose pictures can be read, got {len(kept)} of {len(usable)}")
        query, target = query[kept], target[kept]
        mask = None if mask is None else mask[kept.cpu()][:, kept.cpu()]
    return criterion(query, target) if mask is None else criterion(query, target, mask.to(query.device))
