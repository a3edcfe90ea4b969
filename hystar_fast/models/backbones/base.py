"""Interface of a vision-language encoder, which Hystar uses for the models of every library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hystar_fast.data.images import Normalise, Preprocess, Resize


class Backbone(nn.Module, ABC):
    """Frozen image and text encoder whose visual blocks can be modulated.

    Offsets are arguments of :meth:`encode_image` and are passed down to the weight that they modulate. No module stores
    them, so two calls in one step, recomputation and threads cannot mix them.
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
        """Visual blocks, from the first to the last."""

    @property
    @abstractmethod
    def leading_tokens(self) -> tuple[bool, int]:
        """Tuple of True where the first token is a class token, and the number of tokens before the patches.

        Those tokens are the class token and the registers.
        """

    @abstractmethod
    def inject_dynamic(self, number: int, rank: int | None) -> int:
        """Let the packed qkv weight of block `number` (1-based) take offsets, and return their number."""

    @abstractmethod
    def inject_static(self, number: int, rank: int | None) -> list[str]:
        """Give every MLP linear of block `number` (1-based) a learned static offset, and return the modules' names."""

    @abstractmethod
    def inject_dynamic_mlp(self, number: int, rank: int | None) -> int:
        """Let the first MLP linear of block `number` (1-based) take offsets, and return their number."""

    @abstractmethod
    def inject_static_attention(self, number: int, rank: int | None) -> list[str]:
        """Give the packed qkv weight of block `number` (1-based) a learned static offset, and return its module's name.

        The list has one name, as :meth:`inject_static` returns a list.
        """

    @abstractmethod
    def frozen_image_encoder(self) -> nn.Module:
        """Return a module from images to embeddings that later injections do not change. Call it before them.

        The embeddings are not normalised.
        """

    @abstractmethod
    def prefix(self, images: Tensor, blocks: int) -> Tensor:
        """Compute the tokens [B, T, width] after the first `blocks` blocks, without offsets, of images [B, 3, H, W]."""

    @abstractmethod
    def encode_image(
        self,
        images: Tensor,
        delta_s: Mapping[int, Tensor] | None = None,
        mlp_delta_s: Mapping[int, Tensor] | None = None,
        *,
        resume_from: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Embed images with offsets.

        Args:
            images: [B, 3, H, W].
            delta_s: offsets [r] or [B, r] of the attention of each block, by its 1-based number.
            mlp_delta_s: offsets of the first MLP linear of each block, in the same form.
            resume_from: (n, tokens) where ``prefix(images, n)`` returned the tokens; the first n blocks are skipped.

        Returns:
            [B, D], not normalised.
        """

    @abstractmethod
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed tokens [B, L] -> [B, D], not normalised."""

    def check_images(self, images: Tensor) -> None:
        """Raise a ValueError or a TypeError unless `images` is a preprocessed batch of this backbone's size."""
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
        """Raise a ValueError or a TypeError unless `tokens` is a batch of token ids."""
        if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
            kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TypeError(f"tokens must be an integer tensor [B, L] (see model.tokenizer), got {kind}")
        if tokens.ndim != 2:
            raise ValueError(f"tokens must have shape [B, L], got {list(tokens.shape)}")
