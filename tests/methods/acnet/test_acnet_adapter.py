"""An adapter of ACNet is enough to rebuild it: neither the first weights nor the discriminator are needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from hystar_fast.methods.acnet.acnet_config import ACNetConfig
from hystar_fast.methods.acnet.acnet_method import ACNet
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.device import on_device
from hystar_fast.methods.step_trained import StepPlan
from hystar_fast.methods.suite import create_method, network_name, tiny_config
from hystar_fast.models.adapter_format import read_adapter
from hystar_fast.models.config import HystarConfig
from tests.support.acnet_cases import SMALL, shapes, small_acnet


def check_same(method: ACNet, folder: Path, side: int) -> None:
    loaded, images = load_method(folder), torch.rand(2, 3, side, side)
    method.train(False)
    assert torch.equal(loaded.encode_query(images), method.encode_query(images))
    assert torch.equal(loaded.encode_image(images), method.encode_image(images))
    assert loaded.settings == method.settings


def test_the_first_weights_are_not_needed_again(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    source = timm.create_model("test_resnet", pretrained=False)
    for buffer in (b for n, b in source.named_buffers() if n.endswith("running_mean")):
        buffer.normal_()  # statistics that no random model has
    save_file(source.state_dict(), weights)
    method = small_acnet(weights=str(weights))
    method.step(shapes(), 1, 0)
    save_method(method, tmp_path / "adapter")
    weights.unlink()
    check_same(method, tmp_path / "adapter", 32)
    description, tensors = read_adapter(tmp_path / "adapter", kinds=("hystar_fast.method/1",))
    assert description["settings"] == {
        **SMALL,
        **ACNetConfig(**SMALL).to_dict(),
        "weights": str(weights),
        "categories": 8,
    }
    assert {name.partition(".")[0] for name in tensors} == {"extractor", "generator", "proxies"}


@pytest.mark.parametrize("embedding", [192, 8])
def test_the_tower_of_a_backbone_is_in_the_adapter(embedding: int, tmp_path: Path) -> None:
    changes = {"extractor": "backbone", "image_size": 64, "embedding": embedding}
    method = ACNet(tiny_config(), ACNetConfig(**{**SMALL, **changes}))
    method.begin(StepPlan(5, 1e-3))
    with torch.no_grad():
        for parameter in method.extractor.parameters():
            parameter.mul_(1.01)
    save_method(method, tmp_path)
    check_same(method, tmp_path, 64)
    assert torch.equal(load_method(tmp_path, pretrained=None).encode_image(torch.ones(1, 3, 64, 64)),
                       method.encode_image(torch.ones(1, 3, 64, 64)))  # fmt: skip
    assert set(method.fingerprints) == {"activation"}


def test_an_adapter_of_other_settings_is_refused(tmp_path: Path) -> None:
    save_method(small_acnet(synthesis="none"), tmp_path)
    assert not any(name.startswith("generator") for name in load_method(tmp_path).trained_parameters())
    method = small_acnet()
    method.settings = {**method.settings, "channels": 2}
    save_method(method, tmp_path)
    with pytest.raises(ValueError, match=r"must hold an adapter of backbone .*, got other tensors: generator"):
        load_method(tmp_path)


def test_bfloat16_is_near_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hystar_fast.methods.acnet.acnet_method.multiplies_bf16", lambda device: True)
    found = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        method = ACNet(tiny_config(None), ACNetConfig(**SMALL))
        method.begin(StepPlan(8, 1e-4, bf16=bf16))
        method.train(True)
        found.append(torch.tensor([[*method.step(shapes(), 1, step).values()] for step in range(3)]))
    plain, low = found
    assert not torch.equal(plain, low)
    assert bool(((low - plain).abs() < 0.05 * plain.abs()).all())
    assert float((low[:, 0] - plain[:, 0]).abs().max() / plain[0, 0]) < 0.02


def test_it_runs_on_a_device_by_its_name() -> None:
    method = small_acnet()
    moved = on_device(method, torch.device("cpu"))
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(moved.encode_image(images), method.encode_image(images))


def test_the_network_of_a_method_is_named_and_not_the_backbone_that_it_does_not_read() -> None:
    paper = HystarConfig()
    assert network_name(ACNet(paper, ACNetConfig(**SMALL))) == "test_resnet (random)"
    assert network_name(create_method("pixels", paper)) == ""
    assert network_name(create_method("frozen", tiny_config(None))) == "tiny"
