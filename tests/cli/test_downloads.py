"""Weights that are not on this disk: announced with their size, and refused at once without a network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants

from hystar_fast.cli import downloads
from hystar_fast.cli.downloads import announce_downloads
from hystar_fast.methods.suite import tiny_config
from hystar_fast.models.config import HystarConfig
from hystar_fast.terminal.console import create_console

PAPER = HystarConfig()  # open_clip's ViT-L-14 and DINOv2


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))


def hub(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """Replace the hub's answer about a repository; an exception is raised."""

    def model_info(self: object, name: str, **options: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(HfApi, "model_info", model_info)


def test_a_download_is_announced_with_the_size_of_one_of_its_formats(monkeypatch, capsys):
    files = [SimpleNamespace(rfilename=f"model{suffix}", size=size * 10**6)
             for suffix, size in ((".safetensors", 1700), (".bin", 1710), (".msgpack", 5))]  # fmt: skip
    hub(monkeypatch, SimpleNamespace(siblings=files))
    announce_downloads(PAPER, create_console())
    clip, dino = capsys.readouterr().out.splitlines()
    assert clip.startswith("downloading open_clip:ViT-L-14 (openai) from ") and clip.endswith(", 1,700 MB")
    assert dino == "downloading facebook/dinov2-base from facebook/dinov2-base, 1,700 MB"
    announce_downloads(PAPER, create_console(), styled=False)
    assert capsys.readouterr().out == f"{clip}\n"


def test_without_a_network_the_option_and_a_way_out_are_named(monkeypatch):
    hub(monkeypatch, OSError("Name or service not known\nmore"))
    with pytest.raises(
        ValueError, match=r"pretrained must name weights .* \(Name or service not known\)\. Give a local"
    ):
        announce_downloads(PAPER, create_console())


@pytest.mark.parametrize("config", [tiny_config(), HystarConfig(pretrained=None, style="clip")])
def test_what_needs_no_download_asks_no_server(config, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "_size", lambda download: pytest.fail(f"{download} is not needed"))
    announce_downloads(config, create_console())
    assert capsys.readouterr().out == ""


def test_weights_in_the_cache_or_in_a_folder_are_no_download(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "_size", lambda download: None)
    cached = tmp_path / "models--facebook--dinov2-base/snapshots/1/model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.touch()
    (tmp_path / "clip").mkdir()
    announce_downloads(HystarConfig(backbone=f"transformers:{tmp_path}/clip"), create_console())
    announce_downloads(HystarConfig(backbone="transformers:someone/clip"), create_console())
    assert capsys.readouterr().out == "downloading transformers:someone/clip from someone/clip\n"
