"""A method with steps of its own in the loop that all share: its files, its settings, and a run that is resumed."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hystar_fast.cli.eval_parts import choose_part, choose_unseen
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import split_classes
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from hystar_fast.train.data_record import DataRecord
from hystar_fast.train.loop import CheckpointPolicy, run_steps
from hystar_fast.train.own_steps import OwnSteps
from hystar_fast.train.processes import World
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.run import Trained, run_training
from hystar_fast.train.settings import ALL_KEYS, Settings, read_settings
from hystar_fast.train.settings_file import to_toml
from tests.support.acnet_cases import small_acnet
from tests.support.killed_run import train_and_kill
from tests.support.picture_trees import damaged, picture

CLASSES = ("ant", "bee", "cat", "dog")
CHANGES = (
    "acnet.extractor=timm:test_resnet", "acnet.weights=random", "acnet.embedding=8", "acnet.image_size=24",
    "acnet.channels=2", "acnet.generator_blocks=1", "acnet.norm_statistics=batch", "data.limit=40",
    "data.validation=none", "optim.batch_size=8", "optim.steps=6", "run.validate_every=0", "run.checkpoint_every=2",
)  # fmt: skip
LOSSES = {"loss", "adversarial", "identity", "sketch", "photo", "synthesised", "discriminator"}


def settings(folder: Path, *changes: str) -> Settings:
    return read_settings("acnet-emoji", [*CHANGES, f"run.output={folder}", *changes])


def same(a: Any, b: Any) -> bool:
    """Compare nested values and tensors exactly."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def check_same_run(folder: Path, expected: Path) -> None:
    for name in ("metrics.jsonl", "adapter/adapter.safetensors", "adapter/config.json"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    found, wanted = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (folder, expected))
    assert set(wanted["modules"]) == {"extractor", "proxies", "generator", "discriminator"}
    assert set(wanted["optimizers"]) == {"retrieval", "generator", "discriminator"}
    assert any(name.endswith("running_mean") for name in wanted["modules"]["extractor"])
    assert same(found["modules"], wanted["modules"]) and same(found["optimizers"], wanted["optimizers"])
    assert found["progress"]["losses"] == wanted["progress"]["losses"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run_training(settings(tmp_path_factory.mktemp("whole") / "run"))


def test_the_log_has_every_loss_of_every_step(trained: Trained) -> None:
    lines = [json.loads(line) for line in (trained.adapter.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert set(line) == LOSSES | {"step", "kind", "learning_rate"} and line["kind"] == "train"
    rates = {"extractor": 1e-5, "proxies": 1e-3, "generator": 1e-3, "discriminator": 1e-4}
    assert lines[0]["learning_rate"] == rates
    assert [line["loss"] for line in lines] == trained.progress.losses


def test_the_adapter_holds_all_but_the_discriminator(trained: Trained) -> None:
    loaded, images = load_method(trained.adapter), torch.rand(2, 3, 24, 24)
    for encode in ("encode_image", "encode_query"):
        assert torch.equal(getattr(loaded, encode)(images), getattr(trained.method, encode)(images))
    names = set(loaded.trained_parameters())
    assert {name.partition(".")[0] for name in names} == {"extractor", "generator", "proxies"}
    assert any(name.endswith("running_mean") for name in names)
    assert loaded.settings == trained.method.settings and loaded.settings["categories"] == 24


def test_a_run_in_two_parts_is_the_run_in_one(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_training(settings(folder, "optim.steps=3"))
    run_training(settings(folder), resume=True)
    check_same_run(folder, trained.adapter.parent)
    with pytest.raises(ValueError, match=r"to resume it, got acnet\.flip = 0\.25 \(was 0\.5\)"):
        run_training(settings(folder, "acnet.flip=0.25"), resume=True)


@pytest.mark.slow
def test_a_run_that_was_killed_is_the_run_in_one(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_and_kill(settings(folder), random.Random(4).randint(2, 5))
    run_training(settings(folder), resume=True)
    check_same_run(folder, trained.adapter.parent)


def test_validation_on_held_out_categories_chooses_the_adapter(tmp_path: Path) -> None:
    found = run_training(settings(tmp_path, "data.validation=0.4", "optim.steps=2", "run.validate_every=1"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in lines if line["kind"] == "validation"]
    assert len(scores) == 2 and found.metric == "mAP@all"
    assert found.progress.best is not None and found.progress.best[0] == max(line["score"] for line in scores)
    assert all(line["score"] == line["mAP@all"]["sketch"] for line in scores)


def test_a_checkpoint_of_other_modules_is_refused(tmp_path: Path) -> None:
    method, path = small_acnet(), tmp_path / "c.pt"
    save_checkpoint(path, method, method.optimizers(), Progress(2))
    assert load_checkpoint(path, small_acnet(seed=1), method.optimizers()).step == 2
    for other in (small_acnet(channels=2), small_acnet(synthesis="none"), small_acnet(generator_blocks=1)):
        with pytest.raises(ValueError, match=r"path must hold the parameters of method 'acnet', got others in .*c\.pt"):
            load_checkpoint(path, other, other.optimizers())
    with torch.no_grad():
        method.model["extractor"].net.fc.bias[0] = float("inf")
    with pytest.raises(FloatingPointError, match="the parameters of 'acnet' are not finite after step 3"):
        save_checkpoint(path, method, method.optimizers(), Progress(3))


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = small_acnet()
    monkeypatch.setattr(method, "step", lambda batch, epoch, step: {"loss": 1.0, "identity": float("nan")})

    class Pairs:
        batches_per_epoch, skipped = 2, {}

        def identity(self) -> str:
            return "none"

        def load(self, step: int) -> None:
            return None

    recipe = Recipe({}, steps=2, warmup=0, schedule="constant", clip_norm=0.0, jitter=0.0)
    pairs: Any = Pairs()
    maker = OwnSteps(method, pairs, recipe)
    with pytest.raises(
        FloatingPointError, match=r"the loss 'identity' of 'acnet' is nan at step 0: lower its learning"
    ):
        run_steps(maker, CheckpointPolicy())
    with pytest.raises(ValueError, match="processes must be 1 for method 'acnet', got 2"):
        OwnSteps(method, pairs, recipe, world=World(0, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["optim.schedule=cosine"], "schedule must be 'constant' for method 'acnet', which has steps of its own, got"),
        (["optim.clip_norm=1"], "clip_norm must be 0.0 for method 'acnet', which has steps of its own, got 1.0"),
        (["data.jitter=0.1"], "jitter must be 0.0 for method 'acnet', which has steps of its own, got 0.1"),
    ],
)
def test_settings_that_the_steps_do_not_have(changes: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run_training(settings(tmp_path, *changes))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("acnet", "acnet.chanels=3", "--set: unknown key acnet.chanels; did you mean acnet.channels?"),
        ("acnet", "acnet.gan=lsgn", "--set: acnet.gan must be one of lsgan, vanilla, got 'lsgn'; did you mean lsgan?"),
        ("acnet", "acnet.channels=0", "--set: acnet.channels must be at least 1, got 0"),
        ("acnet", "acnet.flip=much", "--set: acnet.flip must be a number, got 'much'"),
        ("acnet", "loss.gamma=3", "--set: loss.gamma must be left out for model.method = 'acnet', got 3.0"),
        ("acnet", "optim.gradient_checkpointing=true", "optim.gradient_checkpointing must be false for model.method"),
        ("emoji", "acnet.channels=3", "--set: [acnet] must be left out for model.method = 'hystar', got settings of"),
        ("emoji", "model.gamma=3", "it belongs to another section: loss.gamma"),
        ("emoji", "optim.temperature=3", "it belongs to another section: loss.temperature"),
        ("acnet", "acnt.flip=1", "--set: unknown section [acnt]; did you mean [acnet]?"),
    ],
)
def test_errors_of_the_section_of_a_method(config: str, change: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        read_settings(config, [change])


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("acnet", "acnet"),
        ("acnet-paper", "acnet"),
        ("acnet-emoji", "acnet"),
        ("fgan", "fgan"),
        ("fgan-authors", "fgan"),
        ("fgan-emoji", "fgan"),
        ("fgan-emoji-sketch", "fgan"),
        ("tki-literal", "tki"),
        ("tki-package", "tki"),
        ("tki-emoji", "tki"),
    ],
)
def test_shipped_settings_round_trip(name: str, section: str, tmp_path: Path) -> None:
    found = read_settings(name)
    path = tmp_path / "settings.toml"
    path.write_text(to_toml(found.to_dict()))
    assert read_settings(str(path)) == found and found.method == section
    assert section in found.to_dict() and section not in read_settings("emoji").to_dict()
    if name == section:
        assert found.own == type(found.own)()


@pytest.mark.parametrize("section", ["acnet", "fgan", "tki"])
def test_the_document_lists_every_setting_once_with_its_default(section: str) -> None:
    document = (Path(__file__).resolve().parents[2] / "docs" / f"{section}.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `({section}\.\w+)` \| `(.*?)` \| (.+) \|$", document, re.MULTILINE)
    keys = {name: key for name, key in ALL_KEYS.items() if name.startswith(f"{section}.")}
    assert [name for name, _, _ in rows] == list(keys)
    for name, default, meaning in rows:
        assert json.loads(default) == keys[name].shown_default and len(meaning) > 5, name


def test_folders_of_categories_train_without_their_instances(tmp_path: Path) -> None:
    for category in ("ant", "hot_dog", "bee [1]"):
        for i in range(3):
            picture(tmp_path / "data" / "photo" / category / f"n0{i}.jpg", seed=i, size=(40, 30))
            for k in (1, 2):  # Sketchy's names, which say the photo that was drawn
                picture(tmp_path / "data" / "sketch" / category / f"n0{i}-{k}.png", seed=7 * i + k)
    damaged(tmp_path / "data" / "photo" / "ant" / "n01.jpg")
    changes = [
        *(change for change in CHANGES if not change.startswith(("data.", "optim.batch_size", "acnet.norm"))),
        *(f"data.source=folders:{tmp_path}/data", f"run.output={tmp_path}/run", "optim.steps=3", "optim.batch_size=6"),
    ]
    said: list[str] = []
    with pytest.raises(ValueError, match=r"got 'bee', which it has not; the nearest is 'bee \[1\]'"):
        (tmp_path / "unseen.txt").write_text("bee")
        run_training(read_settings("acnet", [*changes, f"data.unseen={tmp_path}/unseen.txt"]))
    found = run_training(read_settings("acnet", changes), say=said.append)
    assert said == ["read 18 queries and 9 gallery pictures of 3 categories: sketch -> photo; no category is held out"]
    assert found.method.settings["categories"] == 3 and len(found.progress.losses) == 3
    assert found.progress.best is None and load_method(found.adapter).name == "acnet"
    assert set(found.progress.skipped) == {"photo/ant/n01.jpg"}
    assert (tmp_path / "run" / "skipped.txt").read_text().startswith("photo/ant/n01.jpg\t")


def test_unseen_categories_take_no_part_and_are_recorded(tmp_path: Path) -> None:
    for category in CLASSES:
        for style in ("photo", "sketch"):
            for i in range(2):
                picture(tmp_path / "data" / style / category / f"{i}.png", seed=i)
    source = f"folders:{tmp_path}/data"
    changes = [
        *(change for change in CHANGES if not change.startswith(("data.", "optim.batch_size", "acnet.norm"))),
        *(f"data.source={source}", f"run.output={tmp_path}/run", "optim.steps=1", "optim.batch_size=4"),
        "data.unseen=half:0",
    ]
    said: list[str] = []
    found = run_training(read_settings("acnet", changes), say=said.append)
    assert said[0].endswith("; 2 unseen categories of half:0 take no part")
    assert found.method.settings["categories"] == 2
    record = DataRecord.read(found.adapter)
    assert record is not None and (record.division, record.unseen) == ("half:0", split_classes(CLASSES, 0)[1])
    whole = open_images(source)
    part = choose_unseen(whole, source, None, found.adapter, "half:0", None)
    assert {r.category for r in part.images.records} == {*record.unseen} and "not known" not in part.line
    with pytest.raises(ValueError, match="unseen must be categories that the adapter was not trained on, got 'half:1'"):
        choose_unseen(whole, source, None, found.adapter, "half:1", None)
    line = choose_part(whole, source, None, found.adapter).line
    assert line.endswith("the adapter was trained on them, but not on the 2 unseen categories of half:0: see --unseen")


def test_a_method_of_pairs_takes_no_unseen_categories() -> None:
    with pytest.raises(ValueError, match=r"data\.unseen must be left out for model\.method = 'hystar', which does not"):
        read_settings("emoji", ["data.unseen=subgroup"])
