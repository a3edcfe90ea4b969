"""Small trees of pictures in the layouts of the public data sets."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (20, 16)) -> Path:
    """Write a picture of random pixels, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def damaged(path: Path) -> Path:
    """Truncate a picture file to half its length."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def dsr(root: Path, n: int = 4, styles: tuple[str, ...] = ("art", "sketch", "mosaic")) -> Path:
    """Write DSR with n pictures in two folders."""
    entries = []
    for i in range(n):
        image = f"n0{i % 2}/{i}.png"
        for style in ("images", *styles):
            picture(root / style / image, seed=i)
        text = root / "text" / f"n0{i % 2}/{i}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(f"picture number {i}\nsecond line\n")
        entries.append({"image": image, "caption": f"n0{i % 2}/{i}.txt"})
    (root / "test.json").write_text(json.dumps(entries))
    return root


def split_dsr(root: Path, training: int = 30, test: int = 26) -> Path:
    """Write DSR in two styles with a training and a test part."""
    dsr(root, n=training + test, styles=("art", "sketch"))
    entries = json.loads((root / "test.json").read_text())
    (root / "train.json").write_text(json.dumps(entries[:training]))
    (root / "test.json").write_text(json.dumps(entries[training:]))
    return root


def domainnet(root: Path, styles: tuple[str, ...] = ("real", "clipart", "sketch"), n: int = 2) -> Path:
    """Write DomainNet with two categories of n pictures in each style."""
    for style in styles:
        lines = []
        for label, category in enumerate(("ant", "hot_dog")):
            for i in range(n):
                name = f"{style}/{category}/{style}_{label}_{i}.png"
                picture(root / name, seed=10 * label + i)
                lines.append(f"{name} {label}")
        (root / f"{style}_test.txt").write_text("\n".join(lines) + "\n")
    return root


def matching(root: Path, n: int = 12, styles: tuple[str, ...] = ("photos", "sketches")) -> Path:
    """Write folders of pictures with the same names, photos as JPEG and the others as PNG."""
    for style in styles:
        for i in range(n):
            picture(root / style / f"{i:02}.{'jpg' if style == 'photos' else 'png'}", seed=i)
    return root


RENDERINGS = ("tx_000000000000", "tx_000100000000")


def sketchy(root: Path, renderings: tuple[str, ...] = RENDERINGS) -> Path:
    """Write Sketchy in its published layout: photos, and numbered sketches of them, in every folder of a rendering.

    A photo, its renderings and its sketch have the same pixels.
    """
    for rendering in renderings:
        for number, category in enumerate(("cat", "dog")):
            for i in range(2):
                seed = 2 * number + i
                picture(root / f"photo/{rendering}/{category}/n{i}_{category}.png", seed)
                picture(root / f"sketch/{rendering}/{category}/n{i}_{category}-{i + 1}.png", seed)
        picture(root / f"sketch/{rendering}/cat/other.png", seed=9)
    return root


def tu_berlin(root: Path) -> Path:
    """Write TU-Berlin in its published layout (numbers continue across categories) beside photos of its categories."""
    _two_of_each(root, ("airplane", "alarm clock"), "png/{category}/{count}.png", "photo/{category}/n0{number}_{i}.jpg")
    (root / "png/filelist.txt").write_text("airplane/1.png\n")
    return root


def quickdraw_extended(root: Path) -> Path:
    """Write QuickDraw-Extended in its published layout: sketches named by key, photos numbered by source."""
    sketch, photo = "sketches_final/{category}/5{number}{i}.png", "images_final/{category}/flickr_{i}.jpg"
    _two_of_each(root, ("bear", "windmill"), f"QuickDraw_{sketch}", f"QuickDraw_{photo}")
    return root


def split_archive(root: Path, training: tuple[str, ...], test: tuple[str, ...], test_folder: str = "val") -> Path:
    """Write sketches and photos of two in each category, the test categories in a folder of their own."""
    for folder, categories in (("train", training), (test_folder, test)):
        _two_of_each(root / folder, categories, "sketch/{category}/{i}.jpg", "photo/{category}/{i}.jpg")
    return root


def of_categories(root: Path, categories: tuple[str, ...], queries: int = 1, gallery: int = 1) -> Path:
    """Write sketches and photos of categories, as empty files."""
    for style, count in (("sketch", queries), ("photo", gallery)):
        for category in categories:
            folder = root / style / category
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (folder / f"{style}{i}.png").touch()
    return root


def pairs(root: Path, names: list[tuple[str, str]]) -> Path:
    """Write a table of (query, target) and its pictures; return the table."""
    for name in {name for pair in names for name in pair}:
        picture(root / name, seed=len(name))
    table = root / "pairs.csv"
    table.write_text("query,target\n" + "".join(f"{query},{target}\n" for query, target in names), encoding="utf-8")
    return table


def _two_of_each(root: Path, categories: tuple[str, ...], *paths: str) -> None:
    for number, category in enumerate(categories):
        for i in range(2):
            for path in paths:
                picture(root / path.format(category=category, number=number, i=i, count=2 * number + i + 1), number)


def shards(root: Path, n: int = 2, styles: tuple[str, ...] = ("photo", "sketch")) -> Path:
    """Write two WebDataset shards of n keys each."""
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        with tarfile.open(root / f"part-{shard:03}.tar", "w") as tar:
            for i in range(n):
                for style in styles:
                    png = picture(root / "loose.png", seed=10 * shard + i)
                    tar.add(png, f"{i:04}.{style}.png")
                    png.unlink()
                about = {"caption": f"thing {i} of {shard}"} if shard else {"category": "cat"}
                add_member(tar, f"{i:04}.json", json.dumps(about).encode())
                add_member(tar, f"{i:04}.cls", b"dog" if shard else b"")
    return root


def shard_of_one_key(root: Path, name: str, text: bytes) -> Path:
    """Write a WebDataset shard of a photo, a sketch and one text file, whose name is `name`."""
    root.mkdir(parents=True, exist_ok=True)
    png = picture(root / "loose.png")
    with tarfile.open(root / "0.tar", "w") as tar:
        for style in ("photo", "sketch"):
            tar.add(png, f"a.{style}.png")
        add_member(tar, name, text)
    png.unlink()
    return root


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar of members with these names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            add_member(opened, name, content)
    return path


def encoded(seed: int = 0, form: str = "PNG") -> bytes:
    """Return the file of a picture of random pixels, the same for the same seed."""
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, form)
    return content.getvalue()


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar from its content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
