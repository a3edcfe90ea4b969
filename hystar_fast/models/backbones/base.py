"""What Hystar needs of a vision-language encoder, whichever library it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hystar_fast.data.images import Normalise, Preprocess, Resize


class Backbone(nn.Module, ABC):
    """A frozen image and text encoder whose visual blocks can be modulated.

    The offsets of the singular values travel as arguments of :meth:`encode_image` down to the weight they modulate,
    never as state of a module: two calls in one step, recomputation and threads cannot mix them.
    """

    depth: int
    width: int
    embed_dim: int
    image_size: tuple[int, int]
    resize: Resize
    normalise: Normalise
    tokenizer: Callable[[Any], Tensor]
    gradient_checkpointing: bool

    @property
    def preprocess(self) -> Preprocess:
        """Pillow image -> the input [3, H, W]: `resize`, then `normalise`."""
        return Preprocess(self.resize, self.normalise)

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The visual blocks, first to last."""

    @property
    @abstractmethod
    def leading_tokens(self) -> tuple[bool, int]:
        """Whether the first token is a class token, and how many there are before the patches: it and registers."""

    @abstractmethod
    def inject_dynamic(self, number: int, rank: int | None) -> int:
        """Make the packed qkv weight of block `number` (1-based) take offsets; returns how many."""

    @abstractmethod
    def inject_static(self, number: int, rank: int | None) -> list[str]:
        """Give every MLP linear of block `number` (1-based) a learned static offset; returns their module names."""

    @abstractmethod
    def inject_dynamic_mlp(self, number: int, rank: int | None) -> int:
        """Make the first MLP linear of block `number` (1-based) take offsets; returns how many."""

    @abstractmethod
    def inject_static_attention(self, number: int, rank: int | None) -> list[str]:
        """Give the packed qkv weight of block `number` (1-based) a learned static offset; returns its module's name."""

    @abstractmethod
    def frozen_image_encoder(self) -> nn.Module:
        """The encoder as it was before any injection: images -> unnormalised embeddings; call it before injecting."""

    @abstractmethod
    def prefix(self, images: Tensor, blocks: int) -> Tensor:
        """images [B, 3, H, W] -> the tokens [B, T, width] that the first `blocks` blocks make, without offsets."""

    @abstractmethod
    def encode_image(
        self,
        images: Tensor,
        delta_s: Mapping[int, Tensor] | None = None,
        mlp_delta_s: Mapping[int, Tensor] | None = None,
        *,
        begun: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """images [B, 3, H, W], offsets [r] or [B, r] of attention and MLP per 1-based block -> [B, D], any length.

        ``begun`` is (n, tokens): what ``prefix(images, n)`` gave, from where this goes on.
        """

    @abstractmethod
    def encode_text(self, tokens: Tensor) -> Tensor:
        """tokens [B, L] -> [B, D], not normalised."""

    def check_images(self, images: Tensor) -> None:
        """ValueError or TypeError unless `images` is a preprocessed batch of this backbone's size."""
        height, width = self.image_size
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor [B, 3, {height}, {width}], got {type(images).__name__}")
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise ValueError(f"images must have shape [B, 3, {height}, {width}], got {list(images.shape)}")
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point (see model.preprocess), got {images.dtype}")
        device = next(self.parameters()).device
        if images.device != device:
            raise ValueError(f"images must be on the model's device {device}, got {images.device}")

    def check_tokens(self, tokens: Tensor) -> None:
        """ValueError or TypeError unless `tokens` is a batch of token ids."""
        if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
            kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TypeError(f"tokens must be an integer tensor [B, L] (see model.tokenizer), got {kind}")
        if tokens.ndim != 2:
            raise ValueError(f"tokens must have shape [B, L], got {list(tokens.shape)}")
