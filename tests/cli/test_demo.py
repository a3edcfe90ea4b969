"""The demo from end to end on a random backbone with a few concepts and steps."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from hystar_fast.cli.demo import KINDS, show
from hystar_fast.data.displacement import displace_queries
from hystar_fast.data.emoji import QUERY_STYLES, EmojiStyles, load_emoji
from hystar_fast.index.open_index import open_engine
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.suite import DEMO_METHODS, DEMO_TRAINED
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.results_json import interval_info
from hystar_fast.terminal.console import Console
from tests.support.cli import refused, run

CONCEPTS = 10
pytestmark = [
    pytest.mark.usefixtures("narrow_tiny"),
    pytest.mark.xdist_group("demo"),  # the demo runs once for these tests, not once a worker
]


@pytest.fixture(scope="module")
def demo(narrow_tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "new" / "folder"
    result = run("demo", "--output", output, "--steps", 2, "--limit", CONCEPTS, "--weights", "random")
    assert result.exit_code == 0, result.output
    for name in DEMO_METHODS:
        assert name in result.output
    assert "naive / ours" in result.output
    last = result.output.splitlines()[-2:]
    assert last[0].endswith(f": {output}/retrieval.png") and last[1].endswith(f": hystar-fast serve {output}")
    return output


@pytest.fixture(scope="module")
def again(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the same demo in a copy of its folder; return the folder and what was printed."""
    output = Path(shutil.copytree(demo, tmp_path_factory.mktemp("again") / "demo"))
    result = run("demo", "--output", output, "--steps", 2, "--limit", CONCEPTS, "--weights", "random")
    assert result.exit_code == 0, result.output
    return output, result.output


def test_the_results_of_the_adapter_equal_its_evaluation(demo):
    found = json.loads((demo / "results.json").read_text())["methods"]["hystar"]["recall"]
    registered, method = load_emoji("test").select(limit=CONCEPTS), load_method(demo / "adapter")
    parts = {"all": (displace_queries(registered), KINDS), "registered": (registered, QUERY_STYLES)}
    for part, (images, kinds) in parts.items():
        ranks = evaluate(method, images, kinds=kinds).ranks
        assert list(found[part]) == [*kinds, "headline"]
        for kind in kinds:
            for name, k in (("R@1", 1), ("R@5", 5)):
                expected, row = ranks.recall([kind], k), found[part][kind][name]
                assert expected is not None and {**interval_info(expected), **row} == interval_info(expected)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_findings_fit_a_screen(demo, is_terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=80, color_system=None)
    results = json.loads((demo / "results.json").read_text())
    for method in results["methods"].values():  # the longest figures
        method["recall"]["all"]["headline"]["R@1"] = {"value": 100.0, "low": 100.0, "high": 100.0}
    show(results, console)
    lines = stream.getvalue().splitlines()
    assert len(lines) + 3 <= 28, "three lines more say where everything is"
    assert max(map(len, lines)) <= 80
    assert any(line.strip("│").startswith("frozen") and "100.0 [100, 100]" in line for line in lines)


def test_the_same_seed_gives_the_same_numbers(demo, again):
    one, two = (json.loads((folder / "results.json").read_text())["methods"] for folder in (demo, again[0]))
    for name in DEMO_METHODS:
        assert one[name]["recall"] == two[name]["recall"]
        assert one[name].get("loss") == pytest.approx(two[name].get("loss"))


def test_results_of_other_settings_are_kept(again):
    output, shown = again
    kept = f"kept the results of an earlier demo: {output}/results-1.json"
    assert kept not in shown and not (output / "results-1.json").exists()
    shown = run("demo", "--output", output, "--steps", 0, "--limit", 2, "--weights", "random").output
    assert kept in shown
    assert json.loads((output / "results-1.json").read_text())["settings"]["steps"] == 2
    assert json.loads((output / "results.json").read_text())["settings"]["steps"] == 0


def test_the_results_hold_every_method_and_setting(demo):
    found = json.loads((demo / "results.json").read_text())
    assert list(found["methods"]) == list(DEMO_METHODS)
    for name, method in found["methods"].items():
        kinds = [*QUERY_STYLES, *(["text"] if name not in ("pixels", "hog") else [])]
        assert list(method["recall"]["all"]) == [*kinds, "headline"]
        for row in method["recall"]["all"].values():
            for k in ("R@1", "R@5"):
                assert row[k]["low"] <= row[k]["value"] <= row[k]["high"]
            assert row["R@1"]["value"] <= row["R@5"]["value"]
        assert list(method["recall"]) == ["all", "registered"] + ["unseen"] * ("unseen" in method["recall"])
        assert (method["parameters"]["trainable"] > 0) == (name in DEMO_TRAINED)
        if name in DEMO_TRAINED:
            assert len(method["loss"]) == 2
            assert set(method["learning_rates"]) == set(method["parameters"]) - {"trainable"}
    assert found["protocol"]["gallery"] == {"style": "noto", "n": CONCEPTS, "concepts": "test split, all of them"}
    assert found["settings"]["seed"] == 0
    assert set(found["differences"]) == set(DEMO_METHODS) - {"hystar"}
    assert found["training_step"]["ratio"] > 0
    assert found["seconds"] > 0
    assert found["machine"]["versions"]["torch"]
    assert str(demo) not in (demo / "results.json").read_text()


def test_the_pictures_are_written(demo):
    for name in ("retrieval.png", "embeddings.png"):
        with Image.open(demo / name) as picture:
            picture.load()
            assert min(picture.size) > 300


def test_search_finds_pictures_in_the_gallery_of_the_demo(demo, tmp_path):
    with open_engine(demo) as engine:
        assert engine.count() == CONCEPTS
        item = [*engine.fetch(engine.keys()).values()][3]
    path = tmp_path / "query.png"
    EmojiStyles().image("noto", item.id).save(path)
    drawn = tmp_path / "answers.png"
    result = run("search", "--query", path, "--demo", demo, "--top", 4, "--picture", drawn)
    assert result.exit_code == 0, result.output
    first = next(line for line in result.output.splitlines() if line.startswith("1 "))
    assert item.id in first and item.caption in first
    assert drawn.is_file()
    result = run("search", "--text", "a red heart", "--demo", demo, "--top", 2)
    assert result.exit_code == 0, result.output


def test_search_rejects_a_truncated_query_and_a_damaged_demo(demo, tmp_path):
    path = tmp_path / "query.png"
    EmojiStyles().image("noto", "1f436").save(path)
    path.write_bytes(path.read_bytes()[:400])
    assert "query.png is truncated or damaged" in refused("search", "--query", path, "--demo", demo)
    broken = shutil.copytree(demo, tmp_path / "broken")
    (broken / "index.db").write_bytes(b"{" + (demo / "index.db").read_bytes()[1:])
    EmojiStyles().image("noto", "1f436").save(path)
    assert "index.db is damaged" in refused("search", "--query", path, "--demo", broken)
