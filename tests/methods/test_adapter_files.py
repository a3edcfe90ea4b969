"""Trained methods on disk: loading returns what was saved, and files that do not fit are rejected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hystar_fast.data.emoji import EmojiStyles
from hystar_fast.data.whole_files import sealed_json
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.baselines import BASELINES
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import DEMO_TRAINED, create_method
from hystar_fast.models.config import HystarConfig
from tests.support.cli import refused, run
from tests.support.small_clip import small_config, write_small_clip

NAMES = (*DEMO_TRAINED, *BASELINES)
OTHERS = ("lora", *BASELINES)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> HystarConfig:
    return small_config(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def disturbed(name: str, config: HystarConfig, **settings: int) -> Method:
    """Create a method with parameters moved away from their initial values."""
    method = create_method(name, config, seed=5, parameters=None if settings else 3000, settings=settings or None)
    with torch.no_grad():
        for parameter in method.trained_parameters().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    method.train(False)
    return method


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_bytes(sealed_json(described))


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_method_equals_the_saved_one(name, config, images, tmp_path):
    method = disturbed(name, config)
    save_method(method, tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["adapter.safetensors", "config.json"]
    again = load_method(tmp_path / "adapter")
    assert again.name == name
    assert type(again).__name__ == ("HystarMethod" if name == "static" else type(method).__name__)
    assert torch.equal(again.encode_image(images), method.encode_image(images))
    frozen = create_method("frozen", config)
    assert not torch.allclose(again.encode_image(images), frozen.encode_image(images), atol=1e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_holds_only_the_trained_parameters(name, config, tmp_path):
    method = disturbed(name, config)
    save_method(method, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["method"] == name
    assert described["config"] == config.to_dict()
    assert described["settings"] == dict(method.settings)
    count = sum(p.numel() for p in method.trained_parameters().values())
    assert (
        4 * count
        <= (tmp_path / "adapter.safetensors").stat().st_size
        < 4 * count + 200 * len(method.trained_parameters()) + 200
    )


@pytest.mark.parametrize(
    ("name", "settings"), [("vpt", {"prompts": 3}), ("adaptformer", {"bottleneck": 5}), ("lora", {"rank": 2})]
)
def test_settings_are_restored(name, settings, config, images, tmp_path):
    method = disturbed(name, config, **settings)
    save_method(method, tmp_path)
    again = load_method(tmp_path)
    assert dict(again.settings) == settings
    assert torch.equal(again.encode_image(images), method.encode_image(images))


def test_files_that_do_not_fit_are_rejected(config, tmp_path):
    folder = tmp_path / "adapter"
    save_method(disturbed("vpt", config), folder)
    whole = (folder / "config.json").read_text()
    for change, message in (
        (lambda d: d.update(method="prefix"), r"name must be one of .*got 'prefix'"),
        (lambda d: d.update(method=None), r'must hold "method" and "settings"'),
        (lambda d: d.update(settings={"prompts": 3}), r"prompts must have shape \[4, 3, 32\], got \[4, 32, 32\]"),
        (lambda d: d.update(settings={"tokens": 3}), r"settings must be those of 'vpt', got {'tokens': 3}"),
        (lambda d: d.update(method="ssf", settings={}), "conv1.bias is missing"),
        (lambda d: d.update(format="other"), "must have format 'hystar_fast.adapter/1' or 'hystar_fast.method/1'"),
        (lambda d: d["config"].update(colour="red"), "values must hold fields of HystarConfig"),
    ):
        rewrite(folder, change)
        with pytest.raises(ValueError, match=message):
            load_method(folder)
        (folder / "config.json").write_text(whole)
    content = (folder / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(content[:-4])
    with pytest.raises(ValueError, match=r"adapter.safetensors is corrupt or not from the save"):
        load_method(folder)
    (folder / "adapter.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no adapter.safetensors"):
        load_method(folder)


def test_a_value_that_no_model_can_have_is_blamed_on_the_file(config, tmp_path):
    save_method(create_method("ssf", config), tmp_path)
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())
    del written["checksum"]
    for name, value in (("rank", 10**30), ("backbone", "[red]"), ("n_iter", "x")):
        file.write_text(json.dumps({**written, "config": {**written["config"], name: value}}))
        assert f"error: {file}: {name} must be" in refused("eval", "--adapter", tmp_path, "--output", tmp_path / "out")


def test_other_weights_are_rejected_and_moved_weights_are_accepted(config, images, tmp_path):
    method = disturbed("ssf", config)
    save_method(method, tmp_path / "adapter")
    moved = write_small_clip(tmp_path / "moved")
    again = load_method(tmp_path / "adapter", backbone=moved)
    assert torch.equal(again.encode_image(images), method.encode_image(images))
    other = write_small_clip(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="was trained on another backbone"):
        load_method(tmp_path / "adapter", backbone=other)


def test_methods_without_trained_parameters_are_not_saved(config, tmp_path):
    for name in ("frozen", "pixels"):
        with pytest.raises(ValueError, match=f"method must have trainable parameters to save, got '{name}'"):
            save_method(create_method(name, config), tmp_path)
    with pytest.raises(TypeError, match="tokens"):
        create_method("vpt", config, settings={"tokens": 2})


def test_a_failed_write_keeps_the_old_adapter(config, tmp_path, monkeypatch):
    first = disturbed("vpt", config)
    save_method(first, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr("hystar_fast.data.whole_files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_method(disturbed("vpt", config), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_eval_and_embed_accept_a_moved_backbone_and_reject_another(config, tmp_path):
    place = Path(config.backbone.removeprefix("open_clip:local-dir:"))
    gone = f"open_clip:local-dir:{shutil.copytree(place, tmp_path / 'gone')}"
    save_method(create_method("vpt", replace(config, backbone=gone)), tmp_path / "vpt")
    shutil.rmtree(tmp_path / "gone")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    EmojiStyles().image("noto", "1f436").save(pictures / "dog.png")
    (pictures / "cat.heic").touch()
    adapter = ("--adapter", tmp_path / "vpt", "--limit", 3, "--output", tmp_path / "eval")
    assert "could not be loaded" in refused("eval", *adapter)
    result = run("eval", *adapter, "--backbone", config.backbone)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert found["config"]["backbone"] == config.backbone
    message = refused("eval", *adapter, "--backbone", "tiny", "--weights", "packaged")
    assert "--adapter must hold an adapter of backbone 'tiny', got other tensors: prompts must have shape" in message
    result = run("embed", pictures, "--adapter", tmp_path / "vpt", "--output", tmp_path / "index",
                 "--backbone", config.backbone)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "skipped 1 of 2 pictures, the first: cat.heic" in result.output
    assert json.loads((tmp_path / "index" / "adapter" / "config.json").read_text())["config"]["backbone"] != gone


def test_eval_and_embed_load_other_methods_from_their_folder(tmp_path):
    config = HystarConfig(backbone="tiny", pretrained=None, style="clip", blocks=None)
    save_method(create_method("ssf", config), tmp_path / "ssf")
    result = run("eval", "--adapter", tmp_path / "ssf", "--limit", 3, "--output", tmp_path / "eval")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert found["method"] == "ssf"
    assert found["parameters"]["trainable"] == found["parameters"]["ssf"] > 0
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    EmojiStyles().image("noto", "1f436").save(pictures / "dog.png")
    result = run("embed", pictures, "--adapter", tmp_path / "ssf", "--output", tmp_path / "index")
    assert result.exit_code == 0, result.output
    result = run("search", "--query", pictures / "dog.png", "--index", tmp_path / "index", "--top", 1)
    assert "dog.png" in result.output
    assert found["adapter"] == str(tmp_path / "ssf") and found["config"] == config.to_dict()
    assert found["fingerprints"]["backbone"]
    (tmp_path / "ssf" / "config.json").write_text("{")
    assert "is corrupt" in refused("eval", "--adapter", tmp_path / "ssf")
