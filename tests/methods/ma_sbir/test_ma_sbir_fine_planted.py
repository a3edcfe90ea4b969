"""Fine-grained MA-SBIR's vectors in a planted model: Acc@1 within unseen categories, original and converted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hystar_fast.data.image_set import Record
from hystar_fast.methods.conversion import Conversion
from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.methods.ma_sbir.pair_vectors import PairVectors
from hystar_fast.methods.similarity import COSINE
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.embed import Embedded
from hystar_fast.retrieval.within_category import measure_within

D, SEEN, UNSEEN, PHOTOS, STEPS = 64, 20, 10, 10, 200
OWN = MASBIRConfig.preset("fine", modality_init="zero")
ACC1 = Metric.parse("R@1")


def planted_accuracies(seed: int, skew: float) -> dict[str, float]:
    """Train the vectors on pairs of seen classes, and return Acc@1 of unseen ones by the way in which queries move.

    A picture is its class, its own part, its modality and noise; a photo also has u · skew times the modality of
    sketches, u uniform in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(D, D, generator=generator))
    m = 0.8 * basis[:3]
    labels = torch.arange(SEEN + UNSEEN).repeat_interleave(PHOTOS)

    def drawn(count: int) -> torch.Tensor:
        vectors = torch.randn(count, D, generator=generator)
        return F.normalize(vectors - vectors @ basis[:3].mT @ basis[:3], dim=-1)

    def noise() -> torch.Tensor:
        return torch.randn(len(labels), D, generator=generator) * 0.6 / D**0.5

    classes = drawn(SEEN + UNSEEN)
    own = classes[labels] + 0.6 * drawn(len(labels))
    alike = skew * torch.rand(len(labels), 1, generator=generator)
    photos = F.normalize(own + m[0] + alike * m[1] + noise(), dim=-1)
    sketches, texts = F.normalize(own + m[1] + noise(), dim=-1), F.normalize(classes + m[2], dim=-1)[labels]
    torch.manual_seed(seed)
    vectors, trained = PairVectors(OWN, 2, D), labels < SEEN
    optimizer = torch.optim.Adam(vectors.parameters(), lr=OWN.modality_lr)
    for _ in range(STEPS):
        rows = torch.randint(0, SEEN * PHOTOS, (64,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        kinds = torch.ones_like(rows)
        batch = torch.stack([sketches[rows], photos[rows], texts[rows]])
        vectors.pair_losses(batch, None, labels[rows], rows, kinds, 0.07)["loss"].backward()
        optimizer.step()
    means = {"photo": photos[trained].mean(0), "sketch": sketches[trained].mean(0)}
    learned = dict(zip(("photo", "sketch"), vectors.vectors.detach(), strict=False))
    asked = sketches[~trained]
    moved = {"original": asked} | {
        name: Conversion(of)(asked, "sketch", "photo") for name, of in (("mean shift", means), ("learned", learned))
    }
    records = tuple(Record(str(i), "photo", str(int(label)), str(i)) for i, label in enumerate(labels[~trained]))
    gallery = Embedded(records, photos[~trained])
    return {
        name: measure_within(Embedded(records, queries), gallery, [ACC1], COSINE).values[ACC1].mean().item()
        for name, queries in moved.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_photos_that_look_like_sketches_no_longer_win_the_queries_of_their_category(seed: int) -> None:
    found = planted_accuracies(seed, skew=2.0)
    assert min(found["learned"], found["mean shift"]) >= found["original"] + 0.1
    assert found["learned"] >= found["mean shift"] - 0.02


def test_where_photos_are_alike_nothing_is_lost() -> None:
    found = planted_accuracies(0, skew=0.0)
    assert min(found["learned"], found["mean shift"]) >= found["original"] >= 0.9
