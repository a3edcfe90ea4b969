"""Icon families as data sets: every icon in the weights or styles of its family (Phosphor, for example).

A family is an unpacked Iconify package: ``npm pack @iconify-json/ph && tar xzf iconify-json-ph-*.tgz``. Its
``metadata.json`` names the suffixes of a style (``heart-bold``). No family is shipped; rendering needs resvg-py.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hystar_fast.data.hold_out import hash_fraction
from hystar_fast.data.image_set import ImageSet, Record, layout_error
from hystar_fast.data.text_files import parse_json, read_text

LAYOUT = "icons.json and metadata.json with suffixes of two styles at least, as in the npm package @iconify-json/ph"
SIDE = 224  # pixels of a rendered icon
_SHARES = {"test": 0.2, "val": 0.1}  # of the icons; the rest is for training


def load_icons(root: str | Path, split: str = "test", gallery_style: str | None = None) -> ImageSet:
    """List the icons that a family draws in several styles; a style is a suffix of the icon's name.

    The name without its suffix is the instance, and its words are the caption. A hash of this name decides the split:
    20 % test, 10 % validation.

    Args:
        root: the folder of the package.
        split: "train", "val" or "test".
        gallery_style: the style of the gallery; by default the one without a suffix.

    Raises:
        ValueError: another layout, an unknown split or style.
        ModuleNotFoundError: resvg-py is not installed.
    """
    if split not in ("train", *_SHARES):
        raise ValueError(f"split must be train, val or test, got {split!r}")
    root = Path(root)
    family, suffixes = _read(root)
    try:
        import resvg_py  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "icons are rendered with resvg-py: pip install 'hystar-fast[icons]'", name="resvg_py"
        ) from error
    styles = {label.lower(): suffix for suffix, label in suffixes.items()}
    gallery = (gallery_style or suffixes.get("") or next(iter(suffixes.values()))).lower()
    if gallery not in styles:
        raise ValueError(f"gallery_style must be one of {', '.join(styles)} of {root.name}, got {gallery_style!r}")
    icons = family["icons"]
    drawn: dict[str, dict[str, str]] = {}
    longest = sorted((suffix for suffix in suffixes if suffix), key=len, reverse=True)
    for name, icon in icons.items():
        suffix = next((suffix for suffix in longest if name.endswith(f"-{suffix}")), "")
        if suffix in suffixes and not icon.get("hidden"):
            drawn.setdefault(name.removesuffix(f"-{suffix}"), {})[suffixes[suffix].lower()] = name
    kept = {base: names for base, names in drawn.items() if gallery in names and len(names) > 1}
    kept = {base: names for base, names in kept.items() if _split(base) == split}
    if not kept:
        raise layout_error(
            "an icon family", root, LAYOUT, f"no icon of the {split} split drawn in {gallery} and another style"
        )
    order = (gallery, *(style for style in styles if style != gallery))
    records = [
        Record(names[style], style, None, base, (base.replace("-", " "),))
        for style in order
        for base, names in kept.items()
        if style in names
    ]

    def read(record: Record) -> Image.Image:
        icon = icons[record.path]
        width = icon.get("width", family.get("width", 16))
        found = render(icon["body"], width, icon.get("height", family.get("height", width)), SIDE)
        if found is None:
            raise ValueError(f"record must be an icon that can be rendered, got {record.path}")
        return Image.fromarray(found)

    return ImageSet(family.get("prefix", root.name), gallery, tuple(records), read, has_splits=True, is_registered=True)


def render(body: str, width: float, height: float, side: int) -> np.ndarray | None:
    """Render an icon on white, with black for currentColor, as uint8 [side, side, 3]; None if that fails."""
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    black = body.replace("currentColor", "#000")
    return render_svg(f'<svg {namespaces} viewBox="0 0 {width} {height}">{black}</svg>', side)


def render_svg(svg: str, side: int) -> np.ndarray | None:
    """Render a whole SVG on white, centred in a square, as uint8 [side, side, 3]; None if that fails."""
    import resvg_py

    try:
        # Sizes in points or inches need a resolution.
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, background="white", dpi=96))
    except (ValueError, RuntimeError):
        return None
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if picture.size != (side, side):
        canvas = Image.new("RGB", (side, side), "white")
        picture.thumbnail((side, side))
        canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = canvas
    return np.asarray(picture)


def _read(root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a family and its mapping of suffix to style."""
    try:
        family = parse_json(read_text(root / "icons.json"))
        suffixes = parse_json(read_text(root / "metadata.json"))["suffixes"]
        if len(suffixes) < 2 or not all("body" in icon for icon in family["icons"].values()):
            raise ValueError("fewer than two suffixes, or an icon without a body")
    except OSError as error:
        raise layout_error("an icon family", root, LAYOUT) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise layout_error("an icon family", root, LAYOUT, f"{type(error).__name__}: {error}") from error
    return family, suffixes


def _split(base: str) -> str:
    place = hash_fraction(base, "icons")
    for name, share in _SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"
