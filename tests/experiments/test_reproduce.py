"""Reproduction of tables: ours beside the paper's, separate protocols, and runs that tables share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hystar_fast.data.displacement import displace_queries
from hystar_fast.data.open import open_images
from hystar_fast.experiments import timing
from hystar_fast.experiments.model_sizes import freestyle_as_published, sizes_on_vit_l_14
from hystar_fast.experiments.paper_tables import paper_table
from hystar_fast.experiments.records import query_ids
from hystar_fast.experiments.seeds import difference_over_seeds, runs_by_method
from hystar_fast.experiments.table_rows import plan
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.results_json import interval_info
from tests.support import picture_trees as trees
from tests.support.experiments import done, refused_experiment, shrink_grids
from tests.support.small_backbones import WRITERS
from tests.support.small_clip import write_small_clip
from tests.support.small_tiny import shrink_tiny

LATE = "hystar+blocks=3-4"
LIMITED: dict[str, Any] = {"data": {"limit": 6}}


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_grids(monkeypatch)
    shrink_tiny(monkeypatch)
    monkeypatch.setattr(timing, "BATCH", 2)
    monkeypatch.setattr(timing, "REPEATS", 3)


def content(output: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize(
    ("kind", "number", "ours"),
    [
        (
            "transformers blip",
            1,
            {"FreestyleRet-BLIP": "freestyle", "Hystar-BLIP": "hystar", "BLIP, frozen": "frozen"},
        ),
        ("albef", 12, {"ALBEF": "frozen", "Hystar": "hystar"}),
        ("transformers siglip", 8, {"4, 7, 10, 13": "hystar", "1": "hystar+blocks=1", "16, 19, 22, 24": LATE}),
    ],
)
def test_the_rows_depend_on_the_backbone(kind, number, ours, tmp_path):
    small = WRITERS[kind](tmp_path / "backbone")
    model = {"backbone": small.backbone, "pretrained": "packaged"}
    done("reproduce", tmp_path / "out", f"table{number}", data={"limit": 4}, model=model)
    table = content(tmp_path / "out", f"table{number}")
    assert {row["row"]: row["run"] for row in table["rows"] if "run" in row} == ours
    assert f"backbone {small.backbone}" in table["ours"]
    for row in table["rows"]:
        if "run" in row:
            assert ("difference" in row) == (row["run"] != "hystar")


def test_tables_show_ours_beside_the_papers_and_share_runs(tmp_path):
    shown = done("reproduce", tmp_path, "table4", "table13", **LIMITED)
    assert "Table 4: " in shown and "ranked within batches of 24" in shown and "full gallery of 6" in shown
    assert "not run: CLIP, LoRA, VPT, FreestyleRet, Hystar: needs 3,000 pictures" in shown
    found = content(tmp_path, "table4")
    assert [row["row"] for row in found["rows"]] == list(paper_table(4).rows)
    for row in found["rows"]:
        assert tuple(row["paper"].values()) == paper_table(4).rows[row["row"]]
        assert ("difference" in row) == (row["row"] != found["reference"])
    record = content(tmp_path, "compare")
    assert [entry["method"] for entry in record["runs"]] == list(plan(4).runs.values())
    shown = done("reproduce", tmp_path, "table10", **LIMITED)
    again = content(tmp_path, "compare")
    assert again["runs"][:5] == record["runs"], "Table 10 ran rows of Table 4 again"
    table = content(tmp_path, "table10")
    ours = {row["row"]: row for row in table["rows"] if not row["paper"]}
    assert [row["run"] for row in ours.values()] == ["hystar+blocks=2-4-6", "hystar+style=prefix+blocks=2-4-6"]
    runs = runs_by_method(again["runs"], query_ids(again))
    for row in ours.values():
        expected = difference_over_seeds(runs[row["run"]], runs["hystar"], again["data"]["headline"])
        assert expected is not None and row["difference"]["all"] == interval_info(expected)
    assert set(table["milliseconds"]) == {"hystar", "static+loss=info_nce", *(row["run"] for row in ours.values())}
    assert all(0 < cost["low"] <= cost["median"] <= cost["high"] for cost in table["milliseconds"].values())
    assert "not run: VGG: needs the extractor's weights: --set model.vgg=FILE or a name" in shown


def test_tables_state_whether_ours_may_be_compared_with_the_papers(tmp_path):
    data = {
        "source": f"dsr:{trees.split_dsr(tmp_path / 'DSR')}",
        "test": f"domainnet:{trees.domainnet(tmp_path / 'DomainNet')}",
        "protocol": "batch24",
    }
    training = {"batch_size": 4, "tune_variants": False}
    shown = done("reproduce", tmp_path / "out", "table4", "table3", data=data, training=training)
    assert "; backbone tiny; data and protocol are the paper's, so the two may be compared" in shown
    table = content(tmp_path / "out", "table3")
    assert "may be compared" not in table["ours"] and "DomainNet, full gallery of 2" in table["ours"]
    for row in table["rows"]:
        assert set(row["recall"]["all"]) == {"headline", "real", "clipart", "sketch"}
        assert ("difference" in row) == (row["row"] != "Hystar")


def test_tables_2_3_and_7_share_adapters_on_different_tasks(tmp_path):
    limited = {"data": {"limit": 12}}
    done("reproduce", tmp_path, "table2", "table3", "table7", **limited)
    kinds = {2: {"outline", "sketch", "lowres", "twemoji"}, 7: {f"{s}+text, max" for s in ("outline", "sketch")}}
    for number in (2, 3, 7):
        rows = {row["row"]: row for row in content(tmp_path, f"table{number}")["rows"]}
        assert set(paper_table(number).rows) <= set(rows)
        ran = [name for name, row in rows.items() if "recall" in row]
        assert {"LoRA", "VPT", "FreestyleRet", "Hystar"} <= set(ran) and len(ran) == 5
        for name in ran:
            found = rows[name]["recall"]["all"]
            assert kinds.get(number, set()) <= set(found)
            assert found["headline"]["R@1"]["low"] <= found["headline"]["R@1"]["high"]
            assert ("difference" in rows[name]) == (name != "Hystar")
    assert len(content(tmp_path, "compare")["runs"]) == 5, "the three tables do not share their adapters"
    images = displace_queries(open_images("emoji").select(limit=12))
    assert "turned by up to 10 degrees" in content(tmp_path, "task-category")["protocol"]
    found = evaluate(load_method(tmp_path / "adapters" / "lora-0"), images, task="category").ranks
    evaluated = content(tmp_path, "task-category")
    ranks = next(entry["ranks"] for entry in evaluated["runs"] if entry["method"] == "lora")
    assert {kind: values.tolist() for kind, values in found.by_kind.items()} == ranks
    done("reproduce", tmp_path, "table2", **limited)
    assert content(tmp_path, "task-category")["runs"] == evaluated["runs"]


def test_table_11_trains_on_base_classes_and_lists_missing_methods(tmp_path):
    few_shot = {"steps": 1, "shots": 1, "limit": 20}
    shown = done("reproduce", tmp_path, "table11", few_shot=few_shot)
    assert "not run: CoOp, ProGrad, KgCoOp, MaPLe, TCP: a method of learned text prompts" in shown
    rows = {row["row"]: row for row in content(tmp_path, "table11")["rows"]}
    assert set(rows) == {"CLIP, zero-shot", *paper_table(11).rows}
    assert rows["Hystar"]["paper"]["Average H"] == 77.03
    ours = rows["Hystar"]["few_shot"]
    base, new = ours["base"]["value"], ours["new"]["value"]
    assert ours["H"]["value"] == pytest.approx(2 * base * new / (base + new) if base + new else 0, abs=0.02)


def test_table_5_counts_parameters_on_the_papers_backbone():
    found = sizes_on_vit_l_14()
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
def test_table_5_times_the_given_backbone_and_prints_both_counts_of_freestyleret(tmp_path, own):
    backbone = write_small_clip(tmp_path / "clip", weights=False) if own else "tiny"
    shown = done("reproduce", tmp_path, "table5", model={"backbone": backbone})
    found = content(tmp_path, "table5")
    assert found["backbone"] == backbone
    assert all(row["milliseconds"] > 0 for row in found["rows"])
    assert [row["parameters"] // 10**6 for row in found["rows"] if row["row"] == "Hystar"] == [442]
    row = next(row for row in found["rows"] if row["row"] == "FreestyleRet")
    assert row["added"] == 10_112_772 and row["with_unused_parts"]["parameters"] // 10**6 == 476
    assert f"it has {row['with_unused_parts']['parameters'] / 1e6:.1f} M" in shown


def test_an_unknown_table_is_rejected(tmp_path):
    assert "tables must be" in refused_experiment("reproduce", tmp_path, "table0")
