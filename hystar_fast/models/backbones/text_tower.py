"""Text towers of CLIP, run from the embeddings of their tokens: a learned vector may stand for a word.

A tower here is causal and read at the end of the text. So a prompt needs no token behind its end, and the keys and
values of a beginning that many prompts share are computed once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hystar_fast.models.backbones.base import Backbone

if TYPE_CHECKING:
    from hystar_fast.models.backbones.clip_encoders import CLIPEncoders

_STORED_TOKENS = 4096  # of a pass whose activations are kept for the backward; longer ones recompute each block


class Past(NamedTuple):
    """Keys and values [P, heads, n, d] of P beginnings of n tokens, block by block."""

    length: int
    keys: list[Tensor]
    values: list[Tensor]


class TextTower(ABC):
    """One library's text tower. It has no tensors of its own: the model keeps them.

    Attributes:
        width: of the tokens.
        context: the largest number of tokens.
        blocks: from the first to the last.
    """

    width: int
    context: int
    blocks: Sequence[Any]

    @abstractmethod
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return the embeddings [..., width] of token ids, without positions."""

    @abstractmethod
    def ends(self, ids: Tensor) -> Tensor:
        """Return the place [B] of the token that ends each text of ids [B, L]."""

    @abstractmethod
    def _positions(self) -> Tensor:
        """Return the embeddings [context, width] of the positions."""

    @abstractmethod
    def _project(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value [B, heads, T, d] of the tokens [B, T, width] before a block."""

    @abstractmethod
    def _finish_block(self, block: Any, x: Tensor, mixed: Tensor) -> Tensor:
        """Return the tokens after a block from those before it and the mixed values [B, T, width] of its attention."""

    @abstractmethod
    def _head(self, x: Tensor) -> Tensor:
        """Return embeddings [B, D] of the last tokens [B, width] of texts."""

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Embed texts, ids [B, L] -> [B, D], not normalised; tokens behind the longest text are not computed."""
        ends = self.ends(ids)
        return self.encode(self.embed_tokens(ids[:, : int(ends.max()) + 1]), ends)

    def encode(self, embeddings: Tensor, ends: Tensor, past: Past | None = None) -> Tensor:
        """Embed texts from the embeddings of their tokens.

        Args:
            embeddings: [B, L, width]; with `past`, of the tokens behind it.
            ends: int64 [B], the place of the end of each whole text.
            past: of P beginnings, from `begin`; P divides B, and B / P rows in order continue each.

        Returns:
            [B, D], not normalised.

        Raises:
            ValueError: more tokens than `context`, or an end that is not among the tokens.
        """
        start = 0 if past is None else past.length
        places = ends.to(embeddings.device) - start
        if start + embeddings.shape[1] > self.context:
            raise ValueError(f"texts must have at most {self.context} tokens, got {start + embeddings.shape[1]}")
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < embeddings.shape[1]:
            raise ValueError(
                f"ends must lie among the {embeddings.shape[1]} tokens from {start} on, got {ends.tolist()}"
            )
        x, _ = self._run(embeddings, past)
        return self._head(x[torch.arange(len(x), device=x.device), places])

    def begin(self, embeddings: Tensor) -> Past:
        """Compute the beginnings [P, n, width] of texts, for the `past` of `encode`."""
        _, past = self._run(embeddings, None, keep=True)
        return past

    def _run(self, embeddings: Tensor, past: Past | None, *, keep: bool = False) -> tuple[Tensor, Past]:
        start, (B, T, _) = 0 if past is None else past.length, embeddings.shape
        x = embeddings + self._positions()[start : start + T]
        kept = Past(start + T, [], [])
        recompute = torch.is_grad_enabled() and x.requires_grad and B * T > _STORED_TOKENS and not keep
        for number, block in enumerate(self.blocks):
            before = (None, None) if past is None else (past.keys[number], past.values[number])
            if recompute:
                x, _, _ = checkpoint(self._block, block, x, *before, use_reentrant=False)
                continue
            x, key, value = self._block(block, x, *before)
            if keep:
                kept.keys.append(key)
                kept.values.append(value)
        return x, kept

    def _block(
        self, block: Any, x: Tensor, keys: Tensor | None, values: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens after a block, and its keys and values."""
        query, key, value = self._project(block, x)
        if keys is None or values is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            times, (T, n) = len(x) // len(keys), (x.shape[1], keys.shape[2])
            key = torch.cat([keys.repeat_interleave(times, 0), key], dim=2)
            value = torch.cat([values.repeat_interleave(times, 0), value], dim=2)
            seen = torch.ones(T, n + T, dtype=torch.bool, device=x.device).tril(n)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self._finish_block(block, x, mixed.transpose(1, 2).flatten(2)), key, value


class OpenClipText(TextTower):
    """Text tower of open_clip: that of its CLIP, of CustomTextCLIP, and of the packaged tiny one."""

    def __init__(self, text: Any) -> None:
        self.text = text
        self.blocks = text.transformer.resblocks
        self.context, self.width = (int(size) for size in text.positional_embedding.shape)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.text.token_embedding(ids)

    def ends(self, ids: Tensor) -> Tensor:
        if _pool_type(self.text) == "eos":
            return _first(ids, int(self.text.text_eos_id if hasattr(self.text, "text_eos_id") else self.text.eos_id))
        return ids.argmax(1)

    def _positions(self) -> Tensor:
        return self.text.positional_embedding

    def _project(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x.shape
        attention = block.attn
        packed = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = packed.view(B, T, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def _finish_block(self, block: Any, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + block.ls_1(block.attn.out_proj(mixed))
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    def _head(self, x: Tensor) -> Tensor:
        x, projection = self.text.ln_final(x), self.text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Module) else x @ projection


class TransformersText(TextTower):
    """Text tower of CLIPModel of transformers."""

    def __init__(self, model: Any) -> None:
        self.model, text = model, model.text_model
        self.embeddings, self.blocks, self.norm = text.embeddings, text.encoder.layers, text.final_layer_norm
        self.context, self.width = (int(size) for size in self.embeddings.position_embedding.weight.shape)
        self.end = int(model.config.text_config.eos_token_id)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.embeddings.token_embedding(ids)

    def ends(self, ids: Tensor) -> Tensor:
        # of CLIP's first configurations, whose 2 is no id of its tokenizer, the largest id ends a text
        return ids.argmax(1) if self.end == 2 else _first(ids, self.end)

    def _positions(self) -> Tensor:
        return self.embeddings.position_embedding.weight

    def _project(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x.shape
        attention, x = block.self_attn, block.layer_norm1(x)
        layers = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (layer(x).view(B, T, attention.num_heads, -1).transpose(1, 2) for layer in layers)
        return query, key, value

    def _finish_block(self, block: Any, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + block.self_attn.out_proj(mixed)
        return x + block.mlp(block.layer_norm2(x))

    def _head(self, x: Tensor) -> Tensor:
        return self.model.text_projection(self.norm(x))


def text_tower(backbone: Backbone | CLIPEncoders) -> TextTower:
    """Return the text tower of a CLIP of open_clip (the tiny one included) or transformers.

    Raises:
        ValueError: another kind, such as SigLIP, BLIP and ALBEF, whose texts are no causal sequences read at their end.
    """
    clip: Any = getattr(backbone, "clip", None)
    if clip is not None:
        text = getattr(clip, "text", clip)
        blocks = getattr(getattr(text, "transformer", None), "resblocks", ())
        plain = blocks and all(isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks)
        causal = getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None
        if plain and causal and _pool_type(text) in ("argmax", "eos"):
            return OpenClipText(text)
    model: Any = getattr(backbone, "model", None)
    if getattr(getattr(model, "config", None), "model_type", "") == "clip":
        return TransformersText(model)
    kind = type(clip if clip is not None else model if model is not None else backbone).__name__
    raise ValueError(f"backbone must be a CLIP whose text tower is causal and read at the end of a text, got {kind}")


def _pool_type(text: Any) -> str:
    return str(getattr(text, "pool_type", getattr(text, "text_pool_type", "")))


def _first(ids: Tensor, wanted: int) -> Tensor:
    """Return the first place [B] of an id in each row."""
    return (ids == wanted).int().argmax(1)


def same_tokens(tokenizer: Callable[[list[str]], Tensor], texts: Sequence[str]) -> tuple[str, str] | None:
    """Return two texts that a tokenizer does not tell apart, by their case or behind the context; None if it does."""
    seen: dict[bytes, str] = {}
    for text, ids in zip(texts, tokenizer(list(texts)), strict=True):
        other = seen.setdefault(ids.numpy().tobytes(), text)
        if other is not text:
            return other, text
    return None
