"""Methods on another device than the images they are given."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from hystar_fast.methods.interface import Method


def chosen_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, and under torchrun each process takes its own GPU.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r} needs a GPU that torch can use, and there is none: take cpu or auto")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
        torch.cuda.set_device(device)
    return device


def placed(method: Method, device: torch.device) -> Method:
    """Move a method's modules to a device; the method returned takes images from anywhere and answers beside them.

    A method without modules (a floor) is returned as it is: it computes where the images are.
    """
    if not method.modules:
        return method
    for module in method.modules:
        module.to(device)
    return OnDevice(method, device)


class OnDevice(Method):
    """A method that answers where it is asked: what it is given goes to its device, what it gives comes back."""

    def __init__(self, method: Method, device: torch.device) -> None:
        self.method, self.device = method, device
        self.name, self.modules = method.name, method.modules
        if hasattr(method, "preprocess"):
            self.preprocess = method.preprocess

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        style = None if style is None else style.to(self.device)
        return self.method.encode_image(images.to(self.device), style).to(images.device)

    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        found = self.method.encode_text(texts)
        return None if found is None else found.cpu()

    def style(self, images: Tensor) -> Tensor | None:
        found = self.method.style(images.to(self.device))
        return None if found is None else found.to(images.device)

    def train(self, mode: bool = True) -> None:
        self.method.train(mode)
