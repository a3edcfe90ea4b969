"""The command line: one-line errors with status 2, help, and every command on a random backbone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
import torch
import typer.main
from PIL import Image
from typer.testing import CliRunner

import hystar_fast
from hystar_fast.cli.main import app
from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.open import open_images
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.ops.status import info as op_info
from hystar_fast.retrieval.evaluate import evaluate
from hystar_fast.retrieval.results_json import interval_info
from tests.support.cli import refused, run

pytestmark = pytest.mark.usefixtures("narrow_tiny")
SMALL = ("data.limit=6", "optim.batch_size=4", "optim.steps=2", "model.pretrained=random", "run.checkpoint_every=1",
         "optim.schedule=constant")  # fmt: skip


def set_options(*changes: str) -> list[str]:
    return [part for change in (*SMALL, *changes) for part in ("--set", change)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    result = run("train", "emoji", "--output", folder, *set_options())
    assert result.exit_code == 0, result.output
    return folder


def commands() -> dict[tuple[str, ...], click.Command]:
    """Return every command by the words that call it."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {(name,): command} if inner is None else {(name, word): sub for word, sub in inner.items()}
    return found


def help_of(*words: str) -> str:
    return CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"}).output


def test_help_lists_the_commands_and_no_others():
    expected = {
        (): [
            *("demo", "search", "serve", "info", "train", "eval"),
            *("embed", "domains", "mean-shift", "save-delta", "index", "experiments"),
        ],
        ("experiments",): ["tune", "compare", "reproduce", "figure", "fewshot"],
    }
    for words, names in expected.items():
        listed = help_of(*words).partition("Commands:\n")[2]
        assert re.findall(r"^  ([\w-]+)  ", listed, re.MULTILINE) == names
        assert "..." not in listed, "a sentence is cut"


def test_help_shows_every_option_in_full_at_80_columns():
    for words, command in commands().items():
        shown = help_of(*words)
        assert max(map(len, shown.splitlines())) <= 80
        assert re.findall(r"--[\w-]*(?:…|\.\.\.)", shown) == []
        for option in command.params:
            for word in (o for o in (*option.opts, *option.secondary_opts) if o.startswith("-")):
                assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w…-])", shown), f"{words} {word}"


def test_version_is_printed():
    assert run("--version").output == f"hystar-fast {hystar_fast.__version__}\n"


@pytest.mark.parametrize(
    "words", [("tune",), ("compare",), ("fewshot",), ("reproduce", "table4"), ("reproduce", "table11"), ("figure", "3")]
)
def test_vgg_as_the_style_needs_its_weights(words, tmp_path):
    message = refused("experiments", *words, "--set", "model.style=vgg", "--output", tmp_path / "out")
    assert 'model.style_pretrained must be a torchvision weights name or a file for model.style = "vgg", got' in message


def test_training_with_vgg_as_the_style_needs_its_weights(tmp_path):
    message = refused("train", "--output", tmp_path / "run", *set_options("model.style=vgg"))
    assert 'must be a torchvision weights name, a file or "random" for model.style = "vgg", got none' in message
    vgg = ("model.style=vgg", "model.style_pretrained=random")
    small = ("data.limit=2", 'data.styles=["sketch"]', "optim.batch_size=2")
    result = run("train", "--output", tmp_path / "run", *set_options(*vgg, *small))
    assert result.exit_code == 0, result.output


def test_info_has_a_row_for_every_op_on_both_devices():
    rows = run("info").output.partition("why not a faster one\n")[2].splitlines()
    named = [tuple(line.split()[:2]) for line in rows]
    assert named == [(row["op"], row["device"]) for row in op_info()]
    assert {device for _, device in named} == {"cpu", "cuda"} and len(set(named)) == len(named)


def test_info_describes_the_machine_as_text_and_as_json():
    found = json.loads(run("info", "--json").stdout)
    assert found["version"] == hystar_fast.__version__ and found["ops"] == op_info()
    assert list(found["machine"]) == ["processor", "GPU", "torch", "triton", "extension", "python"]
    shown = run("info").output
    assert all(f"{name}: {value}\n" in shown for name, value in found["machine"].items())
    assert found["machine"]["torch"].startswith(torch.__version__)


def test_training_writes_an_adapter_and_resumes_from_its_checkpoint(trained):
    assert (trained / "adapter" / "adapter.safetensors").is_file()
    assert "--output must be a folder without a run" in refused("train", "--output", trained, *set_options())
    message = refused("train", "--output", trained, *set_options("loss.gamma=2"), "--resume")
    assert "to resume it, got loss.gamma = 2.0 (was 80.0)" in message
    result = run("train", "--output", trained, *set_options("optim.steps=3"), "--resume")
    assert result.exit_code == 0, result.output
    assert "3 steps" in result.output and "best on validation: R@1" in result.output
    steps = [json.loads(line)["step"] for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 3]  # each step, and a validation at either end


def test_an_unknown_query_style_names_the_setting_of_the_data(tmp_path):
    message = refused("train", "--output", tmp_path / "run", *set_options("data.styles=['outlnie']"))
    assert "error: data.styles must be one of" in message and "got 'outlnie'" in message


def test_the_train_command_trains_other_methods(tmp_path):
    rates = ("model.method=lora", "optim.learning_rate=0.01", "loss.name=info_nce", "data.validation=none")
    result = run("train", "--output", tmp_path / "run", *set_options(*rates))
    assert result.exit_code == 0, result.output
    assert "lora on tiny: 2 steps" in result.output
    result = run("eval", "--adapter", tmp_path / "run" / "adapter", "--limit", 3, "--output", tmp_path / "eval")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["method"] == "lora"
    assert "must be a method with training, got 'frozen'" in refused(
        "train", "--output", tmp_path / "other", *set_options("model.method=frozen")
    )


def test_eval_prints_and_writes_the_result_of_evaluate(trained, tmp_path):
    result = run("eval", "--adapter", trained / "adapter", "--limit", 5, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["method"] == "hystar"
    assert found["gallery"] == {"what": "noto", "n": 5}
    expected = evaluate(load_method(trained / "adapter"), open_images("emoji", "test").select(limit=5))
    assert list(found["queries"]) == [row.kind for row in expected.kinds]
    assert {"outline", "sketch", "lowres", "twemoji", "text", "sketch+text, max"} <= set(found["queries"])
    for row in expected.kinds:
        written = found["queries"][row.kind]
        assert written["n"] == row.n
        for name, value in row.values.items():
            assert value is not None and written[name] == interval_info(value)
            assert str(value) in result.output


def test_a_folder_is_embedded_and_searched(trained, tmp_path):
    data, pictures = EmojiStyles(), tmp_path / "pictures [/old] :cat:"
    pictures.mkdir(parents=True)
    for concept in data.concepts("test")[:4]:
        data.image("noto", concept.id).save(pictures / f"{concept.id}.png")
    query = sorted(pictures.iterdir())[2]
    result = run("embed", pictures, "--adapter", trained / "adapter", "--output", tmp_path / "index")
    assert result.exit_code == 0, result.output
    drawn = tmp_path / "answers.png"
    result = run("search", "--query", query, "--index", tmp_path / "index", "--top", 2, "--picture", drawn)
    assert result.exit_code == 0, result.output
    first = next(line for line in result.output.splitlines() if line.startswith("1 "))
    assert query.name in first
    assert "1.000" in first
    with Image.open(drawn) as picture:
        assert picture.width > 200


def test_search_rejects_bad_queries_and_folders(tmp_path):
    picture = tmp_path / "query.png"
    Image.new("RGB", (20, 20), "red").save(picture)
    assert "--query or --text must be given, got neither" in refused("search")
    assert "--style must belong to a --query" in refused("search", "--style", picture, "--text", "a dog")
    message = refused("search", "--query", tmp_path / "nothing.png")
    assert "--query must be an image file" in message and "nothing.png does not exist" in message
    message = refused("search", "--query", picture, "--demo", tmp_path / "nowhere")
    assert "--index must be a folder that `hystar-fast embed`, `index create` or `demo` wrote" in message
    assert f"hystar-fast embed FOLDER --output {tmp_path / 'nowhere'}" in message


def test_embed_eval_demo_and_train_reject_bad_arguments(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds none" in refused("embed", tmp_path / "empty", "--adapter", trained / "adapter")
    assert "nowhere" in refused("eval", "--adapter", tmp_path / "nowhere")
    assert "--split must be one of ('val', 'test', 'all'), got 'train'" in refused(
        "eval", "--adapter", trained / "adapter", "--split", "train"
    )
    (tmp_path / "file").write_text("")
    assert "output must be a folder" in refused("demo", "--output", tmp_path / "file", "--weights", "random")
    assert "output must be a folder" in refused("train", "--output", tmp_path / "file", *set_options())
    missing = f"model.pretrained={tmp_path / 'no.safetensors'}"
    assert "pretrained" in refused("train", "--output", tmp_path / "new", *set_options(missing))
    assert "backbone" in refused("train", "--output", tmp_path / "new", *set_options("model.backbone=resnet"))
    assert "did you mean optim.batch_size?" in refused("train", *set_options("optim.batchsize=3"))


def test_a_damaged_adapter_and_a_damaged_checkpoint_are_rejected(trained, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in (trained / "adapter").iterdir():
        content = path.read_bytes()
        (adapter / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".safetensors" else content)
    assert "adapter" in refused("eval", "--adapter", adapter, "--limit", 2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"rubbish")
    message = refused("train", "--output", tmp_path / "run", *set_options(), "--resume")
    assert "must be a whole checkpoint" in message


def test_an_unknown_device_is_rejected(trained, tmp_path):
    for command in (("eval", "--adapter"), ("embed", tmp_path, "--adapter")):
        assert "device must be auto, cpu or cuda" in refused(*command, trained / "adapter", "--device", "tape")
