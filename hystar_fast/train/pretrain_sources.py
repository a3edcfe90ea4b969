"""Where the drawings for pretraining come from: npm's icon and emoji families, Openclipart, and the font Symbola.

Everything is fetched once with its ordinary client: ``npm pack``, and ``apt-get download`` on Debian or Ubuntu.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from hystar_fast.data.emoji import TILE
from hystar_fast.data.icons import render_svg

# name on npm (under @iconify-json) -> (version, licence). All are redistributable with attribution; none is bundled.
ICON_FAMILIES = {
    "tabler": ("1.2.41", "MIT"),
    "lucide": ("1.2.137", "ISC"),
    "material-symbols": ("1.2.98", "Apache-2.0"),
    "ph": ("1.2.2", "MIT"),
    "carbon": ("1.2.29", "Apache-2.0"),
    "mdi": ("1.2.3", "Apache-2.0"),
    "fluent": ("1.2.60", "MIT"),
    "iconoir": ("1.2.11", "MIT"),
    "bi": ("1.2.7", "MIT"),
    "ri": ("1.2.10", "Apache-2.0"),
    "mingcute": ("1.2.8", "Apache-2.0"),
    "hugeicons": ("1.2.35", "MIT"),
    "icon-park": ("1.2.4", "Apache-2.0"),
    "icon-park-outline": ("1.2.4", "Apache-2.0"),
    "flat-color-icons": ("1.2.3", "MIT"),
    "fluent-color": ("1.2.21", "MIT"),
    "healthicons": ("1.2.13", "MIT"),
    "game-icons": ("1.2.4", "CC-BY-3.0"),
    "solar": ("1.2.13", "CC-BY-4.0"),
}
EMOJI_FAMILIES = {
    "noto-v1": ("1.2.5", "Apache-2.0"),
    "fxemoji": ("1.2.2", "Apache-2.0"),
    "emojione": ("1.2.3", "CC-BY-4.0"),
    "emojione-monotone": ("1.2.1", "CC-BY-4.0"),
    "streamline-emojis": ("1.2.4", "CC-BY-4.0"),
}
# Debian package -> (version, licence)
DEBIAN_PACKAGES = {
    "openclipart-svg": ("0.18+dfsg", "public domain"),
    "fonts-symbola": ("2.60", "free for any use"),
}

LARGEST_FILE = 1_000_000  # bytes of an SVG
LONGEST_RENDERING = 10.0  # seconds
_SERIES = ("shapes/stars/", "games/cards/")  # a thousand stars that differ in their number of points, and playing cards
_KEYWORDS_ABOUT_FILES = frozenset({
    "hash", "unsorted", "icon", "icons", "theme", "clip_art", "clipart", "image", "media", "externalsource", "color",
    "colour", "computer", "signs_and_symbols", "public_domain", "action", "application", "filesystem", "mimetypes",
    "lemon_theme_icon", "none",
})  # fmt: skip


def fetch_family(family: str, version: str, directory: Path) -> dict[str, Any]:
    """Download one icon family with ``npm pack`` (once) and return its icons.json."""
    directory.mkdir(parents=True, exist_ok=True)
    archive = directory / f"iconify-json-{family}-{version}.tgz"
    if not archive.exists():
        _require("npm", "the icon families")
        command = ["npm", "pack", "--silent", f"@iconify-json/{family}@{version}"]
        subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(archive) as tar:
        handle = tar.extractfile("package/icons.json")
        if handle is None:
            raise RuntimeError(f"{archive} holds no package/icons.json")
        icons: dict[str, Any] = json.loads(handle.read())
    return icons


def icons_of(family: dict[str, Any]) -> Iterator[tuple[str, str, float, float]]:
    """Yield name, body, width and height of the icons of a family that are not hidden."""
    width, height = family.get("width", 16), family.get("height", family.get("width", 16))
    for name, icon in family["icons"].items():
        if not icon.get("hidden"):
            yield name, icon["body"], icon.get("width", width), icon.get("height", height)


def fetch_debian(package: str, directory: Path) -> Iterator[tuple[str, bytes]]:
    """Download a package with ``apt-get download`` (once) and yield path and content of its regular files."""
    directory.mkdir(parents=True, exist_ok=True)
    _require("dpkg-deb", package)
    if not any(directory.glob(f"{package}_*.deb")):
        _require("apt-get", package)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=directory, check=True)
    archive = next(directory.glob(f"{package}_*.deb"))
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            handle = tar.extractfile(member) if member.isreg() else None
            if handle is not None:
                yield member.name.removeprefix("./"), handle.read()


def _require(program: str, wanted: str) -> None:
    if shutil.which(program) is None:
        raise RuntimeError(f"pretraining needs {program} on the PATH to fetch {wanted}")


@dataclass(frozen=True)
class Clipart:
    """A drawing of Openclipart: its path, title (empty where it says nothing about the drawing), keywords, pixels."""

    path: str
    title: str
    keywords: tuple[str, ...]
    image: np.ndarray


def read_clipart(files: Iterable[tuple[str, bytes]]) -> Iterator[Clipart]:
    """Render the SVGs among `files` (path, content), without series, large, slow, broken and nearly blank ones."""
    found = [
        (path.partition("/svg/")[2], content.decode("utf-8", "replace"))
        for path, content in files
        if path.endswith(".svg") and len(content) <= LARGEST_FILE and not any(series in path for series in _SERIES)
    ]
    titles = [_first(r"<(?:dc:)?title[^>]*>([^<]+)<", svg) for _, svg in found]
    shared = Counter(titles)
    for (path, svg), title, image in zip(found, titles, _render_all([svg for _, svg in found]), strict=True):
        if image is None or image.std() < 8:
            continue
        own = title if shared[title] <= 3 and "lipart by" not in title else ""
        subjects = re.findall(r"<rdf:li>([^<]+)<", svg)
        keywords = [word.strip().lower() for word in (*subjects, *path.split("/")[:-1])]
        kept = (word for word in keywords if word and word not in _KEYWORDS_ABOUT_FILES)
        yield Clipart(path, own, tuple(dict.fromkeys(kept)), image)


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1].strip() if match else ""


def _render_all(svgs: list[str]) -> Iterator[np.ndarray | None]:
    """Render in another process, which ends when a drawing takes too long."""
    pool = None
    try:
        for svg in tqdm(svgs, desc="openclipart", mininterval=5):
            if pool is None:
                pool = multiprocessing.get_context("spawn").Pool(1)
                pool.apply(render_svg, ("<svg/>", TILE))  # the time limit is for rendering, not for imports
            try:
                yield pool.apply_async(render_svg, (svg, TILE)).get(LONGEST_RENDERING)
            except multiprocessing.TimeoutError:
                pool.terminate()
                pool = None
                yield None
    finally:
        if pool is not None:
            pool.terminate()


def read_font(font: bytes, texts: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Draw each text of one character that the font has, black on white, as uint8 [64, 64, 3]."""
    drawn = ImageFont.truetype(io.BytesIO(font), 96)
    absent = bytes(drawn.getmask("\U0010ffff"))
    for text in texts:
        left, top, right, bottom = (round(edge) for edge in drawn.getbbox(text))
        width, height = right - left, bottom - top
        if bytes(drawn.getmask(text)) == absent or min(width, height) <= 0:
            continue
        side = round(1.1 * max(width, height))
        canvas = Image.new("RGB", (side, side), "white")
        ImageDraw.Draw(canvas).text(
            ((side - width) // 2 - left, (side - height) // 2 - top), text, font=drawn, fill="black"
        )
        yield text, np.asarray(canvas.resize((TILE, TILE), Image.Resampling.LANCZOS))
