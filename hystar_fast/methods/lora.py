"""LoRA on the image tower of a CLIP, through peft, at the size of another adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor, nn

from hystar_fast.methods.frozen import Frozen

# peft adapts nn.MultiheadAttention (both its packed input projection and its output) and nn.Linear.
TARGETS = r"transformer\.resblocks\.\d+\.(attn|mlp\.c_fc|mlp\.c_proj)"


class LoRA(Frozen):
    """Low-rank updates of every attention and MLP matrix of an open_clip image tower; the rest is frozen.

    W + (alpha / rank) B A with B zero at first, so it starts as the frozen model (Hu et al., 2022).

    Args:
        model: an ``open_clip.CLIP`` with a ViT image tower; it is changed in place.
        preprocess, tokenizer: as for `Frozen`.
        criterion: loss of (query, target).
        parameters: about how many parameters to train: the rank whose count is closest is taken.
        alpha_per_rank: alpha / rank, the scale of the update.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: the image tower has no layer to adapt, or `parameters` is not positive.
    """

    name = "lora"

    def __init__(
        self,
        model: nn.Module,
        preprocess: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        criterion: Callable[[Tensor, Tensor], Tensor],
        *,
        parameters: int,
        alpha_per_rank: int = 1,
    ) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("the LoRA baseline needs peft: pip install peft", name="peft") from error

        super().__init__(model, preprocess, tokenizer)
        if parameters < 1:
            raise ValueError(f"parameters must be at least 1, got {parameters}")
        visual: Any = self.model.visual
        per_rank = _parameters_per_rank(visual)
        self.criterion = criterion
        self.rank = max(1, round(parameters / per_rank))
        config = LoraConfig(
            r=self.rank, lora_alpha=alpha_per_rank * self.rank, lora_dropout=0.0, target_modules=TARGETS
        )
        inject_adapter_in_model(config, visual)
        self._trainable = [p for name, p in visual.named_parameters() if "lora_" in name]
        for parameter in self._trainable:
            parameter.requires_grad_(True)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"lora": self._trainable}

    def loss(self, query: Tensor, target: Tensor) -> Tensor:
        return self.criterion(query, target)


def _parameters_per_rank(visual: nn.Module) -> int:
    """in + out summed over every matrix LoRA adapts: what one more rank costs."""
    total = 0
    for module in visual.modules():
        if isinstance(module, nn.MultiheadAttention):
            total += sum(module.in_proj_weight.shape) + sum(module.out_proj.weight.shape)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    for block in blocks:
        total += sum(block.mlp.c_fc.weight.shape) + sum(block.mlp.c_proj.weight.shape)
    if not total:
        raise ValueError(f"model must have an open_clip ViT image tower to adapt, got {type(visual).__name__}")
    return total
