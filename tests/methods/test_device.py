"""A method on another device than its images: inputs move there, and outputs move back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hystar_fast.methods.device import multiplies_bf16, on_device
from hystar_fast.methods.interface import Method
from hystar_fast.methods.pixels import Pixels


class Recorder(Method):
    """A method that records the devices of its inputs."""

    name = "recorder"

    def __init__(self) -> None:
        self.modules = (nn.Linear(2, 2),)
        self.seen: list[torch.device] = []

    def encode_image(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        self.seen += [images.device, *(() if style is None else (style.device,))]
        return images.flatten(1).float() @ torch.ones(12, 2, device=images.device)

    def encode_text(self, texts: Sequence[str]) -> Tensor | None:
        return torch.zeros(len(texts), 2, device=self.modules[0].weight.device)

    def style(self, images: Tensor) -> Tensor | None:
        self.seen.append(images.device)
        return images.flatten(1)


def test_inputs_and_modules_move_to_the_device() -> None:
    method = Recorder()
    moved = on_device(method, torch.device("meta"))
    assert {p.device.type for p in method.modules[0].parameters()} == {"meta"}
    images = torch.zeros(2, 3, 2, 2, device="meta")
    assert moved.encode_image(images, torch.zeros(2, 3)).device.type == "meta"
    assert moved.style(images) is not None
    assert {device.type for device in method.seen} == {"meta"}


def test_outputs_return_to_the_device_of_the_images() -> None:
    images = torch.rand(2, 3, 2, 2)
    moved = on_device(Recorder(), torch.device("cpu"))
    assert moved.encode_image(images).device == images.device
    texts = moved.encode_text(["a", "b"])
    assert texts is not None and texts.device.type == "cpu"
    assert moved.name == "recorder"


def test_a_method_without_modules_runs_on_the_device_of_the_images() -> None:
    pixels = Pixels()
    assert on_device(pixels, torch.device("meta")) is pixels
    assert pixels.encode_image(torch.rand(1, 3, 64, 64)).device.type == "cpu"


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "vendor", "gains"),
    [
        (True, True, "GenuineIntel", True),
        (False, True, "GenuineIntel", False),
        (False, True, "AuthenticAMD", True),
        (False, False, "AuthenticAMD", False),
    ],
)
def test_a_cpu_gains_from_bf16_with_amx_or_with_avx512_that_is_not_intels(monkeypatch, amx, avx512_bf16, vendor, gains):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr("hystar_fast.methods.device.processor_field", {"vendor_id": vendor}.get)
    assert multiplies_bf16(torch.device("cpu")) is gains
