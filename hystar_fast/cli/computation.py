"""Table 5: how many parameters a method adds to CLIP ViT-L/14, and what it costs to embed a picture here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.methods.on_device import placed
from hystar_fast.methods.style_prompts import StylePrompts, size_of_the_public_code
from hystar_fast.methods.suite import create_method
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
_CPU = torch.device("cpu")
BATCH, REPEATS = 16, 7
STEPS = len(ROWS) * (1 + 1 + REPEATS)  # each is built, warmed up, and timed


def parameters_on_the_papers_backbone() -> dict[str, tuple[int, int]]:
    """Row -> (parameters of the whole, of what the method adds to train) on CLIP ViT-L/14, which takes no memory."""
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
    """How many parameters FreestyleRet's public code adds to CLIP ViT-L/14, those that it never uses among them."""
    with torch.device("meta"):
        method = StylePrompts(load_open_clip(PAPER_BACKBONE, None), nn.functional.mse_loss)
    return size_of_the_public_code(method.model)


def embedding_times(
    config: HystarConfig, *, device: torch.device = _CPU, progress: Callable[[], object] | None = None
) -> dict[str, float]:
    """Row -> milliseconds a picture of embedding a batch of 16 with this configuration's backbone on this machine.

    The median of repeats that take turns, so that a machine that slows down slows all of them.

    Args:
        config: of a backbone with open_clip's own vision transformer; on a large one Hystar's weights take minutes
            to factor the first time.
        device: where it is embedded, the pictures being there.
        progress: called `STEPS` times.

    Raises:
        ValueError: another backbone.
    """
    progress = progress or (lambda: None)
    methods: dict[str, Method] = {}
    for row, name in ROWS.items():
        methods[row] = placed(create_method(name, config), device)
        progress()
    side = next(iter(methods.values())).reader.size[0]
    images = torch.rand(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    taken: dict[str, list[float]] = {row: [] for row in methods}
    for repeat in range(REPEATS + 1):
        for row, method in methods.items():
            seconds = _once(method, images)
            if repeat:  # the first warms up
                taken[row].append(seconds)
            progress()
    return {row: 1000 * statistics.median(values) / BATCH for row, values in taken.items()}


@torch.inference_mode()
def _once(method: Method, images: torch.Tensor) -> float:
    method.train(False)
    wait = torch.cuda.synchronize if images.is_cuda else lambda: None
    wait()
    began = time.perf_counter()
    method.encode_image(images)
    wait()
    return time.perf_counter() - began


def computation(
    config: HystarConfig, *, device: torch.device = _CPU, progress: Callable[[], object] | None = None
) -> list[dict[str, Any]]:
    """The rows of Table 5 as JSON: parameters on ViT-L/14, and times here."""
    sizes, times = parameters_on_the_papers_backbone(), embedding_times(config, device=device, progress=progress)
    plain, published = sizes["CLIP"][0], freestyle_as_published()
    unused = {"parameters": plain + published, "added": published, "added_share": _share(published, plain)}
    return [
        {
            "row": row,
            "run": ROWS[row],
            "parameters": whole,
            "added": added,
            "added_share": _share(added, plain),
            "milliseconds": round(times[row], 3),
            "time_increase": round(100 * (times[row] / times["CLIP"] - 1), 1),
            **({"with_unused_parts": unused} if row == "FreestyleRet" else {}),
        }
        for row, (whole, added) in sizes.items()
    ]


def _share(added: int, plain: int) -> float:
    return round(100 * added / plain, 2)
