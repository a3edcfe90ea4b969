"""Which run stands for which row of the paper's tables on a backbone, and what the others would need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from hystar_fast.methods.variants import Variant
from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.config import HystarConfig, default_blocks

CLIP, BLIP, ALBEF = "clip", "blip", "albef"
_NEEDS_CLIP = "its backbone is CLIP: --backbone open_clip:<name>, or the packaged one"
_NEEDS_BLIP = "its backbone is BLIP: --backbone transformers:<BLIP for retrieval>"
_NEEDS_ALBEF = "its backbone is ALBEF: --backbone albef:<checkpoint>"
_ADOPTED = "the paper took these figures from FreestyleRet; the model is no part of this package"
_TEXT_PROMPTS = "a method of learned text prompts, no part of this package"
_PROMPT_TUNED = "the prompt tuning of FreestyleRet's comparison, of which the paper says no more"
_FREESTYLE = "freestyle"
_ZERO_SHOT = {"CLIP": "frozen", "LoRA": "lora", "VPT": "vpt", "FreestyleRet": _FREESTYLE, "Hystar": "hystar"}
_SUBGROUPS = "on the embedded drawings the categories are their subgroups, in styles all of which were trained on"
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
    """The backbone that a table is run on, as far as the rows depend on it.

    Attributes:
        family: "clip" (SigLIP and the packaged backbone too), "blip" or "albef".
        depth: visual blocks.
        rank: of the modulated weights.
        style: where Hystar's style vector comes from unless a variant says otherwise.
        blocks: the modulated blocks, where they are not the default of the depth.
    """

    family: str = CLIP
    depth: int = 6
    rank: int = 192
    style: str = "clip"
    blocks: tuple[int, ...] | None = None

    @classmethod
    @lru_cache(maxsize=4)
    def of(cls, config: HystarConfig) -> Base:
        """The base of a configuration; no weight is read.

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
    """How a table is run here.

    Attributes:
        runs: row of the paper -> method or variant of `hystar-fast compare`.
        missing: row of the paper -> what it would need.
        reference: the row the others are compared with.
        here: how the rows differ from the paper's, beyond data and backbone.
        task: what the adapters are asked: "" for one picture by one query, else as `compare_tasks` says.
        on_emoji: how they differ besides on the embedded drawings.
        extra: row of our own -> its run, and the row it is compared with.
    """

    runs: Mapping[str, str]
    missing: Mapping[str, str]
    reference: str
    here: str = ""
    task: str = ""
    on_emoji: str = ""
    extra: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def plan(number: int, base: Base | None = None, *, vgg: str | None = None, dinov2: str | None = None) -> Plan:
    """The plan of a table.

    Args:
        number: 1 to 14, but for 5 and 11, which are measured in their own ways.
        base: what it is run on; None for the packaged backbone.
        vgg: weights of VGG-16, for Table 10 and for FreestyleRet's style prompts.
        dinov2: weights of DINOv2, for Table 10.
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
    if vgg is not None:
        return replace(found, runs={**found.runs, row: f"{_FREESTYLE}+style=vgg+style_pretrained={vgg}"})
    if not reads_random_vgg(_FREESTYLE, base.style):
        return found
    return replace(found, here="; ".join(filter(None, (found.here, "FreestyleRet reads random VGG weights"))))


def reads_random_vgg(run: str, style: str) -> bool:
    """Whether a run is FreestyleRet without weights of VGG, which it has where that is the style of its configuration.

    Args:
        run: a method or variant.
        style: of the configuration that a variant changes.
    """
    variant = Variant.parse(run)
    return variant.method == _FREESTYLE and variant.changes.get("style", style) != "vgg"


def _layers(base: Base) -> Plan:
    ours = default_blocks(base.depth)
    if base.blocks not in (None, ours):
        return _all((_PAPERS_BLOCKS, *_BLOCKS), "it varies the blocks, so --blocks must be left out", _PAPERS_BLOCKS)
    runs, missing = {_PAPERS_BLOCKS: "hystar"}, {}
    rows = {ours: _PAPERS_BLOCKS}
    for row, papers in _BLOCKS.items():
        blocks = tuple(sorted({max(1, round(block * base.depth / _PAPERS_DEPTH)) for block in papers}))
        if blocks in rows:
            missing[row] = f"of {base.depth} blocks the same as {rows[blocks]}"
        else:
            rows[blocks], runs[row] = row, f"hystar+blocks={'-'.join(map(str, blocks))}"
    here = f"blocks in proportion to the depth: {_listed(ours)} of {base.depth} for {_PAPERS_BLOCKS} of {_PAPERS_DEPTH}"
    return Plan(runs, missing, _PAPERS_BLOCKS, "" if base.depth == _PAPERS_DEPTH else here)


def _widths(rank: int) -> Plan:
    here = f"hidden widths of once, twice and four times the rank, which is {rank} here"
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
        "" if rank == _PAPERS_RANK else here,
    )


def _extractors(base: Base, vgg: str | None, dinov2: str | None) -> Plan:
    itself = {"clip": "CLIP(self)", "vgg": "VGG", "dinov2": "DINOv2"}
    if base.style not in itself:
        why = f"it compares extractors, so --style must be one of {', '.join(itself)}"
        return _all(("Static Only", *itself.values()), why, "DINOv2")
    runs, missing = {"Static Only": "static+loss=info_nce", "CLIP(self)": "hystar+style=clip"}, {}
    for row, style, weights in (("VGG", "vgg", vgg), ("DINOv2", "dinov2", dinov2)):
        if base.style == style:
            continue
        if weights is None:
            missing[row] = f"needs the extractor's weights: --{style} FILE" + " or a name" * (style == "vgg")
        else:
            runs[row] = f"hystar+style={style}+style_pretrained={weights}"
    runs[itself[base.style]] = "hystar"
    first = (base.blocks or default_blocks(base.depth))[:1]
    extra = {"prefix": ("hystar+style=prefix", "CLIP(self)")}
    if first == (1,):  # before the first block there are no tokens to read a style from
        blocks = (base.depth // 3, 2 * base.depth // 3, base.depth)
        later = f"CLIP(self), blocks {_listed(blocks)}"
        suffix = f"+blocks={'-'.join(map(str, blocks))}"
        extra = {
            later: (runs["CLIP(self)"] + suffix, "CLIP(self)"),
            f"prefix, blocks {_listed(blocks)}": (f"hystar+style=prefix{suffix}", later),
        }
    return Plan(
        runs,
        missing,
        itself[base.style],
        "VGG is Gram matrices of five stages; the paper does not name its features. prefix reads the style from the "
        "encoder's own tokens before its first modulated block, in one pass",
        extra=extra,
    )


def _listed(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))


def _all(rows: tuple[str, ...], why: str, reference: str) -> Plan:
    """A table none of whose rows runs."""
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
    2: Plan(_ZERO_SHOT, {}, "Hystar", task="category", on_emoji=_SUBGROUPS),
    3: Plan(_ZERO_SHOT, {}, "Hystar", task="classify", on_emoji=f"{_SUBGROUPS}, and the names stand alone"),
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
        "the larger similarity decides, as the paper says",
        task="joint",
        extra={"CLIP, as it is": ("frozen", "Hystar")},
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
        _PLANS[1].here,
        extra={"BLIP, as it is": ("frozen", "Hystar-BLIP")},
    ),
    (1, ALBEF): Plan({}, {**dict.fromkeys(_PLANS[1].runs, _NEEDS_CLIP), **_PLANS[1].missing}, "Hystar-CLIP"),
    (12, ALBEF): Plan({"ALBEF": "frozen", "Hystar": "hystar"}, {}, "Hystar"),
}
TEXT_PROMPTS = dict.fromkeys(("CoOp", "ProGrad", "KgCoOp", "MaPLe", "TCP"), _TEXT_PROMPTS)
