"""Decoding of files that are large, turned, or no pictures at all."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hystar_fast.data.emoji import load_emoji
from hystar_fast.data.image_set import FolderReader, ImageSet, Record, Skipped, read_images
from hystar_fast.data.images import MOST_PIXELS, ResizeTo, TooManyPixels, decode_image, least_side, load_image
from hystar_fast.methods.suite import create_method, tiny_config

SIDE = 13_000


def bomb() -> bytes:
    """Return a PNG of 169 megapixels in some 21 kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * ((SIDE + 7) // 8 + 1) * SIDE, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def photo() -> bytes:
    """Return a drawing as a JPEG of 12 megapixels with some noise."""
    drawings = load_emoji("test")
    picture = drawings.read(drawings.gallery[7]).resize((3000, 3000), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (4000, 3000), "white")
    canvas.paste(picture, (500, 0))
    noise = np.random.default_rng(0).normal(0, 6, (3000, 4000, 1)).astype(np.int16)
    pixels = (np.asarray(canvas).astype(np.int16) + noise).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def test_a_turned_photo_is_read_upright(tmp_path: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "turned.png"), load_image(tmp_path / "upright.png"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header_in_little_memory(tmp_path: Path) -> None:
    content = bomb()
    assert len(content) < 40_000 and SIDE * SIDE > MOST_PIXELS
    with pytest.raises(
        TooManyPixels, match=r"fewer pixels, but a\.png is too large: 13000 x 13000 pixels, more than 120"
    ):
        decode_image(io.BytesIO(content), "a.png")
    (tmp_path / "a.png").write_bytes(content)
    code = (
        "import resource, sys\n"
        "from hystar_fast.data.images import load_image\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
        "try:\n    load_image(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, check=False
    )
    assert "is too large: 13000 x 13000" in done.stdout, done.stderr


@pytest.mark.parametrize("limit", [11, 12])
def test_the_limit_of_pixels_is_the_callers(limit: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "PNG")
    if limit < 12:
        with pytest.raises(TooManyPixels, match="4 x 3 pixels, more than 11"):
            decode_image(file, "a.png", most_pixels=limit)
    else:
        assert decode_image(file, "a.png", most_pixels=limit).size == (4, 3)


def test_a_large_jpeg_is_decoded_small_with_the_same_embedding(photo: bytes) -> None:
    resize = ResizeTo((64, 64))
    whole = decode_image(io.BytesIO(photo), "a.jpg")
    small = decode_image(io.BytesIO(photo), "a.jpg", least=least_side(resize))
    assert whole.size == (4000, 3000) and small.size == (500, 375)
    assert decode_image(io.BytesIO(photo), "a.jpg", least=1000).size == (2000, 1500)
    for name in ("frozen", "hystar"):
        method = create_method(name, tiny_config())
        with torch.no_grad():
            one, two = method.encode_image(torch.stack([resize(whole), resize(small)]))
        assert float(one @ two) > 0.9995


def test_pictures_of_folders_are_decoded_small_and_others_never_below_their_size(tmp_path: Path, photo: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(photo)
    Image.new("RGB", (300, 200), "red").save(tmp_path / "b.png")
    Image.new("RGB", (300, 200), "red").save(tmp_path / "c.jpg")
    reader = FolderReader(tmp_path)
    sizes = [reader.reduced(Record(name, ""), 128).size for name in ("a.jpg", "b.png", "c.jpg")]
    assert sizes == [(500, 375), (300, 200), (300, 200)]
    assert reader(Record("a.jpg", "")).size == (4000, 3000)
    sizes.clear()

    def resize(picture: Image.Image) -> torch.Tensor:
        sizes.append(picture.size)
        return ResizeTo((64, 64))(picture)

    resize.size = (64, 64)  # type: ignore[attr-defined]
    images = ImageSet("mine", "", (Record("a.jpg", ""),), reader)
    skipped: list[Skipped] = []
    [(rows, pixels)] = read_images(images, images.records, resize, skipped)  # type: ignore[arg-type]
    assert rows == [0] and pixels.shape == (1, 3, 64, 64) and sizes == [(500, 375)] and not skipped


def test_batches_hold_the_readable_pictures_of_their_records(tmp_path: Path) -> None:
    records = []
    for i in range(11):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / f"{i}.png")
        if i in (3, 4, 5, 10):
            (tmp_path / f"{i}.png").write_text("no picture")
        records.append(Record(f"{i}.png", ""))
    skipped: list[Skipped] = []
    images = ImageSet("mine", "", tuple(records), FolderReader(tmp_path))
    found = [
        (rows, pixels[:, 0, 0, 0].tolist())
        for rows, pixels in read_images(images, records, ResizeTo((2, 2)), skipped, batch_size=3)
    ]
    assert found == [([0, 1, 2], [0, 1, 2]), ([6, 7, 8], [6, 7, 8]), ([9], [9])]
    assert [entry.path for entry in skipped] == ["3.png", "4.png", "5.png", "10.png"]
