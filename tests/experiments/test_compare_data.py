"""Comparing on other data than the embedded drawings: its three parts, its protocols, and the tables of other tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hystar_fast.cli.emoji_parts import EmojiParts
from hystar_fast.cli.record_parts import EPOCHS, TEST, RecordParts
from hystar_fast.cli.source import Source
from hystar_fast.data.open import open_images
from hystar_fast.data.paper_tables import paper_table
from hystar_fast.data.records import ImageSet, Record
from hystar_fast.methods import variants
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.pixels import Pixels
from hystar_fast.methods.recipes import DEMO_STEPS, DYNAMIC_GRID, demo_config
from hystar_fast.methods.variants import Variant
from hystar_fast.retrieval.asked import Asked
from hystar_fast.retrieval.evaluate_images import evaluate_images
from hystar_fast.retrieval.seeds import over_seeds, restored
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.records import hold_out
from tests.support import picture_trees as trees
from tests.support.cli import refused, run

BASE = ("--steps", 1, "--seeds", 2, "--tuning-seeds", 1, "--weights", "random", "--batch-size", 4, "--device", "cpu")


@pytest.fixture(autouse=True)
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    for grids in ("GRID", "BASELINE_GRID"):
        monkeypatch.setattr(variants, grids, {name: trials[:1] for name, trials in getattr(variants, grids).items()})
    monkeypatch.setattr(variants, "DYNAMIC_GRID", DYNAMIC_GRID[:1])


@pytest.fixture
def dsr(tmp_path: Path) -> Path:
    """DSR with 30 pictures to train on and 26 to ask about."""
    root = trees.dsr(tmp_path / "DSR", n=56, styles=("art", "sketch"))
    entries = json.loads((root / "test.json").read_text())
    (root / "train.json").write_text(json.dumps(entries[:30]))
    (root / "test.json").write_text(json.dumps(entries[30:]))
    return root


def test_the_parts_of_a_data_set_share_no_picture(dsr, tmp_path):
    parts = RecordParts(f"dsr:{dsr}")
    names = [{record.instance for record in part.records} for part in (parts.training, parts.held_out, parts.images())]
    assert len(set.union(*names)) == sum(map(len, names)) == 56
    assert len(names[2]) == 26 and parts.styles == parts.headline == ("art", "sketch")
    assert parts.steps(4) == EPOCHS * (len(names[0]) // 4)
    for category in ("ant", "bee"):
        for i in range(40):
            for style in ("photo", "sketch"):
                trees.picture(tmp_path / "folders" / style / category / f"{i}.png", seed=i)
    whole = RecordParts(f"folders:{tmp_path / 'folders'}")
    found = [{record.path for record in part.records} for part in (whole.training, whole.held_out, whole.images())]
    assert all(found) and len(set.union(*found)) == sum(map(len, found)) == 160
    chain = trees.pairs(tmp_path / "chain", [(f"p{i}.png", f"p{i + 1}.png") for i in range(120)])
    linked = RecordParts(f"pairs:{chain}")
    found = [{record.path for record in part.records} for part in (linked.training, linked.held_out, linked.images())]
    assert all(found) and len(set.union(*found)) == sum(map(len, found))
    # a picture of two pairs is in one part, and what is asked in the end loses none to the others
    assert linked.images().records == hold_out(open_images(f"pairs:{chain}", "test"), TEST)[1].records
    with pytest.raises(ValueError, match="too few pictures to train on, to choose by and to ask"):
        RecordParts(f"pairs:{trees.pairs(tmp_path / 'few', [('a.png', 'b.png')])}")
    with pytest.raises(ValueError, match="protocol must be one of"):
        RecordParts(f"dsr:{dsr}", protocol="batch48")


@pytest.mark.parametrize("protocol", ["full", "batch24"])
def test_methods_are_compared_on_dsr_as_eval_measures_them(dsr, tmp_path, protocol):
    out = tmp_path / "out"
    result = run("compare", "--data", f"dsr:{dsr}", "--methods", "frozen,static", "--output", out, *BASE,
                 "--protocol", protocol)  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads((out / "compare.json").read_text())
    assert str(tmp_path) not in json.dumps(record)
    assert (record["data"], record["headline"]) == ("DSR", ["art", "sketch"])
    assert record["queries"] == {"art": 26, "sketch": 26, "text": 26}
    assert [entry["method"] for entry in record["runs"]] == ["frozen", "static", "static"]
    method = load_method(out / "adapters" / "static-1")
    report = evaluate_images(method, open_images(f"dsr:{dsr}"), protocol=protocol)
    assert {row.queries: row.ranks.tolist() for row in report.rows} == record["runs"][2]["ranks"]
    run_of = [restored(record["runs"][2]["ranks"], Asked.from_dict(record["asked"]))]
    for row in report.rows:
        first, fifth = row.values.values()
        for k, expected in ((1, first), (4 if protocol == "batch24" else 5, fifth)):
            found = over_seeds(run_of, (row.queries,), k)
            assert found is not None and expected is not None and found.interval.value == expected.value
            # What no batch has asked is resampled too, and counts for nothing.
            assert found.interval == expected or protocol == "batch24"
    assert ("batches of 24" in " ".join(result.output.split())) == (protocol == "batch24")
    again = run("compare", "--data", f"dsr:{dsr}", "--methods", "frozen,static,static+styles=art", "--output", out,
                *BASE, "--protocol", protocol, "--no-tune-variants")  # fmt: skip
    assert again.exit_code == 0, again.output
    assert json.loads((out / "compare.json").read_text())["runs"][:3] == record["runs"]
    assert run("claims", out).exit_code == 0
    assert "`hystar+styles=sketch`" in (out / "results.md").read_text(), "trained without art"
    other = {"full": "batch24", "batch24": "full"}[protocol]
    assert "of other settings" in refused("compare", "--data", f"dsr:{dsr}", "--methods", "frozen", "--output", out,
                                          *BASE, "--protocol", other)  # fmt: skip
    assert "of other settings" in refused("compare", "--methods", "frozen", "--output", out, *BASE)
    assert "styles must be some of ('art', 'sketch')" in refused(
        "compare", "--data", f"dsr:{dsr}", "--methods", "static+styles=mosaic", "--output", out, *BASE
    )


def test_another_style_of_folders_can_answer(tmp_path):
    for i in range(30):
        for style in ("drawing", "thing"):
            trees.picture(tmp_path / "in" / style / "ant" / f"{i}.png", seed=i)
    arguments = ("compare", "--data", f"folders:{tmp_path / 'in'}", "--methods", "pixels", "--output", tmp_path, *BASE)
    assert "gallery" in refused(*arguments)
    result = run(*arguments, "--gallery-style", "thing")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "compare.json").read_text())
    assert record["gallery"]["style"] == record["gallery_style"] == "thing" and record["headline"] == ["drawing"]
    assert run("claims", tmp_path).exit_code == 0
    page = (tmp_path / "results.md").read_text()
    assert "hystar-fast compare --output FOLDER --data PATH --gallery-style thing" in page
    assert "gallery_style must be left out" in refused("compare", "--output", tmp_path / "e", "--gallery-style", "flat")


def test_tables_on_dsr_and_domainnet_run_by_the_same_command(dsr, tmp_path):
    trees.domainnet(tmp_path / "DomainNet")
    out = tmp_path / "out"
    result = run("reproduce", "table4", "table3", "--data", f"dsr:{dsr}", "--protocol", "batch24", "--output", out,
                 "--test-data", f"domainnet:{tmp_path / 'DomainNet'}", "--no-tune-variants", *BASE)  # fmt: skip
    assert result.exit_code == 0, result.output
    shown = " ".join(result.output.split())
    assert "; backbone tiny; data and protocol are the paper's, so the two may be compared" in shown
    table = json.loads((out / "table3.json").read_text())
    assert "may be compared" not in table["ours"] and "DomainNet, full gallery of 2" in table["ours"]
    for row in table["rows"]:
        assert set(row["recall"]) == {"hard_mean", "real", "clipart", "sketch"}
        assert ("verdict" in row) == (row["row"] != "Hystar")
    assert json.loads((out / "task-classify.json").read_text())["template"] == "a photo of a {}."


def test_tables_2_3_and_7_run_on_the_embedded_drawings(tmp_path):
    arguments = ("--steps", 1, "--limit", 30, "--weights", "random", "--seeds", 1, "--tuning-seeds", 1)
    result = run("reproduce", "table2", "table3", "table7", "--output", tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    kinds = {2: {"outline", "sketch", "lowres", "twemoji"}, 7: {f"{s}+text, max" for s in ("outline", "sketch")}}
    for number in (2, 3, 7):
        table = json.loads((tmp_path / f"table{number}.json").read_text())
        rows = {row["row"]: row for row in table["rows"]}
        assert set(paper_table(number).rows) <= set(rows)
        ours = [name for name, row in rows.items() if "recall" in row]
        assert {"LoRA", "VPT", "FreestyleRet", "Hystar"} <= set(ours) and len(ours) == 5
        for name in ours:
            found = rows[name]["recall"]
            assert kinds.get(number, set()) <= set(found)
            assert found["hard_mean"]["R@1"]["low"] <= found["hard_mean"]["R@1"]["high"]
            assert ("difference" in rows[name]) == (name != "Hystar")
    record = json.loads((tmp_path / "compare.json").read_text())
    assert len(record["runs"]) == 5, "the three tables share the adapters"
    adapter = load_method(tmp_path / "adapters" / "lora-0")
    images = open_images("emoji").select(limit=30)
    report = evaluate_images(adapter, images, task="category")
    done = json.loads((tmp_path / "task-category.json").read_text())
    ranks = next(entry["ranks"] for entry in done["runs"] if entry["method"] == "lora")
    assert {row.queries: row.ranks.tolist() for row in report.rows} == ranks
    assert run("reproduce", "table2", "--output", tmp_path, *arguments).exit_code == 0
    assert json.loads((tmp_path / "task-category.json").read_text())["runs"] == done["runs"]
    assert run("claims", tmp_path).exit_code == 0
    assert "Table 2: Zero-shot category retrieval" in (tmp_path / "results.md").read_text()


def recorded(records: list[Record]) -> tuple[ImageSet, Any]:
    images = ImageSet("set", "photo", tuple(records), lambda record: None)  # type: ignore[arg-type,return-value]
    return images, lambda style: [r for r in records if r.style == style]


def test_one_thing_asked_in_two_styles_has_one_number():
    records = [Record(f"{s}/{i}", s, None, f"{i}") for s in ("photo", "sketch", "art") for i in range(3)]
    records += [Record("sketch/1b", "sketch", None, "1"), Record("sketch/none", "sketch", "cat")]
    images, of = recorded(records)

    class Row:
        def __init__(self, queries: str, asked: list[Record]) -> None:
            self.queries, self.asked = queries, tuple(asked)

    asked = Asked.of(images, [Row("sketch", of("sketch")), Row("art", of("art")[::-1])])  # type: ignore[list-item]
    assert asked.rows("sketch")[:3].tolist() == asked.rows("art").flip(0).tolist() == [0, 1, 2]
    assert len(set(asked.rows("sketch").tolist())) == 5 and len(asked) == 5
    again = Asked.from_dict(json.loads(json.dumps(asked.to_dict())))
    assert torch.equal(again.rows("sketch"), asked.rows("sketch"))
    fewer = Asked.of(images, [Row("sketch", of("sketch")[1:])])  # type: ignore[list-item]
    assert set(asked.joined(Asked(5, {"text": torch.arange(2)})).numbers) == {"sketch", "art", "text"}
    with pytest.raises(ValueError, match="the data set has changed"):
        asked.joined(fewer)
    with pytest.raises(ValueError, match="style must be one of"):
        asked.rows("text")


def test_ranks_agree_with_the_metrics_of_their_row(dsr):
    for task in ("instance", "category"):
        for row in evaluate_images(Pixels(), open_images(f"dsr:{dsr}"), task=task).rows:
            value = row.values["R@5"]
            assert value is not None and len(row.ranks) == len(row.asked) == row.n
            assert float((row.ranks < 5).double().mean()) == pytest.approx(value.value)


def test_the_embedded_drawings_train_as_the_demo_does():
    found = EmojiParts().recipe({"static": 0.1}, 5, 1, EmojiParts.styles, 48)
    assert found == Recipe({"static": 0.1}, steps=5, seed=1) and EmojiParts().steps(48) == DEMO_STEPS
    assert Source().config() == demo_config() and Source().place() == torch.device("cpu")


def test_a_larger_backbone_is_tuned_around_the_papers_rates():
    assert {"static": 1e-3, "dynamic": 1e-5} in Variant.parse("hystar").grid("open_clip:ViT-L-14")
    for name in variants.COMPARED:
        tiny, large = Variant.parse(name).grid(), Variant.parse(name).grid("open_clip:ViT-L-14")
        assert [set(rates) for rates in large[:1]] == [set(rates) for rates in tiny[:1]]
        assert len({tuple(rates.values()) for rates in large}) == (5 if tiny else 0)


def test_options_that_cannot_be_are_refused(tmp_path):
    assert "blocks must be numbers" in refused("compare", "--blocks", "4,7", "--output", tmp_path)
    assert "protocol must be full for the embedded drawings" in refused(
        "compare", "--protocol", "batch24", "--output", tmp_path
    )
    assert "there is nothing at" in refused("compare", "--data", "dsr:/nowhere", "--output", tmp_path)
    for i in range(30):
        for style in ("photo", "sketch"):
            trees.picture(tmp_path / "in" / style / "ant" / f"{i}.png", seed=i)
    assert "figure 5 mixes two pictures of one thing, and in has none in two styles that ask" in refused(
        "figure", 5, "--data", f"folders:{tmp_path / 'in'}", "--output", tmp_path
    )
