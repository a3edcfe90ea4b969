"""The command: errors in one line with status 2, and the small commands on a random backbone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer.main
from PIL import Image
from typer.testing import CliRunner

import hystar_fast
from hystar_fast.cli.main import app
from hystar_fast.data.emoji import EmojiStyles
from tests.support.cli import refused, run

SMALL = ("data.limit=6", "optim.batch_size=4", "optim.steps=2", "model.pretrained=random", "run.checkpoint_every=1")


def sets(*changes: str) -> list[str]:
    return [part for change in (*SMALL, *changes) for part in ("--set", change)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    result = run("train", "emoji", "--output", folder, *sets())
    assert result.exit_code == 0, result.output
    return folder


def test_help_names_every_command():
    shown = run("--help").output
    for command in ("demo", "search", "info", "train", "eval", "embed", "tune"):
        assert command in shown


def test_help_shows_every_option_whole_at_80_columns():
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).output
        assert max(map(len, shown.splitlines())) <= 80
        assert re.findall(r"--[\w-]*(?:…|\.\.\.)", shown) == []
        for option in command.params:
            for word in (o for o in (*option.opts, *option.secondary_opts) if o.startswith("-")):
                assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w…-])", shown), f"{name} {word}"


def test_the_list_of_commands_has_whole_sentences():
    shown = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output.split())
    assert "..." not in shown.partition("Commands:")[2]
    assert "as CoOp splits them." in shown


def test_version():
    assert run("--version").output == f"hystar-fast {hystar_fast.__version__}\n"


@pytest.mark.parametrize(
    "command", [("tune",), ("compare",), ("fewshot",), ("reproduce", "table4"), ("reproduce", "table11"), ("figure", 3)]
)
def test_vgg_as_the_style_needs_its_weights(command, tmp_path):
    message = refused(*command, "--style", "vgg", "--output", tmp_path / "out")
    assert message == "error: --style vgg needs --style-pretrained: a torchvision weights name or a file"


def test_vgg_in_the_settings_of_a_training_needs_its_weights(tmp_path):
    message = refused("train", "--output", tmp_path / "run", *sets("model.style=vgg"))
    assert 'model.style = "vgg" needs model.style_pretrained: a torchvision weights name, a file or "random"' in message
    result = run("train", "--output", tmp_path / "run", *sets("model.style=vgg", "model.style_pretrained=random"))
    assert result.exit_code == 0, result.output


def test_info_lists_every_op_on_both_devices():
    shown = run("info").output
    for word in ("svd_linear", "sinkhorn", "style_nce", "cpu", "cuda"):
        assert word in shown


def test_training_writes_an_adapter_and_goes_on_from_its_checkpoint(trained):
    assert (trained / "adapter" / "adapter.safetensors").is_file()
    assert "holds a run: --resume goes on from it" in refused("train", "--output", trained, *sets())
    message = refused("train", "--output", trained, *sets("loss.gamma=2"), "--resume")
    assert "cannot go on with other settings: loss.gamma was 80.0 and is 2.0" in message
    result = run("train", "--output", trained, *sets("optim.steps=3"), "--resume")
    assert result.exit_code == 0, result.output
    assert "3 steps" in result.output and "best on validation: R@1" in result.output
    steps = [json.loads(line)["step"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 3]  # each step, and a validation at either end


def test_another_method_trains_by_the_same_command(tmp_path):
    rates = ("model.method=lora", "optim.learning_rate=0.01", "loss.name=info_nce", "data.validation=none")
    result = run("train", "--output", tmp_path / "run", *sets(*rates))
    assert result.exit_code == 0, result.output
    assert "lora: 2 steps" in result.output
    result = run("eval", "--adapter", tmp_path / "run" / "adapter", "--limit", 3, "--output", tmp_path / "eval")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["method"] == "lora"
    assert "must be one that is trained, got 'frozen'" in refused(
        "train", "--output", tmp_path / "other", *sets("model.method=frozen")
    )


def test_eval_prints_and_writes_what_an_adapter_finds(trained, tmp_path):
    result = run("eval", "--adapter", trained / "adapter", "--limit", 5, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["method"] == "hystar"
    assert found["gallery"] == {"what": "noto", "n": 5}
    assert {"outline", "sketch", "lowres", "twemoji", "text", "sketch+text, max"} <= set(found["queries"])
    assert 0 <= found["queries"]["sketch"]["R@1"]["value"] <= 100


def test_a_folder_is_embedded_and_searched(trained, tmp_path):
    data, pictures = EmojiStyles(), tmp_path / "pictures"
    pictures.mkdir()
    for concept in data.concepts("test")[:4]:
        data.image("noto", concept.id).save(pictures / f"{concept.id}.png")
    asked = sorted(pictures.iterdir())[2]
    result = run("embed", pictures, "--adapter", trained / "adapter", "--output", tmp_path / "index")
    assert result.exit_code == 0, result.output
    drawn = tmp_path / "answers.png"
    result = run("search", "--query", asked, "--index", tmp_path / "index", "--top", 2, "--picture", drawn)
    assert result.exit_code == 0, result.output
    first = next(line for line in result.output.splitlines() if " 1 " in line)
    assert asked.name in first
    assert "1.000" in first
    with Image.open(drawn) as picture:
        assert picture.width > 200


def test_search_refuses_what_it_cannot_answer(tmp_path):
    picture = tmp_path / "query.png"
    Image.new("RGB", (20, 20), "red").save(picture)
    assert "exactly one of --query and --text" in refused("search")
    assert "exactly one of --query and --text" in refused("search", "--query", picture, "--text", "a dog")
    message = refused("search", "--query", tmp_path / "nothing.png")
    assert "--query must be an image file" in message and "nothing.png does not exist" in message
    message = refused("search", "--query", picture, "--demo", tmp_path / "nowhere")
    assert "written by `hystar-fast demo`" in message and "nowhere" in message


def test_embed_eval_and_demo_refuse_what_they_cannot_use(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds none" in refused("embed", tmp_path / "empty", "--adapter", trained / "adapter")
    assert "nowhere" in refused("eval", "--adapter", tmp_path / "nowhere")
    assert "split must be 'val' or 'test', got 'train'" in refused(
        "eval", "--adapter", trained / "adapter", "--split", "train"
    )
    (tmp_path / "file").write_text("")
    assert "output must be a folder" in refused("demo", "--output", tmp_path / "file", "--weights", "random")
    assert "output must be a folder" in refused("train", "--output", tmp_path / "file", *sets())
    missing = f"model.pretrained={tmp_path / 'no.safetensors'}"
    assert "pretrained" in refused("train", "--output", tmp_path / "new", *sets(missing))
    assert "backbone" in refused("train", "--output", tmp_path / "new", *sets("model.backbone=resnet"))
    assert "did you mean optim.batch_size?" in refused("train", *sets("optim.batchsize=3"))


def test_a_damaged_adapter_and_a_damaged_checkpoint_are_named(trained, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in (trained / "adapter").iterdir():
        content = path.read_bytes()
        (adapter / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".safetensors" else content)
    assert "adapter" in refused("eval", "--adapter", adapter, "--limit", 2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"rubbish")
    message = refused("train", "--output", tmp_path / "run", *sets(), "--resume")
    assert "is a damaged checkpoint" in message


def test_a_device_that_is_not_there_is_named(trained, tmp_path):
    for command in (("eval", "--adapter"), ("embed", tmp_path, "--adapter")):
        assert "device must be auto, cpu or cuda" in refused(*command, trained / "adapter", "--device", "tape")


def test_tuning_tries_the_grid_on_the_validation_concepts_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from hystar_fast.methods import recipes

    small = {name: trials[:1] for name, trials in recipes.GRID.items()}
    monkeypatch.setattr("hystar_fast.experiments.variants.GRID", small)
    path = tmp_path / "tuning.json"
    arguments = ("--output", path, "--steps", 1, "--limit", 5, "--weights", "random", "--seed", 3, "--seed", 4)
    result = run("tune", *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert found["chosen"] == {name: trials[0] for name, trials in small.items()}
    assert found["gallery"] == 5
    assert [(trial["method"], trial["seed"]) for trial in found["trials"]] == [(n, s) for s in (3, 4) for n in small]
    assert all("hard_mean" in trial["recall"] for trial in found["trials"])
    first, *others = found["trials"]
    path.write_text(json.dumps({**found, "trials": [{**trial, "seconds": -1.0} for trial in others]}))
    assert run("tune", *arguments).exit_code == 0
    again = json.loads(path.read_text())["trials"]
    assert [trial["seconds"] == -1 for trial in again] == [True] * len(others) + [False]
    assert {**again[-1], "seconds": 0} == {**first, "seconds": 0}
    assert "other settings" in refused("tune", *arguments, "--seed", 5)
    path.write_text("[]")
    assert "holds no trials" in refused("tune", *arguments)


def test_tuning_takes_the_best_mean_over_the_seeds_and_never_a_setting_that_diverged():
    from hystar_fast.experiments.tune import _score

    def trial(*recalls):
        return [{"recall": {"hard_mean": {"R@1": {"value": r}, "R@5": {"value": 50.0}}}} for r in recalls]

    assert _score(trial(40.0, 44.0)) == (42.0, 50.0)
    assert _score([*trial(90.0), {"diverged": "the loss is nan"}]) < _score(trial(0.0))
