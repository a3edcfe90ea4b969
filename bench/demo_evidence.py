"""What there is for an adapter to gain on the embedded drawings: measured on the training and validation concepts.

    python bench/demo_evidence.py style            # does z know the style? what does one map a style gain?
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

from hystar_fast.methods.frozen import Frozen
from hystar_fast.methods.hystar_method import HystarMethod, criterion
from hystar_fast.methods.interface import Method
from hystar_fast.experiments.learning_rates import tiny_config
from hystar_fast.methods.suite import create_method
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.models.style import PrefixStyle
from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.hypernetwork import Hypernetwork
from hystar_fast.retrieval.embed import embed_images, to_float
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.metrics import target_ranks
from hystar_fast.retrieval.protocol import GALLERY_STYLE, HARD_STYLES, IMAGE_STYLES, StyledConcepts, load_split
from hystar_fast.train.loop import train
from hystar_fast.train.recipe import Recipe

ByStyle = dict[str, dict[str, Tensor]]  # split -> style -> tensor
DRAWN = (*IMAGE_STYLES, GALLERY_STYLE)
app = typer.Typer(add_completion=False, help=__doc__)


def _images(concepts: StyledConcepts) -> tuple[Tensor, Tensor]:
    """Every drawing, and the number of its style."""
    rows = {style: concepts.rows(style) for style in DRAWN}
    labels = torch.cat([torch.full((len(rows[style]),), i) for i, style in enumerate(DRAWN)])
    return torch.cat([concepts.images[style][rows[style]] for style in DRAWN]), labels


def probe(train_z: Tensor, train_y: Tensor, z: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy of a linear classifier of style on held-out z, and the share of z's variance that is between styles."""
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
    """Hard R@1 after a linear map of the frozen embeddings, with `part` of it learned for each (known) style alone."""
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
        style = IMAGE_STYLES[step % len(IMAGE_STYLES)]
        chosen = rows["train"][style][torch.randperm(len(rows["train"][style]))[:256]]
        query = mapped(vectors["train"][style][chosen], style)
        logits = query @ mapped(vectors["train"][GALLERY_STYLE][chosen], GALLERY_STYLE).T / 0.05
        right = torch.arange(len(chosen))
        optimizer.zero_grad()
        ((F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2).backward()
        optimizer.step()
    with torch.no_grad():
        gallery = mapped(vectors["val"][GALLERY_STYLE], GALLERY_STYLE)
        found = []
        for style in HARD_STYLES:
            asked = rows["val"][style]
            ranks = target_ranks(mapped(vectors["val"][style][asked], style), gallery, asked)
            found.append((ranks == 0).float().mean())
    return 100 * float(sum(found)) / len(found)


@app.command()
def style(seeds: int = 3) -> None:
    """Linear probes of style from every z, and linear maps of the frozen embeddings with and without known style."""
    splits = {name: load_split(name) for name in ("train", "val")}
    config = tiny_config()
    frozen = create_method("frozen", config)
    assert isinstance(frozen, Frozen)
    backbone = create_backbone(config)
    extractors = {f"prefix of {n} blocks": PrefixStyle(backbone, n) for n in range(4)}
    seen = {name: _images(concepts) for name, concepts in splits.items()}
    for name, extractor in (("clip", None), *extractors.items()):
        z = {}
        for split, (images, _) in seen.items():
            batches = [frozen.preprocess(to_float(batch)) for batch in images.split(128)]
            with torch.no_grad():
                z[split] = torch.cat(
                    [
                        F.normalize(backbone.encode_image(batch), dim=-1)
                        if extractor is None
                        else extractor(backbone.prefix(batch, extractor.blocks))
                        for batch in batches
                    ]
                )
        accuracy, share = probe(z["train"], seen["train"][1], z["val"], seen["val"][1])
        print(f"z = {name}: style read linearly {accuracy:.1f} %, share of variance between styles {share:.3f}")
    vectors = {n: {s: embed_images(frozen, c.images[s]) for s in DRAWN} for n, c in splits.items()}
    rows = {n: {s: c.rows(s) for s in DRAWN} for n, c in splits.items()}
    for part in ("none", "bias", "diagonal", "map"):
        found = torch.tensor([map_recall(vectors, rows, part, seed) for seed in range(seeds)])
        print(f"shared map + own {part} a style: hard R@1 {found.mean():.1f}, {seeds} seeds spread {found.std():.1f}")


class _Known(nn.Module):
    """Style vectors by looking the drawing up: what no system can do, to see what a perfect signal would give."""

    def __init__(self, table: dict[bytes, Tensor]) -> None:
        super().__init__()
        self.table = table
        self.dim = len(next(iter(table.values())))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.table[image.numpy().tobytes()] for image in images])


def _control(method: HystarMethod, kind: str, splits: list[StyledConcepts], init: str, seed: int) -> None:
    """Replace z: by its style (oracle), by its style's mean over the training drawings, or by another drawing's z."""
    extractor = method.model.extractor
    assert extractor is not None
    seen = [_images(concepts) for concepts in splits]
    shown = [method.preprocess(to_float(images)) for images, _ in seen]
    z = [torch.cat([extractor(batch) for batch in images.split(128)]) for images in shown]
    if kind == "oracle":
        z = [F.one_hot(labels, len(DRAWN)).float() for _, labels in seen]
    elif kind == "mean":
        means = torch.stack([z[0][seen[0][1] == i].mean(0) for i in range(len(DRAWN))])
        z = [F.normalize(means[labels], dim=-1) for _, labels in seen]
    else:
        z = [vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))] for vectors in z]
    table = {
        image.numpy().tobytes(): vector
        for images, vectors in zip(shown, z, strict=True)
        for image, vector in zip(images, vectors, strict=True)
    }
    blank = method.preprocess(torch.ones(1, 3, 64, 64))[0]  # stands where a drawing is missing, and is never asked
    table.setdefault(blank.numpy().tobytes(), z[0][0])
    known = _Known(table)
    method.model.extractor = known  # type: ignore[assignment]
    torch.manual_seed(seed)
    for number, network in method.model.hypernetworks.items():
        assert isinstance(network, Hypernetwork)
        method.model.hypernetworks[number] = Hypernetwork(known.dim, network.rank, init=init)


def _method(kind: str, config: HystarConfig, seed: int, splits: list[StyledConcepts]) -> Method:
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
        raise typer.BadParameter(f"unknown kind {kind!r}")
    return hystar


@app.command()
def adapt(
    kind: str,
    rate: Annotated[float, typer.Option(help="Learning rate; of Hystar, the static offsets'.")] = 1e-4,
    dynamic: Annotated[float, typer.Option(help="Learning rate of Hystar's hypernetworks.")] = 1e-3,
    steps: int = 100,
    init: str = "kaiming",
    blocks: Annotated[str, typer.Option(help="Hystar's modulated blocks, as 2,4,6; the demo's by default.")] = "",
    seed: int = 0,
) -> None:
    """Train one method on the training concepts and print its recalls on the validation concepts as JSON."""
    began = time.process_time()
    splits = [load_split("train"), load_split("val")]
    chosen = tuple(int(number) for number in blocks.split(",")) if blocks else None
    method = _method(kind, replace(tiny_config(), hypernetwork_init=init, blocks=chosen), seed, splits)
    rates = {name: dynamic if name == "dynamic" else rate for name in method.parameter_groups()}
    losses = train(method, splits[0], Recipe(rates, steps=steps, seed=seed))
    found = evaluate(method, splits[1], styles=IMAGE_STYLES)
    reciprocal = [(1 / (1 + found.ranks[style].float())).mean() for style in HARD_STYLES]
    row = {"kind": kind, "rates": rates, "steps": steps, "init": init, "blocks": blocks, "seed": seed}
    row |= {f"R@{k}": str(found.mean_recall(HARD_STYLES, k)) for k in (1, 5)}
    row |= {"MRR": round(100 * float(sum(reciprocal)) / 3, 1), "loss": round(sum(losses[-20:]) / 20, 3)}
    if isinstance(method, HystarMethod) and method.model.extractor is not None:
        row["offsets"] = offsets(method.model, splits[1])
    print(json.dumps(row | {"cpu_seconds": round(time.process_time() - began)}))


@torch.no_grad()
def offsets(model: Hystar, concepts: StyledConcepts) -> dict[str, list[float]]:
    """For each modulated block: |Δs_dyn| / |s|, and the part of Δs_dyn that varies from drawing to drawing."""
    assert model.extractor is not None
    images = [to_float(concepts.images[style][concepts.rows(style)]).mul(2).sub(1) for style in DRAWN]
    z = torch.cat([model.style(batch) for batch in torch.cat(images).split(128)])
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
