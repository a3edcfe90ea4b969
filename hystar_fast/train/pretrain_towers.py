"""The towers of the tiny backbone for pretraining: the embeddings of `open_clip.CLIP` with less arithmetic.

Three savings leave the result as it is. Patches that are dropped are never embedded. The last block computes queries,
projection and MLP for the token that is read (class token; end of text) alone. Captions end at the batch's longest.

Weights are a dict of tensors by the names of `open_clip.CLIP`, for example bfloat16 copies of float32 parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD_WIDTH = 32
Weights = dict[str, Tensor]


def encode_images(weights: Weights, views: Tensor, kept: Tensor | None = None) -> Tensor:
    """Embed views [n, 3, H, W] in [-1, 1] as [n, D], without normalising them.

    Args:
        weights: of the whole model.
        views: in any floating dtype; the arithmetic is in that of the weights.
        kept: int64 [n, k], the patches of each view to compute with; all of them if None.
    """
    table, kernel = weights["visual.positional_embedding"], weights["visual.conv1.weight"]
    n, patch = len(views), kernel.shape[-1]
    rows, columns = views.shape[2] // patch, views.shape[3] // patch
    patches = views.to(kernel.dtype).view(n, 3, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(n, rows * columns, -1)
    places = table[1:].expand(n, -1, -1)
    if kept is not None:
        patches = patches[torch.arange(n, device=kept.device)[:, None], kept]
        places = table[1 + kept]
    embedded = F.linear(patches, kernel.flatten(1)) + places
    start = (weights["visual.class_embedding"] + table[0]).expand(n, 1, -1)
    x = _norm(torch.cat([start, embedded], dim=1), weights, "visual.ln_pre")
    x = _blocks(x, weights, "visual.", torch.zeros(n, dtype=torch.long, device=x.device))
    return _norm(x, weights, "visual.ln_post") @ weights["visual.proj"]


def encode_texts(weights: Weights, tokens: Tensor) -> Tensor:
    """Embed captions, int64 [n, T] padded with 0 and ended by the largest id, as [n, D]."""
    end = tokens.argmax(dim=1)
    length = int(end.max()) + 1
    x = weights["token_embedding.weight"][tokens[:, :length]] + weights["positional_embedding"][:length]
    return _norm(_blocks(x, weights, "", end, causal=True), weights, "ln_final") @ weights["text_projection"]


def choose_patches(views: Tensor, patch: int, dropped: float) -> Tensor | None:
    """Draw the patches of views that stay, int64 [n, k]; None if all do. Blank patches are dropped more often."""
    grey = views.mean(dim=1, keepdim=True)
    spread = (F.max_pool2d(grey, patch) + F.max_pool2d(-grey, patch)).flatten(1)
    n, count = spread.shape
    kept = max(1, int(count * (1 - dropped)))
    if kept == count:
        return None
    chance = torch.rand(n, count, device=views.device) + 0.5 * (spread > 0.1)
    return chance.topk(kept, dim=1).indices


def _norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def _blocks(x: Tensor, weights: Weights, tower: str, read: Tensor, causal: bool = False) -> Tensor:
    """Return the output of the blocks at one position a row, [n, W]."""
    heads = x.shape[-1] // HEAD_WIDTH
    count = sum(name.startswith(f"{tower}transformer.") and name.endswith("ln_1.weight") for name in weights)
    positions = torch.arange(x.shape[1], device=x.device)
    hidden = torch.where(positions[:, None] < positions, -torch.inf, 0.0).to(x.dtype) if causal else None
    for i in range(count - 1):
        name = f"{tower}transformer.resblocks.{i}"
        qkv = F.linear(_norm(x, weights, f"{name}.ln_1"), *_parameters(weights, f"{name}.attn.in_proj_", 0, None))
        # [3, n, heads, T, d] in memory: products of batches of strided matrices cost several times as much on CPUs.
        q, k, v = qkv.unflatten(-1, (3, heads, HEAD_WIDTH)).permute(2, 0, 3, 1, 4).contiguous()
        x = _rest(x, _attend(q, k, v, hidden), weights, name)
    name = f"{tower}transformer.resblocks.{count - 1}"
    width, rows = x.shape[-1], torch.arange(len(x), device=x.device)
    normed = _norm(x, weights, f"{name}.ln_1")
    kv = F.linear(normed, *_parameters(weights, f"{name}.attn.in_proj_", width, None))
    k, v = kv.unflatten(-1, (2, heads, HEAD_WIDTH)).permute(2, 0, 3, 1, 4).contiguous()
    q = F.linear(normed[rows, read], *_parameters(weights, f"{name}.attn.in_proj_", 0, width))
    if causal:
        hidden = torch.where(read[:, None] < positions, -torch.inf, 0.0).to(x.dtype)[:, None, None]
    return _rest(x[rows, read], _attend(q.view(-1, heads, 1, HEAD_WIDTH), k, v, hidden).squeeze(1), weights, name)


def _parameters(weights: Weights, prefix: str, start: int, stop: int | None) -> tuple[Tensor, Tensor]:
    return weights[f"{prefix}weight"][start:stop], weights[f"{prefix}bias"][start:stop]


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    """Attend with q [n, heads, S, d] to k and v [n, heads, T, d]; returns [n, S, heads * d]."""
    scores = (q * HEAD_WIDTH**-0.5) @ k.transpose(-1, -2)
    if hidden is not None:
        scores = scores + hidden
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def _rest(x: Tensor, attended: Tensor, weights: Weights, name: str) -> Tensor:
    """Add what follows the attention of a block: its projection and the MLP."""
    x = x + _linear(attended, weights, f"{name}.attn.out_proj")
    inner = F.gelu(_linear(_norm(x, weights, f"{name}.ln_2"), weights, f"{name}.mlp.c_fc"))
    return x + _linear(inner, weights, f"{name}.mlp.c_proj")


def _linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
