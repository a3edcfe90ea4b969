"""The generator of ACNet: sketch -> photo-like picture of the same size."""

from __future__ import annotations

from torch import Tensor, nn

from hystar_fast.methods.acnet.acnet_config import SMALLEST, STRIDE


class ResidualBlock(nn.Module):
    """x + IN(conv(ReLU(IN(conv(x))))), both convolutions 3 x 3 with reflected borders."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Generator(nn.Module):
    """CycleGAN's generator of residual blocks, made thin: images [B, 3, H, W] -> [B, 3, H, W] in (-1, 1).

    A convolution 7 x 7, two that halve the side, residual blocks at a quarter of it, two transposed convolutions, and a
    convolution 7 x 7 with tanh. InstanceNorm has neither parameters nor running statistics, so that a picture's result
    does not depend on its batch.

    Args:
        channels: of the first layer; 8 in the paper, 64 in CycleGAN.
        blocks: residual blocks; 8 with 8 channels are 161,923 parameters.

    Source: ACNet, Table I. Its last row prints InstanceNorm and ReLU before tanh, which could give no dark pixel; the
    public code has none.
    """

    def __init__(self, channels: int = 8, blocks: int = 8) -> None:
        super().__init__()
        c = channels
        self.layers = nn.Sequential(
            nn.Conv2d(3, c, 7, padding=3, padding_mode="reflect"),
            nn.InstanceNorm2d(c),
            nn.ReLU(),
            nn.Conv2d(c, 2 * c, 3, stride=2, padding=1),
            nn.InstanceNorm2d(2 * c),
            nn.ReLU(),
            nn.Conv2d(2 * c, 4 * c, 3, stride=2, padding=1),
            nn.InstanceNorm2d(4 * c),
            nn.ReLU(),
            *(ResidualBlock(4 * c) for _ in range(blocks)),
            nn.ConvTranspose2d(4 * c, 2 * c, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(2 * c),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * c, c, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(c),
            nn.ReLU(),
            nn.Conv2d(c, 3, 7, padding=3, padding_mode="reflect"),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % STRIDE or width % STRIDE or min(height, width) < SMALLEST:
            raise ValueError(
                f"images must have sides that are multiples of {STRIDE} and at least {SMALLEST}, got {height} x {width}"
            )
        return self.layers(images)
