"""Every ordered pair of domains: against whole matrices, each domain embedded once, and what is refused."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hystar_fast.data.open import open_images
from hystar_fast.methods.interface import Method
from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.domains import evaluate_domains
from tests.support.domain_trees import PACS, tree

NAMES = ("mAP@200:capped:interpolated", "mAP@200:capped", "mAP@all", "Prec@200:k", "R@1")
METRICS = [Metric.parse(name) for name in NAMES]


class Counted(Pixels):
    """Pixels that count the pictures they encode, and turn queries if asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures = 0

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        self.pictures += len(images)
        return super().encode_image(images)


class Turned(Counted):
    def encode_query(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        return self.encode_image(images.flip(-1))


@pytest.mark.parametrize("kind", [Counted, Turned])
def test_it_is_the_ranking_of_whole_matrices(tmp_path: Path, kind: type[Counted]) -> None:
    images = open_images(str(tree(tmp_path, ("photo", "sketch", "cartoon"))))
    method = kind()
    found = evaluate_domains(method, images, METRICS)
    assert [*found.measured] == [*permutations(images.styles, 2)] and found.skipped == ()
    for query, gallery in found.measured:
        sides = [images.of_style(style) for style in (query, gallery)]
        pixels = [torch.stack([method.resize(images.read(r)) for r in side]) for side in sides]
        scores = method.encode_query(pixels[0]) @ method.encode_image(pixels[1]).T
        relevant = torch.tensor([[a.category == b.category for b in sides[1]] for a in sides[0]])
        order = scores.argsort(dim=1, descending=True)
        hits = relevant.gather(1, order).double()
        precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
        mean = ((precision * hits).sum(1) / hits.sum(1)).mean().item()
        whole = found.interval(query, gallery, Metric.parse("mAP@all"))
        assert whole is not None and whole.value == pytest.approx(mean, abs=1e-9)
        assert found.mean(query, gallery, Metric.parse("mAP@all")) == pytest.approx(mean, abs=1e-9)
        best = found.interval(query, gallery, Metric.parse("R@1"))
        assert best is not None and best.value == pytest.approx(hits[:, 0].mean().item())
        fixed = found.interval(query, gallery, Metric.parse("Prec@200:k"))
        assert fixed is not None and fixed.value == pytest.approx(3 / 200)
    means = [found.interval("photo", other, METRICS[2]).value for other in ("sketch", "cartoon")]
    assert found.average("photo", METRICS[2]) == pytest.approx(sum(means) / 2)


def test_a_tree_like_pacs_has_twelve_pairs_and_each_domain_is_embedded_once(tmp_path: Path) -> None:
    images = open_images(f"pacs:{tree(tmp_path, PACS)}")
    method, seen = Counted(), []
    found = evaluate_domains(method, images, METRICS, progress=seen.append)
    assert len(found.measured) == 12 and method.pictures == len(images.records) == sum(seen) == 24
    turned: Method = Turned()
    evaluate_domains(turned, images, METRICS[:1], styles=("photo", "sketch"))
    assert turned.pictures == 24, "twelve pictures in each role"


def test_wrong_domains_are_refused(tmp_path: Path) -> None:
    images = open_images(str(tree(tmp_path, ("photo", "sketch"))))
    for styles in (("photo", "art"), ("photo",), ("photo", "photo")):
        with pytest.raises(ValueError, match="styles must be at least 2 different ones of photo, sketch, got"):
            evaluate_domains(Counted(), images, METRICS, styles=styles)


def test_a_pair_without_a_shared_class_has_no_figure(tmp_path: Path) -> None:
    root = tree(tmp_path, ("photo", "sketch", "cartoon"))
    for name in ("dog", "house"):
        (root / "cartoon" / name).rename(root / "cartoon" / f"other {name}")
    found = evaluate_domains(Counted(), open_images(str(root)), METRICS[:1])
    assert found.interval("photo", "cartoon", METRICS[0]) is None and found.average("photo", METRICS[0]) is None
    assert found.interval("photo", "sketch", METRICS[0]) is not None
