"""Measure how much an adapter can gain on the embedded drawings, on the training and validation concepts.

    python bench/demo_evidence.py style            # can z tell the styles apart?
                                                   # how much does a separate map for each style gain?
    python bench/demo_evidence.py adapt full       # one training run: full, static, lora, or Hystar with a z of
                                                   # clip, prefix, shuffled (clip's), mean (clip's a style), oracle

Nothing here reads the test split. Numbers are per cent; "hard" is the mean over outline, sketch and lowres.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from hystar_fast.data.emoji import GALLERY_STYLE, HARD_STYLES, QUERY_STYLES, load_emoji
from hystar_fast.data.image_set import ImageSet, read_images
from hystar_fast.methods.frozen import Frozen
from hystar_fast.methods.hystar_method import HystarMethod, create_criterion
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.models.style import PrefixStyle
from hystar_fast.models.tiny import NORMALISE, RESIZE
from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.hypernetwork import Hypernetwork
from hystar_fast.retrieval.embed import embed_images
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.metrics import target_ranks
from hystar_fast.train.loop import train
from hystar_fast.train.recipe import Recipe

ByStyle = dict[str, dict[str, Tensor]]  # split -> style -> tensor
DRAWN = (*QUERY_STYLES, GALLERY_STYLE)
app = typer.Typer(add_completion=False, help=__doc__)


def _drawings_of(images: ImageSet, style: str) -> Tensor:
    """Read every drawing of a style, uint8 [n, 3, 64, 64]."""
    return torch.cat([batch for _, batch in read_images(images, images.of_style(style), RESIZE, [])])


def _gallery_rows(images: ImageSet, style: str) -> Tensor:
    """Return the gallery row of the concept of each drawing of a style."""
    rows = {record.instance: row for row, record in enumerate(images.gallery)}
    return torch.tensor([rows[record.instance] for record in images.of_style(style)])


def _drawings_and_style_labels(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return every drawing, and the number of its style."""
    drawn = {style: _drawings_of(images, style) for style in DRAWN}
    labels = torch.cat([torch.full((len(drawn[style]),), i) for i, style in enumerate(DRAWN)])
    return torch.cat(list(drawn.values())), labels


def probe(train_z: Tensor, train_y: Tensor, z: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the accuracy of a linear classifier of style on held-out z, and the share of variance between styles."""
    mean, deviation = train_z.mean(0), train_z.std(0) + 1e-6
    train_z, z = (train_z - mean) / deviation, (z - mean) / deviation
    torch.manual_seed(0)
    linear = nn.Linear(z.shape[1], len(DRAWN))
    optimizer = torch.optim.AdamW(linear.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(linear(train_z), train_y).backward()
        optimizer.step()
    between = sum((train_y == i).sum() * train_z[train_y == i].mean(0).square().sum() for i in range(len(DRAWN)))
    accuracy = (linear(z).argmax(1) == y).float().mean()
    return 100 * float(accuracy), float(between / train_z.square().sum())


def map_recall(vectors: ByStyle, rows: ByStyle, part: str, seed: int) -> float:
    """Return hard R@1 after a linear map of the frozen embeddings, `part` of which is learned for each style."""
    torch.manual_seed(seed)
    width, styles = vectors["train"][GALLERY_STYLE].shape[1], len(DRAWN)
    shape = {"none": (0,), "bias": (styles, width), "diagonal": (styles, width), "map": (styles, width, width)}[part]
    shared, own = nn.Parameter(torch.zeros(width, width)), nn.Parameter(torch.zeros(shape))
    rates = (1e-3, 1e-4 if part == "map" else 3e-4)
    groups = [{"params": [p], "lr": lr, "peak": lr} for p, lr in zip((shared, own), rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)

    def mapped(x: Tensor, style: str) -> Tensor:
        y = x + x @ shared.T
        if part == "map":
            y = y + x @ own[DRAWN.index(style)].T
        elif part != "none":
            y = y + own[DRAWN.index(style)] * (x if part == "diagonal" else 1)
        return F.normalize(y, dim=-1)

    steps = 400
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (1 - step / steps)
        style = QUERY_STYLES[step % len(QUERY_STYLES)]
        chosen = torch.randperm(len(rows["train"][style]))[:256]
        query = mapped(vectors["train"][style][chosen], style)
        gallery = vectors["train"][GALLERY_STYLE][rows["train"][style][chosen]]
        logits = query @ mapped(gallery, GALLERY_STYLE).T / 0.05
        target = torch.arange(len(chosen))
        optimizer.zero_grad()
        ((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2).backward()
        optimizer.step()
    with torch.no_grad():
        gallery = mapped(vectors["val"][GALLERY_STYLE], GALLERY_STYLE)
        recalls = []
        for style in HARD_STYLES:
            ranks = target_ranks(mapped(vectors["val"][style], style), gallery, rows["val"][style])
            recalls.append((ranks == 0).float().mean())
    return 100 * float(sum(recalls)) / len(recalls)


@app.command()
def style(seeds: int = 3) -> None:
    """Probe the style in every z linearly, and map the frozen embeddings linearly with and without known style."""
    splits = {name: load_emoji(name) for name in ("train", "val")}
    config = tiny_config()
    frozen = create_method("frozen", config)
    assert isinstance(frozen, Frozen)
    backbone = create_backbone(config)
    extractors = {f"prefix of {n} blocks": PrefixStyle(backbone, n) for n in range(4)}
    drawings = {name: _drawings_and_style_labels(images) for name, images in splits.items()}
    for name, extractor in (("clip", None), *extractors.items()):
        z = {}
        for split, (images, _) in drawings.items():
            batches = [NORMALISE(batch) for batch in images.split(128)]
            with torch.no_grad():
                z[split] = torch.cat(
                    [
                        F.normalize(backbone.encode_image(batch), dim=-1)
                        if extractor is None
                        else extractor(backbone.prefix(batch, extractor.blocks))
                        for batch in batches
                    ]
                )
        accuracy, share = probe(z["train"], drawings["train"][1], z["val"], drawings["val"][1])
        print(f"z = {name}: style read linearly {accuracy:.1f} %, share of variance between styles {share:.3f}")
    vectors = {n: {s: embed_images(frozen, _drawings_of(images, s)) for s in DRAWN} for n, images in splits.items()}
    rows = {n: {s: _gallery_rows(images, s) for s in DRAWN} for n, images in splits.items()}
    for part in ("none", "bias", "diagonal", "map"):
        recall = torch.tensor([map_recall(vectors, rows, part, seed) for seed in range(seeds)])
        print(f"shared map + own {part} a style: hard R@1 {recall.mean():.1f}, {seeds} seeds spread {recall.std():.1f}")


class _StyleTable(nn.Module):
    """Style vectors looked up by drawing, which no real system can do: they show the gain of a perfect style vector."""

    def __init__(self, table: dict[bytes, Tensor]) -> None:
        super().__init__()
        self.table = table
        self.dim = len(next(iter(table.values())))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.table[image.numpy().tobytes()] for image in images])


def _control(method: HystarMethod, kind: str, splits: list[ImageSet], init: str, seed: int) -> None:
    """Replace z, and initialise every hypernetwork of the model again, as z may have another width.

    The new z is the one-hot style (oracle), the mean z of the style in training, or the z of another drawing.
    """
    extractor = method.model.extractor
    assert extractor is not None
    drawings = [_drawings_and_style_labels(images) for images in splits]
    shown = [NORMALISE(images) for images, _ in drawings]
    z = [torch.cat([extractor(batch) for batch in images.split(128)]) for images in shown]
    if kind == "oracle":
        z = [F.one_hot(labels, len(DRAWN)).float() for _, labels in drawings]
    elif kind == "mean":
        means = torch.stack([z[0][drawings[0][1] == i].mean(0) for i in range(len(DRAWN))])
        z = [F.normalize(means[labels], dim=-1) for _, labels in drawings]
    else:
        z = [vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))] for vectors in z]
    table = {
        image.numpy().tobytes(): vector
        for images, vectors in zip(shown, z, strict=True)
        for image, vector in zip(images, vectors, strict=True)
    }
    style_table = _StyleTable(table)
    method.model.extractor = style_table  # type: ignore[assignment]
    torch.manual_seed(seed)
    for number, network in method.model.hypernetworks.items():
        assert isinstance(network, Hypernetwork)
        method.model.hypernetworks[number] = Hypernetwork(style_table.dim, network.rank, init=init)


def _method(kind: str, config: HystarConfig, seed: int, splits: list[ImageSet]) -> Method:
    """Build the method of a kind: "full", "static", "lora", or Hystar with the z that `kind` names."""
    if kind == "full":
        method = create_method("frozen", config)
        assert isinstance(method, Frozen)
        trained = [p.requires_grad_(True) for p in method.model.visual.parameters()]
        method.parameter_groups = lambda: {"full": trained}  # type: ignore[method-assign]
        method.loss = create_criterion(config)  # type: ignore[method-assign]
        return method
    if kind in ("static", "lora"):
        return create_method(kind, config, seed=seed)
    torch.manual_seed(seed)
    hystar = HystarMethod(Hystar(replace(config, style="prefix" if kind == "prefix" else "clip")))
    if kind in ("shuffled", "mean", "oracle"):
        _control(hystar, kind, splits, config.hypernetwork_init, seed)
    elif kind not in ("clip", "prefix"):
        raise typer.BadParameter(
            f"kind must be full, static, lora, clip, prefix, shuffled, mean or oracle, got {kind!r}"
        )
    return hystar


@app.command()
def adapt(
    kind: str,
    rate: Annotated[float, typer.Option(help="Learning rate; for Hystar, of the static offsets.")] = 1e-4,
    dynamic: Annotated[float, typer.Option(help="Learning rate of Hystar's hypernetworks.")] = 1e-3,
    steps: int = 100,
    init: str = "kaiming",
    blocks: Annotated[str, typer.Option(help="Hystar's modulated blocks, as 2,4,6; the demo's by default.")] = "",
    seed: int = 0,
) -> None:
    """Train one method on the training concepts and print its recalls on the validation concepts as JSON."""
    start = time.process_time()
    splits = [load_emoji("train"), load_emoji("val")]
    chosen = tuple(int(number) for number in blocks.split(",")) if blocks else None
    method = _method(kind, replace(tiny_config(), hypernetwork_init=init, blocks=chosen), seed, splits)
    rates = {name: dynamic if name == "dynamic" else rate for name in method.parameter_groups()}
    losses = train(method, splits[0], Recipe(rates, steps=steps, seed=seed))
    ranks = evaluate(method, splits[1], kinds=QUERY_STYLES).ranks
    reciprocal = [(1 / (1 + ranks.by_kind[style].float())).mean() for style in HARD_STYLES]
    row = {"kind": kind, "rates": rates, "steps": steps, "init": init, "blocks": blocks, "seed": seed}
    row |= {f"R@{k}": str(ranks.recall(HARD_STYLES, k)) for k in (1, 5)}
    row |= {"MRR": round(100 * float(sum(reciprocal)) / 3, 1), "loss": round(sum(losses[-20:]) / 20, 3)}
    if isinstance(method, HystarMethod) and method.model.extractor is not None:
        row["offsets"] = offsets(method.model, splits[1])
    print(json.dumps(row | {"cpu_seconds": round(time.process_time() - start)}))


@torch.no_grad()
def offsets(model: Hystar, images: ImageSet) -> dict[str, list[float]]:
    """Return |Δs_dyn| / |s| of each modulated block, and the share of Δs_dyn that varies between drawings."""
    assert model.extractor is not None
    z = torch.cat([model.style(NORMALISE(batch)) for batch in _drawings_and_style_labels(images)[0].split(128)])
    found = {}
    for number, network in model.hypernetworks.items():
        block: object = model.backbone.blocks[int(number) - 1].attn
        assert isinstance(block, SVDAttention)
        delta = network(z)
        length = delta.norm(dim=-1).mean()
        shares = (length / block.in_proj.s.norm(), delta.std(0).norm() / length)
        found[number] = [round(float(share), 3) for share in shares]
    return found


if __name__ == "__main__":
    app()
