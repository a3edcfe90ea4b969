"""The retrieval network of ACNet: images in [-1, 1] -> embeddings, by a CNN of timm or a backbone's image tower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from torch import Tensor, nn

from hystar_fast.data.images import Normalise
from hystar_fast.data.nearest_name import with_nearest
from hystar_fast.methods.acnet.acnet_config import ACNetConfig
from hystar_fast.models.backbone_identity import backbone_fingerprints
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.torch_files import read_torch

HALF = Normalise((0.5,) * 3, (0.5,) * 3)
_IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Extractor(nn.Module, ABC):
    """Embeddings [B, d], not normalised, of images [B, 3, H, W] in [-1, 1].

    Attributes:
        own_pixels: the statistics that the weights were trained with.
        fingerprints: what must be the same when an adapter is loaded, which holds all weights.
    """

    own_pixels: Normalise
    fingerprints: Mapping[str, str | None] = MappingProxyType({})

    def __init__(self, pixels: str) -> None:
        super().__init__()
        self.pixels = pixels

    @property
    @abstractmethod
    def last_layer(self) -> nn.Module:
        """The last linear layer, or an identity; the only part that trains in the warm-up."""

    def set_training(self, *, last_layer_only: bool) -> None:
        """Let everything train, or the last layer alone."""
        self.requires_grad_(not last_layer_only)
        self.last_layer.requires_grad_(True)

    def _to_own(self, images: Tensor) -> Tensor:
        """Return images in [-1, 1] with the pixel statistics of the settings."""
        if self.pixels == "half":
            return images
        return (_IMAGENET if self.pixels == "imagenet" else self.own_pixels)((images + 1) / 2)


class TimmExtractor(Extractor):
    """A CNN of timm with global max pooling and one linear layer.

    Args:
        settings: for the name, the weights and the width.
        starts_trained: build it without weights, since an adapter holds all of them.

    Raises:
        ValueError: timm has no such model, or the weights do not fit or cannot be had.
    """

    net: Any

    def __init__(self, settings: ACNetConfig, *, starts_trained: bool = False) -> None:
        import timm

        super().__init__(settings.pixels)
        name, weights = str(settings.timm_name), "random" if starts_trained else settings.weights
        if not timm.is_model(name):
            shown = with_nearest(name, timm.list_models(), prefix="timm:")
            raise ValueError(f"acnet.extractor must be a model of timm, got {shown}")
        tags = [] if weights == "random" or Path(weights).is_file() else timm.list_pretrained(f"{name}.*")
        if weights != "random" and not Path(weights).is_file() and weights not in tags:
            raise ValueError(
                f'acnet.weights must be "random", a file or one of timm\'s {", ".join(tags) or "(none)"}, got '
                f"{weights!r}"
            )
        try:
            net: Any = timm.create_model(
                weights if weights in tags else name,
                pretrained=weights in tags,
                num_classes=settings.embedding,
                global_pool="max",
            )
        except Exception as error:  # the hub and the models of timm raise anything
            raise ValueError(
                f"acnet.weights {weights!r} of acnet.extractor {name!r} could not be loaded: {error}. Give a local "
                'file, or "random"'
            ) from error
        self.net = net
        if not isinstance(self.last_layer, nn.Linear):
            ends = type(self.last_layer).__name__
            raise ValueError(f"acnet.extractor must end in one linear layer, got {ends} in {name}")
        if weights != "random" and weights not in tags:
            _load_file(net, weights)
        self.own_pixels = Normalise(net.pretrained_cfg["mean"], net.pretrained_cfg["std"])

    @property
    def last_layer(self) -> nn.Module:
        return self.net.get_classifier()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self._to_own(images))


class TowerExtractor(Extractor):
    """The image tower of a backbone, and a linear layer unless its embeddings have the width already.

    Raises:
        ValueError: the backbone has another image size than the settings, or cannot be loaded.
    """

    def __init__(self, settings: ACNetConfig, config: HystarConfig) -> None:
        super().__init__(settings.pixels)
        backbone = create_backbone(config)
        if tuple(backbone.image_size) != (settings.image_size,) * 2:
            raise ValueError(
                f"acnet.image_size must be that of backbone {config.backbone!r}, {backbone.image_size[0]}, got "
                f"{settings.image_size}"
            )
        identity = backbone_fingerprints(backbone)
        self.fingerprints = {"activation": identity["activation"]}
        if settings.pixels == "own":
            self.fingerprints["preprocessing"] = identity["preprocessing"]
        self.tower = backbone.frozen_image_encoder().requires_grad_(True)
        is_same = backbone.embed_dim == settings.embedding
        self.linear = nn.Identity() if is_same else nn.Linear(backbone.embed_dim, settings.embedding)
        own = backbone.normalise
        self.own_pixels = Normalise(own.mean, own.std) if isinstance(own, Normalise) else HALF
        if settings.pixels == "own" and not isinstance(own, Normalise):
            raise ValueError(f"acnet.pixels must be half or imagenet for backbone {config.backbone!r}, got 'own'")

    @property
    def last_layer(self) -> nn.Module:
        return self.linear

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, as in training mode the libraries drop patches and activations."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.tower(self._to_own(images)))


def create_extractor(settings: ACNetConfig, config: HystarConfig, *, starts_trained: bool = False) -> Extractor:
    """Build the extractor of the settings; `config` names the backbone of ``"backbone"``."""
    if settings.timm_name is None:
        return TowerExtractor(settings, config)
    return TimmExtractor(settings, starts_trained=starts_trained)


def _load_file(net: Any, path: str) -> None:
    """Load weights from a file into all of a model of timm but its last linear layer."""
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = read_torch(path)
        last = net.pretrained_cfg["classifier"]
        kept = {name: value for name, value in weights.items() if name.rpartition(".")[0] != last}
        missing, unexpected = net.load_state_dict(kept, strict=False)
        missing = [name for name in missing if name.rpartition(".")[0] != last]
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"acnet.weights must be a file of the extractor's weights, got {path}: {error}") from error
    if missing or unexpected:
        raise ValueError(
            f"acnet.weights must be a file of the extractor's weights, got {path}: "
            f"{', '.join([*missing, *unexpected][:3])} missing or not of it"
        )
