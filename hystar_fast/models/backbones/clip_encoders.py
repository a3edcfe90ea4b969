"""A frozen CLIP of open_clip whose image tower has no blocks to adapt, such as a ResNet: two encoders and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from hystar_fast.data.images import Normalise, Resize
from hystar_fast.models.backbones.open_clip import create_open_clip, image_processing
from hystar_fast.nn.views import own_tensor


class CLIPEncoders(nn.Module):
    """Image and text encoder of open_clip with any image tower, in evaluation mode.

    Args:
        clip: the open_clip model; its parameters are frozen here.
        resize: Pillow image -> uint8 [3, H, W].
        normalise: uint8 -> the input of the image tower.
        tokenizer: texts -> token ids [B, L].
    """

    blocks: tuple[nn.Module, ...] = ()

    def __init__(
        self, clip: nn.Module, resize: Resize, normalise: Normalise, tokenizer: Callable[[Any], Tensor]
    ) -> None:
        super().__init__()
        visual: Any = clip.visual
        self.clip: Any = clip.requires_grad_(False).eval()
        self.resize, self.normalise, self.tokenizer = resize, normalise, tokenizer
        self.embed_dim = int(visual.output_dim)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: statistics of batches must not change the vectors."""
        return super().train(False)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, H, W] -> [B, D], not normalised."""
        return own_tensor(self.clip.encode_image(images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed tokens [B, L] -> [B, D], not normalised."""
        return own_tensor(self.clip.encode_text(tokens))


def is_resnet(name: str) -> bool:
    """Return whether a model of ``open_clip.list_models()``, also in OpenAI's spelling, has OpenAI's ResNet."""
    import open_clip

    settings = {} if ":" in name else open_clip.get_model_config(name.replace("/", "-")) or {}
    return isinstance(settings.get("vision_cfg", {}).get("layers"), list)


def load_clip_encoders(
    name: str, pretrained: str | None, image_size: int | None = None, pretrained_tag: str | None = None
) -> CLIPEncoders:
    """Load a model of open_clip on the default device; the arguments and errors are those of `load_open_clip`."""
    clip, tokenizer = create_open_clip(name, pretrained, image_size, pretrained_tag)
    return CLIPEncoders(clip, *image_processing(clip.visual), tokenizer)
