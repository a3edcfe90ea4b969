"""The run that reproduces each row of the paper's tables on a backbone, and the reason where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from hystar_fast.experiments.variants import Variant
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.config import HystarConfig, default_blocks

CLIP, BLIP, ALBEF = "clip", "blip", "albef"
_NEEDS_CLIP = "its backbone is CLIP: model.backbone = open_clip:<name> or tiny"
_NEEDS_BLIP = "its backbone is BLIP: model.backbone = transformers:<BLIP for retrieval>"
_NEEDS_ALBEF = "its backbone is ALBEF: model.backbone = albef:<checkpoint>"
_ADOPTED = "the paper took these figures from FreestyleRet; the model is not part of this package"
_TEXT_PROMPTS = "a method of learned text prompts, not part of this package"
_PROMPT_TUNED = "the prompt tuning of FreestyleRet's comparison, which the paper does not describe"
_FREESTYLE = "freestyle"
_ZERO_SHOT = {"CLIP": "frozen", "LoRA": "lora", "VPT": "vpt", "FreestyleRet": _FREESTYLE, "Hystar": "hystar"}
_SUBGROUPS = "on the embedded drawings the categories are their subgroups, in styles that were all trained on"
LAYERS, WIDTHS, EXTRACTORS = 8, 9, 10  # the tables of injection layers, of hypernetworks, of style extractors
_PAPERS_DEPTH, _PAPERS_RANK, _PAPERS_BLOCKS = 24, 1024, "4, 7, 10, 13"
_BLOCKS = {
    "4-12": range(4, 13),
    "4, 6, 8, 10, 12": (4, 6, 8, 10, 12),
    "4, 8, 12": (4, 8, 12),
    "1": (1,),
    "16, 19, 22, 24": (16, 19, 22, 24),
}


@dataclass(frozen=True)
class Base:
    """The properties of a backbone that the rows depend on.

    Attributes:
        family: "clip" (also SigLIP and the tiny backbone), "blip" or "albef".
        depth: number of visual blocks.
        rank: of the modulated weights.
        style: the style extractor of the configuration.
        blocks: the modulated blocks, if they are not the default of the depth.
    """

    family: str = CLIP
    depth: int = 6
    rank: int = 192
    style: str = "clip"
    blocks: tuple[int, ...] | None = None

    @classmethod
    @lru_cache(maxsize=4)
    def of(cls, config: HystarConfig) -> Base:
        """Return the base of a configuration; no weight is read.

        Raises:
            ValueError: there is no such backbone.
        """
        blocks = config.blocks
        if config.backbone == "tiny":
            return cls(style=config.style, blocks=blocks)
        with torch.device("meta"):
            backbone = create_backbone(replace(config, pretrained=None))
        return cls(backbone.family, backbone.depth, backbone.width, config.style, blocks)


@dataclass(frozen=True)
class Plan:
    """The runs of a table.

    Attributes:
        runs: row of the paper -> method or variant of `compare`.
        missing: row of the paper -> what it would need.
        reference: the row that the others are compared with.
        note: how the rows differ from the paper's, apart from data and backbone.
        task: of the evaluation: "" for retrieval of one picture by one query, else one of `tasks`.
        emoji_note: how they also differ on the embedded drawings.
        extra: our own row -> its run.
    """

    runs: Mapping[str, str]
    missing: Mapping[str, str]
    reference: str
    note: str = ""
    task: str = ""
    emoji_note: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


def plan(number: int, base: Base | None = None, *, vgg: str = "", dinov2: str = "") -> Plan:
    """Return the plan of a table.

    Args:
        number: 1 to 14, without 5 and 11, which are measured in other ways.
        base: of the backbone; None for the tiny one.
        vgg: weights of VGG-16, for Table 10 and for FreestyleRet's style prompts; empty for none.
        dinov2: weights of DINOv2, for Table 10; empty for none.
    """
    base = base or Base()
    if number == LAYERS:
        return _layers(base)
    if number == EXTRACTORS:
        return _extractors(base, vgg, dinov2)
    if number == WIDTHS:
        return _widths(base.rank)
    found = _OF_A_FAMILY.get((number, base.family), _PLANS[number])
    row = next((row for row, run in found.runs.items() if run == _FREESTYLE), None)
    if row is None:
        return found
    if vgg:
        return replace(found, runs={**found.runs, row: f"{_FREESTYLE}+style=vgg+style_pretrained={vgg}"})
    if not has_random_vgg(_FREESTYLE, base.style):
        return found
    return replace(found, note="; ".join(filter(None, (found.note, "FreestyleRet has random VGG weights"))))


def has_random_vgg(run: str, style: str) -> bool:
    """Return whether a run is FreestyleRet without VGG weights; it has them if VGG is the style of its configuration.

    Args:
        run: a method or variant.
        style: of the configuration that a variant changes.
    """
    variant = Variant.parse(run)
    return variant.method == _FREESTYLE and variant.changes.get("style", style) != "vgg"


def _layers(base: Base) -> Plan:
    ours = default_blocks(base.depth)
    if base.blocks not in (None, ours):
        return _all(
            (_PAPERS_BLOCKS, *_BLOCKS), "it varies the blocks, so model.blocks must be left out", _PAPERS_BLOCKS
        )
    runs, missing = {_PAPERS_BLOCKS: "hystar"}, {}
    rows = {ours: _PAPERS_BLOCKS}
    for row, papers in _BLOCKS.items():
        blocks = tuple(sorted({max(1, round(block * base.depth / _PAPERS_DEPTH)) for block in papers}))
        if blocks in rows:
            missing[row] = f"of {base.depth} blocks the same as {rows[blocks]}"
        else:
            rows[blocks], runs[row] = row, f"hystar+blocks={'-'.join(map(str, blocks))}"
    note = f"blocks in proportion to the depth: {_listed(ours)} of {base.depth} for {_PAPERS_BLOCKS} of {_PAPERS_DEPTH}"
    return Plan(runs, missing, _PAPERS_BLOCKS, "" if base.depth == _PAPERS_DEPTH else note)


def _widths(rank: int) -> Plan:
    note = f"hidden widths of once, twice and four times the rank, which is {rank} here"
    return Plan(
        {
            "768-1024-1024": f"hystar+hypernetwork_width={rank}",
            "768-2048-1024": "hystar",
            "768-4096-1024": f"hystar+hypernetwork_width={4 * rank}",
            "768-1024": "hystar+hypernetwork_depth=1",
            "768-2048-2048-1024": "hystar+hypernetwork_depth=3",
        },
        {},
        "768-2048-1024",
        "" if rank == _PAPERS_RANK else note,
    )


def _extractors(base: Base, vgg: str, dinov2: str) -> Plan:
    itself = {"clip": "CLIP(self)", "vgg": "VGG", "dinov2": "DINOv2"}
    if base.style not in itself:
        why = f"it compares extractors, so model.style must be one of {', '.join(itself)}"
        return _all(("Static Only", *itself.values()), why, "DINOv2")
    runs, missing = {"Static Only": "static+loss=info_nce", "CLIP(self)": "hystar+style=clip"}, {}
    for row, style, weights in (("VGG", "vgg", vgg), ("DINOv2", "dinov2", dinov2)):
        if base.style == style:
            continue
        if not weights:
            missing[row] = f"needs the extractor's weights: --set model.{style}=FILE" + " or a name" * (style == "vgg")
        else:
            runs[row] = f"hystar+style={style}+style_pretrained={weights}"
    runs[itself[base.style]] = "hystar"
    first = (base.blocks or default_blocks(base.depth))[:1]
    extra = {"prefix": "hystar+style=prefix"}
    if first == (1,):  # the style of "prefix" needs a block before the first modulated one
        blocks = (base.depth // 3, 2 * base.depth // 3, base.depth)
        later = f"CLIP(self), blocks {_listed(blocks)}"
        suffix = f"+blocks={'-'.join(map(str, blocks))}"
        extra = {
            later: runs["CLIP(self)"] + suffix,
            f"prefix, blocks {_listed(blocks)}": f"hystar+style=prefix{suffix}",
        }
    return Plan(
        runs,
        missing,
        itself[base.style],
        "VGG is Gram matrices of five stages; the paper does not name its features. prefix computes the style from the "
        "encoder's own tokens before the first modulated block, in one pass",
        extra=extra,
    )


def _listed(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))


def _all(rows: tuple[str, ...], why: str, reference: str) -> Plan:
    """Return the plan of a table without any run."""
    return Plan({}, dict.fromkeys(rows, why), reference)


_METHODS = ("CLIP", "LoRA", "VPT", "FreestyleRet", "Hystar")
_PLANS = {
    1: Plan(
        {
            "CLIP": "frozen",
            "LoRA": "lora",
            "VPT": "vpt",
            "(IA)³": "ia3",
            "AdaptFormer": "adaptformer",
            "SSF": "ssf",
            "FreestyleRet-CLIP": _FREESTYLE,
            "Hystar-CLIP": "hystar",
        },
        {
            "CLIP*": _PROMPT_TUNED,
            "BLIP*": _PROMPT_TUNED,
            "ImageBind": _ADOPTED,
            "LanguageBind": _ADOPTED,
            "FreestyleRet-BLIP": _NEEDS_BLIP,
            "Hystar-BLIP": _NEEDS_BLIP,
        },
        "Hystar-CLIP",
        "every method trains with StyleNCE",
    ),
    2: Plan(_ZERO_SHOT, {}, "Hystar", task="category", emoji_note=_SUBGROUPS),
    3: Plan(
        _ZERO_SHOT,
        {},
        "Hystar",
        task="classify",
        emoji_note=f"{_SUBGROUPS}, and class names stand without a sentence",
    ),
    4: Plan(
        {
            "CLIP": "frozen",
            "CLIP + Static": "static+loss=info_nce",
            "CLIP + Hyper": "hystar+static=false+loss=info_nce",
            "CLIP + Hyper + Static": "hystar+loss=info_nce",
            "CLIP + Hyper + Static + StyleNCE": "hystar",
        },
        {},
        "CLIP + Hyper + Static + StyleNCE",
    ),
    6: Plan(
        {
            "Dynamic-All Design": "hystar+design=dynamic-all",
            "Reversed Design": "hystar+design=reversed",
            "Original Design": "hystar",
        },
        {},
        "Original Design",
    ),
    7: Plan(
        {row: run for row, run in _ZERO_SHOT.items() if row != "CLIP"},
        {"CLIP*": _PROMPT_TUNED},
        "Hystar",
        "the larger similarity decides, as in the paper",
        task="joint",
        extra={"CLIP, frozen": "frozen"},
    ),
    12: _all(("ALBEF", "Hystar"), _NEEDS_ALBEF, "Hystar"),
    13: _all(
        _METHODS, "needs 3,000 pictures that the authors made with Stable Diffusion and did not publish", "Hystar"
    ),
    14: Plan(
        {
            "Triplet loss": "hystar+loss=triplet",
            "InfoNCE loss": "hystar+loss=info_nce",
            "Circle loss": "hystar+loss=circle",
            "Triplet loss + Hard Negative Sampling": "hystar+loss=triplet_hard",
            "InfoNCE loss + Hard Negative Sampling": "hystar+loss=info_nce_hard",
            "StyleNCE loss": "hystar",
        },
        {},
        "StyleNCE loss",
    ),
}
_OF_BLIP = ("FreestyleRet-BLIP", "Hystar-BLIP")
_OF_A_FAMILY = {
    (1, BLIP): Plan(
        dict(zip(_OF_BLIP, (_FREESTYLE, "hystar"), strict=True)),
        dict.fromkeys(_PLANS[1].runs, _NEEDS_CLIP)
        | {row: why for row, why in _PLANS[1].missing.items() if row not in _OF_BLIP},
        "Hystar-BLIP",
        _PLANS[1].note,
        extra={"BLIP, frozen": "frozen"},
    ),
    (1, ALBEF): Plan({}, {**dict.fromkeys(_PLANS[1].runs, _NEEDS_CLIP), **_PLANS[1].missing}, "Hystar-CLIP"),
    (12, ALBEF): Plan({"ALBEF": "frozen", "Hystar": "hystar"}, {}, "Hystar"),
}
TEXT_PROMPTS = dict.fromkeys(("CoOp", "ProGrad", "KgCoOp", "MaPLe", "TCP"), _TEXT_PROMPTS)
