"""Base-to-new classification: class folders, the split, the shots, accuracies, training, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hystar_fast.data.classes import open_classes
from hystar_fast.experiments import few_shot
from hystar_fast.experiments.base_to_new import accuracies, base_to_new, draw_shots, is_correct
from hystar_fast.experiments.class_training import train_on_classes
from hystar_fast.experiments.experiment_settings import ExperimentSettings, FewShot
from hystar_fast.experiments.learning_rates import DEMO_RATES
from hystar_fast.methods.suite import create_method
from hystar_fast.models.vgg import vgg_features
from hystar_fast.retrieval.zero_shot import class_embeddings
from hystar_fast.train.recipe import Recipe
from tests.support.experiments import done, refused_experiment
from tests.support.picture_trees import damaged, picture
from tests.support.small_clip import small_config, write_small_clip

CLASSES = ("ant", "bee", "cat", "dog", "eel")


def tree(root: Path, *, parts: tuple[str, ...] = ("train", "test"), n: int = 5) -> Path:
    for part in parts:
        for label, name in enumerate(CLASSES):
            for i in range(n):
                picture(root / part / name / f"{i}.png", seed=100 * label + i)
    return root


def test_class_folders_are_read_with_and_without_a_split(tmp_path):
    images = open_classes(str(tree(tmp_path / "split")))
    assert len(images.of_style("train")) == len(images.of_style("test")) == 25
    assert {r.path.split("/")[0] for r in images.of_style("test")} == {"test"}
    images = open_classes(str(tree(tmp_path / "whole", parts=("",), n=12)))
    train, test = (set(images.of_style(part)) for part in ("train", "test"))
    assert len(train) + len(test) == 60 and not train & test
    assert {r.category for r in train} == {r.category for r in test} == set(CLASSES)
    again = open_classes(str(tree(tmp_path / "again", parts=("",), n=12)))
    assert again.records == images.records, "the halves do not depend only on the paths"
    (tmp_path / "split" / "test").rename(tmp_path / "split" / "val")
    assert len(open_classes(str(tmp_path / "split")).of_style("test")) == 25


def test_classes_of_sun397_are_its_leaf_folders_named_as_in_coop(tmp_path):
    for place in ("a/abbey", "b/barn/indoor", "b/barn/outdoor", "z/zoo"):
        for i in range(12):
            picture(tmp_path / "SUN397" / place / f"sun_{i}.png", seed=i)
    images = open_classes(str(tmp_path / "SUN397"))
    assert images.classes == ("abbey", "indoor barn", "outdoor barn", "zoo")
    assert base_to_new(images).new == ("outdoor barn", "zoo")
    picture(tmp_path / "SUN397/b/barn/stray.png")
    with pytest.raises(
        ValueError, match="Found: pictures in b/barn/ and in b/barn/indoor/ below it: which is the class"
    ):
        open_classes(str(tmp_path / "SUN397"))
    for place in ("x/cup", "y/cup"):
        picture(tmp_path / "twice" / place / "1.png")
    with pytest.raises(ValueError, match="Found: x/cup/ and y/cup/, which are both “cup”"):
        open_classes(str(tmp_path / "twice"))


def split_file(root: Path) -> Path:
    """Write CoOp's layout: pictures in a folder beside the split file, classes not in alphabetical order."""
    lists: dict[str, list[list[Any]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(("zebra", "ant_eater", "cat", "bee")):
        for i, part in enumerate(lists):
            picture(root / "pictures" / name / f"{i}.png", seed=label)
            lists[part].append([f"{name}/{i}.png", label, name])
    (root / "split_zhou_Animals.json").write_text(json.dumps(lists))
    return root


def test_coops_split_files_determine_pictures_and_class_order(tmp_path):
    images = open_classes(str(split_file(tmp_path / "animals")))
    parts = base_to_new(images)
    assert (parts.base, parts.new) == (("zebra", "ant eater"), ("cat", "bee"))
    assert [record.path for record in parts.training] == ["pictures/zebra/0.png", "pictures/ant_eater/0.png"]
    assert [record.path for record in parts.new_test] == ["pictures/cat/2.png", "pictures/bee/2.png"]
    assert images.read(parts.training[0]).size == (20, 16)
    file = tmp_path / "animals/split_zhou_Animals.json"
    file.rename(tmp_path / "animals/split_zhou_Other.json")
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"Found: split_zhou_Animals\.json and split_zhou_Other\.json"):
        open_classes(str(tmp_path / "animals"))
    (tmp_path / "animals/split_zhou_Other.json").unlink()
    with pytest.raises(ValueError, match=r"Expected: one split_zhou_<name>\.json.*of another form: KeyError"):
        open_classes(str(tmp_path / "animals"))
    file.write_text(json.dumps({"train": [["lion/1.png", 0, "lion"]], "test": []}))
    with pytest.raises(ValueError, match=r"with lion/1\.png, which no folder here holds"):
        open_classes(str(tmp_path / "animals"))


def test_imagenet_classes_are_named_by_classnames_txt(tmp_path):
    names = {"n01": "tench", "n02": "maillot", "n03": "maillot", "n04": "ant bear"}
    for part in ("train", "val"):
        for folder in names:
            picture(tmp_path / "images" / part / folder / "1.png")
    (tmp_path / "classnames.txt").write_text("".join(f"{folder} {name}\n" for folder, name in names.items()))
    images = open_classes(str(tmp_path))
    assert images.classes == ("tench", "maillot (n02)", "maillot (n03)", "ant bear")
    assert {record.path for record in images.of_style("test")} == {f"images/val/{folder}/1.png" for folder in names}
    (tmp_path / "classnames.txt").write_text("n01 tench\nn02\n")
    with pytest.raises(ValueError, match="Found: another line 2"):
        open_classes(str(tmp_path))


def test_emoji_classes_test_on_held_out_concepts():
    images = open_classes("emoji:subgroup")
    concepts = {part: {r.path.split("/")[-1] for r in images.of_style(part)} for part in ("train", "test")}
    assert not concepts["train"] & concepts["test"]
    assert all("-" not in str(r.category) for r in images.records)
    assert images.read(images.records[0]).size == (64, 64)


def test_other_layouts_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"one of \['emoji:subgroup', 'emoji:group'\], got 'emoji:colour'"):
        open_classes("emoji:colour")
    with pytest.raises(ValueError, match=r"Expected: <class>/<picture>.*Found: no folder there"):
        open_classes(str(tmp_path / "nowhere"))
    picture(tmp_path / "train" / "ant" / "a.png")
    picture(tmp_path / "test" / "bee" / "a.png")
    with pytest.raises(ValueError, match="1 classes to train on, 1 to test on, 0 in both"):
        open_classes(str(tmp_path))


def test_the_first_and_larger_half_of_the_classes_is_base(tmp_path):
    parts = base_to_new(open_classes(str(tree(tmp_path))))
    assert parts.base == ("ant", "bee", "cat") and parts.new == ("dog", "eel")
    assert {r.category for r in parts.training} == set(parts.base)
    assert {r.category for r in parts.base_test} == set(parts.base)
    assert {r.category for r in parts.new_test} == set(parts.new)
    few = open_classes(str(tree(tmp_path))).select(categories=["ant", "bee", "cat"])
    with pytest.raises(ValueError, match="at least 4 classes"):
        base_to_new(few)


def test_shots_depend_on_the_seed(tmp_path):
    records = base_to_new(open_classes(str(tree(tmp_path)))).training
    drawn = draw_shots(records, 2, 0)
    assert [r.category for r in drawn] == ["ant"] * 2 + ["bee"] * 2 + ["cat"] * 2
    assert len(set(drawn)) == 6
    assert draw_shots(records, 2, 0) == drawn != draw_shots(records, 2, 1)
    assert set(draw_shots(records, 99, 0)) == set(records)
    with pytest.raises(ValueError, match="shots must be at least 1"):
        draw_shots(records, 0, 0)


def test_the_nearest_class_is_correct_and_a_tie_is_not():
    classes = torch.eye(3)
    vectors = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [torch.nan, 0, 0]])
    assert is_correct(vectors, classes, torch.tensor([0, 0, 1, 0])).tolist() == [1, 0, 0, 0]


def test_accuracies_harmonic_mean_and_its_interval():
    base, new = torch.tensor([1.0] * 30 + [0.0] * 10), torch.tensor([1.0] * 10 + [0.0] * 10)
    found = accuracies(base, new)
    assert found.base.value == 0.75 and found.new.value == 0.5
    assert found.harmonic.value == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert found.harmonic.low < found.harmonic.value < found.harmonic.high
    # The delta method: var H = (dH/dB)² var B + (dH/dN)² var N.
    slopes = (2 * 0.5**2 / 1.25**2, 2 * 0.75**2 / 1.25**2)
    deviation = (slopes[0] ** 2 * 0.75 * 0.25 / 40 + slopes[1] ** 2 * 0.5 * 0.5 / 20) ** 0.5
    assert (found.harmonic.high - found.harmonic.low) / 3.92 == pytest.approx(deviation, rel=0.15)
    zero = torch.zeros(5)
    assert accuracies(zero, zero).harmonic.value == 0 == accuracies(base, zero).harmonic.value


def test_training_pairs_pictures_with_their_class_names(tmp_path):
    config = small_config(tmp_path)
    pictures = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4).repeat(2)
    method = create_method("last_block", config)
    classes = class_embeddings(method, ["ant", "bee", "cat", "dog"])
    seen: list[Any] = []
    plain = method.loss
    method.loss = lambda query, target: (seen.append(target), plain(query, target))[1]  # type: ignore[method-assign,func-returns-value]
    losses = train_on_classes(
        method, pictures, labels, classes, Recipe({"last_block": 1e-3}, steps=40, batch_size=3, warmup=2, jitter=0.0)
    )
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    for target in seen:
        rows = [int((classes - row).abs().sum(1).argmin()) for row in target]
        assert len(rows) == len(set(rows)) == 3
    with pytest.raises(ValueError, match="at least 2 classes"):
        train_on_classes(method, pictures, labels * 0, classes, Recipe({"last_block": 1e-3}, steps=1))
    with pytest.raises(ValueError, match="must have trainable parameters"):
        train_on_classes(create_method("frozen", config), pictures, labels, classes, Recipe({}, steps=1))


def test_a_tuning_file_without_a_method_is_rejected(tmp_path):
    tuning = tmp_path / "tuning.json"
    tuning.write_text('{"chosen": {"static": {"static": 0.1}}}')
    settings = ExperimentSettings(few_shot=FewShot(methods=["frozen", "static"], tuning=str(tuning)))
    assert few_shot._rates(settings) == {"static": ({"static": 0.1}, f"chosen in {tuning}")}
    more = replace(settings, few_shot=replace(settings.few_shot, methods=["static", "lora"]))
    with pytest.raises(ValueError, match=r"few_shot\.tuning must have rates for lora"):
        few_shot._rates(more)


def test_table_11_uses_rates_tuned_in_its_folder_and_the_columns_of_its_data(tmp_path):
    output = tmp_path / "out"
    model = {"backbone": write_small_clip(tmp_path / "clip"), "pretrained": "folder"}

    def reproduced(name: str) -> tuple[str, dict[str, Any]]:
        data = {"classes": str(tree(tmp_path / name, n=2))}
        shown = done("reproduce", output, "table11", data=data, model=model, few_shot={"steps": 1})
        return shown, json.loads((output / "table11.json").read_text())

    shown, found = reproduced("classes")
    assert found["columns"] == "Average" and "74.70" in shown
    assert found["rows"][-1]["few_shot"]["learning_rates"] == {"static": 1e-3, "dynamic": 1e-5}
    assert found["note"].endswith("its learning rates here: the paper's")
    identity = ExperimentSettings.of({"model": model}).identity()
    tuning = {"settings": identity, "chosen": {"hystar": {"static": 0.02, "dynamic": 0.004}}}
    (output / "tuning.json").write_text(json.dumps(tuning))
    shown, found = reproduced("Sun397_pictures")
    assert found["columns"] == "SUN397" and "78.41" in shown
    assert found["rows"][-1]["few_shot"]["learning_rates"] == {"static": 0.02, "dynamic": 0.004}
    assert f"(chosen in {output}/tuning.json)" in shown
    tuning["settings"]["model"] = {**identity["model"], "blocks": [1]}
    (output / "tuning.json").write_text(json.dumps(tuning))
    shown, found = reproduced("imagenet")
    assert found["columns"] == "ImageNet" and "70.98" in shown
    assert found["rows"][-1]["few_shot"]["rates_from"] == "the paper's", "the rates of another model were used"


def test_few_shot_uses_style_and_blocks_of_the_settings(tmp_path):
    torch.save({f"features.{name}": value for name, value in vgg_features(None).state_dict().items()}, tmp_path / "vgg")
    model = {"backbone": write_small_clip(tmp_path / "clip"), "pretrained": "folder", "style": "vgg"}
    model |= {"style_pretrained": str(tmp_path / "vgg"), "blocks": [2, 4]}  # type: ignore[dict-item]
    data = {"classes": str(tree(tmp_path / "pictures", n=2))}
    shown = done("fewshot", tmp_path / "out", data=data, model=model, few_shot={"methods": ["hystar"], "steps": 1})
    config = json.loads((tmp_path / "out" / "few_shot.json").read_text())["config"]
    assert (config["style"], config["style_pretrained"], config["blocks"]) == ("vgg", str(tmp_path / "vgg"), [2, 4])
    assert "learning rates of hystar: {'static': 0.001, 'dynamic': 1e-05} (the paper's)" in shown


def test_the_command_writes_results_and_rejects_bad_settings(tmp_path):
    root, output = tree(tmp_path / "pictures", n=3), tmp_path / "out"
    damaged(root / "test" / "dog" / "1.png")
    tuning = tmp_path / "tuning.json"
    tuning.write_text(json.dumps({"chosen": {"vpt": {"vpt": 0.02}, "hystar": DEMO_RATES["hystar"]}}))
    sections: dict[str, Any] = {
        "data": {"classes": str(root)},
        "model": {"backbone": write_small_clip(tmp_path / "clip"), "pretrained": "folder"},
        "training": {"seeds": 2},
        "few_shot": {"shots": 2, "steps": 1, "methods": ["frozen", "vpt", "hystar"], "tuning": str(tuning)},
    }
    assert "skipped 1 unreadable pictures" in done("fewshot", output, **sections)
    found = json.loads((output / "few_shot.json").read_text())
    assert found["data"]["base"] == 3 and found["data"]["new"] == 2 and found["data"]["shots"] == 2
    assert found["templates"] == ["a photo of a {}."]
    assert found["methods"]["vpt"]["learning_rates"] == {"vpt": 0.02}
    assert found["methods"]["frozen"]["parameters"] == 0 and found["methods"]["frozen"]["deviation"] is None
    for entry in found["methods"].values():
        base, new, harmonic = (entry[part]["value"] for part in ("base", "new", "H"))
        assert harmonic == pytest.approx(2 * base * new / (base + new) if base + new else 0, abs=0.02)
    assert found["device"] == "cpu"
    for section, key, value, message in (
        ("run", "device", "tpu", "device must be auto, cpu or cuda, got 'tpu'"),
        ("few_shot", "methods", ["pixels"], "few_shot.methods must be some of"),
        ("few_shot", "shots", 0, "few_shot.shots must be at least 1, got 0"),
    ):
        wrong = {**sections, section: {**sections.get(section, {}), key: value}}
        assert message in refused_experiment("fewshot", output, **wrong)
    other = {**sections, "few_shot": {**sections["few_shot"], "shots": 1}}
    assert f"kept the results of an earlier run: {output}/few_shot-1.json" in done("fewshot", output, **other)
    assert json.loads((output / "few_shot-1.json").read_text()) == found
    tuning.write_text("[]")
    assert "few_shot.tuning must be a tuning.json" in refused_experiment("fewshot", output, **sections)
