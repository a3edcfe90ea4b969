"""Training, evaluation, indexing, search and `preprocess` read the same pixels from a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.images import Normalise, Preprocess, ResizeTo
from hystar_fast.data.open import open_images
from hystar_fast.index.generation_methods import Encoder
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.searcher import Query, Searcher
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.sync import add
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.train.settings import DataSettings
from hystar_fast.train.validation import open_training
from tests.support import picture_trees

SIZE = (10, 10)


class RecordingMethod(Method):
    """A method that records the input of its backbone."""

    name = "recording"

    def __init__(self, fit: str = "squash") -> None:
        self.resize, self.normalise = ResizeTo(SIZE, fit), Normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        self.seen: list[Tensor] = []

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        prepared = self.normalise(images)
        self.seen += prepared
        return F.normalize(prepared.flatten(1), dim=-1)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_training_evaluation_index_and_search_read_the_pixels_of_preprocess(tmp_path: Path, fit: str) -> None:
    picture = picture_trees.picture(tmp_path / "in/wide.png", seed=1, size=(40, 20))
    table = tmp_path / "in/pairs.csv"
    table.write_text("query,target\nwide.png,wide.png\n")
    method = RecordingMethod(fit)
    expected = Preprocess(method.resize, method.normalise)(Image.open(picture))

    evaluate(method, open_images(str(table)))
    assert len(method.seen) == 2  # the gallery and the query
    pairs = open_training(DataSettings(source=f"pairs:{table}", validation="none")).pairs(method)
    for _ in range(2):
        method.encode_image(pairs.load(torch.tensor([0, 0]), torch.tensor([0, -1]), torch.zeros(2)).images)
        pairs.preload(method)
    assert pairs.is_preloaded
    encoder = Encoder({"adapted": method})
    engine = LocalEngine.create(tmp_path / "out", {"adapted": Stamp({"dimension": 3 * SIZE[0] * SIZE[1]})})
    assert add(engine, [tmp_path / "in"], lambda: encoder).added == 1
    Searcher(engine, engine.generation(), "adapted", method).search([Query(picture)], 1)

    assert len(method.seen) == 8
    for seen in method.seen:
        assert torch.equal(seen, expected)
