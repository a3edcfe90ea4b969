"""Fine-grained MA-SBIR in the loop that all methods share, on instances of drawings and on a tree like Sketchy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.ma_sbir.fine_method import FineMASBIR
from hystar_fast.methods.ma_sbir.ma_sbir_config import MASBIRConfig
from hystar_fast.retrieval.modality_means import modality_means
from hystar_fast.train.category_data import open_categories
from hystar_fast.train.run import Trained, run_training
from hystar_fast.train.settings import read_settings
from tests.support import picture_trees as trees
from tests.support.cli import run
from tests.support.ma_sbir_cases import changes

pytestmark = pytest.mark.usefixtures("narrow_tiny")
TERMS = {"loss", "clip_img", "clip_txt", "ps", "sem", "mc", "rec", "ortho"}
STYLES = ("noto", "outline", "sketch")


def fine_changes(folder: Path, *more: str) -> list[str]:
    return changes(folder, "data.limit=14", *more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tests.support.small_tiny import shrink_tiny

    with pytest.MonkeyPatch.context() as patch:
        shrink_tiny(patch)
        return run_training(read_settings("ma-sbir-fine-emoji", fine_changes(tmp_path_factory.mktemp("run") / "whole")))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_log_has_every_term_and_the_rates_of_three_groups(trained: Trained) -> None:
    found = lines(trained.adapter.parent)
    assert [line["step"] for line in found] == [1, 2, 3, 4] and all({*line} >= TERMS for line in found)
    assert {f"norm_{name}" for name in (*STYLES, "text")} <= {*found[0]}
    assert found[1]["learning_rate"] == {"towers": 1e-4, "modalities": 1e-4, "text": 1e-4}
    assert trained.metric == "R@1 within the category"


def test_the_adapter_holds_the_image_tower_the_text_layer_the_vectors_and_the_means(trained: Trained) -> None:
    loaded = load_method(trained.adapter)
    assert isinstance(loaded, FineMASBIR) and loaded.styles == STYLES
    names = {*loaded.trained_parameters()}
    assert {"clip.visual.conv1.weight", "text_layer.weight", "vectors", "classifier.bias"} <= names
    assert "clip.visual.proj" not in names and "clip.text_projection" not in names
    assert [*loaded.conversions()] == ["converted", "mean shift"]
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(pictures), trained.method.encode_image(pictures))
    assert torch.equal(loaded.encode_text(["a"]), trained.method.encode_text(["a"]))
    settings = read_settings("ma-sbir-fine-emoji", fine_changes(trained.adapter.parent))
    means = modality_means(loaded, open_categories(settings.data, settings.own.batching).training)
    assert [*means] == [*loaded.style_means] == [*STYLES]
    for style, mean in means.items():
        torch.testing.assert_close(loaded.style_means[style], mean)


def test_a_run_in_two_parts_is_the_run_in_one(trained: Trained, tmp_path: Path) -> None:
    folder, step = tmp_path / "run", FineMASBIR.step

    def fails(method: FineMASBIR, batch: Any, epoch: int, number: int) -> Any:
        if number >= 2:
            raise KeyboardInterrupt
        return step(method, batch, epoch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineMASBIR, "step", fails)
        with pytest.raises(KeyboardInterrupt):
            run_training(read_settings("ma-sbir-fine-emoji", fine_changes(folder)))
    run_training(read_settings("ma-sbir-fine-emoji", fine_changes(folder)), resume=True)
    for name in ("metrics.jsonl", "adapter/adapter.safetensors", "adapter/config.json"):
        assert (folder / name).read_bytes() == (trained.adapter.parent / name).read_bytes(), name


def test_held_out_categories_choose_by_their_own_pictures_and_both_galleries_are_evaluated(tmp_path: Path) -> None:
    more = ("data.validation=0.3", "run.validate_every=2", "data.limit=40")
    given = [word for change in changes(tmp_path, *more) for word in ("--set", change)]
    done = run("train", "ma-sbir-fine-emoji", *given)
    assert done.exit_code == 0 and "whose own picture comes first among those of its category" in done.output
    scores = [line for line in lines(tmp_path) if line["kind"] == "validation"]
    assert [*scores[0]["R@1"]] == ["outline [converted]", "sketch [converted]"]
    assert scores[0]["score"] == pytest.approx(sum(scores[0]["R@1"].values()) / 2)
    values = {}
    for task in ("instance-in-category", "instance"):
        output = tmp_path / task
        done = run("eval", "--adapter", tmp_path / "adapter", "--limit", 30, "--task", task, "--metrics", "R@1,R@5",
                   "--output", output)  # fmt: skip
        assert done.exit_code == 0, done.output
        stored = json.loads((output / "results.json").read_text())
        assert ("of the query's category" in stored["protocol"]) == (task != "instance")
        rows = {name: row for name, row in stored["queries"].items() if name.startswith("sketch [")}
        assert [*rows] == [f"sketch [{way}]" for way in ("original", "converted", "mean shift")]
        values[task] = [row["R@1"]["value"] for row in rows.values()]
    inside, whole = values.values()
    assert all(a >= b for a, b in zip(inside, whole, strict=True)) and inside != whole


def test_sketches_of_a_tree_find_the_photos_they_were_drawn_from(tmp_path: Path) -> None:
    root = trees.sketchy(tmp_path / "Sketchy", ("tx_000000000000",))
    more = (f"data.source=folders:{root}", "data.limit=0", 'data.styles=["sketch"]', "optim.batch_size=3")
    found = run_training(read_settings("ma-sbir-fine-emoji", changes(tmp_path / "run", *more)))
    assert found.progress.step == 4 and [*load_method(found.adapter).style_means] == ["photo", "sketch"]
    flat = trees.matching(tmp_path / "flat")
    with pytest.raises(ValueError, match=r"data\.source must have categories to train on them"):
        run_training(read_settings("ma-sbir-fine-emoji", changes(tmp_path / "b", f"data.source=folders:{flat}")))


def test_the_shipped_settings_are_the_preset_with_the_papers_rates() -> None:
    settings = read_settings("ma-sbir-fine")
    assert settings.own == MASBIRConfig.preset("fine") and settings.model.backbone == "open_clip:ViT-B-16"
    assert settings.own.weights == {"sem": 0.1, "mc": 0.02, "rec": 0.1, "ortho": 0.02}
    assert (settings.own.lambda_ps, settings.own.clip_img, settings.own.modality_lr) == (0.5, 1.0, 1e-2)
    assert (settings.optim.learning_rate, settings.optim.batch_size, settings.optim.epochs) == (5e-5, 64, 100)
