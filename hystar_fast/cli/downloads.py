"""Announce a download of weights before it begins, and end at once where there is no network."""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hystar_fast.models.config import HystarConfig
from hystar_fast.terminal.console import Console

_TIMEOUT = 10  # seconds for the answer of a server
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".npz")
_AT = re.compile(r"@(\d+)(px)?")  # OpenAI's spelling of a size


@dataclass(frozen=True)
class Download:
    """Weights that are not on this disk.

    Attributes:
        what: the model, as the configuration names it.
        place: an id on the Hugging Face hub, or the address of a file.
        is_file: whether `place` is an address.
        option: what names other weights.
    """

    what: str
    place: str
    is_file: bool
    option: str


def announce_downloads(config: HystarConfig, console: Console, *, styled: bool = True) -> None:
    """Print a line for every download that building a model of `config` needs.

    Args:
        config: of the model.
        console: where the lines go.
        styled: whether the model reads the style network of the configuration.

    Raises:
        ValueError: there is no network, or nothing at that place; the message says how to do without.
    """
    for download in _missing(config, styled=styled):
        size = _size(download)
        shown = "" if size is None else f", {size / 1e6:,.0f} MB"
        console.print(f"downloading {download.what} from {download.place}{shown}")


def _missing(config: HystarConfig, *, styled: bool) -> Iterator[Download]:
    prefix, _, name = config.backbone.partition(":")
    hub = name.removeprefix("hf-hub:")
    if (prefix == "transformers" and not Path(name).is_dir()) or (prefix == "open_clip" and hub != name):
        if not _is_cached(hub, _WEIGHTS if config.pretrained else (".json",)):
            yield Download(config.backbone, hub, False, "backbone")
    elif prefix == "open_clip" and config.pretrained is not None and not Path(config.pretrained).is_file():
        place, is_file = _open_clip_place(name, config.pretrained)
        if place and not (_is_in("~/.cache/clip", place) if is_file else _is_cached(place, _WEIGHTS)):
            yield Download(f"{config.backbone} ({config.pretrained})", place, is_file, "pretrained")
    style = config.style_pretrained
    if not styled or config.blocks == () or style is None or Path(style).exists():
        return
    if config.style == "dinov2" and not _is_cached(style, _WEIGHTS):
        yield Download(style, style, False, "style_pretrained")
    if config.style == "vgg":
        from torch import hub as torch_hub
        from torchvision.models import VGG16_Weights

        known = VGG16_Weights.__members__.get(style)
        if known is not None and not _is_in(f"{torch_hub.get_dir()}/checkpoints", known.url):
            yield Download(f"VGG-16 ({style})", known.url, True, "style_pretrained")


def _open_clip_place(name: str, tag: str) -> tuple[str, bool]:
    """Return the hub id or the address of a tag's weights, and whether it is an address; empty for an unknown name."""
    import open_clip

    found: dict[str, Any] = open_clip.get_pretrained_cfg(_AT.sub(r"-\1", name.replace("/", "-")), tag) or {}
    if found.get("hf_hub"):
        return "/".join(str(found["hf_hub"]).split("/")[:2]), False
    return str(found.get("url") or ""), True


def _is_cached(repository: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether the cache of the hub holds a file of a repository with one of these suffixes."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "snapshots"
    return any(path.suffix in suffixes and path.is_file() for path in folder.glob("*/*"))


def _is_in(folder: str, address: str) -> bool:
    return (Path(folder).expanduser() / os.path.basename(address)).is_file()


def _size(download: Download) -> int | None:
    """Return the bytes of a download as its server states them; None if it does not."""
    try:
        if download.is_file:
            request = urllib.request.Request(download.place, method="HEAD")
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                return int(answer.headers["Content-Length"] or 0) or None
        from huggingface_hub import HfApi

        files = HfApi().model_info(download.place, files_metadata=True, timeout=_TIMEOUT).siblings or []
        sizes = [file.size for file in files if file.rfilename.endswith(_WEIGHTS[:2]) and file.size]
        return min(sizes, default=None)  # a repository holds the same weights in several formats
    except Exception as error:  # httpx, the hub and urllib each have their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{download.option} must name weights that are on this disk or can be downloaded: {download.what} is "
            f"not here, and {download.place} cannot be reached ({reason}). Give a local path, or take the packaged "
            'backbone "tiny" with "packaged" weights'
        ) from error
