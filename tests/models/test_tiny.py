"""The tiny backbone and the script that pretrains it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.images import Preprocess
from hystar_fast.models.tiny import NORMALISE, PACKAGED, RESIZE, TinyTokenizer, create_tiny
from hystar_fast.train.pretrain import augment, pretrain, sample_pairs, schedule
from hystar_fast.train.pretrain_data import Drawings, HeldOut, name_words

ROOT = Path(__file__).resolve().parents[2]


def test_shipped_weights_are_as_good_as_their_card_says() -> None:
    card = (ROOT / "hystar_fast/models/assets/tiny_card.md").read_text(encoding="utf-8")
    row = re.search(r"^\| val \|(.+)\|$", card, re.MULTILINE)
    assert row is not None
    count, *cells = row[1].split("|")
    model, tokenizer = create_tiny(PACKAGED)
    data = EmojiStyles()
    concepts = data.concepts("val", ("noto", "outline"))
    assert len(concepts) == int(count)
    with torch.no_grad():
        gallery = model.encode_image(NORMALISE(data.images("noto", concepts)), normalize=True)
        queries = [
            model.encode_image(NORMALISE(data.images(style, concepts)), normalize=True)
            for style in ("outline", "twemoji", "sketch", "photo3d")
        ]
        text = model.encode_text(tokenizer([concept.name for concept in concepts]), normalize=True)
    for query, cell in zip([*queries, text], [*cells[:4], cells[5]], strict=True):
        correct = (query @ gallery.T).argmax(1) == torch.arange(len(concepts))
        assert 100 * correct.float().mean().item() == pytest.approx(float(cell.split("/")[0]), abs=1.0)


def test_tokenizer() -> None:
    tokens = TinyTokenizer()(["dog face", "Dog Face", "a " * 40, ""])
    assert tokens.shape == (4, 16) and torch.equal(tokens[0], tokens[1])
    assert (tokens.amax(1) == TinyTokenizer.END).all() and (tokens[:, 0] == TinyTokenizer.START).all()


def test_preprocess_fits_any_image() -> None:
    preprocess = Preprocess(RESIZE, NORMALISE)
    assert preprocess(Image.new("L", (31, 90))).shape == (3, 64, 64)
    transparent = preprocess(Image.new("RGBA", (64, 64), (0, 0, 0, 0)))
    assert (transparent == 1).all(), "transparency must become white"


def test_the_embedded_drawings_are_read_to_the_bit() -> None:
    drawings = EmojiStyles()
    for concept in drawings.concepts("val", ["noto"])[:40]:
        assert torch.equal(RESIZE(drawings.image("noto", concept.id)), drawings.images("noto", [concept])[0])


def test_pretrained_must_be_the_tiny_backbone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pretrained must be 'packaged', None or a safetensors file"):
        create_tiny(tmp_path / "absent.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="pretrained must hold the tiny backbone"):
        create_tiny(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 9)
    with pytest.raises(ValueError, match="pretrained must hold the tiny backbone"):
        create_tiny(tmp_path / "broken.safetensors")


def test_held_out_names_keep_their_icons_out() -> None:
    held_out = HeldOut(["red heart", "umbrella", "dog face", "keycap: 3"])
    assert [name for name in ("heart-outline", "umbrellas-fill", "dog", "beach-umbrella") if not held_out(name)] == []
    assert not held_out("car") and not held_out("heartbeat")
    assert name_words("home-outline-rounded-24") == ("home",)


@pytest.fixture
def drawings() -> Drawings:
    images = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    groups = [[[3 * i, 3 * i + 1], [3 * i + 2]] for i in range(16)] + [[[48 + i]] for i in range(12)]
    keys = [f"{i:x}" for i in range(8)] + [f"icon {i}" for i in range(20)]
    return Drawings(images, groups, [f"thing {i}" for i in range(28)], keys, {"noto": 60})


def test_pairs_come_from_two_families_where_there_are_two(drawings: Drawings) -> None:
    first, second, captions = sample_pairs(drawings, 16, np.random.default_rng(0))
    assert len(set(captions)) == 16
    for a, b, caption in zip(first, second, captions, strict=True):
        group = drawings.groups[int(caption.split()[1])]
        assert any(a in family for family in group) and any(b in family for family in group)
        assert len(group) == 1 or not any(a in family and b in family for family in group)


def test_augment_keeps_range_and_pads_with_paper() -> None:
    white = torch.full((64, 3, 64, 64), 255, dtype=torch.uint8)
    views = augment(white)
    assert views.shape == white.shape and views.min() >= -1 and views.max() <= 1
    spread = (views.amax((2, 3)) - views.amin((2, 3))).amax(1)
    assert (spread < 1e-4).all(), "a white page must stay one colour"


def test_schedule() -> None:
    rates = [schedule(step, 2000) for step in range(2000)]
    assert rates[0] == 1 / 200 and max(rates) == 1 and rates[1000] == 1 and 0 < rates[-1] < 0.01


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, drawings: Drawings) -> None:
    drawings.save(tmp_path / "drawings.npz")
    ends = []
    for name, stops in (("whole", (3,)), ("resumed", (2, 3))):
        for stop in stops:
            # the same recipe, cut after `stop` steps
            pretrain(tmp_path, tmp_path / name, steps=3, batch=8, stop_after=stop, checkpoint_minutes=0)
        ends.append(load_file(tmp_path / name / "tiny.safetensors"))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
