"""Visual prompt tuning: trained tokens in front of every block."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hystar_fast.methods.adapted import Adapted
from hystar_fast.models.backbones.tower import TowerBackbone

# Hystar's paper does not give the number; its Table 5 (0.2 % more parameters on ViT-L/14) allows 27 to 43.
PROMPTS = 32


class Prompted(nn.Module):
    """A CLIP with `prompts` more tokens at every block of its image tower.

    Args:
        backbone: the frozen CLIP.
        prompts: tokens a block.
    """

    def __init__(self, backbone: TowerBackbone, prompts: int) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.tower.check_insertion(backbone.visual)
        kernel = backbone.tower.patch_weight(backbone.visual)
        self.prompts = nn.Parameter(kernel.new_empty(backbone.depth, prompts, backbone.width))
        bound = math.sqrt(6 / (kernel[0].numel() + backbone.width))
        nn.init.uniform_(self.prompts, -bound, bound)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, H, W] as [B, D], not normalised."""
        backbone = self.backbone
        backbone.check_images(images)
        visual, tower, count = backbone.visual, backbone.tower, self.prompts.shape[1]
        leading = backbone.leading_tokens[1]
        x = tower.embed(visual, images)
        # The outputs at the prompts are dropped; every block has its own prompts.
        first, rest = x[:, :leading], x[:, leading:]
        for block, prompts in zip(backbone.blocks, self.prompts, strict=True):
            x = torch.cat([first, prompts.expand(len(x), -1, -1).to(x.dtype), rest], dim=1)
            x = tower.pass_block(block, x, None, recompute=backbone.recomputes)
            first, rest = x[:, :leading], x[:, leading + count :]
        return tower.pool(visual, torch.cat([first, rest], dim=1))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed tokens [B, L] as [B, D] with the unchanged text tower."""
        return self.backbone.encode_text(tokens)


class VPT(Adapted):
    """VPT-Deep: [x_i, _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}]) with prompts P trained for every block.

    It does not start as the frozen model: prompts are drawn uniformly, with a bound from the patch size and the width,
    and take part in attention from the first step. On ViT-L/14, 32 prompts a block are 786,432 parameters.

    Args:
        backbone: the backbone to adapt; it is changed in place.
        criterion: loss of (query, target).
        prompts: tokens a block.

    Raises:
        ValueError: `prompts` is not positive.

    Source: Jia et al., Visual Prompt Tuning (ECCV 2022), Eq. 7 and the initialisation of Section 4.1.
    """

    name = "vpt"

    def __init__(
        self, backbone: TowerBackbone, criterion: Callable[[Tensor, Tensor], Tensor], *, prompts: int = PROMPTS
    ) -> None:
        super().__init__(backbone, criterion)
        if prompts < 1:
            raise ValueError(f"prompts must be at least 1, got {prompts}")
        self.settings = {"prompts": prompts}
        self.model = Prompted(backbone, prompts)
        self.modules = (self.model,)
