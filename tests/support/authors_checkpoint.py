"""Checkpoint in the layout of the published code, for a small backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.small_backbones import write_open_clip

BLOCKS = "clip.visual.transformer.resblocks"
STYLE = 24  # width of the style vector


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U and V of an SVD in single precision with random signs."""
    u, _, vh = torch.linalg.svd(weight, full_matrices=False)
    signs = torch.randn(len(vh)).sign()
    return (u * signs)[:, :rank].contiguous(), (vh * signs[:, None])[:rank].contiguous()


def write(folder: Path, rank: int = 32, blocks: tuple[int, ...] = (1, 3)) -> tuple[Path, dict[str, Tensor], Any]:
    """Write a file of the published layout on a small CLIP, and return its path, its tensors and the CLIP."""
    small = write_open_clip(folder / "clip")
    state = {f"clip.{name}": value.clone() for name, value in small.untouched().state_dict().items()}
    state["gram_encoder.cls_token"] = torch.randn(1, 1, 8)
    state["style_nce.temperature"] = torch.tensor(0.07)
    for number in range(small.depth):
        for part in ("c_fc", "c_proj"):
            name = f"{BLOCKS}.{number}.mlp.{part}"
            u, v = factors(state[f"{name}.weight"], rank)
            state |= {f"{name}.U": u, f"{name}.V": v, f"{name}.svd_U": u, f"{name}.svd_V": v}
            state |= {f"{name}.delta_s": 0.3 * torch.randn(rank), f"{name}.gate": torch.randn(())}
        if number in blocks:
            name = f"{BLOCKS}.{number}.attn"
            u, v = factors(state[f"{name}.in_proj_weight"], rank)
            state |= {f"{name}.U_qkv": u, f"{name}.V_qkv": v}
            sizes = {
                "0.weight": (2 * rank, STYLE),
                "0.bias": (2 * rank,),
                "2.weight": (rank, 2 * rank),
                "2.bias": (rank,),
            }
            state |= {f"{name}.delta_s_qkv.mlp.{key}": 0.3 * torch.randn(size) for key, size in sizes.items()}
    torch.save(state, folder / "best.pt")
    return folder / "best.pt", state, small
