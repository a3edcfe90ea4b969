"""Comparing methods: one budget, several seeds, paired differences, and a run that is stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hystar_fast.cli import compare as module
from hystar_fast.cli.emoji_parts import EmojiParts
from hystar_fast.cli.jobs import run_jobs
from hystar_fast.cli.report import about
from hystar_fast.methods import variants
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.recipes import BASELINE_GRID, DYNAMIC_GRID, GRID, demo_config
from hystar_fast.methods.suite import TRAINED, create_method, hystar_size
from hystar_fast.methods.variants import COMPARED, Variant, create_variant
from hystar_fast.retrieval.evaluate import Evaluation, difference, evaluate
from hystar_fast.retrieval.metrics import bootstrap_mean
from hystar_fast.retrieval.protocol import load_split
from hystar_fast.retrieval.seeds import over_seeds, paired_difference, recorded_ranks, restored
from tests.support.cli import refused, run

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = 6
NAMES = ("frozen", "vpt", "hystar")


@pytest.fixture(autouse=True)
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    for grids in ("GRID", "BASELINE_GRID"):
        small = {name: trials[:2] for name, trials in getattr(variants, grids).items()}
        monkeypatch.setattr(variants, grids, small)
    monkeypatch.setattr(variants, "DYNAMIC_GRID", DYNAMIC_GRID[:2])


def compare(output: Path, *more: object, methods: str = ",".join(NAMES)) -> Any:
    arguments = ("--output", output, "--methods", methods, "--steps", 1, "--limit", CONCEPTS, "--weights", "random")
    return run("compare", *arguments, "--tuning-seeds", 1, "--seeds", 2, *more)


def test_every_method_has_a_grid_of_the_same_size_for_its_own_groups():
    grids = {**GRID, **BASELINE_GRID}
    assert set(grids) == {*TRAINED, *BASELINES} == set(COMPARED) - {"pixels", "hog", "frozen"}
    assert len({len(trials) for trials in grids.values()}) == 1
    for name, trials in BASELINE_GRID.items():
        assert all(set(trial) == {name} for trial in trials)
        rates = [trial[name] for trial in trials]
        assert rates == sorted(rates) and len(set(rates)) == len(rates)


def test_the_comparison_says_what_was_done_and_found(tmp_path):
    result = compare(tmp_path)
    assert result.exit_code == 0, result.output
    for name in NAMES:
        assert name in result.output
    found = json.loads((tmp_path / "compare.json").read_text())
    assert [(r["method"], r["seed"]) for r in found["runs"]] == [
        ("frozen", 0), ("vpt", 0), ("vpt", 1), ("hystar", 0), ("hystar", 1)
    ]  # fmt: skip
    tuned = json.loads((tmp_path / "tuning.json").read_text())
    assert len(tuned["trials"]) == 4
    assert found["chosen"] == tuned["chosen"]
    assert found["at_edge"] == ["hystar", "vpt"], "of two that were tried each is at an edge"
    concepts = load_split("test", limit=CONCEPTS)
    for name in NAMES:
        entry = found["summary"][name]
        runs = [restored(r["ranks"], concepts) for r in found["runs"] if r["method"] == name]
        values = [float((r.ranks["sketch"] < 1).float().mean()) for r in runs]
        row = entry["recall"]["all"]["sketch"]["R@1"]
        assert row["value"] == pytest.approx(100 * sum(values) / len(values), abs=0.01)
        assert (row["deviation"] is None) == (name == "frozen")
        assert row["low"] <= row["value"] <= row["high"]
        assert (entry["parameters"]["trainable"] > 0) == (name != "frozen")
        assert ("difference" in entry) == (name != "hystar")
    assert str(tmp_path) not in (tmp_path / "compare.json").read_text()
    again = evaluate(load_method(tmp_path / "adapters" / "vpt-1"), concepts)
    assert recorded_ranks(again) == found["runs"][2]["ranks"]


def test_a_comparison_that_is_stopped_loses_the_run_it_was_in_and_no_other(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    assert compare(whole).exit_code == 0
    real, done = EmojiParts.test, []

    def stopped(parts: EmojiParts, method: Any, device: torch.device) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(method.name)
        return real(parts, method, device)

    monkeypatch.setattr(EmojiParts, "test", stopped)
    parts = tmp_path / "parts"
    assert compare(parts).exit_code != 0
    assert len(json.loads((parts / "compare.json").read_text())["runs"]) == 3
    done.clear()
    monkeypatch.setattr(module, "tune", lambda output, *_, **__: json.loads(output.read_text())["chosen"])
    assert compare(parts).exit_code == 0
    assert done == ["hystar", "hystar"]
    one, two = (json.loads((folder / "compare.json").read_text()) for folder in (whole, parts))
    assert one["summary"] == two["summary"]
    assert [r["ranks"] for r in one["runs"]] == [r["ranks"] for r in two["runs"]]


def test_more_methods_and_seeds_are_added_to_what_is_there(tmp_path):
    assert compare(tmp_path, methods="frozen,ssf").exit_code == 0
    first = json.loads((tmp_path / "compare.json").read_text())
    assert compare(tmp_path, methods="ssf,hystar").exit_code == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["runs"][: len(first["runs"])] == first["runs"]
    assert list(found["summary"]) == ["ssf", "hystar"]
    assert set(found["chosen"]) == {"ssf", "hystar"}


def test_variants_change_fields_and_the_loss():
    config = demo_config(None)
    plain = create_variant("hystar", config)
    found = create_variant("hystar+blocks=2-3+gamma=10+loss=info_nce", config)
    assert found.config == dataclasses.replace(config, blocks=(2, 3), gamma=10)
    pairs = torch.randn(2, 4, 8)
    cosines = torch.nn.functional.cosine_similarity(pairs[0][:, None], pairs[1][None], dim=-1) / config.temperature
    expected = torch.nn.functional.cross_entropy(cosines, torch.arange(4))
    assert found.loss(pairs[0], pairs[1]).item() == pytest.approx(expected.item(), rel=1e-5)
    assert plain.loss(pairs[0], pairs[1]).item() != pytest.approx(expected.item(), rel=1e-2)
    assert set(create_variant("hystar+static=false", config).parameter_groups()) == {"dynamic"}
    options = create_variant("hystar+gamma=10+lam=0.5", config).criterion.options  # type: ignore[attr-defined]
    assert (options["gamma"], options["lam"]) == (10, 0.5)
    for loss in ("", "+loss=style_nce"):
        found = create_variant(f"hystar+temperature=0.1+n_iter=9+weights=authors+plan_grad=unroll{loss}", config)
        kept = {"temperature": 0.1, "n_iter": 9, "weights": "authors", "plan_grad": "unroll", "gamma": config.gamma}
        assert kept.items() <= found.criterion.options.items(), loss  # type: ignore[attr-defined]
    assert Variant.parse("hystar+blocks=none").changes == {"blocks": ()}
    for name in (
        "hystar",
        "hystar+static=false",
        "hystar+design=dynamic-all",
        "hystar+design=reversed",
        "vpt",
        "static",
    ):
        groups = set(create_variant(name, config).parameter_groups())
        assert all(set(rates) == groups for rates in Variant.parse(name).grid()), name
    sizes = {count_parameters(create_variant(name, config))["lora"] for name in ("lora", "lora+gamma=10")}
    assert sizes == {count_parameters(create_method("lora", config, parameters=hystar_size(config)))["lora"]}
    assert Variant.parse("frozen").grid() == []
    for name, message in (
        ("hystar+colour=red", "must change fields"),
        ("hystar+gamma", "must change fields"),
        ("hystar+loss=hinge", "loss must be one of"),
        ("hystar+blocks=x", "blocks must be numbers"),
        ("clip", "methods must be some of"),
    ):
        with pytest.raises(ValueError, match=message):
            Variant.parse(name)
    with pytest.raises(ValueError, match="does not train"):
        Variant.parse("frozen+loss=info_nce")


def test_a_variant_is_compared_and_its_adapter_kept(tmp_path):
    result = compare(tmp_path, methods="hystar,hystar+static=false+blocks=1-2")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "compare.json").read_text())["summary"]["hystar+static=false+blocks=1-2"]
    assert set(found["learning_rates"]) == {"dynamic"} and "difference" in found
    assert load_method(tmp_path / "adapters" / "hystar+static=false+blocks=1-2-0").config.blocks == (1, 2)  # type: ignore[union-attr]


def test_a_run_that_diverges_leaves_its_method_out_and_stops_no_other(tmp_path, monkeypatch):
    real = EmojiParts.train

    def diverges(parts: EmojiParts, method: Any, recipe: Any, device: torch.device) -> list[float]:
        if method.name == "static":
            raise FloatingPointError("the loss of 'static' is nan")
        return real(parts, method, recipe, device)

    monkeypatch.setattr(EmojiParts, "train", diverges)
    result = compare(tmp_path / "out", methods="frozen,static,lora")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["diverged"] == ["static"] and set(found["summary"]) == {"frozen", "lora"}
    assert "static" in result.output
    assert {"frozen", "static", "lora"} == {entry["method"] for entry in found["runs"]}


def test_tuning_keeps_what_an_earlier_call_chose(tmp_path):
    assert compare(tmp_path / "out", methods="static").exit_code == 0
    assert compare(tmp_path / "out", methods="lora").exit_code == 0
    assert set(json.loads((tmp_path / "out" / "tuning.json").read_text())["chosen"]) == {"static", "lora"}


def test_variants_that_would_change_nothing_are_refused():
    for name in (
        *("static+blocks=1", "static+static=false", "lora+rank=8", "vpt+blocks=2", "adaptformer+design=reversed"),
        *("frozen+gamma=10", "pixels+backbone=tiny", "ia3+style=vgg"),
    ):
        field = name.partition("+")[2].partition("=")[0]
        with pytest.raises(ValueError, match=f"{field} changes nothing of {name.partition('+')[0]}"):
            Variant.parse(name)
    with pytest.raises(ValueError, match="each field once, got gamma twice"):
        Variant.parse("hystar+gamma=10+gamma=20")
    assert Variant.parse("static+rank=8").changes == {"rank": 8}


def test_a_path_in_a_variant_may_hold_a_plus_sign():
    found = Variant.parse("freestyle+style=vgg+style_pretrained=/data/vgg+16.pth+gamma=10")
    assert found.changes == {"style": "vgg", "style_pretrained": "/data/vgg+16.pth", "gamma": 10}


def test_what_cannot_be_compared_is_named(tmp_path):
    assert "methods must be some of" in refused("compare", "--methods", "frozen,prefix", "--output", tmp_path)
    assert "methods must not repeat" in refused("compare", "--methods", "frozen,frozen", "--output", tmp_path)
    assert compare(tmp_path, methods="frozen").exit_code == 0
    assert "holds runs of other settings" in refused(
        "compare", "--methods", "frozen", "--output", tmp_path, "--limit", 5, "--weights", "random"
    )
    (tmp_path / "compare.json").write_text("[]")
    assert "holds no comparison" in refused("compare", "--methods", "frozen", "--output", tmp_path)
    (tmp_path / "file").write_text("")
    assert "output must be a folder" in refused("compare", "--output", tmp_path / "file")


def made(ranks: list[int], asked: list[int], n: int = 6) -> Evaluation:
    rows = {"sketch": torch.tensor(asked)}
    found = {"sketch": torch.tensor(ranks)}
    return Evaluation(torch.empty(n, 0), rows, {}, found, torch.tensor([True, False] * (n // 2)))


def test_means_spreads_and_differences_over_seeds():
    asked = [0, 1, 2, 4, 5]
    one, two = made([0, 0, 3, 9, 0], asked), made([0, 2, 3, 9, 0], asked)
    found = over_seeds([one, two], ("sketch",))
    assert found is not None and found.deviation is not None
    assert found.interval.value == pytest.approx((3 / 5 + 2 / 5) / 2)
    assert found.deviation == pytest.approx(((3 / 5 - 1 / 2) ** 2 + (2 / 5 - 1 / 2) ** 2) ** 0.5)
    assert found.interval == bootstrap_mean(torch.tensor([[1, 0.5, 0, torch.nan, 0, 1]]))
    alone = over_seeds([one], ("sketch",), 4)
    assert alone is not None and alone.deviation is None and alone.interval.value == pytest.approx(4 / 5)
    unseen = over_seeds([one], ("sketch",), unseen_only=True)
    assert unseen is not None and unseen.interval.value == pytest.approx(1 / 3)
    assert paired_difference([one], [two], ("sketch",)) == difference(one, two, ("sketch",))
    both = paired_difference([one, two], [two], ("sketch",))
    assert both is not None and both.value == pytest.approx(0.1)
    assert over_seeds([one], ("text",)) is None
    assert paired_difference([one], [one], ("text",)) is None
    # of runs by seed, those of the same seeds
    assert paired_difference({0: one, 1: two}, {1: two}, ("sketch",)) == paired_difference([two], [two], ("sketch",))
    assert paired_difference({0: one, 1: two}, [two], ("sketch",)) == both
    with pytest.raises(ValueError, match=r"a seed in common, got \[0\] and \[1\]"):
        paired_difference({0: one}, {1: two}, ("sketch",))


def test_runs_on_other_queries_are_refused():
    one, two = made([0, 0], [0, 1]), made([0, 0], [0, 2])
    with pytest.raises(ValueError, match="same queries"):
        over_seeds([one, two], ("sketch",))
    with pytest.raises(ValueError, match="same queries"):
        paired_difference([one], [two], ("sketch",))
    with pytest.raises(ValueError, match="same queries"):
        over_seeds([one, made([0, 0], [0, 1], 8)], ("sketch",))
    with pytest.raises(ValueError, match="at least one run"):
        over_seeds([], ("sketch",))
    with pytest.raises(ValueError, match="sketch has 2, needs 5"):
        restored({"sketch": [0, 1]}, load_split("test", limit=5))


def test_a_folder_of_before_there_was_other_data_is_continued(tmp_path):
    """Its files say nothing of data, protocol or batch size: they are those of the demo."""
    assert compare(tmp_path, methods="frozen,ssf").exit_code == 0
    record = json.loads((tmp_path / "compare.json").read_text())
    assert list(record) == [
        *about(), "ties", "intervals", "spread", "config", "steps", "limit", "gallery", "queries", "runs", "chosen",
        "summary", "at_edge", "diverged",
    ]  # fmt: skip
    tuning = json.loads((tmp_path / "tuning.json").read_text())
    assert not {"data", "protocol", "batch_size"} & set(tuning)
    assert compare(tmp_path, methods="frozen,ssf,hystar").exit_code == 0
    assert json.loads((tmp_path / "compare.json").read_text())["runs"][:3] == record["runs"]
    for option in (("--batch-size", 4), ("--blocks", "2-3")):
        message = refused("compare", "--methods", "frozen,ssf", "--output", tmp_path, "--limit", CONCEPTS, "--steps", 1,
                          "--weights", "random", "--tuning-seeds", 1, *option)  # fmt: skip
        assert "of other settings" in message


def test_jobs_find_what_one_process_finds(tmp_path):
    names = ["frozen", "static", "static+styles=outline-lowres"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder, jobs in ((alone, 1), (together, 2)):
        result = compare(folder, "--no-tune-variants", "--jobs", jobs, methods=",".join(names))
        assert result.exit_code == 0, result.output
    found = [json.loads((folder / "compare.json").read_text()) for folder in (alone, together)]
    assert [list(each["summary"]) for each in found] == [names, names]
    by_run = [{(r["method"], r["seed"]): r["ranks"] for r in each["runs"]} for each in found]
    assert by_run[0] == by_run[1]
    assert found[0]["chosen"]["static"] == found[0]["chosen"][names[2]], "the variant takes its method's rate"


def test_jobs_raise_what_the_work_raises_and_begin_nothing_more():
    for jobs in (1, 2):
        with pytest.raises(ZeroDivisionError):
            list(run_jobs(_inverse, [0, 0, 0], jobs))
    assert sorted(run_jobs(_inverse, [1, 2, 4], 2)) == [0.25, 0.5, 1.0]
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        list(run_jobs(_inverse, [1], 0))


def test_jobs_end_with_the_process_that_began_them(tmp_path):
    program = (
        "import sys\n"
        "from tests.support.jobs import linger\n"
        "from hystar_fast.cli.jobs import run_jobs\n"
        "if __name__ == '__main__':\n"
        "    list(run_jobs(linger, [sys.argv[1] + '/a', sys.argv[1] + '/b'], 2))\n"
    )
    script = tmp_path / "main.py"
    script.write_text(program)
    parent = subprocess.Popen([sys.executable, script, tmp_path], env=os.environ | {"PYTHONPATH": str(ROOT)})
    marks = [tmp_path / "a", tmp_path / "b"]
    _wait_until(lambda: all(mark.exists() and mark.read_text() for mark in marks), 120)
    parent.kill()
    parent.wait()
    for mark in marks:
        _wait_until(lambda mark=mark: not _runs(mark.read_text()), 20)


def _runs(pid: str) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return "\nState:\tZ" not in Path("/proc", pid, "status").read_text()
    except OSError:
        return False


def _wait_until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def _inverse(number: int) -> float:
    return 1 / number
