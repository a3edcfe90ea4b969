"""The tiny backbone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.images import Preprocess
from hystar_fast.models.tiny import NORMALISE, PACKAGED, RESIZE, TinyTokenizer, build_tiny, create_tiny

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


def test_a_file_decides_the_number_of_blocks(tmp_path: Path) -> None:
    deep = build_tiny(10)
    save_file(deep.state_dict(), tmp_path / "deep.safetensors")
    loaded, _ = create_tiny(tmp_path / "deep.safetensors")
    views = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded.encode_image(views), deep.encode_image(views))
    assert len(create_tiny(PACKAGED)[0].visual.transformer.resblocks) == 8
    torn = {name: value for name, value in deep.state_dict().items() if "resblocks.3." not in name}
    save_file(torn, tmp_path / "torn.safetensors")
    with pytest.raises(ValueError, match="pretrained must hold the tiny backbone"):
        create_tiny(tmp_path / "torn.safetensors")
