"""The discriminator of ACNet: is each patch of a picture from a photo?"""

from __future__ import annotations

from torch import Tensor, nn


class Discriminator(nn.Module):
    """PatchGAN: images [B, 3, H, W] -> logits [B, 1, h, w], 26 x 26 at 224 pixels and 6 x 6 at 64.

    Args:
        channels: of the first layer; 8 are 44,537 parameters.

    Source: ACNet, Table III.
    """

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        c = channels
        self.layers = nn.Sequential(
            nn.Conv2d(3, c, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(c, 2 * c, 4, stride=2, padding=1),
            nn.InstanceNorm2d(2 * c),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * c, 4 * c, 4, stride=2, padding=1),
            nn.InstanceNorm2d(4 * c),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * c, 8 * c, 4, padding=1),
            nn.InstanceNorm2d(8 * c),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8 * c, 1, 4, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def draw_normal_weights(module: nn.Module) -> None:
    """Draw the weights of every convolution from N(0, 0.02) and set its bias to 0, as CycleGAN does."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, 0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
