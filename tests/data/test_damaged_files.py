"""Files of other programs, cut or with one bit flipped: read, or refused in one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hystar_fast.models.torch_files import read_torch
from tests.support.damage import cuts, damaged, flips
from tests.support.file_formats import PICTURES, TEXTS, Made, picture, read_damaged, settings, shards, tensors


@pytest.mark.parametrize("write", TEXTS, ids=lambda write: write.__name__)
def test_a_damaged_text_is_read_or_refused_by_name(write: Callable[[Path], Made], tmp_path: Path) -> None:
    path, read = write(tmp_path)
    read()
    for content in damaged(path.read_bytes(), 60):
        read_damaged(path, content, read)
    if write is not settings:  # without settings the defaults hold
        path.write_bytes(b"")
        with pytest.raises(ValueError, match=tmp_path.name):
            read()


@pytest.mark.parametrize("kind", PICTURES)
def test_a_damaged_picture_is_read_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    path, read = picture(tmp_path, kind)
    for content in damaged(path.read_bytes(), 30):
        read_damaged(path, content, read)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"picture.{kind} is not an image"):
        read()


def test_a_shard_that_is_cut_anywhere_or_has_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path, read = shards(tmp_path)
    whole, expected = path.read_bytes(), len(read().records)
    end = whole.rstrip(b"\0")
    last = (len(end) + 511) // 512 * 512
    for content in cuts(whole[:last], 60):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name} does not have the layout of WebDataset shards"):
            read()
    second = whole.index(b"0000.json")
    for bit in range(8):
        content = bytearray(whole)
        content[second + 150] ^= 1 << bit  # its checksum
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"cut off or damaged at byte {second}"):
            read()
    for content in flips(whole, 60):
        read_damaged(path, content, read)
    path.write_bytes(whole)
    assert len(read().records) == expected


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path, read = tensors(tmp_path)
    for content in cuts(path.read_bytes(), 6):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"pretrained must hold the tiny backbone, got .*tiny\.safetensors"):
            read()
    state = {"weight": torch.arange(400.0), "bias": torch.zeros(3)}
    torch.save(state, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    for content in damaged(whole, 80):
        (tmp_path / "w.pt").write_bytes(content)
        try:
            found = read_torch(tmp_path / "w.pt")
        except Exception:  # anything, as the readers expect; but never other values
            continue
        assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
