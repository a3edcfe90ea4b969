"""Reading pictures, good and bad, and running a method over many."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.embed import (
    embed_images,
    embed_styles,
    embed_texts,
    find_pictures,
    load_image,
    thumbnail,
)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    noise = torch.randint(0, 255, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(path)
    return path


def test_transparent_parts_become_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_every_mode_is_read(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (3, 5)).save(path)
    assert load_image(path).mode == "RGB"


def test_a_wide_picture_is_padded_with_white_and_not_stretched(picture):
    tensor = thumbnail(Image.new("RGB", (60, 30), "black"), 20)
    assert tensor.shape == (3, 20, 20)
    assert tensor[:, 0].min() == 255
    assert tensor[:, 10].max() == 0


def test_missing_truncated_and_foreign_files_are_named(tmp_path, picture):
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


def test_a_folder_is_listed_in_order_with_its_subfolders(tmp_path, picture):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "b.JPG")
    (tmp_path / "notes.txt").write_text("not listed")
    assert [path.as_posix() for path in find_pictures(tmp_path)[0]] == ["a/b.JPG", "red.png"]


def test_a_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds none"):
        find_pictures(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        find_pictures(tmp_path / "missing")


def test_batches_do_not_change_the_embeddings_and_progress_counts_them_all():
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    done: list[int] = []
    whole = embed_images(Pixels(), images, batch_size=100)
    split = embed_images(Pixels(), images, batch_size=3, progress=done.append)
    assert torch.equal(whole, split)
    assert done == [3, 3, 1]
    assert torch.allclose(whole, embed_images(Pixels(), images.float() / 255))


def test_a_method_without_text_or_style_says_none():
    assert embed_texts(Pixels(), ["a"]) is None
    assert embed_styles(Pixels(), torch.zeros(1, 3, 8, 8)) is None


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 8, 8), (2, 1, 8, 8)])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"images must be \[n, 3, H, W\]"):
        embed_images(Pixels(), torch.zeros(shape))
