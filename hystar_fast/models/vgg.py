"""Convolutions of VGG-16, and the Gram matrices of their maps, which describe the style of a picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hystar_fast.models.adapter_format import not_finite
from hystar_fast.models.torch_files import read_torchvision

WIDTHS = {1: 64, 6: 128, 11: 256, 18: 512, 25: 512}  # layer of the first ReLU of each stage: its channels


def vgg_features(pretrained: str | None) -> nn.Sequential:
    """Load the convolutional part of VGG-16, frozen.

    Args:
        pretrained: the name of torchvision weights, a local state dict, or None for random weights.

    Raises:
        KeyError, OSError, RuntimeError, ValueError: the weights are missing or do not fit.
    """
    from torchvision.models.vgg import VGG16_Weights, cfgs, make_layers

    features = make_layers(cfgs["D"])
    if pretrained is None:  # torch's default initialisation halves the activations at every layer
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    else:
        stored = read_torchvision(pretrained, VGG16_Weights)
        held = {name: value for name, value in stored.items() if name.startswith("features.")}
        features.load_state_dict({name.removeprefix("features."): value for name, value in held.items()})
        broken = not_finite(features.named_parameters())
        if broken:
            raise ValueError(f"its weights must be finite, got NaN or inf in {broken}")
    return features.requires_grad_(False).eval()


def gram(maps: Tensor) -> Tensor:
    """Compute the Gram matrices G = F Fᵀ / (H W) of maps [B, C, H, W] -> [B, C, C], which hold no positions.

    Source: Gatys et al., Image Style Transfer Using Convolutional Neural Networks (CVPR 2016), Eq. 3, which does not
    divide.

    >>> gram(torch.ones(1, 2, 3, 3)).tolist()
    [[[1.0, 1.0], [1.0, 1.0]]]
    """
    flat = maps.flatten(2).to(torch.promote_types(maps.dtype, torch.float32))  # sums of squares overflow float16
    with torch.autocast(maps.device.type, enabled=False):
        found = flat @ flat.mT / flat.shape[-1]
    return found if maps.dtype == torch.float16 else found.to(maps.dtype)
