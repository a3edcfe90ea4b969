"""Style extractors: frozen networks from images to the L2-normalised vector z that the hypernetworks read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.data.images import Normalise
from hystar_fast.models.backbones.base import Backbone
from hystar_fast.models.config import HystarConfig, resolve_blocks
from hystar_fast.models.dino import load_dino
from hystar_fast.models.random_weights import repeatable_weights
from hystar_fast.models.vgg import WIDTHS, gram, vgg_features

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_MIXED_CHANNELS = 16
_INPUT_SIZE = 224  # pixels; DINOv2 and VGG are evaluated at it. DINOv2's configuration says 518, for its positions


class StyleExtractor(nn.Module, ABC):
    """Frozen network from preprocessed images [B, 3, H, W] to z [B, dim], rows of unit length.

    It is always in evaluation mode, also inside a model in training mode, and records no gradient.
    """

    dim: int

    @abstractmethod
    def features(self, inputs: Tensor) -> Tensor:
        """Compute [B, dim], not normalised, from images [B, 3, H, W] or from the inputs that the subclass names."""

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.shape[0] == 0:
            return torch.zeros(0, self.dim, device=inputs.device)
        with torch.no_grad():
            return F.normalize(self.features(inputs).float(), dim=-1)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class BackboneStyle(StyleExtractor):
    """Image embedding of the backbone without any offsets."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.encoder = backbone.frozen_image_encoder()
        self.dim = backbone.embed_dim

    def features(self, inputs: Tensor) -> Tensor:
        return self.encoder(inputs)


class PrefixStyle(StyleExtractor):
    """Statistics of the tokens that enter the first modulated block, which the encoder computes anyway.

    z consists of the class token, where there is one, and of the mean and the standard deviation of every channel over
    the patches (the diagonal of the centred Gram matrix); each part is normalised by itself, and registers are left
    out. The averages over the patches hold no positions, and so little of the objects shown, but they do hold line,
    colour and sharpness. Hystar gives the blocks before the first modulated one no static offsets, so z does not change
    with training.

    Its inputs are the tokens [B, T, width] of :meth:`Backbone.prefix`, not images.

    Args:
        backbone: the source of the tokens.
        blocks: number of blocks before the first modulated one.
    """

    def __init__(self, backbone: Backbone, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.has_class_token, self.leading = backbone.leading_tokens
        self.dim = (3 if self.has_class_token else 2) * backbone.width

    def features(self, inputs: Tensor) -> Tensor:
        tokens = inputs.float()
        patches = tokens[:, self.leading :]
        parts = [tokens[:, 0]] if self.has_class_token else []
        parts += [patches.mean(dim=1), patches.std(dim=1, correction=0)]
        return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in parts], dim=-1)


class NetworkStyle(StyleExtractor):
    """Separate vision network, on images of its own size and, as an option, with its own statistics."""

    renormalise: Tensor | None

    def __init__(self, network: nn.Module, dim: int, size: int, renormalise: Tensor | None) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.dim = dim
        self.size = size
        self.register_buffer("renormalise", renormalise, persistent=False)

    def features(self, inputs: Tensor) -> Tensor:
        images = inputs.float()
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        if self.renormalise is not None:
            images = images * self.renormalise[0] + self.renormalise[1]
        return self.summarise(images.to(next(self.network.parameters()).dtype))

    @abstractmethod
    def summarise(self, images: Tensor) -> Tensor:
        """Compute [B, dim] from images of the network's size."""


class DinoStyle(NetworkStyle):
    """Class token of DINOv2, with or without registers, after its last layer norm."""

    def summarise(self, images: Tensor) -> Tensor:
        return self.network(pixel_values=images).last_hidden_state[:, 0]


class VggStyle(NetworkStyle):
    """Gram matrices of VGG-16 after the first ReLU of each of its five stages.

    A Gram matrix of 512 channels has 131,328 different entries. So the channels of each stage are first mixed into 16
    with fixed random signs P, which gives P G Pᵀ for a Gram matrix G. The upper triangle of each is normalised.
    """

    def __init__(self, network: nn.Sequential, size: int, renormalise: Tensor | None) -> None:
        super().__init__(network, len(WIDTHS) * _MIXED_CHANNELS * (_MIXED_CHANNELS + 1) // 2, size, renormalise)
        generator = torch.Generator().manual_seed(0)
        for place, width in WIDTHS.items():
            signs = torch.randint(2, (_MIXED_CHANNELS, width), generator=generator, device="cpu").float() * 2 - 1
            self.register_buffer(f"mix{place}", (signs / width**0.5).to(torch.get_default_device()))

    def summarise(self, images: Tensor) -> Tensor:
        parts, x = [], images
        rows, columns = torch.triu_indices(_MIXED_CHANNELS, _MIXED_CHANNELS, device=images.device)
        for place, layer in enumerate(self.network.children()):
            x = layer(x)
            if place in WIDTHS:
                mix: Tensor = getattr(self, f"mix{place}").to(x.dtype)
                mixed = torch.einsum("mc,bchw->bmhw", mix, x).float()
                part = gram(mixed)[:, rows, columns]
                parts.append(F.layer_norm(part, part.shape[-1:]))
            if place == max(WIDTHS):
                break
        return torch.cat(parts, dim=-1)


def create_style(config: HystarConfig, backbone: Backbone) -> StyleExtractor:
    """Create the style extractor of `config`, before anything is injected into `backbone`.

    On the meta device a DINOv2 needs no weights, see :func:`hystar_fast.models.dino.load_dino`.

    Raises:
        ValueError: the weights cannot be loaded; the message names ``style_pretrained``.
    """
    if config.style == "clip":
        return BackboneStyle(backbone)
    if config.style == "prefix":
        return PrefixStyle(backbone, min(resolve_blocks(config.blocks, backbone.depth, config.backbone)) - 1)
    if config.lacks_style_weights:
        raise ValueError(
            "style_pretrained must be the name of torchvision weights, a file, or None for random weights with "
            f'style="vgg", got the default {config.style_pretrained!r}, which is a DINOv2'
        )
    renormalise = _to_imagenet(backbone) if config.style_normalization == "own" else None
    try:
        with repeatable_weights():
            create = _create_dino if config.style == "dinov2" else _create_vgg
            return create(config.style_pretrained, renormalise)
    except Exception as error:  # damaged or missing weights can raise anything
        raise ValueError(
            f"style_pretrained={config.style_pretrained!r} could not be loaded for style={config.style!r}: {error}"
        ) from error


def _create_dino(pretrained: str | None, renormalise: Tensor | None) -> DinoStyle:
    network = load_dino(pretrained)
    settings = network.config
    size = min(_INPUT_SIZE, int(settings.image_size))
    return DinoStyle(network, int(settings.hidden_size), size - size % int(settings.patch_size), renormalise)


def _create_vgg(pretrained: str | None, renormalise: Tensor | None) -> VggStyle:
    return VggStyle(vgg_features(pretrained), _INPUT_SIZE, renormalise)


def _to_imagenet(backbone: Backbone) -> Tensor:
    """[2, 3, 1, 1]: factor and shift from the backbone's normalisation to ImageNet's."""
    if not isinstance(backbone.normalise, Normalise):
        raise ValueError(
            'style_normalization must be "backbone" for a backbone without an image processor, got "own", '
            "for which the mean and deviation of its preprocessing must be known"
        )
    mean, std = torch.tensor(backbone.normalise.mean), torch.tensor(backbone.normalise.std)
    own_mean, own_std = torch.tensor(_IMAGENET_MEAN), torch.tensor(_IMAGENET_STD)
    return torch.stack([std / own_std, (mean - own_mean) / own_std])[:, :, None, None]
