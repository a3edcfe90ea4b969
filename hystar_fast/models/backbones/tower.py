"""Vision transformers as a loop over their own blocks, with the offsets as arguments, whichever library built them.

The loop calls the very modules the library built (its keys do not change) and does its own recomputation, because no
library's blocks have a way to pass an argument down to attention through their gradient checkpointing.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hystar_fast.models.backbones.base import Backbone
from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.inject import inject


class Affine(NamedTuple):
    """An affine map by where its tensors are: the weight has its outputs first, the bias may be None."""

    module: nn.Module
    weight: str = "weight"
    bias: str = "bias"


class VisionTower(ABC):
    """Where one library keeps the parts of a vision transformer; it holds no tensor itself.

    Every method takes ``visual``, the module that holds the tensors: the backbone's own, or a frozen twin of it.
    """

    family: str = "clip"
    blocks_at: str
    attention_at: str = "attn"
    mlp_parts: tuple[str, ...] = ()  # what an MLP runs one after the other, a linear first; () for all its children

    @abstractmethod
    def check(self, visual: Any) -> None:
        """ValueError unless this loop computes what `visual` does."""

    @abstractmethod
    def widths(self, visual: Any) -> tuple[int, int]:
        """The width of the tokens and that of the embeddings."""

    def leading_tokens(self, visual: Any) -> tuple[bool, int]:
        """Whether the first token is a class token, and how many there are before the patches: it and registers."""
        return True, 1

    @abstractmethod
    def patch_weight(self, visual: Any) -> Tensor:
        """The weight [d, ...] that makes tokens of patches."""

    @abstractmethod
    def embed(self, visual: Any, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> tokens [B, T, d] as the first block takes them."""

    @abstractmethod
    def run_block(self, block: Any, x: Tensor, delta_s: Tensor | None, mlp_delta_s: Tensor | None = None) -> Tensor:
        """x [B, T, d] -> [B, T, d], attention and MLP of `block` with their offsets where given."""

    def pass_block(
        self, block: Any, x: Tensor, delta_s: Tensor | None, mlp_delta_s: Tensor | None = None, *, recompute: bool
    ) -> Tensor:
        """`run_block`; with `recompute` the backward pass runs it again instead of having kept what is inside."""
        if recompute:
            return checkpoint(self.run_block, block, x, delta_s, mlp_delta_s, use_reentrant=False)
        return self.run_block(block, x, delta_s, mlp_delta_s)

    def parts_of(self, mlp: Any) -> list[tuple[str, nn.Module]]:
        """What `mlp` runs one after the other.

        Raises:
            ValueError: it has other parts, or does not begin with a linear layer.
        """
        parts = [(name, part) for name, part in mlp.named_children() if not self.mlp_parts or name in self.mlp_parts]
        if self.mlp_parts:
            parts.sort(key=lambda entry: self.mlp_parts.index(entry[0]))
        if len(parts) < len(list(mlp.children())) or not parts or not hasattr(parts[0][1], "in_features"):
            raise ValueError(f"blocks must have an MLP that begins with a linear layer, {type(mlp).__name__} does not")
        return parts

    def run_mlp(self, mlp: Any, x: Tensor, delta_s: Tensor | None) -> Tensor:
        """x [B, T, d] -> [B, T, d], the first linear of `mlp` with the offsets `delta_s` where given."""
        if delta_s is None:
            return mlp(x)
        (_, first), *rest = self.parts_of(mlp)
        x = first(x, delta_s)
        for _, part in rest:
            x = part(x)
        return x

    @abstractmethod
    def pool(self, visual: Any, x: Tensor) -> Tensor:
        """Embeddings [B, D] of the last block's x [B, T, d], not normalised and no view of x."""

    @abstractmethod
    def modulated(self, attention: Any, rank: int | None) -> SVDAttention:
        """The attention of a block in the form that takes offsets; ValueError where it has none."""

    @abstractmethod
    def projections(self, attention: Any) -> list[Affine]:
        """What makes queries, keys and values in a block as the library built it: three maps, or one of all three."""

    @abstractmethod
    def around_blocks(self, visual: Any) -> list[nn.Module]:
        """The patch embedding and the norms before and after the blocks; not the head that pools, nor a projection."""

    def unused(self, visual: Any) -> Sequence[nn.Module]:
        """The children of `visual` that no image passes."""
        return ()

    def prefix(self, visual: Any, images: Tensor, blocks: int) -> Tensor:
        """images -> the tokens that the first `blocks` blocks make."""
        x = self.embed(visual, images)
        for block in islice(visual.get_submodule(self.blocks_at), blocks):
            x = self.run_block(block, x, None)
        return x

    def encode(
        self,
        visual: Any,
        x: Tensor,
        delta_s: Mapping[int, Tensor],
        mlp_delta_s: Mapping[int, Tensor],
        *,
        done: int = 0,
        recompute: bool = False,
    ) -> Tensor:
        """Tokens after `done` blocks -> embeddings; block n (1-based) takes ``delta_s[n]`` and ``mlp_delta_s[n]``."""
        for number, block in enumerate(visual.get_submodule(self.blocks_at)[done:], start=done + 1):
            x = self.pass_block(block, x, delta_s.get(number), mlp_delta_s.get(number), recompute=recompute)
        return self.pool(visual, x)


class FrozenTower(nn.Module):
    """The visual tower as it is now: it shares every tensor, so what injection replaces later stays here as it was."""

    def __init__(self, tower: VisionTower, visual: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*visual.parameters(), *visual.buffers())}
        self.visual = copy.deepcopy(visual, shared | {id(module): None for module in tower.unused(visual)})

    def forward(self, images: Tensor) -> Tensor:
        return self.tower.encode(self.visual, self.tower.embed(self.visual, images), {}, {})


class TowerBackbone(Backbone):
    """A frozen model whose visual tower is run by a :class:`VisionTower`.

    Args:
        tower: says where the parts are.
        visual_at: the name, below this module, of the module that `tower` is asked about.
    """

    def __init__(self, tower: VisionTower, visual_at: str) -> None:
        super().__init__()
        self.tower = tower
        self.visual_at = visual_at
        self.gradient_checkpointing = False

    @property
    def visual(self) -> Any:
        return self.get_submodule(self.visual_at)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.visual.get_submodule(self.tower.blocks_at)

    @property
    def family(self) -> str:
        """ "clip" (whatever learned pictures and texts by contrast alone), "blip" or "albef"."""
        return self.tower.family

    @property
    def recomputes(self) -> bool:
        """Whether blocks are run with `recompute` now."""
        return self.gradient_checkpointing and torch.is_grad_enabled()

    @property
    def leading_tokens(self) -> tuple[bool, int]:
        return self.tower.leading_tokens(self.visual)

    def train(self, mode: bool = True) -> Self:
        """It stays in evaluation mode: it is frozen, and libraries drop patches and activations in training.

        What is injected computes the same in both modes.
        """
        return super().train(False)

    def inject_dynamic(self, number: int, rank: int | None) -> int:
        block = self.blocks[number - 1]
        attention = block.get_submodule(self.tower.attention_at)
        modulated = self.tower.modulated(attention, rank).requires_grad_(False)
        block.set_submodule(self.tower.attention_at, modulated)
        return modulated.in_proj.rank

    def inject_static(self, number: int, rank: int | None) -> list[str]:
        names = inject(self.blocks[number - 1].get_submodule("mlp"), "*", rank=rank)
        return [f"{self.visual_at}.{self.tower.blocks_at}.{number - 1}.mlp.{name}" for name in names]

    def inject_dynamic_mlp(self, number: int, rank: int | None) -> int:
        mlp = self.blocks[number - 1].get_submodule("mlp")
        first, _ = self.tower.parts_of(mlp)[0]
        inject(mlp, first, rank=rank)
        layer: Any = mlp.get_submodule(first)
        layer.delta_s_static.requires_grad_(False)
        return int(layer.rank)

    def inject_static_attention(self, number: int, rank: int | None) -> list[str]:
        self.inject_dynamic(number, rank)
        attention: Any = self.blocks[number - 1].get_submodule(self.tower.attention_at)
        attention.in_proj.delta_s_static.requires_grad_(True)
        return [f"{self.visual_at}.{self.tower.blocks_at}.{number - 1}.{self.tower.attention_at}.in_proj"]

    def frozen_image_encoder(self) -> nn.Module:
        return FrozenTower(self.tower, self.visual)

    def prefix(self, images: Tensor, blocks: int) -> Tensor:
        self.check_images(images)
        return self.tower.prefix(self.visual, images, blocks)

    def encode_image(
        self,
        images: Tensor,
        delta_s: Mapping[int, Tensor] | None = None,
        mlp_delta_s: Mapping[int, Tensor] | None = None,
        *,
        begun: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        self.check_images(images)
        if images.shape[0] == 0:  # patch embeddings cannot tell the shape of nothing
            return images.new_zeros(0, self.embed_dim)
        done, x = begun or (0, self.tower.embed(self.visual, images))
        return self.tower.encode(self.visual, x, delta_s or {}, mlp_delta_s or {}, done=done, recompute=self.recomputes)
