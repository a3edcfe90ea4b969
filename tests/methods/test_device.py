"""A method beside its images: what goes to its device and what comes back, on a device that any machine has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hystar_fast.methods.device import on_device
from hystar_fast.methods.interface import Method
from hystar_fast.methods.pixels import Pixels


class Recorder(Method):
    """Remembers where the tensors were that it was given."""

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


def test_what_is_asked_goes_to_the_device_and_the_modules_are_there() -> None:
    method = Recorder()
    answering = on_device(method, torch.device("meta"))
    assert {p.device.type for p in method.modules[0].parameters()} == {"meta"}
    images = torch.zeros(2, 3, 2, 2, device="meta")
    assert answering.encode_image(images, torch.zeros(2, 3)).device.type == "meta"
    assert answering.style(images) is not None
    assert {device.type for device in method.seen} == {"meta"}


def test_answers_come_back_beside_the_images() -> None:
    images = torch.rand(2, 3, 2, 2)
    answering = on_device(Recorder(), torch.device("cpu"))
    assert answering.encode_image(images).device == images.device
    texts = answering.encode_text(["a", "b"])
    assert texts is not None and texts.device.type == "cpu"
    assert answering.name == "recorder"


def test_a_method_without_modules_stays_where_the_images_are() -> None:
    pixels = Pixels()
    assert on_device(pixels, torch.device("meta")) is pixels
    assert pixels.encode_image(torch.rand(1, 3, 64, 64)).device.type == "cpu"
