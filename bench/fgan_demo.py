"""Measure FGAN on the embedded drawings beside the frozen backbone, LoRA and Hystar.

    python bench/fgan_demo.py                      # three seeds: docs/results/fgan.json, fgan.md and two pictures
    python bench/fgan_demo.py --seeds 1 --steps 4 --output /tmp/demo

Every method trains on the pictures, names and keywords of the training concepts of seen subgroups. Concepts of unseen
subgroups are searched in both directions. Runs are kept in --runs; a second call makes only what is missing or changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from unseen_demo import Demo, beside, run_command

from hystar_fast.data.image_set import ImageSet, read_images
from hystar_fast.data.images import to_picture
from hystar_fast.experiments.embedded_runs import chance, frozen, unseen_parts
from hystar_fast.experiments.fgan_runs import COSINE, FIGURES, SOURCE, embed_pairs, figures
from hystar_fast.experiments.plots import Cloud, draw_clouds
from hystar_fast.methods.fgan.fgan_method import FGAN
from hystar_fast.methods.interface import Method
from hystar_fast.retrieval.plot_style import save_picture

_SALIENCY, _MAP = "fgan_saliency.png", "fgan_map.png"
_MAPPED = 8  # the largest subgroups
SHOWN = ("dog face", "guitar", "pizza", "trophy", "umbrella", "rocket", "tulip", "ambulance")
_PICTURES = 6
_SIDE, _LINE = 144, 11
_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # before the first piece of a word


def _draw(method: Method, parts: Mapping[str, ImageSet], output: Path) -> None:
    _draw_saliency(method, parts, output)
    _draw_map(method, parts["unseen-all"], output / _MAP)


def _draw_map(method: Method, images: ImageSet, path: Path) -> None:
    """Draw pictures and texts of the largest subgroups, before training and after it: the paper's Figure 5."""
    assert isinstance(method, FGAN)
    counted = Counter(record.category for record in images.gallery)
    largest = images.select(categories=[str(name) for name, _ in counted.most_common(_MAPPED)])
    rows: dict[str, dict[str, Cloud]] = {"subgroup": {}, "side": {}}
    for name, shown in {"frozen CLIP": frozen(), "FGAN, regions": method}.items():
        records, *both = embed_pairs(shown, largest)
        width = method.own.embedding if shown is method else None
        vectors = torch.cat(both)[:, :width]
        sides = ["picture"] * len(records) + ["text"] * len(records)
        rows["subgroup"][name] = Cloud(vectors, [str(record.category) for record in records] * 2)
        rows["side"][name] = Cloud(vectors, sides)
    draw_clouds(rows, path, f"Pictures and texts of the {_MAPPED} largest unseen subgroups (t-SNE)")


@torch.no_grad()
def _draw_saliency(method: Method, parts: Mapping[str, ImageSet], output: Path) -> None:
    """Draw pictures with the saliency of their patches, and their texts with that of each piece."""
    assert isinstance(method, FGAN)
    images = parts["unseen-all"]
    named = {record.caption.partition(",")[0]: record for record in images.gallery if record.caption}
    records = [named[name] for name in SHOWN if name in named]
    records += [record for record in images.gallery[:: len(images.gallery) // _PICTURES] if record not in records]
    records = records[:_PICTURES]
    sheet = Image.new("RGB", (2 * (2 * _SIDE + 150), len(records) // 2 * (_SIDE + 20)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, record in enumerate(records):
        left, top = number % 2 * (2 * _SIDE + 150), number // 2 * (_SIDE + 20)
        ((_, picture),) = read_images(images, [record], method.resize, [])
        found = method.heads.image(method.images(picture), select=method.select)
        text = method.describe_texts([str(record.caption)])
        assert found.saliency is not None and text.saliency is not None and method.backbone is not None
        large = to_picture(picture[0]).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        sheet.paste(large, (left, top))
        sheet.paste(_heat(large, found.saliency[0], method.own.image_regions_kept), (left + _SIDE, top))
        pieces = _pieces(method, str(record.caption))
        values = text.saliency[0, : len(pieces)]
        kept = {*values.topk(min(int(method.own.text_regions_kept), len(values))).indices.tolist()}
        for row, (piece, value) in enumerate(zip(pieces, values.tolist(), strict=True)):
            y, x = top + row * _LINE, left + 2 * _SIDE + 4
            ink = "black" if row in kept else "lightgrey"
            draw.rectangle((x, y + 2, x + round(40 * value), y + _LINE - 2), fill=ink)
            draw.text((x + 46, y), piece, fill="black" if row in kept else "grey")
    save_picture(sheet, output / _SALIENCY, 64)


def _heat(picture: Image.Image, saliency: torch.Tensor, kept: int | float) -> Image.Image:
    side = int(len(saliency) ** 0.5)
    low, high = saliency.min(), saliency.max()
    shares = ((saliency - low) / (high - low).clamp(min=1e-6)).tolist()
    shown = picture.convert("L").convert("RGB")
    veil = ImageDraw.Draw(shown, "RGBA")
    chosen = {*saliency.topk(int(kept)).indices.tolist()}
    size = _SIDE // side
    for place, share in enumerate(shares):
        x, y = place % side * size, place // side * size
        veil.rectangle((x, y, x + size - 1, y + size - 1), fill=(220, 40, 0, round(170 * share)))
    for place in chosen:
        x, y = place % side * size, place // side * size
        veil.rectangle((x, y, x + size - 1, y + size - 1), outline=(0, 0, 0, 255))
    return shown


def _pieces(method: FGAN, text: str) -> list[str]:
    """Return the pieces of a text behind the token that begins it; the last one ends it."""
    assert method.backbone is not None
    tokenizer: Any = method.backbone.tokenizer
    encoding = tokenizer._tokenizer.encode(text.lower())
    length = int((tokenizer([text])[0] != 0).sum()) - 2
    return [*(token.replace(_SPACE, " ") for token in encoding.tokens[:length]), "(end)"]


FGAN_DEMO = Demo(
    name="fgan",
    introduction=(
        "# FGAN on the embedded drawings",
        "",
        "Names and keywords find pictures and pictures find them, among concepts of unseen subgroups; both directions",
        "together. `mAP@all` of the subgroup, `R@1` of the own concept. All train on the pairs of the 866 training",
        "concepts of seen subgroups.",
    ),
    ending=(
        f"![Saliency]({_SALIENCY})",
        "",
        "Saliency of patches and of pieces of words, of unseen concepts: the framed patches and the black bars",
        "are those that make the region embedding.",
        "",
        f"![Map]({_MAP})",
    ),
    configs={
        "fgan": ("fgan-emoji", ()),
        **beside(f"data.source={SOURCE}", 'data.styles=["text"]'),
    },
    parts=partial(unseen_parts, SOURCE),
    chance=chance,
    measure=figures,
    figures=tuple(FIGURES),
    usual=COSINE,
    own="joint",
    other_ways=("regions", "labels"),
    draw=_draw,
    variants={f"fgan {change}": (f"fgan.{change}",) for change in ("jacobian=diagonal", "aggregate=mean", "alpha=0")},
)

if __name__ == "__main__":
    run_command(FGAN_DEMO)
