"""The drawings for pretraining: held-out concepts stay out by name, code point and looks, in every source."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from hystar_fast.data.emoji import STYLES, EmojiStyles
from hystar_fast.train import pretrain_data, pretrain_sources
from hystar_fast.train.near_duplicates import nearest, signatures
from hystar_fast.train.pretrain_data import ICON, NEAR_DUPLICATE, Drawings, HeldOut, build_drawings, name_words
from hystar_fast.train.pretrain_sources import fetch_family, read_clipart, read_font

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:dc="dc" xmlns:rdf="rdf" width="4in" height="3in" '
    'viewBox="0 0 40 30"><metadata><dc:title>{title}</dc:title><rdf:li>{subject}</rdf:li></metadata>'
    '<rect x="{x}" y="5" width="{width}" height="20" fill="{fill}"/></svg>'
)


def svg(title: str, subject: str = "", x: int = 5, width: int = 9, fill: str = "#f00") -> bytes:
    return SVG.format(title=title, subject=subject, x=x, width=width, fill=fill).encode()


def picture(*box: int, fill: str = "black", side: int = 64) -> np.ndarray:
    canvas = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(canvas).polygon(box, fill=fill)
    return np.asarray(canvas)


def test_held_out_names_keep_their_icons_out() -> None:
    held_out = HeldOut(["red heart", "umbrella", "dog face", "keycap: 3"])
    assert [name for name in ("heart-outline", "umbrellas-fill", "dog", "beach-umbrella") if not held_out(name)] == []
    assert not held_out("car") and not held_out("heartbeat")
    assert name_words("home-outline-rounded-24") == ("home",)


def test_keywords_name_held_out_concepts_too_but_are_no_names() -> None:
    held_out = HeldOut(["red heart", "umbrella"])
    assert held_out("holiday", "beach umbrella") and held_out("valentine", "hearts red")
    assert not held_out("holiday", "red flag"), "a keyword shared with a name is not the name"
    assert not held_out("person", "red"), "a name without content is part of no name"


def test_signatures_recognise_a_moved_and_resized_drawing() -> None:
    triangle = picture(10, 50, 30, 10, 50, 50)
    moved = picture(4, 30, 14, 10, 24, 30, fill="#402010")
    other = picture(10, 10, 50, 12, 12, 50)
    rows = signatures(np.stack([triangle, moved, other, np.full_like(triangle, 255)]))
    assert rows.shape == (4, 256) and rows.dtype == np.float32
    similar = rows @ rows.T
    assert similar[0, 1] > NEAR_DUPLICATE > similar[0, 2]
    assert np.allclose(np.diag(similar)[:3], 1, atol=1e-5) and (similar[3] == 0).all()
    largest, place = nearest(rows[:1], rows[1:])
    assert place[0] == 0 and largest[0] == pytest.approx(similar[0, 1])


def test_clipart_is_named_by_its_own_title_and_keeps_its_keywords() -> None:
    files = [
        ("usr/share/openclipart/svg/food/lemonade_01.svg", svg("Lemonade", "beverage")),
        *((f"usr/share/openclipart/svg/computer/icons/disk{i}.svg", svg("Some theme", "hash")) for i in range(4)),
        ("usr/share/openclipart/svg/shapes/stars/star_9.svg", svg("gramastar")),
        ("usr/share/openclipart/svg/food/blank.svg", svg("Nothing", fill="#fff")),
        ("usr/share/openclipart/svg/food/torn.svg", b"<svg"),
        ("usr/share/openclipart/svg/food/large.svg", svg("Large") + b" " * pretrain_sources.LARGEST_FILE),
        ("usr/share/doc/readme.txt", b""),
    ]
    found = list(read_clipart(files))
    assert [(drawing.path, drawing.title) for drawing in found] == [
        ("food/lemonade_01.svg", "Lemonade"),
        *((f"computer/icons/disk{i}.svg", "") for i in range(4)),
    ]
    assert found[0].keywords == ("beverage", "food") and found[1].keywords == ()
    assert found[0].image.shape == (64, 64, 3) and (found[0].image[0] == 255).all(), "a wide drawing is centred"


def test_a_slow_drawing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_sources, "LONGEST_RENDERING", 0.0)
    assert list(read_clipart([("svg/a.svg", svg("A"))])) == []


def test_a_font_draws_the_characters_that_it_has() -> None:
    found = dict(read_font(ImageFont.load_default(10).font_bytes, ["&", "\U0001f9ff"]))
    assert list(found) == ["&"]
    ink = 255 - found["&"].mean(axis=2)
    rows, columns = np.flatnonzero(ink.max(axis=1) > 99), np.flatnonzero(ink.max(axis=0) > 99)
    assert max(len(rows), len(columns)) > 50
    assert abs(rows[0] + rows[-1] - 63) <= 3 and abs(columns[0] + columns[-1] - 63) <= 3


def pack(cache: Path, family: str, icons: dict[str, Any]) -> None:
    version = {**pretrain_sources.ICON_FAMILIES, **pretrain_sources.EMOJI_FAMILIES}[family][0]
    content = json.dumps({"icons": icons, "width": 16, "height": 16}).encode()
    with tarfile.open(cache / f"iconify-json-{family}-{version}.tgz", "w:gz") as tar:
        entry = tarfile.TarInfo("package/icons.json")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def built(cache: Path) -> Drawings:
    """Build drawings from small families that contain held-out concepts by name, by code point and by looks."""
    data = EmojiStyles()
    held_out, shown = data.concept("1f499"), data.concept("1f300")
    assert (held_out.name, held_out.split, shown.name, shown.split) == ("blue heart", "val", "cyclone", "train")
    unusual = '<path d="M1 1h9v3h-4v11h-2v-8h-3z"/>'
    icons = {
        held_out.name.replace(" ", "-"): {"body": unusual},
        shown.name.replace(" ", "-"): {"body": '<path d="M1 1h9v3h-4v11z"/>'},
        "wombat": {"body": unusual},
        "lookalike": {"body": '<path d="M0 0h14v1h-14zM0 2h3v9h-3z"/>'},
        "wombat-hidden": {"body": unusual, "hidden": True},
    }
    emoji = {
        held_out.name.replace(" ", "-"): {"body": icons["lookalike"]["body"]},
        "light-blue-heart": {"body": '<path d="M9 0h6v16h-3v-9h-2z"/>'},
        shown.name: {"body": '<path d="M0 9h9v-6h3v12h-10z"/>'},
        "keycap-8": {"body": '<path d="M0 0h5v9h9v3h-14z"/>'},
    }
    for family in pretrain_sources.ICON_FAMILIES:
        pack(cache, family, icons if family in ("ph", "tabler") else {})
    for family in pretrain_sources.EMOJI_FAMILIES:
        pack(cache, family, emoji if family == "noto-v1" else {})
    clipart = [
        ("svg/a/wombat_1.svg", svg("Wombat", width=20)),
        ("svg/a/thing.svg", svg("Thing", held_out.name, width=20)),
    ]
    drawn = {"\U0001f499": picture(3, 3, 60, 9, 20, 60), "\U0001f300": picture(60, 3, 33, 60, 20, 40)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pretrain_data, "fetch_debian", lambda name, folder: clipart if "clip" in name else [("a.ttf", b"")]
        )
        patch.setattr(pretrain_data, "read_font", lambda font, texts: [(t, drawn[t]) for t in texts if t in drawn])
        return build_drawings(cache)


def test_held_out_concepts_are_in_no_family(built: Drawings) -> None:
    data = EmojiStyles()
    emoji = {key for key in built.keys if not key.startswith(ICON)}
    assert emoji <= {concept.id for concept in data.concepts("train")}
    held_out_names = {" ".join(sorted(name_words(c.name))) for split in ("val", "test") for c in data.concepts(split)}
    assert not held_out_names & {key.removeprefix(ICON) for key in built.keys}
    held_out = [data.images(s, data.concepts(split, (s,))) for s in STYLES for split in ("val", "test")]
    stacked = np.concatenate([images.permute(0, 2, 3, 1).numpy() for images in held_out])
    assert nearest(signatures(built.images), signatures(stacked))[0].max() < NEAR_DUPLICATE


def test_near_duplicates_leave_and_are_counted(built: Drawings) -> None:
    assert f"{ICON}lookalike" not in built.keys, "it looks like the drawing of a held-out concept in another family"
    assert built.near_duplicates["ph"] == built.near_duplicates["tabler"] == 1
    assert built.near_duplicates["noto"] > 0 and built.counts["noto"] + built.near_duplicates["noto"] == 1086
    assert sum(built.counts.values()) == len(built.images)
    rows = [row for group in built.groups for family in group for row in family]
    assert sorted(rows) == list(range(len(built.images)))


def test_a_subject_joins_its_drawings_of_all_sources(built: Drawings) -> None:
    wombat = built.keys.index(f"{ICON}wombat")
    assert built.families[wombat] == ["tabler", "ph", "openclipart"] and built.captions[wombat] == "wombat"
    shown = built.keys.index("1f300")
    assert built.families[built.keys.index("1fa75")][-1] == "noto-v1", "light blue heart is not the held-out blue heart"
    assert "noto-v1" not in built.families[built.keys.index("1f51f")], "keycap 8 is held out, and is no keycap 10"
    assert {"noto", "noto-v1", "symbola", "ph", "tabler"} <= set(built.families[shown])
    assert not {"sketch", "outline", "twemoji"} & set(built.counts)


def test_built_drawings_are_cached(built: Drawings, cache: Path) -> None:
    again = build_drawings(cache)
    assert (again.keys, again.families, again.counts) == (built.keys, built.families, built.counts)
    assert np.array_equal(again.images, built.images)


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="pretraining needs npm on the PATH to fetch the icon families"):
        fetch_family("ph", "1.2.2", tmp_path)
    with pytest.raises(RuntimeError, match="pretraining needs dpkg-deb on the PATH to fetch openclipart-svg"):
        list(pretrain_sources.fetch_debian("openclipart-svg", tmp_path))
