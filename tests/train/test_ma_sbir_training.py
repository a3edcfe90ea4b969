"""MA-SBIR in the loop that all methods share: its log, its adapter, exact resume, presets, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.ma_sbir.ma_sbir_config import PRESETS, MASBIRConfig
from hystar_fast.methods.ma_sbir.ma_sbir_method import MASBIR
from hystar_fast.retrieval.modality_means import modality_means
from hystar_fast.train.category_data import open_categories
from hystar_fast.train.run import Trained, run_training
from hystar_fast.train.settings import read_settings
from tests.support.cli import run
from tests.support.killed_run import train_and_kill
from tests.support.ma_sbir_cases import changes

pytestmark = pytest.mark.usefixtures("narrow_tiny")
TERMS = {"loss", "clip", "sem", "mc", "rec", "ortho"}
STYLES = ("noto", "outline", "sketch")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tests.support.small_tiny import shrink_tiny

    with pytest.MonkeyPatch.context() as patch:
        shrink_tiny(patch)
        return run_training(read_settings("ma-sbir-emoji", changes(tmp_path_factory.mktemp("run") / "whole")))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_log_has_every_term_and_the_vectors(trained: Trained) -> None:
    found = lines(trained.adapter.parent)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    names = (*STYLES, "text")
    vectors = {f"norm_{name}" for name in names} | {"shift_outline", "shift_sketch"}
    vectors |= {f"cosine_{a}_{b}" for i, a in enumerate(names) for b in names[i + 1 :]}
    for line in found:
        assert {*line} - {"step", "kind", "learning_rate"} - {"shift_outline", "shift_sketch"} >= TERMS
        assert (
            TERMS | {n for n in vectors if not n.startswith("shift")}
            <= {*line}
            <= TERMS
            | vectors
            | {
                "step",
                "kind",
                "learning_rate",
            }
        )
    assert found[0]["learning_rate"] == {"towers": 5e-5, "modalities": 5e-5}, "one of two steps of warm-up"
    assert found[1]["learning_rate"] == {"towers": 1e-4, "modalities": 1e-4}


def test_the_adapter_holds_both_towers_the_vectors_and_the_means(trained: Trained) -> None:
    loaded = load_method(trained.adapter)
    assert isinstance(loaded, MASBIR) and loaded.styles == STYLES
    names = {*loaded.trained_parameters()}
    assert {"clip.visual.proj", "clip.text_projection", "vectors", "classifier.bias"} <= names
    assert "clip.logit_scale" not in names and [*loaded.conversions()] == ["converted", "mean shift"]
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(pictures), trained.method.encode_image(pictures))
    settings = read_settings("ma-sbir-emoji", changes(trained.adapter.parent))
    data = open_categories(settings.data, settings.own.batching)
    means = modality_means(loaded, data.training)
    assert [*means] == [*loaded.style_means] == [*STYLES]
    for style, mean in means.items():
        torch.testing.assert_close(loaded.style_means[style], mean)
    moved = loaded.convert(torch.eye(32)[:1], "sketch", "noto")
    m = dict(zip(STYLES, loaded.modalities.vectors.detach(), strict=False))
    expected = torch.nn.functional.normalize(torch.eye(32)[:1] - m["sketch"] + m["noto"], dim=-1)
    torch.testing.assert_close(moved, expected)


def test_a_run_in_two_parts_is_the_run_in_one(trained: Trained, tmp_path: Path) -> None:
    folder, step = tmp_path / "run", MASBIR.step

    def fails(method: MASBIR, batch: Any, epoch: int, number: int) -> Any:
        if number >= 2:
            raise KeyboardInterrupt
        return step(method, batch, epoch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MASBIR, "step", fails)
        with pytest.raises(KeyboardInterrupt):
            run_training(read_settings("ma-sbir-emoji", changes(folder)))
    run_training(read_settings("ma-sbir-emoji", changes(folder)), resume=True)
    for name in ("metrics.jsonl", "adapter/adapter.safetensors", "adapter/config.json"):
        assert (folder / name).read_bytes() == (trained.adapter.parent / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_that_was_killed_is_the_run_in_one(tmp_path: Path) -> None:
    whole, killed = (
        read_settings("ma-sbir-emoji", changes(tmp_path / name, "optim.steps=20")) for name in ("whole", "killed")
    )
    run_training(whole)
    train_and_kill(killed, 3, narrow=True)
    run_training(killed, resume=True)
    for name in ("metrics.jsonl", "adapter/adapter.safetensors", "adapter/config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_held_out_subgroups_choose_by_converted_queries(tmp_path: Path) -> None:
    more = ("data.validation=0.3", "run.validate_every=2", "data.limit=30")
    found = run_training(read_settings("ma-sbir-emoji", changes(tmp_path, *more)))
    scores = [line for line in lines(tmp_path) if line["kind"] == "validation"]
    assert [line["step"] for line in scores] == [2, 4] and found.metric == "mAP@all"
    assert [*scores[0]["mAP@all"]] == ["outline [converted]", "sketch [converted]"]
    mean = sum(scores[0]["mAP@all"].values()) / 2
    assert scores[0]["score"] == pytest.approx(mean)
    done = run("eval", "--adapter", found.adapter, "--limit", 12, "--task", "category",
               "--metrics", "mAP@all", "--output", tmp_path / "eval")  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())["queries"]
    assert [n for n in rows if "sketch" in n] == [f"sketch [{w}]" for w in ("original", "converted", "mean shift")]


def test_with_the_clip_loss_alone_no_vector_is_trained(tmp_path: Path) -> None:
    off = [f"ma_sbir.lambda_{name}=0" for name in ("sem", "mc", "rec", "ortho")]
    method = run_training(read_settings("ma-sbir-emoji", changes(tmp_path, *off, "optim.steps=2"))).method
    assert [*method.parameter_groups()] == ["towers"] and not method.conversions()
    assert [*load_method(tmp_path / "adapter").conversions()] == ["mean shift"]


@pytest.mark.parametrize(("config", "preset"), [("ma-sbir", "package"), ("ma-sbir-authors", "authors"),
                                                ("ma-sbir-paper", "paper")])  # fmt: skip
def test_shipped_settings_are_the_presets(config: str, preset: str) -> None:
    settings = read_settings(config)
    assert settings.own == MASBIRConfig.preset(preset) and preset in PRESETS
    assert (settings.optim.learning_rate, settings.own.modality_lr, settings.optim.batch_size) == (5e-8, 5e-3, 256)
    assert settings.own.weights == {"sem": 0.1, "mc": 0.1, "rec": 0.02, "ortho": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.clip_norm=1.0", "clip_norm must be 0.0 for method 'ma_sbir'"),
        ("data.jitter=0.1", "jitter must be 0.0 for method 'ma_sbir'"),
        ("ma_sbir.lambda_sme=1", "unknown key ma_sbir.lambda_sme; did you mean ma_sbir.lambda_sem?"),
        ('data.styles=["noto"]', "styles must be query styles, but 'noto' is the gallery style"),
    ],
)
def test_what_a_run_cannot_do_is_refused(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run_training(read_settings("ma-sbir-emoji", changes(tmp_path, change)))


def test_recomputed_blocks_change_nothing(trained: Trained, tmp_path: Path) -> None:
    found = run_training(read_settings("ma-sbir-emoji", changes(tmp_path, "optim.gradient_checkpointing=true")))
    assert found.progress.losses == pytest.approx(trained.progress.losses, rel=1e-5)
