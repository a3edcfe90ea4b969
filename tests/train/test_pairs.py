"""Training pairs of data sets on disk: queries, relevant items, unreadable files, held-out shares, and whole runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from hystar_fast.cli.main import app
from hystar_fast.data.hold_out import hold_out
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.images import ResizeTo
from hystar_fast.data.open import open_images
from hystar_fast.models.backbones.open_clip import OpenClipTower
from hystar_fast.train.pairs import GALLERY, PairSampler, TrainingPairs
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.run import run_training
from hystar_fast.train.settings import DataSettings, read_settings
from hystar_fast.train.step import prepare
from hystar_fast.train.validation import open_training
from tests.support import picture_trees
from tests.support.linear_method import Linear

SIDE = 16
RESIZE = ResizeTo((SIDE, SIDE))


def load(pairs: TrainingPairs, concept: int, column: int, draw: float = 0.0) -> Tensor:
    found = pairs.load(torch.tensor([concept]), torch.tensor([column]), torch.tensor([draw]))
    assert found.readable.all() and found.style is None
    return found.images[0]


def read(path: Path) -> Tensor:
    """Return the picture of a file, resized."""
    with Image.open(path) as picture:
        return RESIZE(picture.convert("RGB"))


def test_instances_pair_with_their_own_pictures(tmp_path: Path) -> None:
    root = picture_trees.dsr(tmp_path, n=4)
    (root / "sketch" / "n01" / "1.png").unlink()
    pairs = TrainingPairs(open_images(f"dsr:{root}"), ["sketch", "text"], RESIZE)
    assert len(pairs) == 4 and pairs.labels is None and pairs.text_index == 1
    assert pairs.texts[2] == ("picture number 2",)
    assert torch.equal(load(pairs, 2, 0), read(root / "sketch" / "n00" / "2.png"))
    assert torch.equal(load(pairs, 3, GALLERY), read(root / "images" / "n01" / "3.png"))
    found = pairs.load(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.zeros(2))
    assert found.readable.tolist() == [True, False] and list(pairs.skipped) == ["sketch/n01/1.png"]
    assert (found.images[1] == 255).all()


def test_a_draw_selects_one_of_the_captions_of_an_item(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture_trees.picture(tmp_path / name)
    (tmp_path / "c.token").write_text("".join(f"{n}#{k}\t{n} {k}\n" for n in ("a.png", "b.png") for k in range(5)))
    pairs = TrainingPairs(open_images(f"captions:{tmp_path / 'c.token'}"), (), RESIZE)
    assert pairs.styles == ("text",)
    assert [pairs.text(1, draw) for draw in (0.0, 0.39, 0.4, 0.999)] == ["b.png 0", "b.png 1", "b.png 2", "b.png 4"]
    sampler, recipe = PairSampler(pairs, 2), Recipe({}, jitter=0.0)
    drawn = [prepare(Linear(), pairs, sampler.batch(epoch), recipe, epoch).texts for epoch in range(40)]
    assert all({text[:5] for text in texts} == {"a.png", "b.png"} for texts in drawn)
    assert {text for texts in drawn for text in texts} == {f"{n} {k}" for n in ("a.png", "b.png") for k in range(5)}
    assert drawn[7] == prepare(Linear(), pairs, PairSampler(pairs, 2).batch(7), recipe, 7).texts


def test_targets_of_one_category_share_a_label(tmp_path: Path) -> None:
    root = picture_trees.domainnet(tmp_path, n=3)
    pairs = TrainingPairs(open_images(f"domainnet:{root}"), (), RESIZE)
    assert pairs.styles == ("clipart", "sketch") and len(pairs) == 6
    assert pairs.labels is not None and pairs.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for number, draw in enumerate((0.0, 0.34, 0.99)):  # one of the three of its category
        assert torch.equal(load(pairs, 4, 1, draw), read(root / f"sketch/hot_dog/sketch_1_{number}.png"))
    assert torch.equal(load(pairs, 1, GALLERY), read(root / "real/ant/real_0_1.png"))


def test_gallery_pictures_without_a_query_are_excluded(tmp_path: Path) -> None:
    root = picture_trees.sketchy(tmp_path, ("tx_000100000000",))
    shutil.rmtree(root / "sketch/tx_000100000000/dog")
    pairs = TrainingPairs(open_images(f"folders:{root}"), (), RESIZE)
    assert [record.category for record in pairs.gallery] == ["cat", "cat"]
    assert [len(pairs.items_with(style)) for style in pairs.styles] == [2]
    with pytest.raises(ValueError, match=r"style must be one of"):
        TrainingPairs(open_images(f"folders:{root}"), ("oil",), RESIZE)
    with pytest.raises(ValueError, match=r"styles must give a picture of 'photo' in .* a query, got \('text',\)"):
        TrainingPairs(open_images(f"folders:{root}"), ("text",), RESIZE)


def test_two_copies_of_an_instance_share_a_label(tmp_path: Path) -> None:
    assert TrainingPairs(open_images(str(picture_trees.sketchy(tmp_path / "sketchy"))), (), RESIZE).labels is None
    for place in (
        "photo/a/cup/1.png",
        "photo/b/cup/1.png",
        "photo/a/cup/2.png",
        "sketch/cup/1.png",
        "sketch/cup/2.png",
    ):
        picture_trees.picture(tmp_path / "copies" / place)
    pairs = TrainingPairs(open_images(str(tmp_path / "copies")), (), RESIZE)
    assert [record.instance for record in pairs.gallery] == ["cup/1", "cup/2", "cup/1"]
    assert pairs.labels is not None and pairs.labels.tolist() == [0, 1, 0]


def test_a_batch_has_different_items_and_depends_on_its_step(tmp_path: Path) -> None:
    root = picture_trees.dsr(tmp_path, n=6)
    pairs = TrainingPairs(open_images(f"dsr:{root}"), (), RESIZE)
    sampler = PairSampler(pairs, 4, seed=1)
    first = sampler.batch(0)
    assert len(set(first.items.tolist())) == 4 and bool(((first.draws >= 0) & (first.draws < 1)).all())
    assert torch.equal(sampler.batch(0).draws, first.draws) and not torch.equal(sampler.batch(1).draws, first.draws)


def test_the_held_out_share_depends_only_on_names() -> None:
    emoji = open_images("emoji", "val")
    train, held = hold_out(emoji, 0.25)
    names = [{record.instance for record in part.records} for part in (train, held)]
    assert not names[0] & names[1] and names[0] | names[1] == {record.instance for record in emoji.records}
    assert 0.15 < len(names[1]) / len(names[0] | names[1]) < 0.35
    half = hold_out(ImageSet("half", "noto", emoji.records[::2], emoji.read), 0.25)[1]
    assert {record.instance for record in half.records} <= names[1]
    with pytest.raises(ValueError, match=r"share must be between 0 and 1, got 1"):
        hold_out(emoji, 1)


def test_the_test_split_and_the_training_split_are_rejected_for_validation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.validation must not be 'test'"):
        open_training(DataSettings(validation="test"))
    root = picture_trees.split_dsr(tmp_path)
    (root / "val.json").write_text((root / "train.json").read_text())
    with pytest.raises(ValueError, match=r"a split without training pictures, got 'val' .*give the share to hold out"):
        open_training(DataSettings(source=f"dsr:{root}"))


def write_splits(root: Path, n: int) -> Path:
    """Write DSR with a training and a validation split, but no test split."""
    picture_trees.dsr(root, n)
    entries = json.loads((root / "test.json").read_text())
    (root / "train.json").write_text(json.dumps(entries[: n - 3]))
    (root / "val.json").write_text(json.dumps(entries[n - 3 :]))
    (root / "test.json").unlink()
    return root


SMALL = (
    "data.jitter=0.02",
    "optim.batch_size=4",
    "optim.epochs=2",
    "optim.steps=0",
    "model.pretrained=random",
    "run.validate_every=0",
)


def settings_of(root: Path, output: Path, *more: str) -> Sequence[str]:
    return [*SMALL, f"data.source=dsr:{root}", f"run.output={output}", *more]


def test_a_run_counts_epochs_validates_and_reports_unreadable_pictures(tmp_path: Path) -> None:
    root = write_splits(tmp_path / "DSR", 11)
    picture_trees.damaged(root / "sketch" / "n01" / "1.png")
    changes = settings_of(root, tmp_path / "run", 'data.styles=["sketch"]')
    arguments = [part for change in changes for part in ("--set", change)]
    result = CliRunner().invoke(app, ["train", "emoji", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "4 steps" in result.output  # two epochs of eight pictures in batches of four
    assert "skipped 1 unreadable pictures, such as sketch/n01/1.png" in result.output
    assert (tmp_path / "run" / "skipped.txt").read_text().startswith("sketch/n01/1.png\t")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [2, 4]
    assert all(set(line["R@1"]) == {"sketch"} for line in lines if line["kind"] == "validation")


def test_a_run_with_a_held_out_share_keeps_the_best_step(tmp_path: Path) -> None:
    root = write_splits(tmp_path / "DSR", 19)
    shutil.move(root / "train.json", root / "all.json")
    entries = json.loads((root / "all.json").read_text()) + json.loads((root / "val.json").read_text())
    (root / "train.json").write_text(json.dumps(entries))
    changes = settings_of(root, tmp_path / "run", "data.validation=0.3", "run.validate_every=1", "run.patience=2")
    trained = run_training(read_settings("emoji", changes))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [(line["score"], -line["step"]) for line in lines if line["kind"] == "validation"]
    assert trained.progress.best == (max(scores)[0], -max(scores)[1])
    low, high = trained.progress.best_interval
    assert low <= trained.progress.best[0] <= high
    step = trained.progress.step
    assert step == min(trained.steps, trained.progress.best[1] + 2)
    assert (tmp_path / "run" / "adapter" / "adapter.safetensors").is_file()


@pytest.mark.parametrize("method", ["hystar", "vpt"])
def test_gradient_checkpointing_recomputes_every_block_and_keeps_the_losses(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run_block = write_splits(tmp_path / "DSR", 11), OpenClipTower.run_block
    losses, runs = {}, {"true": 0, "false": 0}
    for key in runs:

        def counted(*arguments: Any, key: str = key) -> torch.Tensor:
            runs[key] += torch.is_grad_enabled()
            return run_block(*arguments)

        monkeypatch.setattr(OpenClipTower, "run_block", counted)
        changes = [f"model.method={method}", f"optim.gradient_checkpointing={key}", "data.validation=none"]
        trained = run_training(read_settings("emoji", settings_of(root, tmp_path / key, *changes)))
        losses[key] = trained.progress.losses
    assert runs["true"] == 2 * runs["false"] > 0
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-5)


def test_losses_do_not_depend_on_preloading_or_prefetching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_splits(tmp_path / "DSR", 11)

    def losses(folder: str) -> list[float]:
        changes = settings_of(root, tmp_path / folder, "data.validation=none")
        return run_training(read_settings("emoji", changes)).progress.losses

    preloaded = losses("preloaded")
    monkeypatch.setattr(TrainingPairs, "preload", lambda self, method: None)
    prefetched = losses("prefetched")
    monkeypatch.setattr(TrainingPairs, "is_preloaded", True)
    assert losses("without prefetching") == prefetched and len(prefetched) == 4
    assert prefetched == pytest.approx(preloaded, rel=1e-4)
