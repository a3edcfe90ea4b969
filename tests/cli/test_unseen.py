"""`eval --unseen`: zero-shot parts by category, their sizes, chance levels and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hystar_fast.data.hold_out import Shares
from hystar_fast.data.open import open_images
from hystar_fast.methods.adapter_files import save_method
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.retrieval.definitions import chance_level
from hystar_fast.train.data_record import DataRecord
from tests.support import picture_trees as trees
from tests.support.cli import refused, run


def evaluated(output: Path, *arguments: object) -> tuple[str, dict]:
    found = run("eval", "--output", output, "--metrics", "mAP@all,R@1", *arguments)
    assert found.exit_code == 0, found.output
    return found.output, json.loads((output / "results.json").read_text())


@pytest.fixture
def sketchy(tmp_path: Path) -> Path:
    return trees.sketchy(tmp_path / "Sketchy", ("tx_000000000000",))


@pytest.fixture
def names(tmp_path: Path) -> Path:
    file = tmp_path / "names.txt"
    file.write_text("Cat\n")
    return file


def test_data_with_pairs_is_evaluated_by_category_on_the_unseen_part(tmp_path, sketchy, names):
    output, results = evaluated(tmp_path / "eval", "--method", "pixels", "--data", sketchy, "--unseen", names)
    assert (results["task"], results["gallery"]) == ("category", {"what": "photo", "n": 2})
    assert results["data"]["unseen"] == str(names) and results["data"]["generalised"] is None
    assert results["queries"]["sketch"]["n"] == 3
    assert results["queries"]["sketch"]["mAP@all"]["value"] == results["queries"]["sketch"]["chance of mAP@all"] == 100
    assert "1 unseen categories, 3 queries, 2 gallery pictures" in output
    assert "1 seen categories, 2 queries, 2 gallery pictures" in output


def test_seen_pictures_join_the_gallery(tmp_path, sketchy, names):
    arguments = ("--method", "pixels", "--data", sketchy, "--unseen", names, "--generalised", "all")
    output, results = evaluated(tmp_path / "eval", *arguments)
    assert results["gallery"]["n"] == 4 and results["queries"]["sketch"]["n"] == 3
    chance = chance_level(torch.tensor([2]), 4).item()
    assert results["queries"]["sketch"]["chance of mAP@all"] == round(100 * chance, 2)
    assert "generalised: 4 gallery pictures with those of seen categories" in output
    assert results["data"]["split"].endswith("seen ones in the gallery: all")


def test_the_pairs_are_still_there_for_those_who_ask(tmp_path, sketchy, names):
    arguments = ("--method", "pixels", "--data", sketchy, "--unseen", names, "--task", "instance")
    _, results = evaluated(tmp_path / "eval", *arguments)
    assert results["queries"]["sketch"]["n"] == 2 and results["queries"]["sketch"]["R@1"]["value"] == 100


def test_results_without_the_option_have_no_new_entries(tmp_path, sketchy):
    found = run("eval", "--method", "pixels", "--data", sketchy, "--output", tmp_path / "eval")
    assert found.exit_code == 0, found.output
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert {"unseen", "generalised"}.isdisjoint(results["data"])
    assert "chance of mAP@all" not in results["queries"]["sketch"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--unseen", "sketchy21"), "unseen must name categories of Sketchy, got 'bat', which it has not; the nearest"),
        (("--unseen", "subgroup"), "unseen must be a list or a file for Sketchy"),
        (("--generalised", "all"), "generalised must be left out unless unseen is given"),
        (("--unseen", "half:1", "--split", "test"), "split must be left out with unseen for Sketchy, which has no spl"),
        (("--unseen", "half:1", "--generalised", "some"), "generalised must be one of ('sample', 'sample+queries'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tmp_path, sketchy, arguments, message):
    line = ("eval", "--method", "pixels", "--data", sketchy, "--output", tmp_path / "eval", *arguments)
    assert message in refused(*line)


def test_an_adapter_that_was_trained_on_an_unseen_category_is_refused(tmp_path, sketchy, names):
    method = create_method("static", tiny_config(pretrained=None))
    save_method(method, tmp_path / "adapter")
    images = open_images(str(sketchy))
    line = ("eval", "--adapter", tmp_path / "adapter", "--data", sketchy, "--output", tmp_path / "eval")
    DataRecord.of(str(sketchy), images, Shares(0.0, 0.0), {"dog"}).save(tmp_path / "adapter")
    message = refused(*line, "--unseen", names)
    assert "categories that the adapter was not trained on" in message and "'cat'" in message
    DataRecord.of(str(sketchy), images, Shares(0.0, 0.0), {"cat"}).save(tmp_path / "adapter")
    assert DataRecord.read(tmp_path / "adapter").unseen == ("cat",)
    output, _ = evaluated(tmp_path / "eval", *line[1:5], "--unseen", names)
    assert "not known" not in output
    (tmp_path / "adapter/data.json").unlink()
    output, _ = evaluated(tmp_path / "eval", *line[1:5], "--unseen", names)
    assert "it is not known whether the adapter was trained on these categories" in output


def test_the_three_parts_of_the_embedded_drawings(tmp_path):
    parts = {(): 65, ("--split", "all"): 324, ("--generalised", "all"): 310}
    for options, gallery in parts.items():
        arguments = ("--method", "pixels", "--unseen", "subgroup", *options)
        output, results = evaluated(tmp_path / "eval", *arguments)
        assert results["gallery"]["n"] == gallery
        assert ("may have been in the pretraining" in output) == ("--split" in options)
        chance = {65: 11.7, 324: 8.0, 310: 3.0}[gallery]
        assert results["queries"]["sketch"]["chance of mAP@all"] == pytest.approx(chance, abs=0.05)


def test_pictures_and_texts_are_ranked_in_both_directions(tmp_path):
    arguments = ("--method", "frozen", "--weights", "random", "--unseen", "subgroup", "--task", "crossmodal")
    output, results = evaluated(tmp_path / "eval", *arguments, "--limit", "8")
    assert [*results["queries"]] == ["I2T", "T2I", "Avg"] and results["task"] == "crossmodal"
    both = [results["queries"][name]["mAP@all"]["value"] for name in results["queries"]]
    assert both[2] == pytest.approx((both[0] + both[1]) / 2, abs=0.011)
    assert "relevant: the same category" in output
    line = ("eval", "--method", "frozen", "--output", tmp_path / "eval")
    assert "protocol must be 'full' for task 'crossmodal'" in refused(
        *line, "--task", "crossmodal", "--protocol", "batch24"
    )
    assert "--support must be left out unless the task is 'crossmodal'" in refused(*line, "--support", "train")
