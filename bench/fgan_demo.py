"""Measure FGAN on the embedded drawings beside the frozen backbone, LoRA and Hystar.

    python bench/fgan_demo.py                      # three seeds: docs/results/fgan.json, fgan.md, fgan_saliency.png
    python bench/fgan_demo.py --seeds 1 --steps 4 --output /tmp/demo

Every method trains on the pictures, names and keywords of the training concepts of seen subgroups. Concepts of unseen
subgroups are searched in both directions. Runs are kept in --runs; a second call makes only what is missing or changed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image, ImageDraw

from hystar_fast.data.image_set import ImageSet, read_images
from hystar_fast.data.images import to_picture
from hystar_fast.data.whole_files import write_whole
from hystar_fast.experiments.embedded_runs import chance, frozen, mean_over_seeds, run_folder, trained, unseen_parts
from hystar_fast.experiments.fgan_runs import COSINE, FIGURES, SOURCE, figures
from hystar_fast.methods.fgan.fgan_method import FGAN
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.retrieval.metrics import bootstrap_mean
from hystar_fast.retrieval.results_json import interval_info, read_json, run_info, write_json

_PAIRS = (f"data.source={SOURCE}", 'data.styles=["text"]', "data.validation=none", "run.validate_every=0")
CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fgan": ("fgan-emoji", ()),
    "lora": ("emoji", (*_PAIRS, "model.method=lora", "optim.learning_rate=0.003")),
    "hystar": ("emoji", _PAIRS),
}
_BESIDE = ("lora", "hystar")
SHOWN = ("dog face", "guitar", "pizza", "trophy", "umbrella", "rocket", "tulip", "ambulance")
_SIDE, _LINE = 144, 11
_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # before the first piece of a word


def main(
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Of each run; 0 for those of its settings.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder of the three files.")] = Path("docs/results"),
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/fgan-demo"),
) -> None:
    parts = unseen_parts(SOURCE)
    found: dict[str, dict[int, Any]] = {"frozen": {0: _figures(frozen(), parts)}}
    counts, seconds = {"frozen": 0}, {"frozen": 0.0}
    shown: FGAN | None = None
    for name, (config, changes) in CONFIGS.items():
        found[name] = {}
        for seed in range(seeds):
            folder = run_folder(runs / f"{name}-{seed}")
            own = [*changes, f"run.seed={seed}", *([f"optim.steps={steps}"] if steps else [])]
            start = time.process_time()
            method = trained(config, own, folder)
            taken = folder / "seconds.json"
            if not taken.is_file():
                write_json(taken, {"cpu": round(time.process_time() - start, 1)})
            seconds[name] = float(read_json(taken)["cpu"])
            counts[name] = sum(count_parameters(method).values())
            found[name][seed] = _figures(method, parts)
            if isinstance(method, FGAN) and seed == 0:
                shown = method
            typer.echo(f"{name}, seed {seed}: {seconds[name]:.0f} s of one core")
        # Written after every method, so that a run that is stopped leaves what it has.
        result = _summary(found, parts, counts, seconds, seeds)
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "fgan.json", result)
        write_whole(output / "fgan.md", _page(result).encode())
        if name == "fgan" and shown is not None:
            _draw_saliency(shown, parts["unseen-all"], output / "fgan_saliency.png")
    typer.echo(_page(result))


def _figures(method: Method, parts: dict[str, ImageSet]) -> dict[str, Any]:
    return {part: figures(method, images) for part, images in parts.items()}


def _summary(
    found: dict[str, dict[int, Any]],
    parts: dict[str, ImageSet],
    counts: dict[str, int],
    seconds: dict[str, float],
    seeds: int,
) -> dict[str, Any]:
    rows = []
    for name, runs in found.items():
        for way in runs[0][next(iter(parts))]:
            row: dict[str, Any] = {"method": name, "retrieval": way, "trained parameters": counts[name]}
            row["seconds of one core"] = seconds[name]
            for part in parts:
                row[part] = {}
                for figure in FIGURES:
                    ours = mean_over_seeds(runs, part, way, figure)
                    row[part][figure] = interval_info(bootstrap_mean(ours))
                    base = mean_over_seeds(found["frozen"], part, COSINE, figure)
                    if name != "frozen":
                        row[part][f"{figure} - frozen"] = interval_info(bootstrap_mean(ours - base))
                    if name == "fgan" and way == "joint":
                        for other in (name for name in _BESIDE if name in found):
                            paired = ours - mean_over_seeds(found[other], part, COSINE, figure)
                            row[part][f"{figure} - {other}"] = interval_info(bootstrap_mean(paired))
                        for other in ("regions", "labels"):
                            paired = ours - mean_over_seeds(runs, part, other, figure)
                            row[part][f"{figure} - {other}"] = interval_info(bootstrap_mean(paired))
            rows.append(row)
    return {
        **run_info(),
        "data": SOURCE,
        "seeds": seeds,
        "intervals": "95 %, paired bootstrap over concepts of the mean over seeds and directions",
        "sizes": {part: len(images.gallery) for part, images in parts.items()},
        "chance of mAP@all": {part: round(chance(images), 2) for part, images in parts.items()},
        "rows": rows,
    }


def _page(result: dict[str, Any]) -> str:
    many = f"{result['seeds']} seeds" if result["seeds"] > 1 else "one seed"
    lines = [
        "# FGAN on the embedded drawings",
        "",
        "Names and keywords find pictures and pictures find them, among concepts of unseen subgroups; mean of both",
        f"directions and of {many}, per cent, with 95 % bootstrap intervals over concepts. `mAP@all` of the subgroup,",
        "`R@1` of the own concept. All train on the pairs of the 866 training concepts of seen subgroups. Made by",
        f"`python bench/fgan_demo.py --seeds {result['seeds']}` on two cores of an {result['machine']['processor']}.",
        "",
    ]
    for part, size in result["sizes"].items():
        level = result["chance of mAP@all"][part]
        lines += [f"## {part}: {size} concepts (chance of mAP@all {level:.1f})", ""]
        lines += ["| method | compared by | mAP@all | minus frozen | R@1 | minus frozen |", "|---|---|---|---|---|---|"]
        for row in result["rows"]:
            cells = [row["method"], row["retrieval"]]
            for figure in FIGURES:
                cells += [_cell(row[part][figure]), _cell(row[part].get(f"{figure} - frozen"))]
            lines.append(f"| {' | '.join(cells)} |")
        joint = next(row for row in result["rows"] if row["retrieval"] == "joint")
        lines += ["", "FGAN by its joint similarity, minus others in pairs:", ""]
        lines += ["| minus | mAP@all | R@1 |", "|---|---|---|"]
        for other in (name for name in (*_BESIDE, "regions", "labels") if f"R@1 - {name}" in joint[part]):
            cells = [_cell(joint[part][f"{figure} - {other}"]) for figure in FIGURES]
            lines.append(f"| {other} | {' | '.join(cells)} |")
        lines.append("")
    missing = [name for name in CONFIGS if name not in {row["method"] for row in result["rows"]}]
    if missing:
        lines += [f"Not run yet: {', '.join(missing)}.", ""]
    costs = {row["method"]: row for row in result["rows"]}
    spent = [f"{n} {r['seconds of one core']:.0f} s, {r['trained parameters']:,} parameters" for n, r in costs.items()]
    lines += [f"Training on one core: {'; '.join(spent[1:])}.", "", "![Saliency](fgan_saliency.png)", ""]
    lines += ["Saliency of patches and of pieces of words, of unseen concepts: the framed patches and the black bars"]
    lines += ["are those that make the region embedding.", ""]
    return "\n".join(lines)


def _cell(value: dict[str, float] | None) -> str:
    return "" if value is None else "{value:.1f} [{low:.1f}, {high:.1f}]".format(**value)


@torch.no_grad()
def _draw_saliency(method: FGAN, images: ImageSet, path: Path) -> None:
    """Draw pictures with the saliency of their patches, and their texts with that of each piece."""
    named = {record.caption.partition(",")[0]: record for record in images.gallery if record.caption}
    records = [named[name] for name in SHOWN if name in named]
    records += [record for record in images.gallery[:: len(images.gallery) // 8] if record not in records]
    records = records[:8]
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
    sheet.quantize(64).save(path, optimize=True)


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


if __name__ == "__main__":
    typer.run(main)
