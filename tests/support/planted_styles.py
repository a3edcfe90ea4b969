"""A planted model of texts and pictures, in which the directions of style are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Planted:
    """Texts [P, C, d] to train on, and pictures [2, C * n, d] of two domains with their labels [C * n]."""

    texts: Tensor
    pictures: Tensor
    labels: Tensor


def planted(seed: int, *, is_control: bool) -> Planted:
    """Draw the planted model: texts and pictures differ by their class, and by style in a subspace V of 8 directions.

    In the control the pictures' domains lie in the span of the class vectors instead, where no text ever pointed.
    """
    d, v, classes, words, each = 64, 8, 20, 12, 15
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    basis = torch.linalg.qr(normal(d, d)).Q.T
    style, rest = basis[:v], basis[v:]
    meaning = F.normalize(normal(classes, d - v), dim=-1) @ rest

    texts = meaning + 0.6 * (normal(words, v) @ style)[:, None] + 0.05 * normal(words, classes, d)
    domains = normal(2, v) @ style
    if is_control:
        domains = F.normalize(normal(2, classes) @ meaning, dim=-1) * domains.norm(dim=-1, keepdim=True)
    labels = torch.arange(classes).repeat_interleave(each)
    noise = 0.3 * normal(2, len(labels), v) @ style + 0.9 * normal(2, len(labels), d) / d**0.5
    gap = 0.3 * F.normalize(normal(d), dim=-1)
    pictures = meaning[labels] + domains[:, None] + noise + gap
    return Planted(F.normalize(texts, dim=-1), F.normalize(pictures, dim=-1), labels)
