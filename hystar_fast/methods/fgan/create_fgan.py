"""Build FGAN with the encoders that its settings name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hystar_fast.data.word_vectors import load_word_vectors
from hystar_fast.methods.fgan.encoders import (
    TextEncoder,
    TextTowerEncoder,
    WordEncoder,
    create_image_encoder,
    load_language_model,
)
from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.fgan_method import FGAN
from hystar_fast.models.adapter_format import fingerprint
from hystar_fast.models.backbone_identity import backbone_fingerprints
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.config import HystarConfig


def create_fgan(config: HystarConfig, settings: Mapping[str, Any]) -> FGAN:
    """Build FGAN from settings, or from those of a saved one.

    Args:
        config: names the backbone, of ``image_encoder`` or ``text_encoder`` "backbone".
        settings: of `FGANConfig`; of a saved one also "classes".

    Raises:
        ValueError: a setting is wrong, or weights or vectors cannot be read.
    """
    values = dict(settings)
    classes = values.pop("classes", 0)
    own = FGANConfig.from_dict(values)
    backbone = create_backbone(config) if "backbone" in (own.image_encoder, own.text_encoder) else None
    on_meta = torch.get_default_device().type == "meta"  # then sizes are wanted, and no weights
    weights = None if on_meta else own.image_weights
    images = create_image_encoder(own.image_encoder, weights, regions=own.image_regions, backbone=backbone)
    texts, prints = _texts(own, backbone)
    made = FGAN(own, images, texts, backbone=backbone, classes=classes or None)
    identity: dict[str, str | None] = {} if backbone is None else backbone_fingerprints(backbone)
    if own.image_encoder != "backbone":
        identity["image encoder"] = fingerprint(images.state_dict().items())
    made.config, made.fingerprints = config, identity | prints
    return made


def _texts(own: FGANConfig, backbone: TowerBackbone | None) -> tuple[TextEncoder | None, dict[str, str | None]]:
    """Return the encoder of texts and the identity of its weights, where they are not the backbone's."""
    if own.text_encoder == "pictures":
        return None, {}
    if own.text_encoder == "backbone":
        if backbone is None:
            raise ValueError("fgan.text_encoder must be another than 'backbone' without one")
        return TextTowerEncoder(backbone), {}
    if own.text_encoder == "words":
        if not own.text_vectors:
            raise ValueError("fgan.text_vectors must be a file of word vectors for fgan.text_encoder = 'words', got ''")
        try:
            vectors = load_word_vectors(own.text_vectors)
        except OSError as error:
            raise ValueError(f"fgan.text_vectors must be a file of word vectors: {error}") from error
        return WordEncoder(vectors), {"word vectors": vectors.fingerprint}
    encoder = load_language_model(own.text_encoder.partition(":")[2])
    return encoder, {"text encoder": fingerprint(encoder.state_dict().items())}
