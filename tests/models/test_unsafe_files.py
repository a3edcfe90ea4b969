"""Loading weights runs no code: a pickle is read with ``weights_only``, and not at all in place of safetensors."""

from __future__ import annotations

import ast
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

import hystar_fast
from hystar_fast.data.whole_files import sealed_json
from hystar_fast.models.adapter_format import CONFIG_FILE, TENSOR_FILE, read_adapter
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.models.tiny import create_tiny
from hystar_fast.models.vgg import vgg_features
from tests.support.authors_checkpoint import write as write_authors
from tests.support.dino import write_dino
from tests.support.pickles import Payload
from tests.support.small_backbones import write_albef, write_transformers
from tests.support.small_clip import small_config, write_small_clip

Reader = Callable[[], object]
SMALL: dict[str, Any] = {"style": "clip", "blocks": (2,)}


def tampered(file: Path, payload: Payload, tensors: Any = None) -> Path:
    """Write `tensors`, or what `file` holds, as a pickle with `payload` in it."""
    held = torch.load(file, weights_only=True) if tensors is None else tensors
    torch.save({**held, "payload": payload}, file)
    return file


def as_pickle(folder: Path, name: str, payload: Payload, state: dict[str, Any]) -> None:
    """Replace the safetensors file that a library wrote into `folder` by a pickle with `payload` in it."""
    (stored,) = folder.glob("*.safetensors")
    stored.unlink()
    tampered(folder / name, payload, state)


def tiny(folder: Path, payload: Payload) -> Reader:
    file = tampered(folder / "tiny.safetensors", payload, create_tiny()[0].state_dict())
    return lambda: create_tiny(file)


def adapter(folder: Path, payload: Payload) -> Reader:
    """Write an adapter whose description has the hash of the pickle."""
    Hystar(small_config(folder)).save_pretrained(folder / "adapter")
    content = io.BytesIO()
    torch.save({"payload": payload}, content)
    (folder / "adapter" / TENSOR_FILE).write_bytes(content.getvalue())
    description = json.loads((folder / "adapter" / CONFIG_FILE).read_text())
    description["tensors_sha256"] = hashlib.sha256(content.getvalue()).hexdigest()
    (folder / "adapter" / CONFIG_FILE).write_text(json.dumps(description))
    return lambda: read_adapter(folder / "adapter")


def authors(folder: Path, payload: Payload) -> Reader:
    path, _, small = write_authors(folder)
    config = HystarConfig(backbone=small.backbone, pretrained="folder", style="clip")
    tampered(path, payload)
    return lambda: Hystar.from_authors_checkpoint(path, config)


def albef(folder: Path, payload: Payload) -> Reader:
    small = write_albef(folder)
    tampered(folder / "ALBEF.pth", payload)
    return lambda: Hystar(HystarConfig(backbone=small.backbone, pretrained="file", **SMALL))


def open_clip_file(folder: Path, payload: Payload) -> Reader:
    file = tampered(folder / "clip.pt", payload, {"state_dict": {}})
    return lambda: Hystar(HystarConfig(backbone="open_clip:ViT-B-32", pretrained=str(file), **SMALL))


def open_clip_folder(folder: Path, payload: Payload) -> Reader:
    backbone = write_small_clip(folder / "clip")
    as_pickle(folder / "clip", "open_clip_pytorch_model.bin", payload, {"state_dict": {}})
    return lambda: Hystar(HystarConfig(backbone=backbone, pretrained="folder", **SMALL))


def transformers_folder(folder: Path, payload: Payload) -> Reader:
    small = write_transformers("clip", folder)
    as_pickle(folder, "pytorch_model.bin", payload, small.untouched().state_dict())
    return lambda: Hystar(HystarConfig(backbone=small.backbone, pretrained="folder", **SMALL))


def dino(folder: Path, payload: Payload) -> Reader:
    network = write_dino(folder / "dino")
    as_pickle(folder / "dino", "pytorch_model.bin", payload, network.state_dict())
    config = small_config(folder, style="dinov2", style_pretrained=str(folder / "dino"))
    return lambda: Hystar(config)


def vgg_state() -> dict[str, Any]:
    return {f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}


def vgg_file(folder: Path, payload: Payload) -> Reader:
    file = tampered(folder / "vgg.pt", payload, vgg_state())
    config = small_config(folder, style="vgg", style_pretrained=str(file))
    return lambda: Hystar(config)


def vgg_of_torchvision(folder: Path, payload: Payload) -> Reader:
    """Write a file into the cache of torchvision, which does not hash it again."""
    cache = folder / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    tampered(cache / "vgg16-397923af.pth", payload, vgg_state())
    config = small_config(folder, style="vgg", style_pretrained="IMAGENET1K_V1")
    return lambda: Hystar(config)


READERS = (
    tiny, adapter, authors, albef, open_clip_file, open_clip_folder, transformers_folder, dino, vgg_file,
    vgg_of_torchvision,
)  # fmt: skip


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_pickle_with_code_is_rejected_and_not_run(
    reader: Callable[[Path, Payload], Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    mark = tmp_path / "ran"
    read = reader(tmp_path, Payload(mark))
    with pytest.raises(ValueError):
        read()
    assert not mark.exists()


def test_the_pickle_runs_where_nothing_stops_it(tmp_path: Path) -> None:
    torch.load(tampered(tmp_path / "file.pt", Payload(tmp_path / "ran"), {}), weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["tiny.pt", "tiny.safetensors"])
def test_the_tiny_backbone_is_read_from_safetensors_alone(tmp_path: Path, name: str) -> None:
    """A state dict that torch.save wrote is rejected, although it holds the right tensors and no code."""
    torch.save(create_tiny()[0].state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match="pretrained must hold the tiny backbone"):
        create_tiny(tmp_path / name)


def test_an_adapter_is_read_from_safetensors_alone(tmp_path: Path) -> None:
    model = Hystar(small_config(tmp_path))
    model.save_pretrained(tmp_path / "adapter")
    content = io.BytesIO()
    torch.save({name: value.detach() for name, value in model.state_dict().items()}, content)
    (tmp_path / "adapter" / TENSOR_FILE).write_bytes(content.getvalue())
    description = json.loads((tmp_path / "adapter" / CONFIG_FILE).read_text())
    description["tensors_sha256"] = hashlib.sha256(content.getvalue()).hexdigest()
    (tmp_path / "adapter" / CONFIG_FILE).write_bytes(sealed_json(description))
    with pytest.raises(ValueError, match=f"{TENSOR_FILE} is corrupt"):
        read_adapter(tmp_path / "adapter")


def test_torchvisions_weights_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = {**vgg_state(), "classifier.0.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth")
    layers = vgg_features("IMAGENET1K_V1")
    assert all(torch.equal(value, state[f"features.{name}"]) for name, value in layers.state_dict().items())


def test_torchvision_hashes_what_it_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}

    def download(url: str, **passed: Any) -> dict[str, Any]:
        options.update(passed, url=url)
        return vgg_state()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    vgg_features("VGG16_Weights.IMAGENET1K_V1")
    assert options["url"].endswith("/vgg16-397923af.pth")
    assert options["check_hash"] is options["weights_only"] is True


def test_no_call_of_torch_load_in_the_package_allows_code() -> None:
    calls = []
    for path in sorted(Path(hystar_fast.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{path}:{node.lineno}"
                calls.append(path.name)
    assert {"torch_files.py", "checkpoint.py"} == set(calls)
