"""Mean shift: the means of a training set, the shift by them, and its adapter files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.mean_shift import MeanShift
from hystar_fast.methods.suite import create_method
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.embed import embed_records, embed_texts
from tests.support.cli import run
from tests.support.picture_trees import picture
from tests.support.small_clip import small_config

STYLES = ("sketch", "lowres")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> HystarConfig:
    return small_config(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_emoji("train").select(limit=12)


def create(config: HystarConfig) -> MeanShift:
    method = create_method("mean_shift", config)
    assert isinstance(method, MeanShift)
    return method


def test_pictures_move_from_the_nearest_mean_to_the_gallerys_and_texts_from_theirs(config, images):
    method, frozen = create(config), create_method("frozen", config)
    assert method.fit(images, (*STYLES, "text")) == []
    embedded = {s: embed_records(frozen, images, images.of_style(s), []).vectors for s in ("noto", *STYLES)}
    means = torch.stack([vectors.mean(0) for vectors in embedded.values()])
    torch.testing.assert_close(method.means.pictures.data, means)
    moved = 0
    for style, before in embedded.items():
        after = embed_records(method, images, images.of_style(style), []).vectors
        for one, other in zip(before, after, strict=True):
            nearest = int((one - means).norm(dim=1).argmin())
            torch.testing.assert_close(other, F.normalize(one + means[0] - means[nearest], dim=0))
            moved += nearest > 0
    assert 0 < moved < sum(map(len, embedded.values())), "the nearest means must be different ones"
    names = [record.captions[0] for record in images.gallery]
    texts, shifted = embed_texts(frozen, names), embed_texts(method, names)
    assert texts is not None and shifted is not None
    torch.testing.assert_close(shifted, F.normalize(texts + means[0] - texts.mean(0), dim=1))


def test_it_starts_as_the_frozen_model_and_has_nothing_to_train(config):
    method, frozen = create(config), create_method("frozen", config)
    pictures = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(method.encode_image(pictures), frozen.encode_image(pictures))
    torch.testing.assert_close(method.encode_text(["a dog"]), frozen.encode_text(["a dog"]))
    assert count_parameters(method) == {} and method.settings == {"styles": 0}


def test_a_loaded_method_equals_the_saved_one(config, images, tmp_path):
    method = create(config)
    method.fit(images, STYLES)
    save_method(method, tmp_path)
    again = load_method(tmp_path)
    assert isinstance(again, MeanShift) and again.settings == {"styles": 2}
    pictures = torch.rand(4, 3, 32, 32)
    assert torch.equal(again.encode_image(pictures), method.encode_image(pictures))
    assert torch.equal(again.encode_text(["a dog"]), method.encode_text(["a dog"]))


def test_unreadable_pictures_are_named_and_a_style_needs_one(config, tmp_path):
    for style in ("photo", "sketch"):
        for name in ("a", "b"):
            picture(tmp_path / style / f"{name}.png")
    (tmp_path / "sketch" / "a.png").write_bytes(b"no picture")
    images = open_images(f"folders:{tmp_path}")
    assert [entry.path for entry in create(config).fit(images, ("sketch",))] == ["sketch/a.png"]
    (tmp_path / "sketch" / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"images must have readable pictures in 'sketch', got none in"):
        create(config).fit(images, ("sketch",))


def test_train_fits_it_and_eval_reads_its_adapter(tmp_path: Path):
    output = tmp_path / "run"
    result = run("train", "emoji", "--set", "model.method=mean_shift", "--set", "model.pretrained=random",
                 "--set", "data.limit=6", "--set", "run.device=cpu", "--output", output)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "0 steps; trained parameters: mean_shift 1,152" in result.output, (
        "gallery, 4 styles and texts of 192 numbers"
    )
    assert "best on validation: R@1" in result.output
    result = run("eval", "--adapter", output / "adapter", "--limit", 4, "--output", tmp_path / "eval")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["method"] == "mean_shift"
