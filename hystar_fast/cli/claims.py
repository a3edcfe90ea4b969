"""The statements of the paper that a comparison can test: which two runs decide each, and what they say.

A statement is that one run is above another. Its two runs are those that stand for two rows of the paper
(`reproduce_rows`), so that what is compared is said in one place, and the paper's direction is that of its own figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hystar_fast.cli.report import interval
from hystar_fast.cli.reproduce_rows import EXTRACTORS, Base, plan, reads_random_vgg
from hystar_fast.cli.verdicts import paper_figure, picture_mean, verdict
from hystar_fast.data.paper_tables import paper_table
from hystar_fast.methods.variants import Variant
from hystar_fast.retrieval.protocol import HARD_STYLES, IMAGE_STYLES
from hystar_fast.retrieval.seeds import Runs, paired_difference

NOT_RUN, NOT_TESTABLE = "not run", "not testable here"
GAMMAS = (1, 10, 30, 50, 80, 120, 200, 500)  # Section G.1
LAMBDAS = (0.1, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)  # Section G.2
_BEST = {"gamma": (80, 120), "lam": (1.0, 2.0, 3.0)}  # the default first
# Table -> the rows of which the paper says that the first is above the second.
_ROWS: dict[int, Sequence[tuple[str, str]]] = {
    1: [
        ("Hystar-CLIP", row)
        for row in ("CLIP", "LoRA", "VPT", "(IA)³", "AdaptFormer", "SSF", "FreestyleRet-CLIP")
    ] + [("Hystar-BLIP", "FreestyleRet-BLIP")],
    4: [
        ("CLIP + Static", "CLIP"),
        ("CLIP + Hyper", "CLIP"),
        ("CLIP + Hyper + Static", "CLIP + Static"),
        ("CLIP + Hyper + Static", "CLIP + Hyper"),
    ],
    6: [
        ("Original Design", "Reversed Design"),
        ("Original Design", "Dynamic-All Design"),
        ("Reversed Design", "Dynamic-All Design"),
    ],
    8: [("4, 7, 10, 13", row) for row in ("1", "16, 19, 22, 24", "4, 8, 12", "4-12")],
    9: [
        ("768-2048-1024", "768-1024-1024"),
        ("768-2048-1024", "768-1024"),
        ("768-4096-1024", "768-2048-1024"),
        ("768-2048-1024", "768-2048-2048-1024"),
    ],
    10: [("CLIP(self)", "Static Only"), ("VGG", "Static Only"), ("DINOv2", "CLIP(self)")],
    12: [("Hystar", "ALBEF")],
    14: [
        ("StyleNCE loss", row)
        for row in (
            "InfoNCE loss",
            "Triplet loss",
            "Circle loss",
            "Triplet loss + Hard Negative Sampling",
            "InfoNCE loss + Hard Negative Sampling",
        )
    ] + [
        ("InfoNCE loss", "Triplet loss"),
        ("Circle loss", "Triplet loss"),
        ("Triplet loss + Hard Negative Sampling", "Triplet loss"),
        ("InfoNCE loss + Hard Negative Sampling", "InfoNCE loss"),
    ],
}  # fmt: skip
_SUBJECTS = {
    1: "Hystar against other methods",
    4: "Components",
    6: "What is dynamic and what static",
    8: "Which blocks, in proportion to the depth",
    9: "Width and depth of the hypernetwork",
    10: "Style extractors",
    12: "Other backbones",
    14: "Losses",
}
_GENERAL = ("frozen", "static", "lora", "vpt", "freestyle")
UNTESTABLE = (
    ("The figures of Tables 1 to 4, 6 to 10, 12 to 14", "they are of other data, backbones and batches; see the head"),
    ("ImageBind and LanguageBind are behind (Table 1)", "the models are no part of this package"),
    ("Speed on an A6000 (Table 5)", "needs that GPU; `reproduce table5` counts parameters and times the methods here"),
    ("Text-prompt methods are behind on new classes (Table 11)", "the methods are no part of this package"),
    ("Extreme styles (Table 13)", "the authors' 3,000 pictures are not public; unseen styles are tested above"),
    ("Hystar's embeddings cluster by class, not by style (Figure 3)", "a picture: `hystar-fast figure 3` draws it"),
    ("Mixed styles lie between their two (Figure 5)", "a picture: `hystar-fast figure 5` draws it"),
)  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """One run is above another.

    Attributes:
        subject: what it is about, for a heading.
        what: the statement.
        source: where the paper makes it.
        run, other: methods or variants of `hystar-fast compare`; None where a row needs what is not here.
        among: variants that the paper says are as good as `run`; of those that were run the one furthest above `other`
            stands for it, which is the kindest to the paper.
        paper: the difference of the paper's figures, whose sign is the direction; None: it prints none, `run` is above.
        styles: the queries that decide; None for those of the headline.
        unseen_subgroups: only those ask.
        why: what is missing, where a run is None.
    """

    subject: str
    what: str
    source: str
    run: str | None
    other: str | None
    paper: float | None = None
    styles: tuple[str, ...] | None = None
    unseen_subgroups: bool = False
    why: str = ""
    among: tuple[str, ...] = ()


def claims(
    names: Sequence[str] = (),
    *,
    styles: Sequence[str] = IMAGE_STYLES,
    headline: Sequence[str] = HARD_STYLES,
    base: Base | None = None,
) -> list[Claim]:
    """Every statement, in the order of the paper.

    Args:
        names: what has been run; a variant of Hystar whose training left query styles out adds its statements, and
            Table 10 takes its extractors' weights from there.
        styles: the picture styles that ask.
        headline: those of them that decide where nothing else is said.
        base: the backbone they were run on; None for the packaged one.
    """
    found = [claim for number in _ROWS for claim in _of_table(number, base or Base(), names)]
    found.append(
        Claim("Components", "Dynamic and static above static, both with StyleNCE", "Section 3.2", "hystar", "static")
    )
    text = "Hystar above CLIP on text queries, without training on them"
    figures = [paper_figure(paper_table(1), row, "Text R@1") for row in ("Hystar-CLIP", "CLIP")]
    found.append(
        Claim(_SUBJECTS[1], text, "Table 1", "hystar", "frozen", round(figures[0] - figures[1], 1), styles=("text",))
    )
    for field, values, symbol, figure in (("gamma", GAMMAS, "γ", 6), ("lam", LAMBDAS, "λ", 7)):
        best = _BEST[field]
        others = tuple(f"hystar+{field}={value:g}" for value in best[1:])
        found += [
            Claim(
                "Settings of StyleNCE",
                f"{symbol} = {best[0]:g} to {best[-1]:g} is best: the best of them above {symbol} = {value:g}",
                f"Figure {figure}",
                "hystar",
                f"hystar+{field}={value:g}",
                among=others,
            )
            for value in values
            if value not in best
        ]
    found += list(_unseen_styles(names, tuple(styles), headline))
    found += [
        Claim(
            "Unseen kinds and styles",
            f"Hystar above {name} on subgroups no adapter was trained on",
            "Sections 1, 4.2",
            "hystar",
            name,
            unseen_subgroups=True,
        )
        for name in _GENERAL
    ]
    return found


def judge(claim: Claim, evaluations: Mapping[str, Runs], headline: Sequence[str]) -> dict[str, Any]:
    """The verdict on a statement, from the paired interval of its two runs.

    Args:
        claim: the statement.
        evaluations: method or variant -> its runs, all on the same queries.
        headline: the query styles of a claim that names none.
    """
    row: dict[str, Any] = {
        "subject": claim.subject,
        "what": claim.what,
        "source": claim.source,
        "runs": [claim.run, claim.other],
        "paper_difference": claim.paper,
    }
    if claim.run is None or claim.other is None:
        return {**row, "verdict": NOT_TESTABLE, "why": claim.why}
    missing = [name for name in (claim.run, claim.other) if name not in evaluations]
    if missing:
        return {**row, "verdict": NOT_RUN, "why": ", ".join(missing)}
    styles = claim.styles or tuple(headline)
    other = evaluations[claim.other]
    found = {
        name: paired_difference(evaluations[name], other, styles, unseen_only=claim.unseen_subgroups)
        for name in (claim.run, *claim.among)
        if name in evaluations
    }
    known = {name: difference for name, difference in found.items() if difference is not None}
    if not known:
        return {**row, "verdict": NOT_TESTABLE, "why": "these queries are not asked here"}
    best = max(known, key=lambda name: known[name].value)
    if claim.among:
        row |= {"runs": [best, claim.other], "what": f"{claim.what} (here `{best}`)"}
    difference = interval(known[best])
    direction = 1.0 if claim.paper is None else claim.paper
    return {**row, "difference": difference, "verdict": verdict(direction, difference["low"], difference["high"])}


def _of_table(number: int, base: Base, names: Sequence[str]) -> Iterator[Claim]:
    reader = "hystar" if number == EXTRACTORS else "freestyle"
    vgg, dinov2 = (_weights(names, reader, style) for style in ("vgg", "dinov2"))
    planned, paper = plan(number, base, vgg=vgg, dinov2=dinov2), paper_table(number)
    for row, other in _ROWS[number]:
        figures = [picture_mean(paper, name) for name in (row, other)]
        assert figures[0] is not None and figures[1] is not None
        what = "Dynamic blocks " * (number == 8) + f"{row} above {other}"
        if other in planned.runs and reads_random_vgg(planned.runs[other], base.style):
            what += " (random VGG weights)"
        yield Claim(
            _SUBJECTS[number],
            what,
            f"Table {number}",
            planned.runs.get(row),
            planned.runs.get(other),
            round(figures[0] - figures[1], 1),
            why="; ".join(dict.fromkeys(planned.missing[name] for name in (row, other) if name in planned.missing)),
        )


def _weights(names: Sequence[str], method: str, style: str) -> str | None:
    """The weights of the extractor of a variant that was run."""
    begins = f"{method}+style={style}+style_pretrained="
    return next((name.removeprefix(begins) for name in names if name.startswith(begins)), None)


def _unseen_styles(names: Sequence[str], styles: tuple[str, ...], headline: Sequence[str]) -> Iterator[Claim]:
    """Hystar trained without a query style and asked in it, against the others trained alike."""
    left_out = [tuple(style for style in styles if style != unseen) for unseen in headline]
    trained = [variant for name in names if (variant := Variant.parse(name)).method == "hystar"]
    plain = [variant.styles or styles for variant in trained if not variant.changes and variant.loss is None]
    left_out += [seen for seen in plain if set(seen) < set(styles)]
    for seen in dict.fromkeys(left_out):
        suffix = f"+styles={'-'.join(seen)}"
        for unseen in (style for style in styles if style not in seen):
            for name in _GENERAL:
                yield Claim(
                    "Unseen kinds and styles",
                    f"Trained without {unseen}, Hystar above {name} on {unseen}",
                    "Sections 1, 4.2",
                    f"hystar{suffix}",
                    name if name == "frozen" else f"{name}{suffix}",
                    styles=(unseen,),
                )
