"""Decoding, resizing and normalising pictures."""

from __future__ import annotations

import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from hystar_fast.data.images import Normalise, Preprocess, ResizeTo, load_image, thumbnail, to_picture, to_uint8
from tests.support import picture_trees


@pytest.fixture
def picture(tmp_path):
    return picture_trees.picture(tmp_path / "noise.png", size=(60, 40))


def test_transparent_parts_become_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_every_mode_is_read(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (3, 5)).save(path)
    assert load_image(path).mode == "RGB"


def test_a_wide_picture_is_padded_with_white_and_not_stretched():
    tensor = thumbnail(Image.new("RGB", (60, 30), "black"), 20)
    assert tensor.shape == (3, 20, 20)
    assert tensor[:, 0].min() == 255
    assert tensor[:, 10].max() == 0


def test_missing_truncated_and_foreign_files_are_rejected(tmp_path, picture):
    with pytest.raises(ValueError, match=r"nothing\.png does not exist"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match="is not a file"):
        load_image(tmp_path)
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"cut\.png is truncated or damaged"):
        load_image(cut)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is not an image"):
        load_image(tmp_path / "text.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.png is not an image"):
        load_image(tmp_path / "empty.png")


MODES = {"crop": "shortest", "squash": "squash", "pad": "longest"}
OPTIONS = [
    (fit, size, interpolation)
    for fit in MODES
    for size in ((24, 24), (32, 20))
    for interpolation in ("bicubic", "bilinear")
    # open_clip always uses bicubic interpolation for a crop that is not square
    if (fit, size, interpolation) != ("crop", (32, 20), "bilinear")
]


@pytest.mark.parametrize(("fit", "size", "interpolation"), OPTIONS)
@pytest.mark.parametrize("shape", [(60, 40), (40, 61), (24, 24), (17, 90), (7, 5)])
def test_resizing_gives_exactly_the_pixels_of_open_clip(shape, size, fit, interpolation, tmp_path):
    picture = Image.open(picture_trees.picture(tmp_path / "noise.png", size=shape))
    theirs = image_transform(
        size,
        is_train=False,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        resize_mode=MODES[fit],
        interpolation=interpolation,
        fill_color=9,
    )
    expected = (theirs(picture) * 255).round().to(torch.uint8)
    assert torch.equal(ResizeTo(size, fit, interpolation, fill=9)(picture), expected)


def test_the_input_of_a_model_is_resized_then_normalised():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    picture = Image.new("RGBA", (30, 20), (255, 0, 51, 255))
    found = Preprocess(ResizeTo((8, 8)), Normalise(mean, std))(picture)
    expected = TF.normalize(torch.tensor([1.0, 0.0, 0.2]).view(3, 1, 1).expand(3, 8, 8), mean, std)
    torch.testing.assert_close(found, expected)


def test_bytes_and_numbers_between_0_and_1_are_normalised_alike():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    normalise = Normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert torch.equal(normalise(images), normalise(images.float() / 255))
    assert torch.equal(normalise(images)[:, 1], (images[:, 1].float() / 255 - 0.4) / 0.3)


def test_pixels_survive_conversion_to_a_picture_and_back():
    pixels = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(to_uint8(to_picture(pixels)), pixels)
    assert torch.equal(to_uint8(to_picture(pixels.float() / 255)), pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 8),), "size must be at least 1 pixel a side"),
        (((8, 8), "stretch"), r"fit must be one of \('crop', 'squash', 'pad'\), got 'stretch'"),
        (((8, 8), "crop", "nearest"), r"interpolation must be one of \('bicubic', 'bilinear'\), got 'nearest'"),
    ],
)
def test_wrong_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResizeTo(*arguments)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_a_picture_is_upright_by_its_orientation(tmp_path, orientation, suffix):
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste("red", (0, 0, 24, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how such a camera stores it: Transpose by number
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"x.{suffix}", exif=exif, quality=95)
    found = load_image(tmp_path / f"x.{suffix}")
    assert found.size == (48, 32)
    difference = to_uint8(found).int() - to_uint8(upright).int()
    assert difference.abs().float().mean() < 4, "the red quarter is not at the upper left"


@pytest.mark.parametrize("size", [(2, 20_000), (20_000, 2)], ids=str)
def test_a_long_strip_needs_little_memory(size, monkeypatch):
    largest = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *rest: largest.append(size) or resize(image, size, *rest)
    )
    half = Image.new("RGB", size, "white")
    middle = tuple(side // 2 for side in size)
    half.paste("black", (0, 0, middle[0] if size[0] > 2 else 2, middle[1] if size[1] > 2 else 2))
    pixels = ResizeTo((224, 224))(half).float().mean(0) / 255
    assert max(largest[0]) <= 224 * 100
    along = pixels.mean(0) if size[0] > 2 else pixels.mean(1)
    assert along[:40].max() < 0.1 and along[-40:].min() > 0.9, "the crop is not the middle of the strip"
