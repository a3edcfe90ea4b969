"""Files of a CLIP small enough to factor in milliseconds, with random values for every weight and bias."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.config import HystarConfig

IMAGE_SIZE = 32


def write_small_clip(
    directory: Path, *, weights: bool = True, seed: int = 0, embed_dim: int = 24, **vision: Any
) -> str:
    """Write an open_clip folder (a ViT of width 32 and 4 blocks, changed by `vision`); return the backbone's name."""
    directory.mkdir(parents=True, exist_ok=True)
    vision_cfg = {"image_size": IMAGE_SIZE, "layers": 4, "width": 32, "head_width": 8, "patch_size": 8, **vision}
    text_cfg = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model_cfg = {"embed_dim": embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    if weights:
        torch.manual_seed(seed)
        clip = open_clip.create_model(f"local-dir:{directory}", load_weights=False)
        with torch.no_grad():
            for parameter in clip.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        save_file(clip.state_dict(), directory / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{directory}"


def small_config(directory: Path, **fields: Any) -> HystarConfig:
    """Return a configuration of a small CLIP in `directory`; its style is the backbone's own unless `fields` set it."""
    backbone = write_small_clip(directory / "clip")
    return HystarConfig(**{"backbone": backbone, "pretrained": "folder", "style": "clip", "blocks": (2, 3), **fields})


def spy_on_blocks(backbone: TowerBackbone, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """Return two lists that collect the input and the output of every visual block until `monkeypatch` is undone."""
    run_block, seen, made = backbone.tower.run_block, [], []

    def spy(block: Any, x: Tensor, *offsets: Tensor | None) -> Tensor:
        seen.append(x)
        made.append(run_block(block, x, *offsets))
        return made[-1]

    monkeypatch.setattr(backbone.tower, "run_block", spy)
    return seen, made
