"""The page of results: verdicts follow from the ranks of a folder, and everything that was not run says so."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hystar_fast.cli import figures, results
from hystar_fast.cli.claims import NOT_RUN, NOT_TESTABLE, claims, judge
from hystar_fast.cli.compare import at_edge
from hystar_fast.cli.report import about
from hystar_fast.cli.results import read_results
from hystar_fast.cli.results_page import markdown
from hystar_fast.cli.verdicts import CONFIRMED, OPEN, OPPOSITE
from hystar_fast.methods.recipes import demo_config
from hystar_fast.methods.variants import Variant
from hystar_fast.retrieval.protocol import HARD_STYLES, QUERY_STYLES, StyledConcepts, load_split
from hystar_fast.retrieval.seeds import restored
from tests.support.cli import refused, run

CONCEPTS = 40
WITHOUT_SKETCH = "+styles=outline-lowres-twemoji"
RIGHT = {
    "frozen": 0.5,
    "hystar": 0.5,
    "lora": 1.0,
    "vpt": 0.0,
    "hystar+loss=info_nce": 1.0,
    f"hystar{WITHOUT_SKETCH}": 1.0,
    f"lora{WITHOUT_SKETCH}": 0.0,
}


def ranks(concepts: StyledConcepts, share: float) -> dict[str, list[int]]:
    """Every second query is right, or all, or none."""
    every = {0.0: 0, 0.5: 2, 1.0: 1}[share]
    return {
        style: [0 if every and int(row) % every == 0 else 3 for row in concepts.rows(style)] for style in QUERY_STYLES
    }


@pytest.fixture(scope="module")
def concepts() -> StyledConcepts:
    return load_split("test", limit=CONCEPTS)


@pytest.fixture
def folder(tmp_path: Path, concepts: StyledConcepts) -> Path:
    """What `compare` leaves, the summary being of its last call alone, as when a folder is added to."""
    chosen = {name: {"rate": 0.1} for name in RIGHT if name != "frozen"}
    runs: list[dict[str, Any]] = [
        {
            "method": name,
            "seed": seed,
            "learning_rates": chosen.get(name, {}),
            "parameters": {"trainable": 10 * (name in chosen)},
            "seconds": 30.0,
            "ranks": ranks(concepts, share),
        }
        for name, share in RIGHT.items()
        for seed in ((0, 1) if name in chosen else (0,))
    ]
    runs.append({**runs[1], "learning_rates": {"rate": 9.0}, "ranks": ranks(concepts, 1.0)})
    runs.append({"method": "ssf", "seed": 0, "learning_rates": {"rate": 0.1}, "diverged": "nan", "seconds": 1.0})
    record = {
        **about(),
        "ties": "count against the query",
        "intervals": "95 %",
        "spread": "standard deviation over seeds",
        "config": demo_config().to_dict(),
        "steps": 120,
        "limit": CONCEPTS,
        "gallery": {"style": "noto", "n": CONCEPTS, "concepts": "test split, all of them"},
        "queries": {style: len(concepts.rows(style)) for style in QUERY_STYLES},
        "runs": runs,
        "chosen": {**chosen, "ssf": {"rate": 0.1}},
        "summary": {},
    }
    (tmp_path / "compare.json").write_text(json.dumps(record))
    tried = {"hystar": (0.05, 0.1, 0.2), "lora": (0.05, 0.1), "vpt": (0.1, 0.2)}
    trials = [
        {"method": name, "seconds": 60.0, "learning_rates": {"rate": rate}}
        for name, rates in tried.items()
        for rate in rates
    ]
    (tmp_path / "tuning.json").write_text(json.dumps({"trials": trials, "seeds": [0], "chosen": chosen}))
    return tmp_path


def judged(folder: Path) -> dict[tuple[str | None, str | None], dict[str, Any]]:
    """(run, other) -> the first statement about the two."""
    result = run("claims", folder)
    assert result.exit_code == 0, result.output
    found: dict[tuple[str | None, str | None], dict[str, Any]] = {}
    for row in json.loads((folder / "claims.json").read_text()):
        found.setdefault(tuple(row["runs"]), row)
    return found


def test_verdicts_follow_from_the_ranks(folder):
    found = judged(folder)
    assert found["hystar", "vpt"]["verdict"] == CONFIRMED
    assert found["hystar", "vpt"]["difference"]["value"] == pytest.approx(50, abs=5)
    assert found["hystar", "lora"]["verdict"] == OPPOSITE
    assert found["hystar", "frozen"]["verdict"] == OPEN
    assert found["hystar", "hystar+loss=info_nce"]["verdict"] == OPPOSITE
    assert found[f"hystar{WITHOUT_SKETCH}", f"lora{WITHOUT_SKETCH}"]["verdict"] == CONFIRMED
    assert found["hystar", "ssf"]["verdict"] == NOT_RUN, "its training diverged"
    assert found["hystar", "hystar+gamma=1"]["verdict"] == NOT_RUN
    assert all(row["difference"]["low"] <= row["difference"]["high"] for row in found.values() if "difference" in row)


def test_the_page_has_everything_with_its_interval(folder):
    judged(folder)
    page = (folder / "results.md").read_text()
    assert str(folder) not in page
    for words in (
        "--methods frozen,hystar,lora,vpt",
        "--no-tune-variants --methods hystar+loss=info_nce",
        "| `lora` | 10 | rate 0.1 | 2 | 100.0 ±0.0 [100.0, 100.0] |",
        "## Where Hystar does not win",
        "- mean of outline, sketch, lowres: behind `lora`; not told apart from `frozen`.",
        "| Hystar-CLIP above LoRA | Table 1 | +15.7 |",
        "- Hystar against other methods, 4 statements: no run of `ia3`, `adaptformer`, `ssf`, `freestyle`",
        "needs the extractor's weights",
        "**the opposite**",
    ):
        assert words in page, words


def test_the_page_says_what_was_tried_at_which_commits_and_how_to_go_on(folder):
    record = json.loads((folder / "compare.json").read_text())
    record |= {"commit": "aaa", "data": "DSR", "headline": ["art"], "cutoffs": {"R@1": 1, "R@5": 4}}
    read = read_results(folder)
    read = replace(read, record=record, runs=[{**read.runs[0], "commit": "bbb"}, *read.runs[1:]])
    page = markdown(read, read.judged(), {})
    assert f"commits bbb (1 runs), aaa ({len(read.runs) - 1} runs)" in page
    tried = "7 trials: 2 settings a method, 1 seed each; 3 of `hystar`; best at the lowest or highest tried: "
    assert f"{tried}rate of `lora`, rate of `vpt`" in page
    assert "| R@5 (4 places) |" in page
    missing = re.search(r"### Not run.*?```sh\n(.*?)\n```", page, re.DOTALL)
    assert missing and f" --data dsr:ROOT --steps 120 --limit {CONCEPTS} --tuning-seeds 1 --no-tune" in missing[1]


def test_of_settings_that_are_as_good_the_best_is_compared(concepts):
    claim = next(claim for claim in claims() if claim.other == "hystar+lam=5")
    runs = {"hystar": 0.0, "hystar+lam=2": 1.0, "hystar+lam=5": 0.5}
    evaluations = {name: [restored(ranks(concepts, share), concepts)] for name, share in runs.items()}
    found = judge(claim, evaluations, HARD_STYLES)
    assert found["runs"] == ["hystar+lam=2", "hystar+lam=5"] and found["verdict"] == CONFIRMED
    assert found["what"].endswith("the best of them above λ = 5 (here `hystar+lam=2`)")
    del evaluations["hystar+lam=2"]
    found = judge(claim, evaluations, HARD_STYLES)
    assert found["runs"][0] == "hystar" and found["verdict"] == OPPOSITE


def test_rates_at_an_edge_are_found_in_each_group():
    tried = [{"static": s, "dynamic": d} for s, d in ((1, 2), (2, 1), (2, 2), (2, 3), (3, 2))]
    assert at_edge({"static": 1, "dynamic": 2}, tried) == ["static"]
    assert at_edge({"static": 2, "dynamic": 3}, tried) == ["dynamic"]
    assert at_edge({"static": 2, "dynamic": 2}, tried) == []
    assert at_edge({"rate": 1}, [{"rate": 1}]) == [], "of one there is no edge"


def test_words_and_a_picture_are_compared_with_the_words_alone(folder, concepts):
    together = "sketch+text, max"
    asked = {"count": 3, "numbers": {"text": [0, 1, 2], together: [1, 2]}}
    found = {"method": "hystar", "learning_rates": {"rate": 1}, "ranks": {"text": [0, 3, 3], together: [0, 0]}}
    runs = [{**found, "seed": seed} for seed in (0, 1)]
    joint = {"runs": runs, "asked": asked, "headline": [together], "summary": {"hystar": {}}}
    (folder / "task-joint.json").write_text(json.dumps(joint))
    row = read_results(folder).judged()[-1]
    assert row["what"] == "Hystar asked with picture and words above words alone"
    assert row["paper_difference"] == 19.0 and row["difference"]["value"] == 100.0 and row["verdict"] == CONFIRMED


def test_a_table_of_zero_shot_rows_adds_its_verdicts(folder):
    row: dict[str, Any] = {"row": "LoRA", "run": "lora", "paper_difference": -11.2, "verdict": CONFIRMED}
    row["difference"] = {"value": -1.0, "low": -2.0, "high": -0.5}
    table = {"task": "category", "reference": "Hystar", "rows": [row, {"row": "CLIP"}]}
    table |= {"ours": "R@1 of all", "here": "in styles that were trained on"}
    (folder / "table2.json").write_text(json.dumps(table))
    costs = {"hystar": {"median": 1.5, "low": 1.25, "high": 2.0}}
    timed = {"device": "cpu", "batch": 16, "turns": 7}
    (folder / "table10.json").write_text(json.dumps({**about(), "rows": [], "timed": timed, "milliseconds": costs}))
    judged(folder)
    page = (folder / "results.md").read_text()
    assert "| `hystar` | 1.50 [1.25, 2.00] |" in page
    assert "Ours: R@1 of all; in styles that were trained on.\n\n| statement |" in page
    assert "| LoRA below Hystar | Table 2 | -11.2 | -1.0 [-2.0, -0.5] | **confirmed** |" in page


def test_figures_of_the_folder_are_shown(tmp_path, folder):
    assert tuple(figures.FIGURES) == tuple(results.FIGURES)
    for number in (3, 8):
        (folder / f"figure{number}.png").touch()
    page = tmp_path / "my pages" / "results.md"
    result = run("claims", folder, "--page", page)
    assert result.exit_code == 0, result.output
    links = re.findall(r"!\[Figure (\d)\]\((.*)\)", page.read_text(encoding="utf-8"))
    assert [number for number, _ in links] == ["3", "8"]
    assert all((page.parent / link).samefile(folder / f"figure{number}.png") for number, link in links)


def test_every_statement_names_runs_there_can_be_or_says_why_not(concepts):
    found = claims()
    for claim in found:
        for name in (claim.run, claim.other):
            if name is None:
                assert claim.why
            else:
                Variant.parse(name)
    weights = claims(["hystar+style=vgg+style_pretrained=vgg.pth"])
    assert sum(claim.run is None for claim in weights) == sum(claim.run is None for claim in found) - 1
    mine = {"hystar": [restored(ranks(concepts, 1.0), concepts)], "static": [restored(ranks(concepts, 0.0), concepts)]}
    missing = judge(next(claim for claim in found if claim.run is None), mine, HARD_STYLES)
    assert missing["verdict"] == NOT_TESTABLE and missing["why"]
    claim = next(claim for claim in found if (claim.run, claim.other) == ("hystar", "static"))
    assert judge(claim, mine, HARD_STYLES)["verdict"] == CONFIRMED


def test_what_is_no_folder_of_results_is_named(tmp_path, folder):
    assert "compare.json cannot be read" in refused("claims", tmp_path / "nothing")
    assert "page must be a file" in refused("claims", folder, "--page", tmp_path)
    (folder / "compare.json").write_text("{}")
    assert "holds no comparison" in refused("claims", folder)


def test_the_committed_page_is_that_of_the_committed_runs():
    place = Path(__file__).resolve().parents[2] / "docs" / "results"
    read = read_results(place / "comparison")
    found = read.judged()
    assert found == json.loads((place / "comparison" / "claims.json").read_text(encoding="utf-8"))
    pictures = {number: f"comparison/{path.name}" for number, path in read.pictures.items()}
    assert markdown(read, found, pictures) == (place / "comparison.md").read_text(encoding="utf-8")
