"""TKI in the loop that all methods share: names, log, selection, adapter, exact resume, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.tki.tki_method import TKI
from hystar_fast.train.name_data import open_names
from hystar_fast.train.run import Trained, run_training
from hystar_fast.train.settings import DataSettings, read_settings
from tests.support.cli import run
from tests.support.killed_run import train_and_kill
from tests.support.tki_cases import changes

PICTURES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:  # a run that reads a picture fails
        patch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("a picture was read"))
        return run_training(read_settings("tki-emoji", changes(tmp_path_factory.mktemp("tki") / "whole")))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_log_has_both_stages_and_the_second_is_scored_on_texts(trained: Trained) -> None:
    found = lines(trained.adapter.parent)
    steps = [line for line in found if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5] and trained.steps == 5
    assert all("diversity" in line for line in steps[:2]) and all("floor" in line for line in steps[2:])
    assert steps[0]["learning_rate"] == {"words": 0.005, "head": 1e-4}
    scores = {line["step"]: line["score"] for line in found if line["kind"] == "validation"}
    assert [*scores] == [2, 3, 4, 5], "the head that begins as CLIP is a candidate; no step of the first stage is"
    best = max(scores, key=lambda step: (scores[step], -step))
    assert trained.progress.best == (pytest.approx(scores[best]), best) and trained.metric == "mAP of texts"


def test_the_adapter_is_the_method_and_holds_no_backbone(trained: Trained) -> None:
    loaded = load_method(trained.adapter)
    assert isinstance(loaded, TKI) and loaded.settings["names"].count("\n") == 5
    shapes = {name: tuple(value.shape) for name, value in loaded.trained_parameters().items()}
    assert shapes["vectors"] == (3, 192) and len(shapes) == 5
    unseen = json.loads((trained.adapter / "data.json").read_text())["unseen"]
    assert len(unseen) == 20, "the subgroups whose names took no part"
    assert isinstance(trained.method, TKI) and {*trained.method._begun().unseen} == {*unseen}


def test_a_run_in_two_parts_is_the_run_in_one(trained: Trained, tmp_path: Path) -> None:
    for stop in (1, 4):  # in either stage
        folder, step = tmp_path / str(stop), TKI.step

        def fails(method: TKI, batch: Any, epoch: int, number: int, stop: int = stop, make: Any = step) -> Any:
            if number >= stop:
                raise KeyboardInterrupt
            return make(method, batch, epoch, number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TKI, "step", fails)
            with pytest.raises(KeyboardInterrupt):
                run_training(read_settings("tki-emoji", changes(folder)))
        run_training(read_settings("tki-emoji", changes(folder)), resume=True)
        for name in ("metrics.jsonl", "adapter/adapter.safetensors", "adapter/config.json"):
            assert (folder / name).read_bytes() == (trained.adapter.parent / name).read_bytes(), (stop, name)


@pytest.mark.slow
def test_a_run_that_was_killed_is_the_run_in_one(tmp_path: Path) -> None:
    more = ("tki.steps_expansion=6", "tki.steps_aggregation=40", "run.validate_every=20", "run.checkpoint_every=4")
    whole = run_training(read_settings("tki-emoji", changes(tmp_path / "whole", *more))).adapter.parent
    folder = tmp_path / "killed"
    settings = read_settings("tki-emoji", changes(folder, *more))
    train_and_kill(settings, 15)
    done = (folder / "metrics.jsonl").read_bytes().count(b"\n")
    assert 15 <= done < len(lines(whole)), "it was killed in the second stage"
    run_training(settings, resume=True)
    for name in ("metrics.jsonl", "adapter/adapter.safetensors", "adapter/config.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    found, wanted = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (folder, whole))
    assert {*wanted["modules"]} == {"words", "head"} == {*wanted["optimizers"]}
    for part, own in wanted["modules"].items():
        assert all(torch.equal(found["modules"][part][name], value) for name, value in own.items()), part
        for number, own_state in wanted["optimizers"][part]["state"].items():
            other = found["optimizers"][part]["state"][number]
            assert all(torch.equal(other[name], value) for name, value in own_state.items()), (part, number)


def test_the_closed_form_is_a_run_of_its_first_stage_and_one_step(trained: Trained, tmp_path: Path) -> None:
    settings = changes(tmp_path, "tki.head=wccn", "tki.steps_aggregation=1", "tki.select=last")
    found = run_training(read_settings("tki-emoji", settings))
    steps = lines(tmp_path)
    assert [line["kind"] for line in steps] == ["train"] * 3 and "floor" in steps[2]
    same = lines(trained.adapter.parent)
    assert steps[0]["loss"] == same[0]["loss"], "the first stage is that of TKI"
    assert steps[2]["learning_rate"] == {"words": 0.005}
    loaded = load_method(found.adapter)
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(PICTURES), found.method.encode_image(PICTURES))


def test_the_last_step_is_kept_where_nothing_selects(tmp_path: Path) -> None:
    settings = read_settings("tki-emoji", changes(tmp_path, "tki.select=last", "tki.start=random"))
    found = run_training(settings)
    assert found.progress.best is None and not [line for line in lines(tmp_path) if line["kind"] == "validation"]
    with torch.no_grad():
        assert torch.equal(load_method(found.adapter).encode_image(PICTURES), found.method.encode_image(PICTURES))


def tree(root: Path) -> Path:
    for style in ("photo", "sketch"):
        for number, name in enumerate(("Alarm_Clock", "t-shirt", "zebra")):
            (root / style / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (80 * number, 10, 10)).save(root / style / name / "a.png")
    return root


def test_names_come_from_categories_captions_or_a_file(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    (tmp_path / "names.txt").write_text("boat\n\nred_apple\nboat\n")

    def names(labels: str, **data: Any) -> tuple[str, ...]:
        settings = DataSettings(**{"source": str(root), "validation": "none", **data})
        own = read_settings("tki-emoji", [f"tki.labels={labels}"]).own
        return open_names(settings, own.batching, selects=True).names

    assert names("categories") == ("Alarm Clock", "t-shirt", "zebra")
    assert names("categories", limit=2) == ("Alarm Clock", "t-shirt")
    assert names(f"file:{tmp_path / 'names.txt'}") == ("boat", "red apple")
    drawings = names("captions", source="emoji")
    assert len(drawings) > 500 and all(name == " ".join(name.split()) for name in drawings)
    with pytest.raises(ValueError, match="must have at least 2 names in 'captions' to train on, got 0"):
        names("captions")
    with pytest.raises(ValueError, match=r"tki\.labels must name a file of names, got 'file:/none'"):
        names("file:/none")


def test_unseen_categories_give_no_name(tmp_path: Path) -> None:
    data = read_settings("tki-emoji", ["tki.labels=categories"])
    found = open_names(data.data, data.own.batching, selects=True)
    assert found.record is not None and found.record.unseen
    assert not {name.replace("_", " ") for name in found.record.unseen} & {*found.names}
    assert "unseen categories take no part; no picture is read" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.validation=val", "data.validation must be 'none' for a method that trains on names, got 'val'"),
        ('data.styles=["sketch"]', "data.styles must be [] for a method that trains on names, got ['sketch']"),
        ("optim.steps=3", "optim.steps must be left out for model.method = 'tki', whose stages have"),
        ("optim.weight_decay=0.1", "weight_decay must be 0.0 for method 'tki'"),
        ("tki.radus=1", "unknown key tki.radus; did you mean tki.radius?"),
    ],
)
def test_what_a_run_cannot_do_is_refused(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run_training(read_settings("tki-emoji", changes(tmp_path, change)))


def test_the_presets_differ_in_their_start_alone() -> None:
    literal, package = (read_settings(name).to_dict() for name in ("tki-literal", "tki-package"))
    different = {
        f"{section}.{key}"
        for section, entries in literal.items()
        for key, value in entries.items()
        if value != package[section][key]
    }
    assert different == {"tki.start", "run.output"}
    assert literal["tki"]["start"] == "random" and package["tki"]["start"] == "clip"
    assert (
        literal["optim"]["learning_rate"] == literal["tki"]["lr_expansion"] == 0.005 and literal["tki"]["words"] == 20
    )


def test_the_command_says_what_chose_the_step(tmp_path: Path) -> None:
    given = [word for change in changes(tmp_path / "run") for word in ("--set", change)]
    done = run("train", "tki-emoji", *given)
    assert done.exit_code == 0, done.output
    assert "5 steps, loss" in done.output and "best on validation: mAP of texts" in done.output


def test_evaluation_index_and_search_take_the_adapter(trained: Trained, tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    done = run("eval", "--adapter", trained.adapter, "--data", root, "--task", "category",
               "--metrics", "mAP@all", "--output", tmp_path / "eval")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["queries"]
    done = run("embed", root / "photo", "--adapter", trained.adapter, "--output", tmp_path / "index")
    assert done.exit_code == 0, done.output
    done = run("search", "--index", tmp_path / "index", "--text", "a clock", "--top", 3, "--json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)) == 3
