"""Listing of picture files, and the errors of files that cannot be decoded."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from hystar_fast.data.image_files import find_images, list_images
from hystar_fast.data.image_set import Skipped, read_images
from hystar_fast.data.images import ResizeTo, decode_image, load_image
from hystar_fast.data.open import open_images
from tests.support import picture_trees as trees


def broken_dds() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "DDS")
    content = bytearray(file.getvalue())
    content[80:88] = struct.pack("<I", 4) + b"ABCD"  # a compression that does not exist
    return bytes(content)


def broken_avif() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "AVIF")
    content = bytearray(file.getvalue())
    start = content.index(b"mdat") + 4
    content[start : start + 20] = b"\xff" * 20
    return bytes(content)


def test_pictures_that_cannot_be_decoded_are_skipped_and_counted(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(4)]
    for folder in ("photo", "sketch"):
        for name in names:
            trees.picture(tmp_path / folder / "cat" / name)
    damaged = [broken_dds(), *([broken_avif()] if features.check("avif") else [])]
    for name, content in zip(names[1:], damaged, strict=False):
        (tmp_path / "sketch/cat" / name).write_bytes(content)
    images = open_images(str(tmp_path))
    skipped: list[Skipped] = []
    rows = [
        row for part, _ in read_images(images, images.of_style("sketch"), ResizeTo((8, 8)), skipped) for row in part
    ]
    assert rows == [0, *range(1 + len(damaged), 4)]
    assert [entry.path for entry in skipped] == [f"sketch/cat/{i + 1}.png" for i in range(len(damaged))]
    assert all("truncated or damaged" in entry.reason for entry in skipped)


@pytest.mark.parametrize(
    "error", [RuntimeError("frame 0"), NotImplementedError(), IndexError("a"), struct.error("b"), KeyError("c")]
)
def test_every_decoder_error_names_the_file(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    path = trees.picture(tmp_path / "a.png")

    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fails)
    reason = re.escape(str(error) or type(error).__name__)
    with pytest.raises(ValueError, match=rf"a\.png is truncated or damaged: {reason}"):
        load_image(path)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_errors_not_caused_by_the_picture_are_not_caught(
    tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trees.picture(tmp_path / "a.png")

    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fails)
    with pytest.raises(error):
        load_image(path)


def test_a_picture_with_too_many_pixels_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = trees.picture(tmp_path / "a.png", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"fewer pixels, but .*a\.png is too large: Image size \(400 pixels\)"):
        load_image(path)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "big.tif", "grey.pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 257, 1000], [32768, 65278, 65535]], dtype=">u2" if name == "big.tif" else "<u2")
    Image.fromarray(values).save(tmp_path / name)
    found = np.asarray(load_image(tmp_path / name))
    assert found[..., 0].tolist() == [[0, 1, 4], [128, 254, 255]]
    assert (found == found[..., :1]).all()


def test_transparent_parts_of_sixteen_bit_pictures_become_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 7]], dtype=np.uint16)).save(tmp_path / "a.png", transparency=7)
    assert np.asarray(load_image(tmp_path / "a.png"))[..., 0].tolist() == [[0, 255]]


@pytest.mark.parametrize("values", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70_000, np.int32)])
def test_pixel_values_of_unknown_range_are_rejected(values: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    with pytest.raises(ValueError, match=r"image of 8 or 16 bits, but a\.tif has values of an unknown range"):
        decode_image(file, "a.tif")


def test_every_common_format_is_read_and_macos_files_are_ignored(tmp_path: Path) -> None:
    for folder in ("photo", "sketch"):
        for name in ("1.tiff", "2.TIF", "3.jfif", "4.ppm"):
            trees.picture(tmp_path / folder / "cat" / name)
        (tmp_path / folder / "cat" / "._1.jpg").write_bytes(b"\0\5\26\7")
        (tmp_path / folder / "cat" / "about.txt").write_text("no picture")
    (tmp_path / "sketch/cat/5.svg").write_text("<svg/>")
    (tmp_path / "__MACOSX/photo/cat").mkdir(parents=True)
    (tmp_path / ".thumbnails").mkdir()
    images = open_images(str(tmp_path))
    assert images.styles == ("photo", "sketch")
    assert [r.path for r in images.of_style("sketch")] == [
        f"sketch/cat/{n}" for n in ("1.tiff", "2.TIF", "3.jfif", "4.ppm")
    ]
    assert images.skipped == (Skipped("sketch/cat/5.svg", "an image in an unsupported format, .svg"),)
    assert all(images.read(record).size == (20, 16) for record in images.records)
    assert len(find_images(tmp_path)[0]) == 8


def test_linked_categories_are_read_and_circular_links_terminate(tmp_path: Path) -> None:
    trees.picture(tmp_path / "elsewhere/cat/1.png")
    trees.picture(tmp_path / "set/photo/cat/1.png")
    (tmp_path / "set/sketch").mkdir()
    links = {
        "set/sketch/cat": tmp_path / "elsewhere/cat",
        "set/photo/cat/up": tmp_path / "set",
        "set/photo/cat/self": tmp_path / "set/photo/cat/self",
        "elsewhere/cat/back": tmp_path / "set/sketch",
        "set/photo/cat/gone.png": tmp_path / "nowhere.png",
    }
    for link, target in links.items():
        os.symlink(target, tmp_path / link)
    images = open_images(str(tmp_path / "set"))
    paths = [record.path for record in images.records]
    assert paths == ["photo/cat/1.png", "photo/cat/gone.png", "sketch/cat/1.png"]
    listed, unsupported = list_images(tmp_path / "elsewhere")
    assert listed == [Path("cat/1.png")] and unsupported == []


def test_a_folder_is_listed_in_order_with_its_subfolders(tmp_path: Path) -> None:
    trees.picture(tmp_path / "red.png")
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "b.JPG")
    (tmp_path / "notes.txt").write_text("not listed")
    assert [path.as_posix() for path in find_images(tmp_path)[0]] == ["a/b.JPG", "red.png"]


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds none"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        find_images(tmp_path / "missing")
