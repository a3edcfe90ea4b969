"""Checkpoints of the published code: a file of their layout gives the embeddings that the published layers compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hystar_fast.models.authors_checkpoint import AuthorsCheckpoint
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from tests.support.authors_checkpoint import BLOCKS, STYLE, write
from tests.support.small_backbones import Images
from tests.support.small_clip import IMAGE_SIZE, write_small_clip
from tests.support.tolerance import relative_error


def published(state: dict[str, Tensor], small: Any, images: Tensor, styles: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Embed images as the published layers do, with the weight W + U diag(offset) V for each one."""
    truth, embedded = Images(small), []
    for image, z in zip(images, styles, strict=True):
        weights = {}
        for number in range(small.depth):
            for part in ("c_fc", "c_proj"):
                name = f"{BLOCKS}.{number}.mlp.{part}"
                offset = state[f"{name}.delta_s"] * torch.sigmoid(state[f"{name}.gate"])
                weights[f"{name}.weight"] = state[f"{name}.U"] @ torch.diag(offset) @ state[f"{name}.V"]
            if number in blocks:
                name = f"{BLOCKS}.{number}.attn"
                layer = [state[f"{name}.delta_s_qkv.mlp.{key}"] for key in ("0.weight", "0.bias", "2.weight", "2.bias")]
                offset = F.linear(F.linear(z, *layer[:2]).relu(), *layer[2:])
                weights[f"{name}.in_proj_weight"] = state[f"{name}.U_qkv"] @ torch.diag(offset) @ state[f"{name}.V_qkv"]
        replaced = {f"model.{name.removeprefix('clip.')}": state[name] + change for name, change in weights.items()}
        embedded.append(functional_call(truth, replaced, (image[None],)))
    return F.normalize(torch.cat(embedded), dim=-1)


@pytest.mark.parametrize(("rank", "blocks"), [(32, (1, 3)), (32, (0,)), (7, (1, 3))])
def test_embeddings_equal_those_of_the_published_layers(tmp_path: Path, rank: int, blocks: tuple[int, ...]) -> None:
    path, state, small = write(tmp_path, rank, blocks)
    config = HystarConfig(backbone=small.backbone, pretrained="folder", style="clip")
    model = Hystar.from_authors_checkpoint(path, config)
    assert model.config.blocks == tuple(block + 1 for block in blocks)
    assert model.config.rank == (None if rank == 32 else rank)
    images, styles = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE), F.normalize(torch.randn(3, STYLE), dim=-1)
    expected = published(state, small, images, styles, blocks)
    found = model.encode_image(images, styles)
    assert relative_error(found, expected) < 1e-5
    assert relative_error(found, F.normalize(Images(small)(images), dim=-1)) > 1e-2
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(Hystar.from_pretrained(tmp_path / "adapter").encode_image(images, styles), found)


def test_a_file_in_half_precision_holds_the_same_weights(tmp_path: Path) -> None:
    path, state, small = write(tmp_path)
    config = HystarConfig(backbone=small.backbone, pretrained="folder", style="clip")
    images, styles = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE), F.normalize(torch.randn(3, STYLE), dim=-1)
    expected = Hystar.from_authors_checkpoint(path, config).encode_image(images, styles)
    torch.save({name: value.half() for name, value in state.items()}, path)
    assert relative_error(Hystar.from_authors_checkpoint(path, config).encode_image(images, styles), expected) < 1e-2


def test_another_basis_of_equal_singular_values_gives_the_same_weight() -> None:
    """Two equal singular values have any rotated basis, and equal offsets do not depend on it."""
    u, s, vh = torch.linalg.svd(torch.randn(12, 8, dtype=torch.float64), full_matrices=False)
    s[5] = s[4]
    rotation = torch.eye(8, dtype=torch.float64)
    rotation[4:6, 4:6] = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    linear = nn.Linear(8, 12).double()
    linear.weight.data = (u * s) @ vh
    offset = torch.randn(8, dtype=torch.float64)
    offset[5] = offset[4]
    tensors = {"a.weight": linear.weight, "a.U": u @ rotation, "a.V": rotation.T @ vh}
    tensors |= {"a.delta_s": offset, "a.gate": torch.tensor(0.7, dtype=torch.float64)}
    layer = FastSVDLinear.from_linear(linear)
    AuthorsCheckpoint(Path("best.pt"), tensors, (), None).fill_static("a", layer)
    expected = linear.weight + (u * (offset * torch.sigmoid(tensors["a.gate"]))) @ vh
    assert relative_error(layer.merge().weight, expected) < 1e-12


def test_the_published_setting_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, _ = write(tmp_path)
    configs: list[HystarConfig] = []

    def record(self: Hystar, config: HystarConfig) -> None:
        configs.append(config)
        raise RuntimeError("not downloaded in a test")

    monkeypatch.setattr(Hystar, "__init__", record)
    with pytest.raises(RuntimeError, match="not downloaded"):
        Hystar.from_authors_checkpoint(path)
    assert configs == [HystarConfig(blocks=(2, 4), weights="authors")]


def test_files_that_do_not_fit_are_rejected(tmp_path: Path) -> None:
    path, state, small = write(tmp_path)
    config = HystarConfig(backbone=small.backbone, pretrained="folder", style="clip")
    with pytest.raises(ValueError, match=r"config\.backbone must be one of open_clip .* got 'tiny'"):
        Hystar.from_authors_checkpoint(path, HystarConfig(backbone="tiny", pretrained=None))
    other = write_small_clip(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"resblocks\.0\.mlp\.c_fc\.weight in .* was trained on other weights"):
        Hystar.from_authors_checkpoint(path, HystarConfig(backbone=other, pretrained="folder", style="clip"))
    with pytest.raises(ValueError, match=r"mlp\.0\.weight in .* must have shape \[64, 768\], got \[64, 24\]: .* width"):
        fields = {"style": "dinov2", "style_pretrained": None}
        Hystar.from_authors_checkpoint(path, HystarConfig(backbone=small.backbone, pretrained="folder", **fields))
    changes = {
        f"{BLOCKS}.3.attn.in_proj_weight": (
            lambda value: value + 0.1,
            "in_proj_weight in .* was trained on other weights",
        ),
        f"{BLOCKS}.1.attn.U_qkv": (
            lambda value: value[:-1],
            r"U_qkv and .* must have shapes \[96, 32\] and .* got \[95, 32\]",
        ),
        f"{BLOCKS}.1.mlp.c_fc.V": (lambda value: value[:, :-1], r"c_fc\.V in .* got \[128, 32\] and \[32, 31\]"),
    }
    for name, (change, message) in changes.items():
        torch.save({**state, name: change(state[name])}, tmp_path / "changed.pt")
        with pytest.raises(ValueError, match=message):
            Hystar.from_authors_checkpoint(tmp_path / "changed.pt", config)
    gate = f"{BLOCKS}.3.mlp.c_proj.gate"
    torch.save({name: value for name, value in state.items() if name != gate}, tmp_path / "gateless.pt")
    with pytest.raises(ValueError, match=rf"gateless\.pt has no {gate}"):
        Hystar.from_authors_checkpoint(tmp_path / "gateless.pt", config)
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="path must be a checkpoint of the published code"):
        Hystar.from_authors_checkpoint(tmp_path / "foreign.pt", config)
    with pytest.raises(ValueError, match="could not be read"):
        Hystar.from_authors_checkpoint(tmp_path / "missing.pt", config)
