"""Settings files: the shipped ones load and round-trip, and errors name the key and the nearest valid one."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hystar_fast.experiments.learning_rates import DEMO_RATES, DEMO_STEPS
from hystar_fast.methods.suite import tiny_config
from hystar_fast.models.config import HystarConfig, default_blocks
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.settings import KEYS, NONE_WORDS, Settings, read_settings
from hystar_fast.train.settings_file import shipped_files, to_toml

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def write_settings(tmp_path: Path, text: str) -> str:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["paper", "emoji"])
def test_shipped_settings_load_and_round_trip(name: str, tmp_path: Path) -> None:
    assert name in shipped_files("hystar_fast.train")
    settings = read_settings(name)
    again = read_settings(write_settings(tmp_path, to_toml(settings.to_dict())))
    assert again == settings
    assert read_settings(name, [f"run.seed={settings.run.seed}"]) == settings


def test_no_two_shipped_settings_write_into_one_folder() -> None:
    names = list(shipped_files("hystar_fast.train"))
    folders = [read_settings(name).run.output for name in names]
    assert len(names) > 15 and len(set(folders)) == len(folders), "the second would be refused"


def test_no_other_settings_file_is_shipped() -> None:
    fgan = {"fgan", "fgan-authors", "fgan-emoji", "fgan-emoji-sketch"}
    tki = {"tki-literal", "tki-package", "tki-emoji"}
    assert set(shipped_files("hystar_fast.train")) == {
        *("paper", "emoji", "acnet", "acnet-paper", "acnet-emoji"),
        *fgan,
        *tki,
        *(f"ma-sbir{end}" for end in ("", "-authors", "-paper", "-emoji", "-fine", "-fine-emoji")),
    }


def test_the_defaults_are_those_of_the_paper() -> None:
    settings = Settings.of({})
    assert replace(settings.model, blocks=default_blocks(24)) == HystarConfig()
    assert (settings.optim.batch_size, settings.optim.epochs) == (48, 35)
    assert (settings.optim.static_lr, settings.optim.dynamic_lr) == (1e-3, 1e-5)
    assert (settings.loss["gamma"], settings.loss["lam"], settings.loss["n_iter"]) == (80.0, 1.0, 50)
    assert (settings.loss["temperature"], settings.loss["name"]) == (0.07, "style_nce")
    paper = read_settings("paper")
    assert (paper.model, paper.loss, paper.optim) == (HystarConfig(), settings.loss, settings.optim)


def test_the_emoji_settings_are_those_of_the_demo() -> None:
    emoji, demo = read_settings("emoji"), Recipe(DEMO_RATES["hystar"], steps=DEMO_STEPS)
    assert {"static": emoji.optim.static_lr, "dynamic": emoji.optim.dynamic_lr} == demo.learning_rates
    for name in ("steps", "batch_size", "warmup", "schedule", "clip_norm", "weight_decay", "bf16", "chunk_size"):
        assert getattr(emoji.optim, name) == getattr(demo, name), name
    assert (emoji.data.jitter, emoji.run.seed) == (demo.jitter, demo.seed)
    assert emoji.model.to_dict() == tiny_config().to_dict()


def test_the_loss_reaches_the_model_and_words_stand_for_none(tmp_path: Path) -> None:
    settings = read_settings("emoji", ["loss.gamma=auto", "loss.lam=2", "model.rank=8", "model.pretrained=random"])
    assert (settings.model.gamma, settings.model.lam, settings.model.rank) == ("auto", 2.0, 8)
    assert settings.model.pretrained is None and settings.model.blocks is None
    assert read_settings(write_settings(tmp_path, to_toml(settings.to_dict()))) == settings
    assert read_settings("emoji", ["model.rank=full"]).model.rank is None
    strange = 'a "quoted" \\ path with ü and \t tabs'
    assert (
        read_settings(write_settings(tmp_path, to_toml(Settings.of({"run": {"output": strange}}).to_dict()))).run.output
        == strange
    )
    assert read_settings("emoji", ["run.wandb=2026"]).run.wandb == "2026"
    assert read_settings("emoji", ['data.styles=["sketch"]', "data.source=a=b"]).data.source == "a=b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.batchsize=3", "--set: unknown key optim.batchsize; did you mean optim.batch_size?"),
        ("loss.batch_sise=3", "--set: unknown key loss.batch_sise; did you mean optim.batch_size?"),
        ("model.gamma=3", "--set: unknown key model.gamma; it belongs to another section: loss.gamma"),
        ("optim.qqq=3", "--set: unknown key optim.qqq; [optim] takes batch_size, epochs"),
        ("optm.x=1", "--set: unknown section [optm]; did you mean [optim]?"),
        ("zzz.x=1", "--set: unknown section [zzz]; there are [model], [loss], [data], [optim], [run]"),
        ("optim.batch_size=1.5", "--set: optim.batch_size must be an integer, got 1.5"),
        ("optim.batch_size=true", "--set: optim.batch_size must be an integer, got True"),
        ("optim.static_lr=fast", "--set: optim.static_lr must be a number, got 'fast'"),
        ("model.static=1", "--set: model.static must be true or false, got 1"),
        ("model.blocks=[1.5]", '--set: model.blocks must be a list of int or "default", got [1.5]'),
        ("model.rank=half", "--set: model.rank must be an integer or \"full\", got 'half'"),
        ("data.styles=sketch", "--set: data.styles must be a list of str, got 'sketch'"),
        ("data.validation=false", "--set: data.validation must be a string or a number, got False"),
        ("loss.name=nce", "--set: loss.name must be one of style_nce, info_nce"),
        ("loss.gamma=big", "--set: gamma must be a positive number or 'auto', got 'big'"),
        ("model.blocks=[0]", "--set: blocks must be 1-based"),
        ("optim.batch_size=1", "--set: optim.batch_size must be at least 2, got 1"),
        ("run.checkpoint_every=0", "--set: run.checkpoint_every must be at least 1, got 0"),
        ("optim.static_lr=0", "--set: optim.static_lr must be greater than 0, got 0.0"),
        ("optim.dynamic_lr=-1e-5", "--set: optim.dynamic_lr must be greater than 0, got -1e-05"),
        ("optim.learning_rate=nan", "--set: optim.learning_rate must be finite, got nan"),
        ("optim.static_lr=inf", "--set: optim.static_lr must be finite, got inf"),
        ("optim.weight_decay=nan", "--set: optim.weight_decay must be finite, got nan"),
        ("data.validation=nan", "--set: data.validation must be finite, got nan"),
        ("data.jitter=1", "--set: data.jitter must be at least 0 and below 1, got 1.0"),
        ("data.jitter=-0.1", "--set: data.jitter must be at least 0 and below 1, got -0.1"),
        ("model.method=hystr", "got 'hystr'; did you mean hystar?"),
        ("model.method=nope", "--set: model.method must be one of pixels, hog, frozen, mean_shift, ia3, vpt"),
        ("loss.name=style_nse", "got 'style_nse'; did you mean style_nce?"),
        ("optim.schedule=cosin", "--set: optim.schedule must be one of cosine, constant, got 'cosin'; did you mean"),
        ("optim.epochs", "--set must be section.key=value, got 'optim.epochs'"),
        ("epochs=3", "--set must be section.key=value, got 'epochs=3'"),
    ],
)
def test_an_error_on_the_command_line_names_option_and_key(change: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        read_settings("emoji", [change])


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write_settings(tmp_path, "[optim]\nbatchsize = 3\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}: unknown key optim.batchsize")):
        read_settings(path, ["run.seed=1"])
    path = write_settings(tmp_path, "[optim\n")
    with pytest.raises(ValueError, match=re.escape(f"{path} is not TOML: ") + ".*line 1"):
        read_settings(path)
    path = write_settings(tmp_path, "optim = 3\n")
    with pytest.raises(TypeError, match=r"optim must be a section of keys, \[optim\], got 3"):
        read_settings(path)
    with pytest.raises(
        ValueError, match=r"must be a TOML file or one of acnet, .*, paper, .*, but there is no 'papers'"
    ):
        read_settings("papers")
    path = write_settings(tmp_path, "[optim]\nepochs = 0\n")
    with pytest.raises(ValueError, match=r"optim\.epochs must be at least 1 if optim\.steps is 0"):
        read_settings(path)


def test_a_file_may_begin_with_a_byte_order_mark_and_must_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_bytes("[optim]\r\nepochs = 3\r\n".encode("utf-8-sig"))
    assert read_settings(str(path)).optim.epochs == 3
    path.write_bytes("[optim]\nepochs = 3\n".encode("utf-16"))
    with pytest.raises(ValueError, match=re.escape(f"{path} is not TOML: it must be saved as UTF-8, got another")):
        read_settings(str(path))


def test_the_document_lists_every_key_once_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| `(.*?)` \| (.+) \|$", DOCUMENT, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(KEYS)
    for name, default, meaning in rows:
        shown = KEYS[name].shown_default
        shown = list(shown) if isinstance(shown, tuple) else shown
        assert tomllib.loads(f"value = {default}")["value"] == shown, name
        assert len(meaning) > 5
    assert all(f'"{word}"' in DOCUMENT for word in NONE_WORDS.values())


def test_the_settings_in_the_document_load(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert blocks
    for block in blocks:
        read_settings(write_settings(tmp_path, block))
    commands = re.findall(r"^(?:hystar-fast|torchrun .* -m hystar_fast.cli.main) train(.*)$", DOCUMENT, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        words = command.split("#")[0].split()
        config = words[0] if words and not words[0].startswith("-") else "emoji"
        read_settings("emoji" if config == "my.toml" else config, changes_in(command))
    assert all(read_settings("emoji", [change]) for change in changes_in(DOCUMENT))


def changes_in(text: str) -> list[str]:
    return re.findall(r"--set ((?!section)[\w.]+=[^`\s]+)", text)


def test_the_python_in_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/training.md", "exec"), names)
    assert len(names["trained"].progress.losses) == 2 and (tmp_path / "run" / "config.toml").is_file()
