"""Random batches of MA-SBIR's losses, the formulas of its published code as one function, and small runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hystar_fast.data.emoji import load_emoji
from hystar_fast.methods.ma_sbir.create_ma_sbir import create_ma_sbir
from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.methods.ma_sbir.ma_sbir_method import MASBIR
from hystar_fast.methods.ma_sbir.modality_vectors import ModalityVectors
from hystar_fast.methods.step_trained import StepPlan
from hystar_fast.methods.suite import tiny_config
from hystar_fast.models.tiny import RESIZE
from hystar_fast.train.captioned import CaptionedPictures
from hystar_fast.train.processes import World


@dataclass(frozen=True)
class Case:
    """A batch of unit vectors with its captions and modalities, and the vectors of the modalities."""

    pictures: Tensor
    texts: Tensor
    labels: Tensor
    kinds: Tensor
    modalities: ModalityVectors

    def losses(self, tau: float = 0.07) -> dict[str, Tensor]:
        return self.modalities.losses(self.pictures, self.texts, self.labels, self.kinds, tau)


def random_case(preset: str = "package", *, items: int = 7, width: int = 6, seed: int = 0, **changes: object) -> Case:
    """Return a case in float64 with repeated captions and two styles of pictures."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, max(1, items - 2), (items,), generator=generator)
    captions = F.normalize(torch.randn(items, width, generator=generator, dtype=torch.float64), dim=-1)
    pictures = F.normalize(torch.randn(items, width, generator=generator, dtype=torch.float64), dim=-1)
    torch.manual_seed(seed)
    own = MASBIRConfig.preset(preset, **changes)
    modalities = ModalityVectors(own, 2, width).double()
    with torch.no_grad():
        modalities.vectors.copy_(torch.randn(modalities.vectors.shape, generator=generator, dtype=torch.float64))
    kinds = torch.randint(0, 2, (items,), generator=generator)
    return Case(pictures.requires_grad_(), captions[labels].requires_grad_(), labels, kinds, modalities)


def published(case: Case, weights: dict[str, float], scale: float = math.exp(2.6592)) -> dict[str, Tensor]:
    """Return the terms as the published code computes them, item by item: four modalities, the third one unused."""
    m, classifier = case.modalities.vectors, case.modalities.classifier
    z, t = case.pictures, case.texts
    B = len(z)
    logits = scale * z @ t.T
    rows = torch.arange(B)
    clip = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    sem, rec, ortho = z.new_zeros(()), z.new_zeros(()), z.new_zeros(())
    from_picture, from_text = [], []
    for i in range(B):
        k = int(case.kinds[i])
        middle = (z[i] + t[i]) / ((z[i] + t[i]) @ (z[i] + t[i])).sqrt()
        for vector, own, other, target in ((z[i], m[k], m[3], t[i]), (t[i], m[3], m[k], z[i])):
            bare = vector - own
            sem = sem + 1 - bare @ middle / bare.norm()
            moved = bare + other
            rec = rec + 1 - moved @ target / (moved.norm() * target.norm())
        for j in range(4):
            ortho = ortho + (middle * m[j]).abs().sum() / 4
            for vector, source, found in ((z[i], k, from_picture), (t[i], 3, from_text)):
                if j != source:
                    moved = vector - m[source] + m[j]
                    logit = classifier.weight @ (moved / moved.norm()) + classifier.bias
                    found.append(logit.logsumexp(0) - logit[j])
    mc = (torch.stack(from_picture).mean() + torch.stack(from_text).mean()) / 2
    terms = {"clip": clip, "sem": sem / B, "mc": mc, "rec": rec / B, "ortho": ortho / B}
    total = clip + sum(weights[name] * terms[name] for name in weights)
    return {"loss": total / (1 + sum(weights.values())), **terms}


SMALL = [
    *("model.pretrained=random", "data.limit=10", "data.validation=none", "optim.batch_size=8", "optim.warmup=2"),
    *("optim.steps=4", "run.validate_every=0", "run.checkpoint_every=1", "run.device=cpu"),
]


def changes(folder: Path, *more: str) -> list[str]:
    """Return the changes that make "ma-sbir-emoji" small, with its output in a folder."""
    return [*SMALL, f"run.output={folder}", *more]


def small_method(own: MASBIRConfig, *, seed: int = 0) -> MASBIR:
    """Return MA-SBIR on the tiny backbone with random weights, before `begin`."""
    torch.manual_seed(seed)
    return create_ma_sbir(tiny_config(None), own.to_dict())


def begun(own: MASBIRConfig, pictures: CaptionedPictures, world: World | None = None, **plan: Any) -> MASBIR:
    """Return MA-SBIR with its optimiser, for batches of pictures."""
    method = small_method(own)
    method.begin(
        StepPlan(
            len(pictures.categories),
            1e-3,
            names=pictures.categories,
            styles=pictures.styles,
            processes=world or World(),
            **plan,
        )
    )
    method.train(True)
    return method


def drawings(own: MASBIRConfig, *, batch_size: int = 8, limit: int = 8) -> CaptionedPictures:
    """Return embedded drawings in three styles with their names, for the tiny backbone."""
    images = load_emoji("train").select(limit=limit)
    return CaptionedPictures(images, ("outline", "sketch"), RESIZE, own.batching, batch_size=batch_size, seed=1)
