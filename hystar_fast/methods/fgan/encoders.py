"""Frozen encoders of FGAN: images and texts to tokens. They stay in evaluation mode and record no gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hystar_fast.data.images import Normalise, Resize, ResizeTo
from hystar_fast.data.word_vectors import WordVectors
from hystar_fast.methods.fgan.teachers import load_into
from hystar_fast.models.backbones.open_clip import OpenClipBackbone
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.random_weights import repeatable_weights

IMAGENET = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_IMAGENET_SIZE = 224
_RANDOM_SIZE, _RANDOM_WIDTH = 64, 512


class Tokens(NamedTuple):
    """Output of an encoder.

    Attributes:
        values: [B, T, width].
        padding: [B, T], True behind the end of an item; None where all items have one length.
        leading: how many tokens at the front are no region, such as a class token. They count in the mean of an item.
    """

    values: Tensor
    padding: Tensor | None = None
    leading: int = 0


class Encoder(nn.Module, ABC):
    """Frozen encoder with tokens of `width`."""

    width: int

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: a picture's tokens must not depend on its batch, and no statistics may move."""
        return super().train(False)


class ImageEncoder(Encoder):
    """Frozen encoder of images [B, 3, *resize.size], uint8 or floating point in [0, 1]."""

    resize: Resize
    normalise: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tokens:
        return self.tokens(self.normalise(images))

    @abstractmethod
    def tokens(self, images: Tensor) -> Tokens:
        """Compute the tokens of normalised images."""


class TextEncoder(Encoder):
    """Frozen encoder of texts."""

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tokens:
        return self.tokens(list(texts))

    @abstractmethod
    def tokens(self, texts: list[str]) -> Tokens:
        """Compute the tokens of texts."""


class MapEncoder(ImageEncoder):
    """Tokens of a network's last map [B, width, h, w], row by row (Eq. 1)."""

    def __init__(self, network: nn.Module, width: int, resize: Resize, normalise: Normalise = IMAGENET) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.width, self.resize, self.normalise = width, resize, normalise

    def tokens(self, images: Tensor) -> Tokens:
        return Tokens(self.network(images).flatten(2).mT.contiguous())


class TowerEncoder(ImageEncoder):
    """Tokens of the image tower of a backbone of any library: the patches after the last block, normalised.

    The tower's own last norm scales and shifts what the norm here gives; the linear layer that follows can do so too.
    A class token is one of the tokens, but no region. Registers are left out.
    """

    def __init__(self, backbone: TowerBackbone) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.width, self.resize, self.normalise = backbone.width, backbone.resize, backbone.normalise

    def tokens(self, images: Tensor) -> Tokens:
        found = self.backbone.prefix(images, self.backbone.depth).float()
        has_class_token, leading = self.backbone.leading_tokens
        patches = found[:, leading:]
        kept = torch.cat([found[:, :1], patches], dim=1) if has_class_token else patches
        return Tokens(F.layer_norm(kept, kept.shape[-1:]), leading=int(has_class_token))


class WordEncoder(TextEncoder):
    """Tokens of the vectors of a text's words, behind that of the whole text (Eq. 2).

    Args:
        vectors: of the words.
        device: of the tokens.

    Attributes:
        unknown_words, unknown_texts: words that were left out, and texts of no known word, counted over all calls.
    """

    def __init__(self, vectors: WordVectors, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.vectors, self.width, self.device = vectors, vectors.width, device
        self.unknown_words = self.unknown_texts = 0

    def tokens(self, texts: list[str]) -> Tokens:
        found = [self.vectors.of(text) for text in texts]
        self.unknown_words += sum(item.unknown_words for item in found)
        self.unknown_texts += sum(item.known_words == 0 for item in found)
        lengths = [len(item.rows) for item in found]
        values = torch.zeros(len(texts), max(lengths, default=1), self.width)
        padding = torch.ones(values.shape[:2], dtype=torch.bool)
        for row, (item, length) in enumerate(zip(found, lengths, strict=True)):
            values[row, :length] = torch.from_numpy(item.rows)
            padding[row, :length] = False
        return Tokens(values.to(self.device), padding.to(self.device))


class TextTowerEncoder(TextEncoder):
    """Tokens of the text tower of open_clip's CLIP, the packaged tiny one included, after its last norm.

    The token that begins every text is no region; the one that ends it is.

    Raises:
        ValueError: the backbone is of another library, or its text tower does not end its texts with the largest id.
    """

    def __init__(self, backbone: TowerBackbone) -> None:
        super().__init__()
        clip: Any = getattr(backbone, "clip", None)
        text = getattr(clip, "text", clip)
        kind = getattr(text, "pool_type", getattr(clip, "text_pool_type", None))
        if not isinstance(backbone, OpenClipBackbone) or kind != "argmax":
            raise ValueError(
                "text tokens need a CLIP of open_clip whose texts end with the largest id, got "
                f"{type(backbone).__name__} with text pooling {kind!r}"
            )
        self.clip = clip.requires_grad_(False).eval()
        self.tokenizer, self.width = backbone.tokenizer, int(text.ln_final.weight.shape[0])

    def tokens(self, texts: list[str]) -> Tokens:
        ids = self.tokenizer(texts).to(next(self.clip.parameters()).device)
        found = self.clip.forward_intermediates(
            text=ids, text_indices=1, normalize_intermediates=True, intermediates_only=True, text_output_fmt="NLC"
        )
        places = torch.arange(ids.shape[1], device=ids.device)
        padding = places > ids.argmax(1, keepdim=True)
        return Tokens(found["text_intermediates"][-1].float(), padding, leading=1)


class LanguageModelEncoder(TextEncoder):
    """Tokens of a text model of transformers such as BERT; its first token is no region.

    Args:
        model: returns ``last_hidden_state`` [B, T, width].
        tokenizer: of transformers, which pads and truncates.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer
        settings: Any = model.config
        self.width, self.longest = int(settings.hidden_size), int(settings.max_position_embeddings)

    def tokens(self, texts: list[str]) -> Tokens:
        device = next(self.model.parameters()).device
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt").to(
            device
        )
        found = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return Tokens(found.last_hidden_state.float(), inputs["attention_mask"] == 0, leading=1)


def load_language_model(source: str) -> LanguageModelEncoder:
    """Load a text model of transformers, with its tokenizer, from an id or a folder.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
        return LanguageModelEncoder(model, AutoTokenizer.from_pretrained(source))
    except Exception as error:  # damaged or missing files can raise anything
        raise ValueError(f"text_encoder 'transformers:{source}' could not be loaded: {error}") from error


def create_image_encoder(
    name: str, weights: str | None, *, regions: int = 49, backbone: TowerBackbone | None = None
) -> ImageEncoder:
    """Create the frozen image encoder.

    Args:
        name, weights, regions: ``image_encoder``, ``image_weights`` and ``image_regions`` of `FGANConfig`.
        backbone: of the run, for "backbone".

    Raises:
        ValueError: an unknown name, or weights that cannot be loaded; the message names the field.
    """
    if name == "backbone":
        if backbone is None:
            raise ValueError('image_encoder must be another than "backbone" without one, got "backbone"')
        return TowerEncoder(backbone)
    kind, _, model = name.partition(":")
    with repeatable_weights():
        if name == "random":
            return MapEncoder(_small_network(), _RANDOM_WIDTH, _resize(_RANDOM_SIZE))
        if name == "torchvision:vgg19_bn":
            return MapEncoder(_vgg19(weights, regions), 512, _resize(_IMAGENET_SIZE))
        if kind == "timm":
            return _timm(model, weights)
    raise ValueError(f"image_encoder must be torchvision:vgg19_bn, timm:<name>, random or backbone, got {name!r}")


def _vgg19(weights: str | None, regions: int) -> nn.Module:
    from torchvision.models import VGG19_BN_Weights
    from torchvision.models.vgg import cfgs, make_layers

    features = make_layers(cfgs["E"], batch_norm=True)
    if weights is not None:
        load_into(features, weights, VGG19_BN_Weights, "features.")
    return features[:-1] if regions == 196 else features


def _timm(name: str, weights: str | None) -> ImageEncoder:
    import timm

    options: dict[str, Any] = {"pretrained": weights is not None}
    if weights is not None and Path(weights).is_file():
        options["pretrained_cfg_overlay"] = {"file": weights}
    try:
        model: Any = timm.create_model(name, num_classes=0, **options)
    except Exception as error:  # an unknown name, or weights that cannot be loaded, can raise anything
        raise ValueError(
            f"image_encoder 'timm:{name}' with image_weights={weights!r} could not be loaded: {error}"
        ) from error
    settings = model.pretrained_cfg
    normalise = Normalise(tuple(settings["mean"]), tuple(settings["std"]))
    resize = _resize(int(settings["input_size"][-1]), settings["interpolation"])
    if hasattr(model, "num_prefix_tokens"):
        return _TimmTransformer(model, resize, normalise)
    return MapEncoder(_Features(model), int(model.num_features), resize, normalise)


def _resize(size: int, interpolation: str = "bilinear") -> ResizeTo:
    return ResizeTo((size, size), "crop", interpolation)


class _Features(nn.Module):
    """The last map of a convolutional network of timm."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_features(images)


class _TimmTransformer(ImageEncoder):
    """Tokens of a vision transformer of timm after its last norm, without registers."""

    def __init__(self, model: Any, resize: Resize, normalise: Normalise) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.width, self.resize, self.normalise = int(model.num_features), resize, normalise

    def tokens(self, images: Tensor) -> Tokens:
        found = self.model.forward_features(images)
        patches = found[:, self.model.num_prefix_tokens :]
        if not self.model.has_class_token:
            return Tokens(patches)
        return Tokens(torch.cat([found[:, :1], patches], dim=1), leading=1)


def _small_network() -> nn.Module:
    """Return a convolution of 8 x 8 patches and one of their neighbours, with random weights."""
    patches, neighbours = nn.Conv2d(3, 64, 8, stride=8), nn.Conv2d(64, _RANDOM_WIDTH, 3, padding=1)
    for layer in (patches, neighbours):  # torch's default initialisation halves the activations at every layer
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(patches, nn.ReLU(), neighbours, nn.ReLU())
