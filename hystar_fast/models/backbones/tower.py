"""Vision transformers of any library as a loop over their own blocks, with the offsets as arguments.

The loop calls the modules that the library built, so their keys do not change. It recomputes blocks itself, as the
gradient checkpointing of no library can pass an argument to attention.
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
    """Location of an affine map: a module, and the names of its weight [out, in, ...] and of its bias, or None."""

    module: nn.Module
    weight: str = "weight"
    bias: str = "bias"


class VisionTower(ABC):
    """Names of the parts of one library's vision transformer, and the loop over its blocks. It holds no tensors.

    The argument ``visual`` of its methods is the module with the tensors: the one of the backbone, or its frozen copy.
    """

    family: str = "clip"
    blocks_at: str
    attention_at: str = "attn"
    mlp_parts: tuple[str, ...] = ()  # names of an MLP's layers in order, the first one a linear; () means all children

    @abstractmethod
    def check(self, visual: Any) -> None:
        """Raise a ValueError unless this loop computes the same as `visual`."""

    @abstractmethod
    def widths(self, visual: Any) -> tuple[int, int]:
        """Return the width of the tokens and the width of the embeddings."""

    def leading_tokens(self, visual: Any) -> tuple[bool, int]:
        """Return True where the first token is a class token, and the number of tokens before the patches."""
        return True, 1

    @abstractmethod
    def patch_weight(self, visual: Any) -> Tensor:
        """Return the weight [d, ...] of the patch embedding."""

    @abstractmethod
    def embed(self, visual: Any, images: Tensor) -> Tensor:
        """Compute the tokens [B, T, d] that the first block takes from images [B, 3, H, W]."""

    def shared(self, visual: Any) -> tuple[Tensor, ...]:
        """Compute what every block takes beside its tokens, such as the rotation of its heads by their positions."""
        return ()

    def has_positions(self, visual: Any) -> bool:
        """Return True where blocks add positions themselves, so that no tokens can be inserted before them."""
        return bool(self.shared(visual))

    def check_insertion(self, visual: Any) -> None:
        """Raise a ValueError where no tokens can be inserted between the leading ones and the patches."""
        if self.has_positions(visual):
            raise ValueError(
                "backbone must have its positions in the tokens to take more of them (vpt, freestyle), "
                f"got {type(visual).__name__} with positions in its attention"
            )

    @abstractmethod
    def run_block(
        self, block: Any, x: Tensor, delta_s: Tensor | None, mlp_delta_s: Tensor | None = None, *shared: Tensor
    ) -> Tensor:
        """Run `block` on x [B, T, d], with the offsets of its attention and of its MLP, and with :meth:`shared`."""

    def pass_block(
        self,
        block: Any,
        x: Tensor,
        delta_s: Tensor | None,
        mlp_delta_s: Tensor | None = None,
        *shared: Tensor,
        recompute: bool,
    ) -> Tensor:
        """Call `run_block`; with `recompute` the backward calls it again, and its activations are not stored."""
        if recompute:
            return checkpoint(self.run_block, block, x, delta_s, mlp_delta_s, *shared, use_reentrant=False)
        return self.run_block(block, x, delta_s, mlp_delta_s, *shared)

    def parts_of(self, mlp: Any) -> list[tuple[str, nn.Module]]:
        """Return the layers of `mlp` with their names, in the order in which they run.

        Raises:
            ValueError: it has other layers, or the first one is not linear.
        """
        parts = [(name, part) for name, part in mlp.named_children() if not self.mlp_parts or name in self.mlp_parts]
        if self.mlp_parts:
            parts.sort(key=lambda entry: self.mlp_parts.index(entry[0]))
        if len(parts) < len(list(mlp.children())) or not parts or not hasattr(parts[0][1], "in_features"):
            raise ValueError(f"blocks must have an MLP that begins with a linear layer, got {type(mlp).__name__}")
        return parts

    def run_mlp(self, mlp: Any, x: Tensor, delta_s: Tensor | None) -> Tensor:
        """Run `mlp` on x [B, T, d], its first linear with the offsets `delta_s` where they are given."""
        if delta_s is None:
            return mlp(x)
        (_, first), *rest = self.parts_of(mlp)
        x = first(x, delta_s)
        for _, part in rest:
            x = part(x)
        return x

    @abstractmethod
    def pool(self, visual: Any, x: Tensor) -> Tensor:
        """Compute embeddings [B, D], not normalised, from the output x [B, T, d] of the last block; not a view."""

    @abstractmethod
    def create_modulated(self, attention: Any, rank: int | None) -> SVDAttention:
        """Return an SVDAttention that equals `attention`; raise a ValueError where there is none."""

    @abstractmethod
    def projections(self, attention: Any) -> list[Affine]:
        """Return the maps of query, key and value in a block as the library built it: three, or one packed map."""

    @abstractmethod
    def around_blocks(self, visual: Any) -> list[nn.Module]:
        """Return the patch embedding and the norms before and after the blocks, without the pooling and projection."""

    def unused(self, visual: Any) -> Sequence[nn.Module]:
        """Return the children of `visual` that the image encoder does not use."""
        return ()

    def prefix(self, visual: Any, images: Tensor, blocks: int) -> Tensor:
        """Compute the tokens of images after the first `blocks` blocks."""
        x, shared = self.embed(visual, images), self.shared(visual)
        for block in islice(visual.get_submodule(self.blocks_at), blocks):
            x = self.run_block(block, x, None, None, *shared)
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
        """Compute embeddings from the tokens x after the first `done` blocks.

        Block n (1-based) takes the offsets ``delta_s[n]`` and ``mlp_delta_s[n]`` where they are given.
        """
        shared = self.shared(visual)
        for number, block in enumerate(visual.get_submodule(self.blocks_at)[done:], start=done + 1):
            offsets = delta_s.get(number), mlp_delta_s.get(number)
            x = self.pass_block(block, x, *offsets, *shared, recompute=recompute)
        return self.pool(visual, x)


class FrozenTower(nn.Module):
    """Copy of a visual tower that shares its tensors, and keeps the modules that a later injection replaces."""

    def __init__(self, tower: VisionTower, visual: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*visual.parameters(), *visual.buffers())}
        self.visual = copy.deepcopy(visual, shared | {id(module): None for module in tower.unused(visual)})

    def forward(self, images: Tensor) -> Tensor:
        return self.tower.encode(self.visual, self.tower.embed(self.visual, images), {}, {})


class TowerBackbone(Backbone):
    """Frozen model whose visual tower is run by a :class:`VisionTower`.

    Args:
        tower: the loop over the blocks.
        visual_at: name, within this module, of the module with the tensors of `tower`.
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
        """Name of the training method: "blip", "albef", or "clip" for all that were trained by contrast alone."""
        return self.tower.family

    @property
    def recomputes(self) -> bool:
        """True where blocks run with `recompute`: gradient checkpointing is on, and gradients are recorded."""
        return self.gradient_checkpointing and torch.is_grad_enabled()

    @property
    def leading_tokens(self) -> tuple[bool, int]:
        return self.tower.leading_tokens(self.visual)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, as in training mode the libraries drop patches and activations.

        The injected layers compute the same in both modes.
        """
        return super().train(False)

    def inject_dynamic(self, number: int, rank: int | None) -> int:
        block = self.blocks[number - 1]
        attention = block.get_submodule(self.tower.attention_at)
        modulated = self.tower.create_modulated(attention, rank).requires_grad_(False)
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

    def without_values(self) -> Self:
        """Return a copy whose image tower is on the meta device: an injection into it costs nothing."""
        visual = self.visual
        memo: dict[int, Any] = {id(module): None for module in self.tower.unused(visual)}
        for tensor in (*visual.parameters(), *visual.buffers()):
            bare = tensor.detach().to("meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(bare, requires_grad=tensor.requires_grad) if is_parameter else bare
        trial = copy.copy(self)
        trial._modules, trial.visual_at = {"trial": copy.deepcopy(visual, memo)}, "trial"
        return trial

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
        resume_from: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        self.check_images(images)
        if images.shape[0] == 0:  # patch embeddings fail on an empty batch
            return images.new_zeros(0, self.embed_dim)
        done, x = resume_from or (0, self.tower.embed(self.visual, images))
        return self.tower.encode(self.visual, x, delta_s or {}, mlp_delta_s or {}, done=done, recompute=self.recomputes)
