"""The runs of the paper's tables: every row has a run or a reason, on every backbone."""

from __future__ import annotations

import pytest

from hystar_fast.experiments.model_sizes import ROWS
from hystar_fast.experiments.paper_tables import TABLES, paper_table, table_numbers
from hystar_fast.experiments.reproduce import COMPUTATION, FEW_SHOT
from hystar_fast.experiments.table_rows import TEXT_PROMPTS, Base, plan
from hystar_fast.experiments.variants import Variant

PLANNED = [number for number in TABLES if number not in (COMPUTATION, FEW_SHOT)]
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


@pytest.mark.parametrize("number", PLANNED)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("weights", ["", "file"])
def test_every_row_of_the_paper_has_a_run_or_a_reason(number, base, weights):
    found, rows = plan(number, BASES[base], vgg=weights, dinov2=weights), paper_table(number).rows
    assert set(found.runs) | set(found.missing) == set(rows)
    assert not set(found.runs) & set(found.missing)
    assert all(found.missing.values())
    assert found.reference in rows
    for name in (*found.runs.values(), *found.extra.values()):
        Variant.parse(name)
    if found.runs:
        assert found.runs[found.reference] == "hystar", "the differences of a comparison are from Hystar"
        assert paper_table(number).headline(found.reference) is not None


def test_layers_and_widths_are_scaled_to_the_backbone():
    assert plan(8, LARGE).runs == {
        "4, 7, 10, 13": "hystar",
        "4-12": "hystar+blocks=4-5-6-7-8-9-10-11-12",
        "4, 6, 8, 10, 12": "hystar+blocks=4-6-8-10-12",
        "4, 8, 12": "hystar+blocks=4-8-12",
        "1": "hystar+blocks=1",
        "16, 19, 22, 24": "hystar+blocks=16-19-22-24",
    }
    assert [run.partition("=")[2] for run in plan(9, LARGE).runs.values()] == ["1024", "", "4096", "1", "3"]
    assert not plan(8, LARGE).note and not plan(9, LARGE).note
    assert plan(8).runs["16, 19, 22, 24"] == "hystar+blocks=4-5-6"
    assert plan(8).missing["4, 8, 12"] == "of 6 blocks the same as 4, 7, 10, 13"
    assert plan(8, BASES["SigLIP"]).missing["4, 6, 8, 10, 12"] == "of 12 blocks the same as 4-12"
    assert plan(9).runs["768-4096-1024"] == "hystar+hypernetwork_width=768"


def test_the_reference_of_table_10_is_the_extractor_of_the_configuration():
    found = plan(10, LARGE, vgg="vgg.pth")
    assert found.reference == "DINOv2"
    assert (found.runs["DINOv2"], found.runs["CLIP(self)"]) == ("hystar", "hystar+style=clip")
    assert found.runs["VGG"] == "hystar+style=vgg+style_pretrained=vgg.pth"
    assert found.extra == {"prefix": "hystar+style=prefix"}
    assert "model.style must be one of clip, vgg, dinov2" in plan(10, BASES["prefix"]).missing["VGG"]


def test_freestyleret_without_vgg_weights_is_noted_as_random():
    assert "random VGG weights" in plan(2).note
    assert plan(1, Base(style="vgg")).runs["FreestyleRet-CLIP"] == "freestyle"
    assert "random" not in plan(1, Base(style="vgg")).note
    found = plan(2, vgg="vgg.pth")
    assert found.runs["FreestyleRet"] == "freestyle+style=vgg+style_pretrained=vgg.pth" and "random" not in found.note


def test_tables_5_and_11_cover_every_row():
    assert set(ROWS) == set(paper_table(COMPUTATION).rows)
    assert {*TEXT_PROMPTS, "Hystar"} == set(paper_table(FEW_SHOT).rows)


def test_the_headline_of_a_row_is_the_mean_of_its_picture_columns():
    assert paper_table(2).headline("CLIP") == pytest.approx((60.9 + 49.1 + 59.2 + 9.1 + 41.2) / 5)
    assert paper_table(3).headline("CLIP") == pytest.approx((82.4 + 72.8 + 64.9 + 68.1 + 14.6 + 53.0) / 6)
    assert paper_table(7).headline("LoRA") == pytest.approx((72.2 + 79.3 + 84.7) / 3)
    assert paper_table(1).headline("Hystar-CLIP") == pytest.approx((75.2 + 90.2 + 98.0) / 3)
    assert paper_table(4).headline("CLIP") == pytest.approx((58.5 + 47.5 + 45.0) / 3)
    assert paper_table(5).headline("CLIP") is None


def test_words_that_are_no_tables_are_rejected():
    assert table_numbers(["all"]) == list(TABLES)
    assert table_numbers(["table1", "14"]) == [1, 14]
    for word in ("table15", "figure3", "0"):
        with pytest.raises(ValueError, match="tables must be table1 to table14, or all"):
            table_numbers([word])
