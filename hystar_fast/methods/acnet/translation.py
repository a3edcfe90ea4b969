"""The first of two stages (Table II): a CycleGAN that translates sketches to photos and back, without categories."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hystar_fast.methods.acnet.acnet_losses import adversarial_loss, whole
from hystar_fast.methods.acnet.discriminator import Discriminator
from hystar_fast.methods.acnet.generator import Generator

_CYCLE, _IDENTITY = 10.0, 5.0


class Translation(nn.Module):
    """The parts of a CycleGAN beside ACNet's generator and discriminator: the way back, and who judges sketches.

    Args:
        channels, blocks: of both generators; the channels of both discriminators, too.

    Source: Zhu et al., Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks (ICCV 2017),
    without its pool of earlier pictures and its decay of the rate.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.to_sketch = Generator(channels, blocks)
        self.sketch_discriminator = Discriminator(channels)

    def losses(
        self, generator: nn.Module, discriminator: nn.Module, sketches: Tensor, photos: Tensor, gan: str
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return the losses of both generators by name, and their pictures: made photos and made sketches.

        "loss" is adversarial + 10 cycle + 5 identity, each the sum of the two directions. The discriminators get no
        gradient.

        Args:
            generator: sketch -> photo.
            discriminator: of photos.
            sketches, photos: [b, 3, H, W] in [-1, 1], in any order: nothing pairs them.
            gan: "lsgan" or "vanilla".
        """
        size = len(sketches)
        made_photos, same_photos = generator(torch.cat([sketches, photos])).split(size)
        made_sketches, same_sketches = self.to_sketch(torch.cat([photos, sketches])).split(size)
        back = self.to_sketch(made_photos), generator(made_sketches)
        adversarial = sketches.new_zeros(())
        for judge, made in ((discriminator, made_photos), (self.sketch_discriminator, made_sketches)):
            judge.requires_grad_(False)
            adversarial = adversarial + adversarial_loss(whole(judge(made)), is_real=True, gan=gan)
            judge.requires_grad_(True)
        cycle = _distance(back[0], sketches) + _distance(back[1], photos)
        identity = _distance(same_photos, photos) + _distance(same_sketches, sketches)
        total = adversarial + _CYCLE * cycle + _IDENTITY * identity
        found = {"loss": total, "adversarial": adversarial, "cycle": cycle, "identity": identity}
        return found, (made_photos, made_sketches)

    def discriminator_loss(
        self, discriminator: nn.Module, sketches: Tensor, photos: Tensor, made: tuple[Tensor, ...], gan: str
    ) -> Tensor:
        """Return the sum of both discriminators' losses, each the mean of its two kinds of pictures, as LSGAN has it.

        Args:
            discriminator: of photos.
            sketches, photos: [b, 3, H, W].
            made: photos and sketches of `losses`; their graph is cut.
            gan: "lsgan" or "vanilla".
        """
        total = sketches.new_zeros(())
        for judge, real, fake in zip((discriminator, self.sketch_discriminator), (photos, sketches), made, strict=True):
            right = adversarial_loss(whole(judge(real)), is_real=True, gan=gan)
            total = total + (right + adversarial_loss(whole(judge(fake.detach())), is_real=False, gan=gan)) / 2
        return total


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (whole(a) - whole(b)).abs().mean()
