"""Training, evaluation, indexing, search and `preprocess` read the same pixels from a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.data.image_set import read_images
from hystar_fast.data.images import Normalise, Preprocess, ResizeTo
from hystar_fast.data.open import open_images
from hystar_fast.index import search
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval import embed
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
def test_training_evaluation_index_and_search_read_the_pixels_of_preprocess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: str
) -> None:
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
    monkeypatch.setattr(search, "load_method", lambda folder: method)
    monkeypatch.setattr(search, "save_method", lambda method, folder: Path(folder).mkdir())
    search.index_folder(tmp_path / "in", tmp_path / "adapter", tmp_path / "out")
    search.Searcher.open(tmp_path / "out").search_image(picture, 1)

    assert len(method.seen) == 8
    for seen in method.seen:
        assert torch.equal(seen, expected)


def test_indexing_a_folder_skips_unreadable_pictures_and_keeps_one_batch_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    for i in range(5):
        picture_trees.picture(folder / f"{i}.png", seed=i)
    picture_trees.damaged(folder / "1.png")
    (folder / "4.png").write_text("no picture")
    method = RecordingMethod()
    embedded_before: list[int] = []

    def in_twos(*arguments, batch_size):
        for rows, pictures in read_images(*arguments, batch_size=2):
            embedded_before.append(len(method.seen))
            yield rows, pictures

    monkeypatch.setattr(embed, "read_images", in_twos)
    monkeypatch.setattr(search, "load_method", lambda folder: method)
    monkeypatch.setattr(search, "save_method", lambda method, folder: Path(folder).mkdir())
    done: list[tuple[int, int]] = []
    count, skipped = search.index_folder(
        folder, tmp_path / "adapter", tmp_path / "out", progress=lambda *counts: done.append(counts)
    )
    assert count == 3 and embedded_before == [0, 1] and done == [(1, 5), (3, 5)]
    assert [entry.path for entry in skipped] == ["1.png", "4.png"]
    assert skipped[0].reason.startswith("path must be a whole image file")
    index = search.Searcher.open(tmp_path / "out").index
    assert index.ids == ["0.png", "2.png", "3.png"]
    assert index.about["skipped"]["n"] == 2 and list(index.about["skipped"]["first"]) == ["1.png", "4.png"]
    for name in ("0.png", "2.png", "3.png"):
        picture_trees.damaged(folder / name)
    with pytest.raises(ValueError, match=r"folder must hold readable pictures, got .* with none of 5, the first"):
        search.index_folder(folder, tmp_path / "adapter", tmp_path / "other")
