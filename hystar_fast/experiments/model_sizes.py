"""Table 5: the parameters that each method adds to CLIP ViT-L/14, and its time to embed a picture here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hystar_fast.experiments.timing import Cost
from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.style_prompts import StylePrompts, published_size
from hystar_fast.models.backbones.open_clip import load_open_clip
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar

ROWS = {
    "CLIP": "frozen",
    "VPT": "vpt",
    "(IA)³": "ia3",
    "AdaptFormer": "adaptformer",
    "FreestyleRet": "freestyle",
    "Hystar": "hystar",
}
PAPER_BACKBONE = "ViT-L-14"


def sizes_on_vit_l_14() -> dict[str, tuple[int, int]]:
    """Count by row the parameters of the whole model, and those that train, on CLIP ViT-L/14 on the meta device."""
    config = HystarConfig(backbone=f"open_clip:{PAPER_BACKBONE}", pretrained=None, style_pretrained=None)
    found = {}
    for row, name in ROWS.items():
        with torch.device("meta"):
            backbone = load_open_clip(PAPER_BACKBONE, None)
            plain = sum(parameter.numel() for parameter in backbone.parameters())
            hystar = Hystar(config).parameter_counts() if name == "hystar" else {}
        added = hystar.get("static", 0) + hystar.get("dynamic", 0)
        if name in BASELINES:
            added = sum(count_parameters(BASELINES[name](backbone, nn.functional.mse_loss)).values())
        found[row] = (plain + added, added)
    return found


def freestyle_as_published() -> int:
    """Count the parameters that FreestyleRet's public code adds to CLIP ViT-L/14, unused ones included."""
    with torch.device("meta"):
        method = StylePrompts(load_open_clip(PAPER_BACKBONE, None), nn.functional.mse_loss)
    return published_size(method.model)


def computation(times: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """Return the rows of Table 5: parameters on ViT-L/14, and the `times` measured here, by row."""
    sizes = sizes_on_vit_l_14()
    plain, published = sizes["CLIP"][0], freestyle_as_published()
    unused = {"parameters": plain + published, "added": published, "added_share": _share(published, plain)}
    return [
        {
            "row": row,
            "run": ROWS[row],
            "parameters": whole,
            "added": added,
            "added_share": _share(added, plain),
            "milliseconds": round(times[row].median, 3),
            "time_increase": round(100 * (times[row].median / times["CLIP"].median - 1), 1),
            **({"with_unused_parts": unused} if row == "FreestyleRet" else {}),
        }
        for row, (whole, added) in sizes.items()
    ]


def _share(added: int, plain: int) -> float:
    return round(100 * added / plain, 2)
