"""Changes of colour of the training pictures that the paper compares synthesis with (Table X)."""

from __future__ import annotations

import torch
from torch import Tensor

# Not in the paper: the usual strengths of torchvision, and how often.
_JITTER, _JITTER_CHANCE = (0.4, 0.4, 0.4, 0.1), 0.8
_SOLARIZE_FROM, _SOLARIZE_CHANCE = 128 / 255, 0.2


def change_colours(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return images [B, 3, H, W] in [0, 1] with colour jitter ("color"), solarisation ("solarize") or "both".

    Args:
        images: floating point.
        kind: "flip" leaves them as they are.
        generator: on the CPU; of which pictures are changed and how.
    """
    from torchvision.transforms import functional

    if kind == "flip":
        return images
    changed = []
    for image in images:
        chances = torch.rand(2, generator=generator).tolist()
        amounts = (2 * torch.rand(4, generator=generator) - 1).tolist()
        if kind in ("color", "both") and chances[0] < _JITTER_CHANCE:
            brightness, contrast, saturation, hue = (a * s for a, s in zip(amounts, _JITTER, strict=True))
            image = functional.adjust_brightness(image, 1 + brightness)
            image = functional.adjust_contrast(image, 1 + contrast)
            image = functional.adjust_saturation(image, 1 + saturation)
            image = functional.adjust_hue(image, hue)
        if kind in ("solarize", "both") and chances[1] < _SOLARIZE_CHANCE:
            image = functional.solarize(image, _SOLARIZE_FROM)
        changed.append(image)
    return torch.stack(changed)
