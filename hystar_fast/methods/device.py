"""Run a method on another device than the images it is given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from hystar_fast.methods.conversion import Conversion
from hystar_fast.methods.interface import Method

BATCH_ON_CPU = 32


def select_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA if available. Under torchrun each process takes its own GPU.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device must be cpu or auto where torch finds no GPU, got {name!r}")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise ValueError(f"device must be one of cuda:0 to cuda:{count - 1}, got {device}")
        torch.cuda.set_device(device)
    return device


def cores_of_process() -> int:
    """Return how many cores this process may keep busy: its share of the machine's under torchrun."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def batch_size_on(device: torch.device) -> int:
    """Return how many pictures go through an encoder in one pass when an index is made or served."""
    return 128 if device.type == "cuda" else BATCH_ON_CPU


@cache
def processor_field(name: str) -> str | None:
    """Return what Linux says of the first core, such as its "model name"; None where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device gains from bfloat16 products; a CPU without instructions for them loses severalfold.

    Intel's AVX-512 instructions for them are slower than its float32 ones (73 against 138 GFLOP/s of one core), unlike
    AMX and those of AMD. Some virtual machines hide AMX.
    """
    if device.type == "cpu":
        is_intel = processor_field("vendor_id") == "GenuineIntel"
        return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and not is_intel)
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def on_device(method: Method, device: torch.device) -> Method:
    """Move a method's modules to a device; the result takes images from any device and returns vectors there.

    A method without modules (pixels, hog) is returned unchanged: it computes where the images are.
    """
    if not method.modules:
        return method
    for module in method.modules:
        module.to(device)
    return OnDevice(method, device)


class OnDevice(Method):
    """A method on one device: its inputs are moved there, and its outputs are moved back."""

    def __init__(self, method: Method, device: torch.device) -> None:
        self.method, self.device = method, device
        self.name, self.modules, self.resize = method.name, method.modules, method.resize
        self.computes_style_in_encode = method.computes_style_in_encode
        self.similarity = method.similarity

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        style = None if style is None else style.to(self.device)
        return self.method.encode_image(images.to(self.device), style).to(images.device)

    def encode_query(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        style = None if style is None else style.to(self.device)
        return self.method.encode_query(images.to(self.device), style).to(images.device)

    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        vectors = self.method.encode_text(texts)
        return None if vectors is None else vectors.cpu()

    def style(self, images: Tensor) -> Tensor | None:
        vectors = self.method.style(images.to(self.device))
        return None if vectors is None else vectors.to(images.device)

    def conversions(self) -> dict[str, Conversion]:
        return self.method.conversions()

    def train(self, mode: bool = True) -> None:
        self.method.train(mode)
