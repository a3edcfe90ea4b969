"""One way to read a picture: what trains, is evaluated, is indexed and asks sees the same pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from hystar_fast.cli import search
from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.open import open_images
from hystar_fast.data.records import read_images
from hystar_fast.methods.inputs import TensorPreprocess
from hystar_fast.methods.interface import Method
from hystar_fast.models import tiny
from hystar_fast.retrieval import embedded
from hystar_fast.retrieval.embed import to_float
from hystar_fast.retrieval.evaluate_images import evaluate_images
from hystar_fast.train.settings import DataSettings
from hystar_fast.train.validation import open_training
from tests.support import picture_trees

SIDE = 10


def squashed(picture: Image.Image) -> Tensor:
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return TF.pil_to_tensor(small) / 127.5 - 1


def cropped(picture: Image.Image) -> Tensor:
    resized = TF.resize(picture.convert("RGB"), [SIDE], TF.InterpolationMode.BICUBIC)
    return TF.pil_to_tensor(TF.center_crop(resized, [SIDE, SIDE])) / 127.5 - 1


class Witness(Method):
    """Keeps what its backbone would be given."""

    name = "witness"

    def __init__(self, preprocess) -> None:
        self.preprocess = TensorPreprocess(preprocess)
        self.seen: list[Tensor] = []

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        assert self.preprocess is not None
        prepared = self.preprocess(images)
        self.seen += prepared
        return F.normalize(prepared.flatten(1), dim=-1)


@pytest.mark.parametrize("preprocess", [squashed, cropped])
def test_training_evaluation_index_and_search_see_what_the_backbone_is_published_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preprocess
) -> None:
    picture = picture_trees.picture(tmp_path / "in/wide.png", seed=1, size=(40, 20))
    table = tmp_path / "in/pairs.csv"
    table.write_text("query,target\nwide.png,wide.png\n")
    expected = preprocess(Image.open(picture))
    witness = Witness(preprocess)

    evaluate_images(witness, open_images(str(table)))
    assert len(witness.seen) == 2  # the gallery and the query
    pairs = open_training(DataSettings(source=f"pairs:{table}", validation="none")).pairs(witness)
    trained = pairs.load(torch.tensor([0, 0]), torch.tensor([0, -1]), torch.zeros(2)).images
    witness.encode_image(to_float(trained))
    monkeypatch.setattr(search, "load_method", lambda folder: witness)
    monkeypatch.setattr(search, "save_method", lambda method, folder: Path(folder).mkdir())
    search.embed_folder(tmp_path / "in", tmp_path / "adapter", tmp_path / "out", Console(quiet=True))
    search.Searcher.open(tmp_path / "out").image(picture, 1)

    assert len(witness.seen) == 6
    for seen in witness.seen:
        assert (seen - expected).abs().max() < 1e-6


def test_embedding_a_folder_skips_names_and_counts_what_it_cannot_read_and_keeps_one_batch_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    for i in range(5):
        picture_trees.picture(folder / f"{i}.png", seed=i)
    picture_trees.damaged(folder / "1.png")
    (folder / "4.png").write_text("no picture")
    witness = Witness(squashed)
    batches: list[int] = []

    def in_twos(*arguments, batch_size):
        for rows, pictures in read_images(*arguments, batch_size=2):
            batches.append(len(witness.seen))  # what was embedded before this batch was read
            yield rows, pictures

    monkeypatch.setattr(embedded, "read_images", in_twos)
    monkeypatch.setattr(search, "load_method", lambda folder: witness)
    monkeypatch.setattr(search, "save_method", lambda method, folder: Path(folder).mkdir())
    console = Console(record=True, width=200)
    assert search.embed_folder(folder, tmp_path / "adapter", tmp_path / "out", console) == 3
    assert batches == [0, 1]
    assert "skipped 2 of 5 pictures, the first: 1.png: path must be a whole image file" in console.export_text()
    index = search.Searcher.open(tmp_path / "out").index
    assert index.ids == ["0.png", "2.png", "3.png"]
    assert index.about["skipped"]["n"] == 2 and list(index.about["skipped"]["first"]) == ["1.png", "4.png"]
    picture_trees.damaged(folder / "0.png")
    picture_trees.damaged(folder / "2.png")
    picture_trees.damaged(folder / "3.png")
    with pytest.raises(ValueError, match=r"none of the 5 pictures of .* can be read, the first: path must be"):
        search.embed_folder(folder, tmp_path / "adapter", tmp_path / "other", console)


def test_the_embedded_drawings_are_read_to_the_bit() -> None:
    reading = TensorPreprocess(tiny.preprocess)
    drawings = EmojiStyles()
    wanted = [concept.id for concept in drawings.concepts("val", ["noto"])[:40]]
    stored = drawings.images("noto", wanted)
    for name, pixels in zip(wanted, stored, strict=True):
        assert torch.equal(reading.read(drawings.image("noto", name).convert("RGB")), pixels)
