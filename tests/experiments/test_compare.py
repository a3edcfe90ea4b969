"""Comparison of methods: one budget, several seeds, paired differences, and stopped runs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from hystar_fast.data.displacement import displace_queries
from hystar_fast.data.open import open_images
from hystar_fast.experiments import compare as module
from hystar_fast.experiments import tune
from hystar_fast.experiments.experiment_settings import read_experiment
from hystar_fast.experiments.seeds import spread_over_seeds
from hystar_fast.experiments.splits import evaluate_method, trained_method
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.mean_shift import MeanShift
from hystar_fast.methods.shuffled_style import ShuffledStyle
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.ranks import QueryIds, Ranks
from tests.support import picture_trees as trees
from tests.support.experiments import done, refused_experiment, run_experiment, shrink_grids
from tests.support.small_clip import write_small_clip
from tests.support.small_tiny import shrink_tiny

LIMIT = 6
NAMES = ["frozen", "vpt", "hystar"]


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_grids(monkeypatch, 2)
    shrink_tiny(monkeypatch)


def sections(methods: list[str] = NAMES, **training: Any) -> dict[str, dict[str, Any]]:
    return {"data": {"limit": LIMIT}, "training": {"seeds": 2, "methods": methods, **training}}


def record_of(output: Path, name: str = "compare") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / f"{name}.json").read_text())
    return found


def ranks_of(run: dict[str, Any]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = run["ranks"]
    return found


def as_lists(ranks: Ranks) -> dict[str, list[int]]:
    return {kind: values.tolist() for kind, values in ranks.by_kind.items()}


def test_a_comparison_records_every_trial_and_run_and_summarises_them(tmp_path):
    shown = done("compare", tmp_path, **sections())
    assert all(name in shown for name in NAMES) and "Gallery of 6 noto" in shown
    found, tuned = record_of(tmp_path), record_of(tmp_path, "tuning")
    assert [(run["method"], run["seed"]) for run in found["runs"]] == [
        ("frozen", 0), ("vpt", 0), ("vpt", 1), ("hystar", 0), ("hystar", 1)
    ]  # fmt: skip
    assert len(tuned["trials"]) == 4
    assert found["chosen"] == tuned["chosen"]
    assert found["at_edge"] == ["hystar", "vpt"], "of a grid with two settings, each is at an edge"
    ids = QueryIds.from_dict(found["query_ids"])
    for name in NAMES:
        entry = found["summary"][name]
        runs = [run for run in found["runs"] if run["method"] == name]
        values = [sum(rank < 1 for rank in ranks_of(run)["sketch"]) / LIMIT for run in runs]
        row = entry["recall"]["all"]["sketch"]["R@1"]
        assert row["value"] == pytest.approx(100 * sum(values) / len(values), abs=0.01)
        assert (row["deviation"] is None) == (name == "frozen")
        assert row["low"] <= row["value"] <= row["high"]
        assert (entry["parameters"]["trainable"] > 0) == (name != "frozen")
        assert ("difference" in entry) == (name != "hystar")
    assert str(tmp_path) not in json.dumps(found["runs"]) + json.dumps(found["summary"])
    images = open_images("emoji", "test").select(limit=LIMIT)
    method, kinds = load_method(tmp_path / "adapters" / "vpt-1"), images.query_styles
    again = evaluate(method, displace_queries(images), kinds=(*kinds, "text")).ranks
    assert as_lists(again) == ranks_of(found["runs"][2])
    assert again.ids.to_dict() == ids.to_dict()
    assert as_lists(evaluate(method, images, kinds=kinds).ranks) == found["runs"][2]["registered"]


def test_registered_queries_are_a_second_column_with_differences(tmp_path):
    shown = done("compare", tmp_path / "displaced", **sections(["frozen", "hystar"]))
    found = record_of(tmp_path / "displaced")
    assert "registered" in shown and "turned by up to 10 degrees" in shown
    one = [fmean(rank < 1 for rank in found["runs"][0]["registered"][style]) for style in found["data"]["headline"]]
    recall = found["summary"]["frozen"]["recall"]["registered"]
    assert recall["headline"]["R@1"]["value"] == pytest.approx(100 * fmean(one), abs=0.01) and "text" not in recall
    assert "registered" in found["summary"]["frozen"]["difference"]
    registered = {"data": {"limit": LIMIT, "displaced": False}}
    done("compare", tmp_path / "as drawn", **{**sections(["frozen", "hystar"]), **registered})
    alone = record_of(tmp_path / "as drawn")
    assert "registered" not in alone["summary"]["frozen"]["recall"]
    assert alone["summary"]["frozen"]["recall"]["all"]["sketch"] == recall["sketch"], "frozen is the same in both"
    assert {k: alone["runs"][0]["ranks"][k] for k in found["runs"][0]["registered"]} == found["runs"][0]["registered"]


def test_means_are_fitted_once_without_tuning_and_their_adapter_is_loaded_again(tmp_path):
    names = ["frozen", "mean_shift", "mean_shift+styles=sketch-twemoji"]
    done("compare", tmp_path, **sections(names))
    found = record_of(tmp_path)
    assert [(run["method"], run["seed"], run["learning_rates"]) for run in found["runs"]] == [(n, 0, {}) for n in names]
    assert found["chosen"] == {} and not (tmp_path / "tuning.json").exists()
    settings = read_experiment("emoji", [f"data.limit={LIMIT}", "model.pretrained=random", f"run.output={tmp_path}"])
    for run in found["runs"][1:]:
        method = trained_method(run["method"], 0, settings)
        assert isinstance(method, MeanShift) and as_lists(evaluate_method(method, settings)[0]) == run["ranks"]
        assert method.settings == {"styles": 4 if run["method"] == "mean_shift" else 2}


def test_a_variant_with_other_training_styles_takes_the_rates_of_the_variant_with_all(tmp_path):
    done("compare", tmp_path, **sections(["hystar+gamma=10+styles=sketch-lowres", "static+styles=sketch"]))
    tried = {trial["method"] for trial in record_of(tmp_path, "tuning")["trials"]}
    assert tried == {"hystar+gamma=10", "static"}
    assert set(record_of(tmp_path)["chosen"]) == {"hystar+gamma=10+styles=sketch-lowres", "static+styles=sketch"}


def test_shuffled_styles_are_compared_and_loaded_again_with_their_shuffling(tmp_path):
    name = "hystar+style_order=shuffled"
    done("compare", tmp_path, **sections(["hystar", name], seeds=1))
    settings = read_experiment("emoji", [f"data.limit={LIMIT}", "model.pretrained=random", f"run.output={tmp_path}"])
    method = trained_method(name, 0, settings)
    assert isinstance(method, ShuffledStyle)
    assert as_lists(evaluate_method(method, settings)[0]) == record_of(tmp_path)["runs"][1]["ranks"]


def test_a_stopped_comparison_loses_only_its_current_run(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done("compare", whole, **sections())
    evaluate_method, evaluated = module.evaluate_method, []

    def stop_at_the_fourth(method: Any, settings: Any) -> Any:
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        evaluated.append(method.name)
        return evaluate_method(method, settings)

    monkeypatch.setattr(module, "evaluate_method", stop_at_the_fourth)
    assert run_experiment("compare", parts, **sections()).exit_code != 0
    assert len(record_of(parts)["runs"]) == 3
    evaluated.clear()
    trials = record_of(parts, "tuning")["trials"]
    done("compare", parts, **sections())
    assert evaluated == ["hystar", "hystar"] and record_of(parts, "tuning")["trials"] == trials
    uninterrupted, resumed = record_of(whole), record_of(parts)
    assert resumed["summary"] == uninterrupted["summary"]
    assert [run["ranks"] for run in resumed["runs"]] == [run["ranks"] for run in uninterrupted["runs"]]


def test_new_methods_and_seeds_extend_an_earlier_comparison(tmp_path):
    done("compare", tmp_path, **sections(["frozen", "ssf"]))
    first = record_of(tmp_path)
    done("compare", tmp_path, **sections(["ssf", "hystar"], seeds=3))
    found = record_of(tmp_path)
    assert found["runs"][: len(first["runs"])] == first["runs"]
    assert list(found["summary"]) == ["ssf", "hystar"] and found["summary"]["ssf"]["seeds"] == [0, 1, 2]
    assert set(found["chosen"]) == set(record_of(tmp_path, "tuning")["chosen"]) == {"ssf", "hystar"}


def test_a_variant_is_compared_and_its_adapter_saved(tmp_path):
    name = "hystar+static=false+blocks=1-2"
    done("compare", tmp_path, **sections(["hystar", name]))
    found = record_of(tmp_path)["summary"][name]
    assert set(found["learning_rates"]) == {"dynamic"} and "difference" in found
    assert load_method(tmp_path / "adapters" / f"{name}-0").config.blocks == (1, 2)  # type: ignore[union-attr]


def test_a_diverged_run_excludes_only_its_method(tmp_path, monkeypatch):
    train_method = module.train_method

    def diverge(method: Any, name: str, *rest: Any) -> list[float]:
        if name == "static":
            raise FloatingPointError("the loss of 'static' is nan")
        return train_method(method, name, *rest)

    monkeypatch.setattr(module, "train_method", diverge)
    shown = done("compare", tmp_path, **sections(["frozen", "static", "lora"]))
    assert "Excluded because a run diverged: static." in shown
    found = record_of(tmp_path)
    assert found["diverged"] == ["static"] and set(found["summary"]) == {"frozen", "lora"}
    assert {"frozen", "static", "lora"} == {entry["method"] for entry in found["runs"]}


def test_without_hystar_there_is_no_column_of_differences(tmp_path):
    assert "minus hystar" not in done("compare", tmp_path / "a", **sections(["frozen", "pixels"]))
    assert "minus hystar" in done("compare", tmp_path / "b", **sections(["frozen", "hystar"]))


def test_json_alone_goes_to_stdout(tmp_path):
    result = run_experiment("compare", tmp_path, "--json", **sections(["frozen"]))
    assert json.loads(result.stdout)["summary"] == record_of(tmp_path)["summary"]
    assert "method" in result.stderr and "wrote" in result.stderr


def test_bad_methods_and_folders_are_rejected(tmp_path):
    for methods, message in (
        (["frozen", "prefix"], "methods must be some of"),
        (["frozen", "frozen"], "methods must be different names"),
        (["static+styles=mosaic"], "styles must be some of ('outline', 'sketch', 'lowres', 'twemoji')"),
        (["hystar+style=vgg"], "style_pretrained must be a torchvision weights name or a file for style=vgg"),
    ):
        assert message in refused_experiment("compare", tmp_path, training={"methods": methods})
    assert not (tmp_path / "compare.json").exists()
    done("compare", tmp_path, **sections(["frozen"]))
    for other in ({"data": {"limit": 5}}, {"training": {"batch_size": 4}}, {"model": {"blocks": [2, 3]}}):
        wanted = {**sections(["frozen"]), **other}
        wanted["training"] = {**wanted["training"], "methods": ["frozen"]}
        assert "--output must be a folder without runs of other settings" in refused_experiment(
            "compare", tmp_path, **wanted
        )
    (tmp_path / "compare.json").write_text("[]")
    assert "is not a file of runs" in refused_experiment("compare", tmp_path, **sections(["frozen"]))
    (tmp_path / "file").write_text("")
    assert "error: --output must be a folder, got the file" in refused_experiment(
        "compare", tmp_path / "file", **sections(["frozen"])
    )


def test_parallel_jobs_give_the_results_of_one_process(tmp_path):
    names = ["frozen", "static", "static+styles=outline-lowres"]
    found = []
    model = {"backbone": write_small_clip(tmp_path / "clip", weights=False)}  # the other processes have it too
    for jobs in (1, 2):
        output = tmp_path / str(jobs)
        done("compare", output, **sections(names, tune_variants=False), model=model, run={"jobs": jobs})
        found.append(record_of(output))
    assert [list(each["summary"]) for each in found] == [names, names]
    by_run = [{(run["method"], run["seed"]): run["ranks"] for run in each["runs"]} for each in found]
    assert by_run[0] == by_run[1]
    assert found[0]["chosen"]["static"] == found[0]["chosen"][names[2]], "the variant does not have its method's rate"


@pytest.mark.parametrize("protocol", ["full", "batch24"])
def test_a_comparison_on_dsr_equals_its_evaluation(tmp_path, monkeypatch, protocol):
    shrink_grids(monkeypatch, 1)
    source = f"dsr:{trees.split_dsr(tmp_path / 'DSR')}"

    def with_methods(*methods: str) -> dict[str, dict[str, Any]]:
        training = {"methods": [*methods], "seeds": 2, "batch_size": 4, "tune_variants": False}
        return {"data": {"source": source, "protocol": protocol}, "training": training}

    shown = done("compare", tmp_path / "out", **with_methods("frozen", "static"))
    assert ("batches of 24" in shown) == (protocol == "batch24")
    record = record_of(tmp_path / "out")
    assert (record["data"]["name"], record["data"]["headline"]) == ("DSR", ["art", "sketch"])
    assert record["data"]["queries"] == {"art": 26, "sketch": 26}
    assert [run["method"] for run in record["runs"]] == ["frozen", "static", "static"]
    method = load_method(tmp_path / "out" / "adapters" / "static-1")
    kinds = ("art", "sketch", "text")
    evaluation = evaluate(method, open_images(source), protocol=protocol, kinds=kinds)
    assert as_lists(evaluation.ranks) == ranks_of(record["runs"][2])
    for row in evaluation.kinds:
        for k, expected in zip((1, 4 if protocol == "batch24" else 5), row.values.values(), strict=True):
            found = spread_over_seeds([evaluation.ranks], (row.kind,), k)
            assert found is not None and expected is not None and found.interval.value == expected.value
            # With batch24 the intervals differ: queries in no batch are resampled too, without a value.
            assert found.interval == expected or protocol == "batch24"
    done("compare", tmp_path / "out", **with_methods("frozen", "static", "static+styles=art"))
    again = record_of(tmp_path / "out")
    assert again["runs"][:3] == record["runs"] and len(again["runs"]) == 5
    other = with_methods("frozen")
    other["data"]["protocol"] = {"full": "batch24", "batch24": "full"}[protocol]
    assert "without runs of other settings" in refused_experiment("compare", tmp_path / "out", **other)


def test_tuning_prints_and_records_every_interval(tmp_path):
    shown = done("tune", tmp_path, **sections(["static"], tuning_seeds=2))
    record = record_of(tmp_path, "tuning")
    assert [(trial["seed"], trial["learning_rates"]["static"]) for trial in record["trials"]] == [
        (0, 0.06), (0, 0.12), (1, 0.06), (1, 0.12)
    ]  # fmt: skip
    for trial in record["trials"]:
        row = trial["recall"]["headline"]["R@1"]
        assert f"R@1 {row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" in shown
    (tmp_path / "tuning.json").write_text("{}")
    assert "is not a file of trials" in refused_experiment("tune", tmp_path, **sections(["static"]))


def test_tuning_selects_by_mean_r_at_1_then_r_at_5_without_diverged_settings(tmp_path, monkeypatch):
    scores = {
        (0, 0.06): (50, 60),
        (1, 0.06): (30, 60),
        (0, 0.12): (20, 70),
        (1, 0.12): (60, 70),
    }  # R@1, R@5: both rates have a mean R@1 of 40
    diverges: set[float] = set()

    def trial_of(trial: Any) -> dict[str, Any]:
        rate = trial.key["learning_rates"]["static"]
        if rate in diverges:
            return {**trial.key, "diverged": "nan", "seconds": 0.0}
        one, five = scores[trial.key["seed"], rate]
        rows = {name: {"value": value, "low": 0.0, "high": 99.0} for name, value in (("R@1", one), ("R@5", five))}
        return {**trial.key, "recall": {"headline": rows}, "seconds": 0.0}

    monkeypatch.setattr(tune, "_run_trial", trial_of)
    done("tune", tmp_path / "tie", **sections(["static"], tuning_seeds=2))
    assert record_of(tmp_path / "tie", "tuning")["chosen"] == {"static": {"static": 0.12}}
    diverges.add(0.12)
    done("tune", tmp_path / "diverged", **sections(["static"], tuning_seeds=2))
    assert record_of(tmp_path / "diverged", "tuning")["chosen"] == {"static": {"static": 0.06}}
