"""VGG-16's convolutions, and the Gram matrices of their maps that say how a picture is drawn."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

WIDTHS = {1: 64, 6: 128, 11: 256, 18: 512, 25: 512}  # the first rectified convolution of each stage, and its channels


def vgg_features(pretrained: str | None) -> nn.Sequential:
    """The convolutional part of VGG-16, frozen.

    Args:
        pretrained: the name of torchvision weights, a local state dict, or None for random weights.

    Raises:
        KeyError, OSError, RuntimeError, ValueError: weights that cannot be had or do not fit.
    """
    from torchvision.models.vgg import VGG16_Weights, cfgs, make_layers

    features = make_layers(cfgs["D"])
    if pretrained is None:  # the default initialisation halves the signal at every layer and leaves little of the image
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    else:
        if Path(pretrained).is_file():
            stored = torch.load(pretrained, map_location="cpu", weights_only=True)
        else:
            options = {"map_location": "cpu", "weights_only": True}  # without it torchvision reads any pickle
            stored = VGG16_Weights.verify(pretrained).get_state_dict(progress=True, check_hash=True, **options)
        held = {name: value for name, value in stored.items() if name.startswith("features.")}
        features.load_state_dict({name.removeprefix("features."): value for name, value in held.items()})
    return features.requires_grad_(False).eval()


def gram(maps: Tensor) -> Tensor:
    """G = F Fᵀ / (H W) of maps [B, C, H, W] -> [B, C, C]: which channels answer together, wherever they do.

    Source: Gatys et al., Image Style Transfer Using Convolutional Neural Networks (CVPR 2016), Eq. 3, there without
    the division.

    >>> gram(torch.ones(1, 2, 3, 3)).tolist()
    [[[1.0, 1.0], [1.0, 1.0]]]
    """
    flat = maps.flatten(2)
    return flat @ flat.mT / flat.shape[-1]
