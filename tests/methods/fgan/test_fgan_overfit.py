"""A small FGAN learns 24 pairs of a drawn shape and three words: its shape, its colour and a word that says nothing."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from hystar_fast.methods.fgan.encoders import Tokens, create_image_encoder
from hystar_fast.methods.fgan.fgan_config import FGANConfig
from hystar_fast.methods.fgan.heads import FGANHeads
from hystar_fast.methods.fgan.label_similarity import LabelSimilarity
from hystar_fast.methods.fgan.selection import training_selector
from hystar_fast.methods.fgan.teachers import PrototypeTeacher, perplexity
from hystar_fast.ops.perturbed_topk.api import perturbed_topk
from hystar_fast.retrieval.definitions import Metric, measure

# Dark tints: to a random convolution bright colours are farther apart than shapes, and labels would group by colour.
TINTS = {"red": (80, 0, 0), "green": (0, 80, 0), "blue": (0, 0, 80), "brown": (80, 40, 0)}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bars")
PAIRS = [(shape, tint) for shape in SHAPES for tint in TINTS]
CLASSES = torch.arange(len(PAIRS)) // len(TINTS)
STEPS, WORDS = 300, 3


def drawing(shape: str, tint: str, margin: int) -> Image.Image:
    picture, colour = Image.new("RGB", (64, 64), "white"), TINTS[tint]
    draw, a, b = ImageDraw.Draw(picture), margin, 64 - margin
    match shape:
        case "circle":
            draw.ellipse((a, a, b, b), fill=colour)
        case "square":
            draw.rectangle((a, a, b, b), fill=colour)
        case "triangle":
            draw.polygon(((32, a), (a, b), (b, b)), fill=colour)
        case "cross":
            draw.line((a, a, b, b), fill=colour, width=9)
            draw.line((a, b, b, a), fill=colour, width=9)
        case "ring":
            draw.ellipse((a, a, b, b), outline=colour, width=6)
        case _:
            for x in range(a, b, 12):
                draw.rectangle((x, a, x + 4, b), fill=colour)
    return picture


def texts() -> tuple[Tokens, Tensor]:
    """Return random fixed vectors of three words in turned order behind their mean, and the place of the filler."""
    generator = torch.Generator().manual_seed(3)
    vectors = {word: torch.randn(32, generator=generator) for word in (*TINTS, *SHAPES, "filler")}
    rows, places = [], []
    for number, pair in enumerate(PAIRS):
        words = [*pair, "filler"]
        words = words[number % WORDS :] + words[: number % WORDS]
        found = torch.stack([vectors[word] for word in words])
        rows.append(torch.cat([found.mean(0, keepdim=True), found]))
        places.append(words.index("filler"))
    return Tokens(torch.stack(rows), torch.zeros(len(rows), WORDS + 1, dtype=torch.bool)), torch.tensor(places)


def score(sides: list[Tensor], labels: Tensor, name: str, retrieval: str) -> float:
    """Return the smaller mean of a metric over both directions."""
    metric, similarity = Metric.parse(name), LabelSimilarity(64, retrieval)
    ways = (sides, sides[::-1])
    return min(measure(*way, labels, labels, [metric], similarity=similarity).interval(metric).value for way in ways)


@pytest.mark.slow
def test_24_pairs_are_learnt() -> None:
    encoder = create_image_encoder("random", None)
    found = [
        encoder(torch.stack([encoder.resize(drawing(*pair, margin)) for pair in PAIRS])).values for margin in (10, 11)
    ]
    image, (text, filler) = Tokens(F.layer_norm(found[0], found[0].shape[-1:])), texts()
    flat = [tokens.flatten(1) - found[1].flatten(1).mean(0) for tokens in found]
    teacher = PrototypeTeacher(flat[1], 10.0)(flat[0])
    assert 3 < perplexity(teacher) < 6
    by_teacher = LabelSimilarity(1, "labels")
    rows = torch.cat([torch.ones(24, 1), teacher.log()], 1)
    metric = Metric.parse("mAP@all")
    assert measure(rows, rows, CLASSES, CLASSES, [metric], similarity=by_teacher).interval(metric).value > 0.98

    # sigma below the spread that the saliency reaches, so that evaluation picks what training saw; and a negative
    # margin above the semi-positive one, without which nothing puts other pairs of the class before other classes
    config = FGANConfig(
        width=64,
        embedding=64,
        labels=24,
        image_regions_kept=4,
        text_regions_kept=2,
        sigma=0.01,
        samples=50,
        margin=0.7,
        semi_margin=0.3,
        alpha=0.3,
    )
    torch.manual_seed(0)
    heads = FGANHeads(config, 512, 32, "words").train()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    select = training_selector(config)
    for _ in range(STEPS):
        chosen = torch.randperm(24)[:16]
        batch = Tokens(image.values[chosen]), Tokens(text.values[chosen], text.padding[chosen])
        terms = heads.losses(*batch, CLASSES[chosen], teacher[chosen], select=select)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        schedule.step()
    heads.eval()
    with torch.no_grad():
        sides = [heads.image(image), heads.other(text)]
        soft = heads.image(image, select=partial(_perturbed, config=config))
    rows = [side.descriptors for side in sides]
    assert score(rows, CLASSES, "mAP@all", "joint") >= 0.98
    assert score(rows, torch.arange(24), "R@1", "joint") >= 0.9
    agreement = F.cosine_similarity(soft.embedding, sides[0].embedding).min()
    assert agreement > 0.9  # what is chosen in evaluation is what training embedded
    lowest = (sides[1].saliency[:, 1:].argmin(1) == filler).double().mean()
    assert lowest > 0.5


def _perturbed(scores: Tensor, k: int, mask: Tensor | None, *, config: FGANConfig) -> Tensor:
    return perturbed_topk(scores, k, sigma=config.sigma, samples=1000, mask=mask)
