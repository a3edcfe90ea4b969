"""Adapters on disk: exact, without the backbone, never half written, and rejected where they do not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hystar_fast.data.whole_files import sealed_json
from hystar_fast.models.adapter_format import CONFIG_FILE, TENSOR_FILE, check_tensors
from hystar_fast.models.hystar import Hystar
from tests.support.small_clip import IMAGE_SIZE, small_config, write_small_clip


def trained(folder: Path, **fields: Any) -> Hystar:
    model = Hystar(small_config(folder, **fields))
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def saved(tmp_path: Path, **fields: Any) -> tuple[Hystar, Path]:
    model = trained(tmp_path, **fields)
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


@pytest.mark.parametrize("fields", [{}, {"rank": 7}, {"blocks": ()}, {"static": False}, {"blocks": None}])
def test_a_reloaded_model_gives_the_same_embeddings(tmp_path: Path, fields: dict[str, Any]) -> None:
    model, adapter = saved(tmp_path, **fields)
    torch.rand(3)
    again = Hystar.from_pretrained(adapter)
    images = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert again.config == model.config
    assert torch.equal(again.encode_image(images), model.encode_image(images))
    tokens = model.tokenizer(["a cat"])
    assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
    assert all(parameter.requires_grad for parameter in again.trainable_parameters())


def test_random_backbones_and_extractors_reload_too(tmp_path: Path) -> None:
    model, adapter = saved(tmp_path, pretrained=None, style="dinov2", style_pretrained=None)
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.equal(Hystar.from_pretrained(adapter).encode_image(images), model.encode_image(images))


def test_only_the_adapter_is_written(tmp_path: Path) -> None:
    model, adapter = saved(tmp_path)
    assert sorted(os.listdir(adapter)) == [TENSOR_FILE, CONFIG_FILE]
    tensors = load_file(adapter / TENSOR_FILE)
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(p.numel() for p in model.trainable_parameters())
    assert {name.split(".")[0] for name in tensors} == {"static", "hypernetworks"}


def test_frozen_adapter_parameters_are_saved_all_the_same(tmp_path: Path) -> None:
    model = trained(tmp_path)
    model.hypernetworks.requires_grad_(False)
    folder = tmp_path / "a new" / "folder"
    model.save_pretrained(folder)
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert torch.equal(Hystar.from_pretrained(folder).encode_image(images), model.encode_image(images))


def test_a_failed_save_leaves_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapter = saved(tmp_path)
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    before = model.encode_image(images)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.zero_()

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            model.save_pretrained(adapter)
    assert sorted(os.listdir(adapter)) == [TENSOR_FILE, CONFIG_FILE]
    assert torch.equal(Hystar.from_pretrained(adapter).encode_image(images), before)


def test_files_of_different_saves_are_rejected(tmp_path: Path) -> None:
    model, adapter = saved(tmp_path)
    old = (adapter / CONFIG_FILE).read_bytes()
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.mul_(2)
    model.save_pretrained(adapter)
    (adapter / CONFIG_FILE).write_bytes(old)
    with pytest.raises(ValueError, match=f"{TENSOR_FILE} is corrupt or not from the save that {CONFIG_FILE} describes"):
        Hystar.from_pretrained(adapter)


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    _, adapter = saved(tmp_path)
    (adapter / name).unlink()
    with pytest.raises(ValueError, match=f"directory must hold .* got .* which has no {name}"):
        Hystar.from_pretrained(adapter)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere, which has no"):
        Hystar.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "noise"])
def test_damaged_tensors_are_rejected(tmp_path: Path, damage: str) -> None:
    _, adapter = saved(tmp_path)
    content = bytearray((adapter / TENSOR_FILE).read_bytes())
    content[-9] ^= 1
    damaged = {"truncated": content[:-100], "one bit": content, "empty": b"", "noise": os.urandom(500)}[damage]
    (adapter / TENSOR_FILE).write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{TENSOR_FILE} is corrupt"):
        Hystar.from_pretrained(adapter)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is corrupt"),
        ("\udcff", "is corrupt"),
        ("[1]", "must have format .* got 'list'"),
        ('{"format": "peft"}', "must have format .* got 'peft'"),
        ('{"format": "hystar_fast.adapter/1"}', r"must hold \"config\" and \"fingerprints\", got \['format'\]"),
    ],
)
def test_a_damaged_configuration_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    _, adapter = saved(tmp_path)
    (adapter / CONFIG_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        Hystar.from_pretrained(adapter)


def edit(adapter: Path, **fields: Any) -> None:
    description = json.loads((adapter / CONFIG_FILE).read_text())
    description["config"].update(fields)
    (adapter / CONFIG_FILE).write_bytes(sealed_json(description))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": [2]}, r"hypernetworks\.3\..* is not of this model"),
        ({"blocks": [1, 2, 3]}, r"hypernetworks\.1\..* is missing"),
        ({"rank": 5}, r"must have shape \[\d+(, \d+)?\], got \[\d+(, \d+)?\]"),
        ({"layers": 3}, r"values must hold fields of HystarConfig .*, got layers"),
        ({"style": "gram"}, "style must be one of"),
    ],
)
def test_a_configuration_that_does_not_fit_is_rejected(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    _, adapter = saved(tmp_path)
    edit(adapter, **fields)
    with pytest.raises(ValueError, match=message):
        Hystar.from_pretrained(adapter)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": torch.zeros(2)}, "other tensors: b is missing$"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, "other tensors: c is not of this model$"),
        ({"a": torch.zeros(3), "b": torch.zeros(3)}, r"other tensors: a must have shape \[2\], got \[3\]$"),
        (
            {"a": torch.zeros(2).int(), "b": torch.zeros(3)},
            r"tensors: a must have a floating type, got torch\.int32$",
        ),
        ({"c": torch.zeros(1)}, "other tensors: a is missing; b is missing; c is not of this model$"),
        ({"c": torch.zeros(1), "d": torch.zeros(1), "e": torch.zeros(1)}, "c is not of this model and 2 more$"),
    ],
)
def test_the_first_three_differences_are_named(found: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tensors(found, {"a": torch.zeros(2), "b": torch.zeros(3)})


def test_other_weights_are_rejected_and_moved_weights_are_not(tmp_path: Path) -> None:
    model, adapter = saved(tmp_path)
    moved = write_small_clip(tmp_path / "moved")
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    again = Hystar.from_pretrained(adapter, backbone=moved)
    assert torch.equal(again.encode_image(images), model.encode_image(images))
    other = write_small_clip(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"pretrained='folder', got .* trained on another backbone"):
        Hystar.from_pretrained(adapter, backbone=other)
    with pytest.raises(ValueError, match=r"values must hold fields of HystarConfig .*, got bakbone"):
        Hystar.from_pretrained(adapter, bakbone=moved)


def test_a_merged_model_is_not_saved(tmp_path: Path) -> None:
    model = trained(tmp_path).merge_static_()
    with pytest.raises(ValueError, match="must be saved before merge_static_, got"):
        model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_file_in_place_of_the_folder_is_rejected(tmp_path: Path) -> None:
    model = trained(tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=r"directory must be a folder, got the file .*taken"):
        model.save_pretrained(tmp_path / "taken")
