"""Training and validation splits of a run, for data sets whose splits could overlap or be empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.hold_out import hold_out
from hystar_fast.data.image_set import _read
from hystar_fast.data.images import ResizeTo
from hystar_fast.data.open import open_images
from hystar_fast.methods.suite import create_method
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.train.loop import train
from hystar_fast.train.pairs import TrainingPairs
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.settings import DataSettings
from hystar_fast.train.validation import open_training
from tests.support import picture_trees as trees


def folders(root: Path, sketches: tuple[str, ...]) -> Path:
    """Write two categories, each with three photos and with sketches of the given names."""
    for category in ("cat", "dog"):
        for i in range(3):
            trees.picture(root / "photo" / category / f"p{i}.png", seed=i)
        for name in sketches:
            trees.picture(root / "sketch" / category / f"{name}.png", seed=7)
    return root


def test_folders_without_names_in_common_are_pairs_of_a_category(tmp_path):
    images = open_images(f"folders:{folders(tmp_path, ('a', 'b'))}")
    assert {record.instance for record in images.records} == {None}
    pairs = TrainingPairs(images, resize=ResizeTo((16, 16)))
    assert len(pairs) == 6 and pairs.labels is not None


def test_one_common_name_does_not_make_instances(tmp_path):
    images = open_images(f"folders:{folders(tmp_path, ('a', 'b', 'p1'))}")
    assert len(TrainingPairs(images, resize=ResizeTo((16, 16)))) == 6
    mostly_common = open_images(f"folders:{folders(tmp_path / 'other', ('p0', 'p1', 'a'))}")
    pairs = TrainingPairs(mostly_common, resize=ResizeTo((16, 16)))
    assert len(pairs) == 4 and pairs.labels is None


def test_a_share_that_holds_out_no_pair_is_rejected_before_training(tmp_path):
    source = f"pairs:{trees.pairs(tmp_path, [(f'q{i}.png', f't{i}.png') for i in range(4)])}"
    with pytest.raises(ValueError, match=r"data\.validation must give queries for validation, got 1e-09"):
        open_training(DataSettings(source, validation=1e-9))


def dsr(root: Path) -> str:
    """Write DSR with ten training pictures; return its data source."""
    trees.dsr(root, n=10)
    (root / "test.json").rename(root / "train.json")
    return f"dsr:{root}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"styles": ["cubism"]}, r"style must be one of \('images', 'art', 'sketch', 'mosaic'\) of DSR, got 'cubism'"),
        ({"styles": ["images"]}, "styles must be query styles, but 'images' is the gallery style"),
        (
            {"validation": 1e-9},
            r"must give queries for validation, got 1e-09: DSR must have pictures of the gallery style",
        ),
        (
            {"validation": "val"},
            r"data\.validation must be a split of DSR.*got 'val'.*Found: no val\.json, but train",
        ),
    ],
)
def test_a_bad_style_or_split_is_rejected(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        open_training(DataSettings(dsr(tmp_path), **{"validation": 0.3, **settings}))


def test_no_picture_of_the_held_out_share_is_trained_on(tmp_path):
    source = f"pairs:{trees.pairs(tmp_path / 'chain', [(f'p{i}.png', f'p{i + 1}.png') for i in range(40)])}"
    method = create_method("static", HystarConfig(backbone="tiny", pretrained=None, style="clip", blocks=None))
    opened = open_training(DataSettings(source, validation=0.2))
    trained = opened.pairs(method)
    assert isinstance(trained, TrainingPairs)
    images = open_images(source, "train")
    kept, held_out = hold_out(images, 0.2)
    held, instances = ({getattr(r, name) for r in held_out.records} for name in ("path", "instance"))
    assert held & {r.path for r in images.records if r.instance not in instances}, (
        "no held-out picture is also in a training pair"
    )
    assert {r.path for r in kept.records} == {r.path for r in images.records} - held
    assert trained.images.records == kept.records and len(trained) >= 2
    every = [(a, b) for a in ("x.png", "y.png", "z.png") for b in ("x.png", "y.png", "z.png") if a != b]
    with pytest.raises(ValueError, match=r"data\.validation must leave pictures of pairs to train on, got 0\.9"):
        open_training(DataSettings(f"pairs:{trees.pairs(tmp_path / 'all', every)}", validation=0.9))


def test_the_gallery_style_and_repeated_styles_are_rejected_as_queries(tmp_path):
    source = f"dsr:{trees.dsr(tmp_path)}"
    (tmp_path / "test.json").rename(tmp_path / "train.json")
    for given, gallery in (("emoji", "noto"), (source, "images")):
        validation = "val" if given == "emoji" else "none"
        with pytest.raises(ValueError, match=f"must be query styles, but '{gallery}' is the gallery style"):
            open_training(DataSettings(given, ["sketch", gallery], validation=validation))
        with pytest.raises(ValueError, match="styles must name each style once, got 'sketch' twice"):
            open_training(DataSettings(given, ["sketch", "sketch"], validation=validation))
    with pytest.raises(ValueError, match=r"gallery_style must be left out for emoji, which has its own .* got 'photo'"):
        open_training(DataSettings(gallery_style="photo"))


@pytest.mark.parametrize(("styles", "texts"), [(["sketch"], 0), ([], 0), (["sketch", "text"], 1)])
def test_validation_embeds_only_the_styles_it_scores(tmp_path, monkeypatch, styles, texts):
    source = f"dsr:{trees.dsr(tmp_path, n=8)}"
    (tmp_path / "test.json").rename(tmp_path / "train.json")
    method = create_method("static", HystarConfig(backbone="tiny", pretrained=None, style="clip", blocks=None))
    opened = open_training(DataSettings(source, styles, validation=0.6))
    report = evaluate(method, hold_out(open_images(source, "train"), 0.6)[1])
    expected = {row.kind: row.values["R@1"].value for row in report.kinds if row.kind in opened.styles}
    encode, encoded, read = method.encode_text, [], []

    def counted(words):
        encoded.append(len(words))
        if not texts:
            raise ValueError("this backbone has no tokenizer")
        return encode(words)

    monkeypatch.setattr(method, "encode_text", counted)
    monkeypatch.setattr("hystar_fast.data.image_set._read", lambda *entry: read.append(entry[1].style) or _read(*entry))
    score, figures = opened.score(method)
    assert figures["R@1"] == expected and score == pytest.approx(sum(expected.values()) / len(expected))
    assert len([count for count in encoded if count]) == texts
    assert set(read) == {"images", *opened.styles} - {"text"}


def test_files_that_the_data_set_excludes_are_listed_as_skipped(tmp_path):
    root = folders(tmp_path, ("p0", "p1"))
    (root / "sketch/cat/p2.svg").write_text("<svg/>")
    pairs = TrainingPairs(open_images(f"folders:{root}"), resize=ResizeTo((16, 16)))
    assert [*pairs.skipped] == ["sketch/cat/p2.svg"]


def test_a_method_initialised_from_its_first_batch_rejects_chunks():
    config = HystarConfig(backbone="tiny", pretrained=None, style="clip", blocks=None)
    method = create_method("freestyle", config)
    rates = dict.fromkeys(method.parameter_groups(), 1e-3)
    with pytest.raises(ValueError, match="initialises from its whole first batch"):
        train(method, load_emoji("train").select(limit=4), Recipe(rates, steps=1, batch_size=2, chunk_size=2))
