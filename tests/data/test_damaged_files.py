"""Files of other programs, cut or with one bit flipped: read, or refused in one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hystar_fast.data.classes import open_classes
from hystar_fast.data.images import load_image
from hystar_fast.data.open import open_images
from hystar_fast.models.tiny import create_tiny
from hystar_fast.models.torch_files import read_torch
from hystar_fast.train.settings import read_settings
from tests.support import picture_trees as trees
from tests.support.damage import cuts, damaged, flips

Made = tuple[Path, Callable[[], Any]]
PICTURES = ("png", "jpg", "webp", "gif", "bmp", "tif", "ppm", "jp2", "avif")


def dsr(folder: Path) -> Made:
    root = trees.dsr(folder)
    return root / "test.json", lambda: open_images(f"dsr:{root}")


def domainnet(folder: Path) -> Made:
    root = trees.domainnet(folder)
    return root / "real_test.txt", lambda: open_images(f"domainnet:{root}")


def pairs(folder: Path) -> Made:
    table = trees.pairs(folder, [("s/a.png", "p/a.png"), ("s/b.png", "p/b.png")])
    return table, lambda: open_images(f"pairs:{table}")


def captions(folder: Path, name: str, text: str) -> Made:
    trees.picture(folder / "a.png")
    (folder / name).write_text(text)
    return folder / name, lambda: open_images(f"captions:{folder / name}")


def coco(folder: Path) -> Made:
    images, annotation = [{"id": 1, "file_name": "a.png"}], {"image_id": 1, "caption": "a dog"}
    return captions(folder, "c.json", json.dumps({"images": images, "annotations": [annotation, annotation]}))


def flickr(folder: Path) -> Made:
    return captions(folder, "c.token", "a.png#0\ta dog\na.png#1\ta brown dog\n")


def class_names(folder: Path) -> Made:
    for name in ("a", "b"):
        for i in range(6):
            trees.picture(folder / name / f"{i}.png")
    (folder / "classnames.txt").write_text("a apple\nb pear tree\n")
    return folder / "classnames.txt", lambda: open_classes(str(folder))


def coop(folder: Path) -> Made:
    class_names(folder)
    entries = [[f"{name}/{i}.png", label, name] for label, name in enumerate("ab") for i in range(6)]
    (folder / "split_zhou_x.json").write_text(json.dumps({"train": entries, "val": [], "test": entries}))
    return folder / "split_zhou_x.json", lambda: open_classes(str(folder))


def icons(folder: Path) -> Made:
    drawn = {f"{name}{bold}": {"body": "<path d='M0 0h9v9z'/>"} for name in "abcdefgh" for bold in ("", "-bold")}
    folder.mkdir(exist_ok=True)
    (folder / "icons.json").write_text(json.dumps({"prefix": "ph", "icons": drawn, "width": 16}))
    (folder / "metadata.json").write_text(json.dumps({"suffixes": {"": "Regular", "bold": "Bold"}}))
    return folder / "icons.json", lambda: open_images(f"icons:{folder}", "train")


def shards(folder: Path) -> Made:
    root = trees.shards(folder)
    return root / "part-000.tar", lambda: open_images(f"shards:{root}")


def settings(folder: Path) -> Made:
    path = folder / "mine.toml"
    path.write_text('[model]\nbackbone = "tiny"\nblocks = [1, 2]\n[data]\nlimit = 4\n[optim]\nstatic_lr = 1e-3\n')
    return path, lambda: read_settings(str(path))


def tensors(folder: Path) -> Made:
    path = folder / "tiny.safetensors"
    save_file(create_tiny(None)[0].state_dict(), path)
    return path, lambda: create_tiny(path)


TEXTS = (dsr, domainnet, pairs, coco, flickr, class_names, coop, icons, settings)


@pytest.mark.parametrize("write", TEXTS, ids=lambda write: write.__name__)
def test_a_damaged_text_is_read_or_refused_by_name(write: Callable[[Path], Made], tmp_path: Path) -> None:
    path, read = write(tmp_path)
    read()
    for content in damaged(path.read_bytes(), 60):
        check(path, content, read)
    if write is not settings:  # without settings the defaults hold
        path.write_bytes(b"")
        with pytest.raises(ValueError, match=tmp_path.name):
            read()


@pytest.mark.parametrize("kind", PICTURES)
def test_a_damaged_picture_is_read_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{kind}"
    Image.new("RGB", (37, 23), "red").save(path)
    for content in damaged(path.read_bytes(), 30):
        check(path, content, lambda: load_image(path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"picture.{kind} is not an image"):
        load_image(path)


def test_a_shard_that_is_cut_anywhere_or_has_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path, read = shards(tmp_path)
    whole, expected = path.read_bytes(), len(read().records)
    end = whole.rstrip(b"\0")
    last = (len(end) + 511) // 512 * 512
    for content in cuts(whole[:last], 60):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name} does not have the layout of WebDataset shards"):
            read()
    second = whole.index(b"0000.json")
    for bit in range(8):
        content = bytearray(whole)
        content[second + 150] ^= 1 << bit  # its checksum
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"cut off or damaged at byte {second}"):
            read()
    for content in flips(whole, 60):
        check(path, content, read)
    path.write_bytes(whole)
    assert len(read().records) == expected


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path, read = tensors(tmp_path)
    for content in cuts(path.read_bytes(), 6):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"pretrained must hold the tiny backbone, got .*tiny\.safetensors"):
            read()
    state = {"weight": torch.arange(400.0), "bias": torch.zeros(3)}
    torch.save(state, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    for content in damaged(whole, 80):
        (tmp_path / "w.pt").write_bytes(content)
        try:
            found = read_torch(tmp_path / "w.pt")
        except Exception:  # anything, as the readers expect; but never other values
            continue
        assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def check(path: Path, content: bytes, read: Callable[[], Any]) -> None:
    """Read a damaged file: it may still be right, and an error is one line with the name of the file or its folder."""
    path.write_bytes(content)
    try:
        read()
    except (ValueError, TypeError) as error:
        assert "\n" not in str(error)
        assert path.name in str(error) or path.parent.name in str(error)
