"""Reproducing tables: every row has a run or a reason, nothing mixes protocols, and the tables share their runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hystar_fast.cli import timing
from hystar_fast.cli.computation import ROWS, freestyle_as_published, parameters_on_the_papers_backbone
from hystar_fast.cli.report import interval
from hystar_fast.cli.reproduce import (
    COMPUTATION,
    FEW_SHOT,
    table_numbers,
)
from hystar_fast.cli.reproduce_rows import TEXT_PROMPTS, Base, plan
from hystar_fast.cli.verdicts import CONFIRMED, OPEN, OPPOSITE, headline_mean, picture_mean, verdict
from hystar_fast.data.paper_tables import TABLES, paper_table
from hystar_fast.methods import variants
from hystar_fast.methods.recipes import DYNAMIC_GRID
from hystar_fast.methods.variants import Variant
from hystar_fast.retrieval.protocol import load_split
from hystar_fast.retrieval.seeds import paired_difference, restored
from tests.support.cli import refused, run
from tests.support.small_backbones import WRITERS
from tests.support.small_clip import write_small_clip

PLANNED = [number for number in TABLES if number not in (COMPUTATION, FEW_SHOT)]
LATE = "hystar+blocks=3-4"
LARGE = Base(depth=24, rank=1024, style="dinov2")
BASES = {
    "tiny": Base(),
    "ViT-L/14": LARGE,
    "SigLIP": Base(depth=12, rank=768),
    "BLIP": Base("blip", 12, 768),
    "ALBEF": Base("albef", 12, 768, "vgg"),
    "prefix": Base(depth=12, rank=768, style="prefix"),
    "other blocks": Base(blocks=(2, 4)),
}


@pytest.fixture(autouse=True)
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    for grids in ("GRID", "BASELINE_GRID", "LARGE_GRID"):
        monkeypatch.setattr(variants, grids, {name: trials[:1] for name, trials in getattr(variants, grids).items()})
    monkeypatch.setattr(variants, "DYNAMIC_GRID", DYNAMIC_GRID[:1])


def reproduce(output: Path, *tables: str) -> str:
    arguments = ("--steps", 1, "--limit", 6, "--weights", "random", "--seeds", 1, "--tuning-seeds", 1)
    result = run("reproduce", *tables, "--output", output, *arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("number", PLANNED)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("weights", [None, "file"])
def test_every_row_of_the_paper_has_a_run_or_a_reason(number, base, weights):
    found, rows = plan(number, BASES[base], vgg=weights, dinov2=weights), paper_table(number).rows
    assert set(found.runs) | set(found.missing) == set(rows)
    assert not set(found.runs) & set(found.missing)
    assert all(found.missing.values())
    assert found.reference in rows
    for name in found.runs.values():
        Variant.parse(name)
    if found.runs:
        assert found.runs[found.reference] == "hystar", "the differences of a comparison are from Hystar"
        assert headline_mean(paper_table(number), found.reference) is not None
    for name, than in found.extra.values():
        Variant.parse(name)
        assert than in found.extra or than in found.runs


def test_layers_and_widths_are_the_papers_on_its_backbone_and_in_proportion_on_others():
    assert plan(8, LARGE).runs == {
        "4, 7, 10, 13": "hystar",
        "4-12": "hystar+blocks=4-5-6-7-8-9-10-11-12",
        "4, 6, 8, 10, 12": "hystar+blocks=4-6-8-10-12",
        "4, 8, 12": "hystar+blocks=4-8-12",
        "1": "hystar+blocks=1",
        "16, 19, 22, 24": "hystar+blocks=16-19-22-24",
    }
    assert [run.partition("=")[2] for run in plan(9, LARGE).runs.values()] == ["1024", "", "4096", "1", "3"]
    assert not plan(8, LARGE).here and not plan(9, LARGE).here
    assert plan(8).runs["16, 19, 22, 24"] == "hystar+blocks=4-5-6"
    assert plan(8).missing["4, 8, 12"] == "of 6 blocks the same as 4, 7, 10, 13"
    assert plan(8, BASES["SigLIP"]).missing["4, 6, 8, 10, 12"] == "of 12 blocks the same as 4-12"
    assert plan(9).runs["768-4096-1024"] == "hystar+hypernetwork_width=768"


def test_extractors_are_compared_with_that_of_the_backbone_asked_for():
    found = plan(10, LARGE, vgg="vgg.pth")
    assert (found.reference, found.runs["DINOv2"], found.runs["CLIP(self)"]) == (
        "DINOv2",
        "hystar",
        "hystar+style=clip",
    )
    assert found.runs["VGG"] == "hystar+style=vgg+style_pretrained=vgg.pth"
    assert found.extra == {"prefix": ("hystar+style=prefix", "CLIP(self)")}
    assert "--style must be one of clip, vgg, dinov2" in plan(10, BASES["prefix"]).missing["VGG"]


def test_freestyleret_reads_the_weights_that_are_there():
    assert "reads random VGG weights" in plan(2).here
    assert plan(1, Base(style="vgg")).runs["FreestyleRet-CLIP"] == "freestyle"
    assert "random" not in plan(1, Base(style="vgg")).here
    found = plan(2, vgg="vgg.pth")
    assert found.runs["FreestyleRet"] == "freestyle+style=vgg+style_pretrained=vgg.pth" and "random" not in found.here


@pytest.mark.parametrize(
    ("kind", "number", "ours", "judged"),
    [
        (
            "transformers blip",
            1,
            {"FreestyleRet-BLIP": "freestyle", "Hystar-BLIP": "hystar", "BLIP, as it is": "frozen"},
            "freestyle",
        ),
        ("albef", 12, {"ALBEF": "frozen", "Hystar": "hystar"}, "frozen"),
        ("transformers siglip", 8, {"4, 7, 10, 13": "hystar", "1": "hystar+blocks=1", "16, 19, 22, 24": LATE}, LATE),
    ],
)
def test_rows_are_those_of_the_backbone(kind, number, ours, judged, tmp_path):
    small = WRITERS[kind](tmp_path / "backbone")
    arguments = ("--backbone", small.backbone, "--steps", 1, "--limit", 4, "--seeds", 1, "--tuning-seeds", 1)
    result = run("reproduce", f"table{number}", *arguments, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "out" / f"table{number}.json").read_text())
    assert {row["row"]: row["run"] for row in table["rows"] if "run" in row} == ours
    assert f"backbone {small.backbone}" in table["ours"]
    result = run("claims", tmp_path / "out")
    assert result.exit_code == 0, result.output
    claims = json.loads((tmp_path / "out" / "claims.json").read_text())
    tested = [claim["runs"] for claim in claims if claim["source"] == f"Table {number}" and "difference" in claim]
    assert ["hystar", judged] in tested


def test_the_other_two_tables_name_every_row():
    assert set(ROWS) == set(paper_table(COMPUTATION).rows)
    assert {*TEXT_PROMPTS, "Hystar"} == set(paper_table(FEW_SHOT).rows)


def test_the_headline_of_the_other_tasks_is_the_mean_over_their_columns():
    assert headline_mean(paper_table(2), "CLIP") == pytest.approx((60.9 + 49.1 + 59.2 + 9.1 + 41.2) / 5)
    assert headline_mean(paper_table(3), "CLIP") == pytest.approx((82.4 + 72.8 + 64.9 + 68.1 + 14.6 + 53.0) / 6)
    assert headline_mean(paper_table(7), "LoRA") == pytest.approx((72.2 + 79.3 + 84.7) / 3)
    assert headline_mean(paper_table(1), "CLIP") == picture_mean(paper_table(1), "CLIP")


def test_the_mean_over_pictures_leaves_text_out():
    assert picture_mean(paper_table(1), "Hystar-CLIP") == pytest.approx((75.2 + 90.2 + 98.0) / 3)
    assert picture_mean(paper_table(4), "CLIP") == pytest.approx((58.5 + 47.5 + 45.0) / 3)
    assert picture_mean(paper_table(2), "CLIP") is None


def test_verdicts():
    assert verdict(-3.0, -2.0, -0.5) == CONFIRMED == verdict(1.0, 0.5, 2.0)
    assert verdict(-3.0, 0.5, 2.0) == OPPOSITE == verdict(1.0, -2.0, -0.5)
    assert verdict(-3.0, -1.0, 0.5) == OPEN == verdict(-3.0, -1.0, 0.0)


def test_a_table_stands_beside_the_papers_with_its_source_and_tables_share_their_runs(tmp_path):
    shown = reproduce(tmp_path, "table4", "table13")
    assert "Table 4: DSR; ranked within batches of 24, not over the gallery" in shown
    assert "full gallery of 6" in shown
    assert "not run: CLIP, LoRA, VPT, FreestyleRet, Hystar: needs 3,000 pictures" in shown
    found = json.loads((tmp_path / "table4.json").read_text())
    assert [row["row"] for row in found["rows"]] == list(paper_table(4).rows)
    for row in found["rows"]:
        assert tuple(row["paper"].values()) == paper_table(4).rows[row["row"]]
        reference = row["row"] == found["reference"]
        assert ("difference" in row) == ("verdict" in row) == (not reference)
        if not reference:
            difference = row["difference"]
            assert row["verdict"] == verdict(row["paper_difference"], difference["low"], difference["high"])
    record = json.loads((tmp_path / "compare.json").read_text())
    assert [entry["method"] for entry in record["runs"]] == list(plan(4).runs.values())
    shown = reproduce(tmp_path, "table10")
    again = json.loads((tmp_path / "compare.json").read_text())
    assert again["runs"][:5] == record["runs"], "both rows of Table 10 that run are rows of Table 4"
    table = json.loads((tmp_path / "table10.json").read_text())
    ours = {row["row"]: row for row in table["rows"] if not row["paper"]}
    assert [row["run"] for row in ours.values()] == ["hystar+blocks=2-4-6", "hystar+style=prefix+blocks=2-4-6"]
    prefix = ours["prefix, blocks 2, 4, 6"]
    runs = {entry["method"]: restored(entry["ranks"], load_split("test", limit=6)) for entry in again["runs"]}
    expected = paired_difference([runs[prefix["run"]]], [runs["hystar+blocks=2-4-6"]])
    assert prefix["than"] in ours and prefix["difference"] == interval(expected)  # type: ignore[arg-type]
    assert set(table["milliseconds"]) == {"hystar", "static+loss=info_nce", *(row["run"] for row in ours.values())}
    assert all(0 < cost["low"] <= cost["median"] <= cost["high"] for cost in table["milliseconds"].values())
    assert "not run: VGG: needs the extractor's weights: --vgg FILE or a name" in shown


def test_table_11_trains_on_base_classes_and_names_what_is_not_here(tmp_path):
    shown = reproduce(tmp_path, "table11")
    assert "not run: CoOp, ProGrad, KgCoOp, MaPLe, TCP: a method of learned text prompts" in shown
    rows = {row["row"]: row for row in json.loads((tmp_path / "table11.json").read_text())["rows"]}
    assert set(rows) == {"CLIP, zero-shot", *paper_table(11).rows}
    assert rows["Hystar"]["few_shot"]["H"]["value"] >= 0 and rows["Hystar"]["paper"]["Average H"] == 77.03


def test_table_5_counts_on_the_papers_backbone(monkeypatch):
    found = parameters_on_the_papers_backbone()
    whole, added = found["Hystar"]
    table = paper_table(5)
    assert whole // 10**6 == table.rows["Hystar"][0] == 442
    millions = [value // 10**6 for value in (whole, found["CLIP"][0])]
    assert round(100 * (millions[0] - millions[1]) / millions[1], 1) == table.rows["Hystar"][1] == 3.5
    assert round(100 * added / found["CLIP"][0], 2) == 3.45, "before rounding to millions"
    for row in ("VPT", "AdaptFormer"):
        assert found[row][0] // 10**6 == table.rows[row][0]
    assert found["FreestyleRet"][1] == 10_112_772
    published = freestyle_as_published()
    assert (found["CLIP"][0] + published) // 10**6 == table.rows["FreestyleRet"][0] == 476
    assert 11.3 < 100 * published / found["CLIP"][0] < 11.5


@pytest.mark.parametrize("own", [False, True])
def test_table_5_times_the_backbone_named_and_prints_both_counts_of_freestyle(tmp_path, monkeypatch, own):
    monkeypatch.setattr(timing, "BATCH", 2)
    backbone = write_small_clip(tmp_path / "clip", weights=False) if own else "tiny"
    shown = reproduce(tmp_path, "table5", *(("--backbone", backbone) if own else ()))
    found = json.loads((tmp_path / "table5.json").read_text())
    assert found["backbone"] == backbone
    assert all(row["milliseconds"] > 0 for row in found["rows"])
    assert [row["parameters"] // 10**6 for row in found["rows"] if row["row"] == "Hystar"] == [442]
    row = next(row for row in found["rows"] if row["row"] == "FreestyleRet")
    assert row["added"] == 10_112_772 and row["with_unused_parts"]["parameters"] // 10**6 == 476
    assert f"it has {row['with_unused_parts']['parameters'] / 1e6:.1f} M" in shown


def test_words_that_are_no_tables_are_refused(tmp_path):
    assert table_numbers(["all"]) == list(TABLES)
    assert table_numbers(["table1", "14"]) == [1, 14]
    for word in ("table15", "figure3", "0"):
        with pytest.raises(ValueError, match="tables must be table1 to table14, or all"):
            table_numbers([word])
    assert "tables must be" in refused("reproduce", "table0", "--output", tmp_path)
