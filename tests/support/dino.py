"""A small random DINOv2, saved in the format of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 42,
    "patch_size": 14,
}


def write_dino(folder: Path, registers: int = 0) -> Any:
    """Save a random DINOv2, with register tokens on request, and return it."""
    torch.manual_seed(2)
    network: Any
    if registers:
        network = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=registers))
    else:
        network = Dinov2Model(Dinov2Config(**SIZES))
    network.eval().save_pretrained(folder)
    return network
