"""Which run stands for which row of the paper's tables on the embedded drawings, and what the others would need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_BLIP = "needs BLIP's weights: train with model.backbone=transformers:<BLIP for retrieval>"
_ADOPTED = "the paper took these figures from FreestyleRet; the model is no part of this package"
_TEXT_PROMPTS = "a method of learned text prompts, no part of this package"
_SAME = "on the tiny backbone's six blocks the same as 4, 7, 10, 13"
_PROMPT_TUNED = "the prompt tuning of FreestyleRet's comparison, of which the paper says no more"
_ZERO_SHOT = {"CLIP": "frozen", "LoRA": "lora", "VPT": "vpt", "FreestyleRet": "freestyle", "Hystar": "hystar"}
_SUBGROUPS = "on the embedded drawings the categories are their subgroups, in styles all of which were trained on"
EXTRACTORS = 10  # the table that compares them
_LATER, _PREFIX = "CLIP(self), blocks 2, 4, 6", "hystar+style=prefix+blocks=2-4-6"


@dataclass(frozen=True)
class Plan:
    """How a table is run here.

    Attributes:
        runs: row of the paper -> method or variant of `hystar-fast compare`.
        missing: row of the paper -> what it would need.
        reference: the row the others are compared with.
        here: how the rows differ from the paper's, beyond data and backbone.
        task: what the adapters are asked: "" for one picture by one query, else as `compare_tasks` says.
        extra: row of our own -> its run, and the row it is compared with.
    """

    runs: Mapping[str, str]
    missing: Mapping[str, str]
    reference: str
    here: str = ""
    task: str = ""
    extra: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def plan(number: int, *, vgg: str | None = None, dinov2: str | None = None) -> Plan:
    """The plan of a table.

    Args:
        number: 1 to 14, but for 5 and 11, which are measured in their own ways.
        vgg, dinov2: weights of the style extractors, for Table 10.
    """
    if number == EXTRACTORS:
        return _extractors(vgg, dinov2)
    return _PLANS[number]


def _extractors(vgg: str | None, dinov2: str | None) -> Plan:
    runs, missing = {"Static Only": "static+loss=info_nce", "CLIP(self)": "hystar"}, {}
    for row, style, weights in (("VGG", "vgg", vgg), ("DINOv2", "dinov2", dinov2)):
        if weights is None:
            missing[row] = f"needs the extractor's weights: --{style} FILE" + " or a name" * (style == "vgg")
        else:
            runs[row] = f"hystar+style={style}+style_pretrained={weights}"
    return Plan(
        runs,
        missing,
        "CLIP(self)",
        "VGG is Gram matrices of five stages; the paper does not name its features. prefix reads the style from the "
        "encoder's own tokens before its first modulated block, in one pass",
        extra={_LATER: ("hystar+blocks=2-4-6", "CLIP(self)"), "prefix, blocks 2, 4, 6": (_PREFIX, _LATER)},
    )


def _all(number_of_rows: tuple[str, ...], why: str, reference: str) -> Plan:
    return Plan({}, dict.fromkeys(number_of_rows, why), reference)


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
            "FreestyleRet-CLIP": "freestyle",
            "Hystar-CLIP": "hystar",
        },
        {
            "CLIP*": _PROMPT_TUNED,
            "BLIP*": _BLIP,
            "ImageBind": _ADOPTED,
            "LanguageBind": _ADOPTED,
            "FreestyleRet-BLIP": f"{_BLIP} and model.method=freestyle",
            "Hystar-BLIP": _BLIP,
        },
        "Hystar-CLIP",
        "every method trains with StyleNCE; FreestyleRet reads random VGG weights",
    ),
    2: Plan(_ZERO_SHOT, {}, "Hystar", _SUBGROUPS, task="category"),
    3: Plan(_ZERO_SHOT, {}, "Hystar", f"{_SUBGROUPS}, and the names stand alone", task="classify"),
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
    8: Plan(
        {"4, 7, 10, 13": "hystar", "1": "hystar+blocks=1", "16, 19, 22, 24": "hystar+blocks=4-5-6"},
        dict.fromkeys(("4-12", "4, 6, 8, 10, 12", "4, 8, 12"), _SAME),
        "4, 7, 10, 13",
        "blocks in proportion to the depth: 1, 2, 3 of six for 4, 7, 10, 13 of 24",
    ),
    9: Plan(
        {
            "768-1024-1024": "hystar+hypernetwork_width=192",
            "768-2048-1024": "hystar",
            "768-4096-1024": "hystar+hypernetwork_width=768",
            "768-1024": "hystar+hypernetwork_depth=1",
            "768-2048-2048-1024": "hystar+hypernetwork_depth=3",
        },
        {},
        "768-2048-1024",
        "hidden widths of once, twice and four times the rank, which is 192 on the tiny backbone",
    ),
    12: _all(("ALBEF", "Hystar"), "needs ALBEF's checkpoint and DSR: train with model.backbone=albef:<path>", "Hystar"),
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
TEXT_PROMPTS = dict.fromkeys(("CoOp", "ProGrad", "KgCoOp", "MaPLe", "TCP"), _TEXT_PROMPTS)
