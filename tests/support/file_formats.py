"""A small file of every format that others write and this package reads, and how it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image
from safetensors.torch import save_file

from hystar_fast.data.classes import open_classes
from hystar_fast.data.images import load_image
from hystar_fast.data.open import open_images
from hystar_fast.models.tiny import create_tiny
from hystar_fast.train.settings import read_settings
from tests.support import picture_trees as trees

Made: TypeAlias = "tuple[Path, Callable[[], Any]]"
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


def picture(folder: Path, kind: str) -> Made:
    path = folder / f"picture.{kind}"
    Image.new("RGB", (37, 23), "red").save(path)
    return path, lambda: load_image(path)


def tensors(folder: Path) -> Made:
    path = folder / "tiny.safetensors"
    save_file(create_tiny(None)[0].state_dict(), path)
    return path, lambda: create_tiny(path)


TEXTS = (dsr, domainnet, pairs, coco, flickr, class_names, coop, icons, settings)


def read_damaged(path: Path, content: bytes, read: Callable[[], Any]) -> bool:
    """Read a damaged file: it may still be right, and an error is one line that names it or its folder.

    Returns:
        Whether it was read.
    """
    path.write_bytes(content)
    try:
        read()
        return True
    except (ValueError, TypeError) as error:
        assert "\n" not in str(error)
        assert path.name in str(error) or path.parent.name in str(error)
        return False
