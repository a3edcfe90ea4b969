"""Rows of other papers' ablations on the embedded drawings: what is trained, measured, kept and printed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import mean, stdev

import pytest
import torch

from hystar_fast.data.open import open_images
from hystar_fast.experiments import ma_sbir_runs
from hystar_fast.experiments.acnet_runs import acnet_figures, acnet_parts
from hystar_fast.experiments.embedded_runs import chance, frozen, trained
from hystar_fast.experiments.published_tables import PAPERS, published_numbers, published_table
from hystar_fast.experiments.reproduce_embedded import EMBEDDED, OTHERWISE, how_of, run_embedded
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.step_trained import CategoryBatch, StepPlan
from hystar_fast.methods.suite import create_method
from hystar_fast.retrieval.definitions import Metric
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.terminal.console import Console
from hystar_fast.train.settings import read_settings
from tests.support.cli import refused

WITH_ROWS = [
    (paper, number)
    for paper in PAPERS
    for number in published_numbers(paper)
    if published_table(paper, number).settings
]


def test_the_ablations_have_settings_and_other_tables_have_none():
    assert [("acnet", number) for number in (2, 5, 7, 8, 9, 10, 11)] + [
        *[("fgan", 4), *[("ma_sbir", number) for number in (3, 4, 5, 6, 7)], ("tki", 5)]
    ] == WITH_ROWS


@pytest.mark.parametrize(("paper", "number"), WITH_ROWS)
def test_the_settings_of_every_row_are_those_of_its_name_and_can_be_read(paper, number):
    table = published_table(paper, number)
    how = how_of(table)
    shipped = read_settings(how.config, [])
    found = {row: read_settings(how.config, list(changes)) for row, changes in table.settings.items()}
    different = [row for row in found if found[row].to_dict() != shipped.to_dict()]
    assert len(different) == len({json.dumps(found[row].to_dict()) for row in different}), "two rows are the same"
    assert len(found) - len(different) - len({*found} & {*how.rows}) <= 1, "one row at most is the method itself"


def test_acnets_rows_are_the_ablations_of_the_paper():
    rows = published_table("acnet", 5).settings
    assert rows["L_s + L_p"] == ("acnet.synthesis=none",)
    assert rows["L_p + adv + L_*"] == ("acnet.sketch_term=false", "acnet.gamma_identity=0") and rows["all"] == ()
    assert published_table("acnet", 2).settings["triplet, two-stage"] == (
        "acnet.loss=triplet",
        "acnet.synthesis=two-stage",
    )


ACNET_CHANGES = sorted(
    {changes for paper, n in WITH_ROWS if paper == "acnet" for changes in published_table("acnet", n).settings.values()}
)


@pytest.mark.parametrize("changes", ACNET_CHANGES, ids=" ".join)
def test_every_row_of_acnet_takes_a_step_in_each_of_its_stages(changes):
    settings = read_settings("acnet-emoji", [*changes, "acnet.channels=1", "acnet.generator_blocks=1"])
    own = settings.own
    method = create_method("acnet", settings.model, settings=own.to_dict())
    method.begin(StepPlan(4, 1e-3))
    method.train(True)
    pictures = torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = CategoryBatch(*pictures, torch.arange(4))
    first = own.cycle_epochs if own.synthesis == "two-stage" else 0
    for step, epoch in enumerate(sorted({0, first, first + own.warmup_epochs})):
        before = [p.detach().clone() for members in method.parameter_groups().values() for p in members]
        losses = method.step(batch, epoch, step)
        assert all(math.isfinite(value) for value in losses.values())
        after = [p for members in method.parameter_groups().values() for p in members]
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), "nothing was trained"


def test_the_parts_of_acnet_and_its_figures_are_those_of_eval():
    parts = acnet_parts()
    sizes = {name: (len(images.of_style("sketch")), len(images.gallery)) for name, images in parts.items()}
    assert sizes == {"unseen": (65, 65), "unseen-all": (324, 324), "generalised": (65, 310)}
    levels = {name: chance(images, images.of_style("sketch")) for name, images in parts.items()}
    assert levels == pytest.approx({"unseen": 11.7, "unseen-all": 8.0, "generalised": 3.0}, abs=0.06)
    method = frozen()
    found = acnet_figures(method, parts["unseen"])
    metric = Metric.parse("mAP@all")
    (result,) = evaluate(method, parts["unseen"], task="category", metrics=[metric], kinds=("sketch",)).kinds
    value = result.values["mAP@all"]
    assert value is not None and found["mAP@all"].mean().item() == pytest.approx(value.value, abs=1e-6)
    (result,) = evaluate(method, parts["unseen"], kinds=("sketch",)).kinds
    assert found["R@1"].mean().item() == pytest.approx(result.values["R@1"].value, abs=1e-6)


@pytest.mark.parametrize(
    ("paper", "number", "kept"),
    [("acnet", 9, ("StarGAN v2",)), ("fgan", 4, ()), ("ma_sbir", 3, ()), ("ma_sbir", 6, ()), ("tki", 5, ())],
)
def test_rows_are_trained_once_and_stand_beside_the_papers(tmp_path, capsys, paper, number, kept):
    table = published_table(paper, number)
    chosen = [row for row in table.rows if row in table.settings or row in kept or paper != "ma_sbir"][:2]
    less = ("data.limit=40", "data.validation=none", "run.validate_every=0")
    settings = {row: (*changes, *less) for row, changes in table.settings.items()}
    table = replace(table, rows={row: table.rows[row] for row in chosen}, settings=settings)
    small = replace(how_of(table), parts=lambda: {"small": _few(paper)})
    small = replace(small, controls={row: (*changes, *less) for row, changes in small.controls.items()})
    seeds = (0, 1) if paper == "tki" else (0,)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EMBEDDED, paper, small)
        patch.setitem(OTHERWISE, ("ma_sbir", 3), small)
        patch.setattr(ma_sbir_runs, "training_drawings", lambda: open_images("emoji", "train").select(limit=12))
        first = run_embedded([table], tmp_path, Console(), steps=1, seeds=(0, 1))
        written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
        again = run_embedded([table], tmp_path, Console(), steps=1, seeds=(0, 1))
    name = f"{paper}:table{number}"
    assert first[name]["rows"] == again[name]["rows"]
    assert written and written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    stored = json.loads((tmp_path / f"{paper}-table{number}-emoji.json").read_text())
    assert [row["row"] for row in stored["rows"]] == chosen
    for row in stored["rows"]:
        assert row["paper"] == dict(zip(table.columns, table.rows[row["row"]], strict=True))
        assert ("missing" in row) == (row["row"] in kept) != ("ours" in row)
        for value in row.get("ours", {}).get("small", {}).values():
            assert 0 <= value["low"] <= value["value"] <= value["high"] <= 100
    beside = {"ma_sbir": ["frozen", "frozen, mean shift"], "tki": ["TKI, geometry=euclidean", "wccn"]}.get(paper, [])
    assert [row["row"] for row in stored["beside"]] == beside and stored["seeds"] == [*seeds]
    if paper == "tki":
        folders = sorted(tmp_path.glob("tki/tki_head_wccn*/adapter"))
        values = [100 * small.figures(load_method(one), _few(paper))["mAP@all"].mean().item() for one in folders]
        ours = stored["beside"][1]["ours"]["small"]["mAP@all"]
        assert (ours["value"], ours["deviation"]) == pytest.approx((mean(values), stdev(values)), abs=0.006)
    if (paper, number) == ("ma_sbir", 3):
        original, moved = (row["ours"]["small"] for row in stored["rows"])
        assert original["Acc@1"] == original["Acc@1, original"] == moved["Acc@1, original"]
        assert stored["chance of Acc@1"]["small"] == 100, "12 drawings of 12 subgroups"
    shown = " ".join(capsys.readouterr().out.split())
    assert "ours" in shown and all(f"not run: {row}" in shown for row in kept)


def _few(paper):
    images = open_images("emoji:keywords" if paper == "fgan" else "emoji", "test")
    return images.select(limit=12)


def test_a_run_that_was_stopped_after_a_validation_goes_on_and_is_no_result_yet(tmp_path):
    changes = [
        *("acnet.extractor=timm:test_resnet", "acnet.weights=random", "acnet.embedding=8", "acnet.image_size=24"),
        *("acnet.channels=2", "acnet.generator_blocks=1", "data.limit=60", "optim.batch_size=8"),
        *("optim.steps=3", "run.validate_every=1"),
    ]

    def stop(done, _):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained("acnet-emoji", changes, tmp_path, progress=stop)
    assert (tmp_path / "adapter" / "adapter.safetensors").is_file(), "the best of one step"
    steps = []
    trained("acnet-emoji", changes, tmp_path, progress=lambda done, _: steps.append(done))
    assert steps == [2, 3]
    trained("acnet-emoji", changes, tmp_path, progress=lambda done, _: steps.append(done))
    assert steps == [2, 3]


def test_a_table_without_runs_is_refused_before_anything_is_trained(tmp_path):
    def said(*words):
        return refused("experiments", "reproduce", *words, "--output", tmp_path)

    message = said("acnet:table9", "acnet:table4", "--data", "emoji")
    assert "--data must be left out for acnet:table4, none of whose rows runs on these drawings" in message
    assert not [*tmp_path.rglob("*.safetensors")]
    assert "--steps must be left out unless data is given, got 2" in said("acnet:table9", "--steps", 2)
    unknown = "--data must be 'emoji', or for tki:table3 alone a data set of its domains, or for one of ma_sbir:table1"
    assert unknown in said("acnet:table9", "--data", "cifar")
    assert "--data must be left out for tables of Hystar's paper" in said("table4", "--data", "emoji")


def test_a_loss_of_a_missing_package_is_a_row_that_was_not_run(tmp_path, monkeypatch):
    def missing(*_args, **_options):
        raise ModuleNotFoundError("acnet.loss needs a package")

    monkeypatch.setattr("hystar_fast.experiments.row_training.trained", missing)
    monkeypatch.setitem(EMBEDDED, "acnet", replace(EMBEDDED["acnet"], parts=lambda: {"small": _few("acnet")}))
    found = run_embedded([published_table("acnet", 9)], tmp_path, Console(), steps=1)
    assert {row.get("missing") for row in found["acnet:table9"]["rows"]} == {
        "acnet.loss needs a package",
        "the generator of StarGAN v2 is not part of this package",
    }


def test_a_row_whose_second_stage_is_not_reached_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDED, "acnet", replace(EMBEDDED["acnet"], parts=lambda: {"small": _few("acnet")}))
    table, row = published_table("acnet", 2), "NormSoftmax, two-stage"
    changes = (*table.settings[row], "data.limit=40", "optim.batch_size=8", "run.device=cpu")
    table = replace(table, rows={row: table.rows[row]}, settings={row: changes})
    (found,) = run_embedded([table], tmp_path, Console(), steps=1)["acnet:table2"]["rows"]
    assert "ours" not in found and "acnet.cycle_epochs must leave steps to the second stage" in found["missing"]
