"""Folders of pictures of domains and classes."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

PACS = ("art_painting", "cartoon", "photo", "sketch")


def tree(root: Path, domains: tuple[str, ...], each: int = 3) -> Path:
    generator = torch.Generator().manual_seed(0)
    for domain in domains:
        for name in ("dog", "house"):
            (root / domain / name).mkdir(parents=True)
            for number in range(each):
                pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / domain / name / f"{number}.png")
    return root
