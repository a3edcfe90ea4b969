"""The networks of ACNet have the sizes of the paper, and refuse pictures that they cannot process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from hystar_fast.methods.acnet.acnet_config import ACNetConfig
from hystar_fast.methods.acnet.discriminator import Discriminator, draw_normal_weights
from hystar_fast.methods.acnet.extractor import HALF, TimmExtractor, TowerExtractor, create_extractor
from hystar_fast.methods.acnet.generator import Generator
from hystar_fast.methods.suite import create_method, tiny_config
from tests.support.acnet_cases import SMALL


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_of_the_generator_and_the_discriminator() -> None:
    with torch.device("meta"):
        depths = {blocks: size(Generator(8, blocks)) for blocks in (2, 4, 6, 8, 10)}
        widths = {c: size(Generator(c, 8)) for c in (16, 32, 64)}
        assert size(Generator(64, 9)) == 11_378_179
        judges = {c: size(Discriminator(c)) for c in (8, 16, 32, 64)}
    assert depths == {2: 50_947, 4: 87_939, 6: 124_931, 8: 161_923, 10: 198_915}
    assert widths == {16: 641_795, 32: 2_555_395, 64: 10_198_019}
    assert judges == {8: 44_537, 16: 175_089, 32: 694_241, 64: 2_764_737}


@pytest.mark.parametrize(
    ("name", "width", "count"),
    [
        ("resnet50", 64, 23_639_168),
        ("resnet50", 512, 24_557_120),
        ("resnet50", 4096, 31_900_736),
        ("vgg16", 64, 134_522_752),
        ("vgg16", 512, 136_358_208),
        ("vgg16", 4096, 151_041_856),
        ("resnet18", 64, 11_209_344),
    ],
)
def test_parameters_of_the_extractor(name: str, width: int, count: int) -> None:
    with torch.device("meta"):
        extractor = TimmExtractor(ACNetConfig(extractor=f"timm:{name}", weights="random", embedding=width))
    assert size(extractor) == count
    assert isinstance(extractor.last_layer, nn.Linear) and extractor.last_layer.out_features == width


def test_the_generator_keeps_the_size_and_treats_every_picture_alone() -> None:
    generator = Generator(4, 2)
    for height, width in ((24, 24), (28, 64), (64, 32)):
        made = generator(torch.rand(2, 3, height, width) * 2 - 1)
        assert made.shape == (2, 3, height, width) and bool((made.abs() < 1).all())
    one, two = torch.rand(2, 3, 3, 32, 32)
    generator.train()
    assert torch.equal(generator(torch.cat([one, two])), torch.cat([generator(one), generator(two)]))
    assert not list(generator.buffers())
    for height, width in ((30, 32), (32, 33), (20, 24)):
        with pytest.raises(ValueError, match=f"multiples of 4 and at least 24, got {height} x {width}"):
            generator(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize(("side", "map_side"), [(224, 26), (64, 6), (24, 1)])
def test_the_map_of_the_discriminator(side: int, map_side: int) -> None:
    assert Discriminator(2)(torch.zeros(2, 3, side, side)).shape == (2, 1, map_side, map_side)


def test_the_first_weights_of_the_gan() -> None:
    torch.manual_seed(0)
    normal = create_method("acnet", tiny_config(None), settings=SMALL | {"gan_init": "normal"}).model
    plain = create_method("acnet", tiny_config(None), settings=SMALL).model
    for part in ("generator", "discriminator"):
        weights = torch.cat([p.detach().flatten() for p in normal[part].parameters() if p.ndim > 1])
        biases = torch.cat([p.detach().flatten() for p in normal[part].parameters() if p.ndim == 1])
        assert abs(float(weights.std()) - 0.02) < 1e-3 and not biases.any()
        assert any(p.any() for p in plain[part].parameters() if p.ndim == 1)
    draw_normal_weights(nn.ReLU())


def test_the_pixels_of_the_extractor() -> None:
    images = torch.rand(2, 3, 32, 32)
    shown = {}
    for pixels in ("half", "imagenet", "own"):
        torch.manual_seed(0)
        extractor = TimmExtractor(ACNetConfig(**SMALL | {"pixels": pixels})).eval()
        shown[pixels] = extractor(HALF(images))
        net = extractor.net
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(shown["half"], net(images * 2 - 1), atol=1e-5)
    assert torch.allclose(shown["imagenet"], net((images - mean) / std), atol=1e-4)
    assert not torch.allclose(shown["half"], shown["imagenet"], atol=1e-2)
    assert net.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)  # so that its own statistics are the generator's range
    assert torch.allclose(shown["own"], shown["half"], atol=1e-5)


def test_weights_from_a_file_go_everywhere_but_to_the_last_layer(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", pretrained=False)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save(source.state_dict(), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        extractor = TimmExtractor(ACNetConfig(**SMALL | {"weights": str(tmp_path / name)}))
        loaded = extractor.net.state_dict()
        assert all(torch.equal(loaded[n], v) for n, v in source.state_dict().items() if not n.startswith("fc."))
        assert loaded["fc.weight"].shape == (16, source.num_features)
    save_file({"conv1.0.weight": torch.zeros(1)}, tmp_path / "bad.safetensors")
    for bad in ("bad.safetensors", "few.safetensors"):
        if bad.startswith("few"):
            save_file({"fc.bias": torch.zeros(1)}, tmp_path / bad)
        with pytest.raises(ValueError, match=r"acnet\.weights must be a file of the extractor's weights, got .*" + bad):
            TimmExtractor(ACNetConfig(**SMALL | {"weights": str(tmp_path / bad)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extractor": "timm:resnet51"}, "acnet.extractor must be a model of timm, got 'resnet51'; did you mean timm:"),
        ({"weights": "test_resnet.none"}, "a file or one of timm's test_resnet.r160_in1k, got 'test_resnet.none'"),
        ({"extractor": "backbone", "image_size": 32}, "acnet.image_size must be that of backbone 'tiny', 64, got 32"),
    ],
)
def test_an_extractor_that_cannot_be_built(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        create_extractor(ACNetConfig(**{**SMALL, **changes}), tiny_config(None))


def test_the_image_tower_of_a_backbone() -> None:
    settings = ACNetConfig(**SMALL | {"extractor": "backbone", "image_size": 64, "embedding": 192})
    extractor = create_extractor(settings, tiny_config())
    assert isinstance(extractor, TowerExtractor) and isinstance(extractor.last_layer, nn.Identity)
    frozen = create_method("frozen", tiny_config())
    images = torch.rand(2, 3, 64, 64)
    found = nn.functional.normalize(extractor(HALF(images)), dim=-1)
    assert torch.allclose(found, frozen.encode_image(images), atol=1e-5)
    assert all(parameter.requires_grad for parameter in extractor.parameters())
    assert not any("token_embedding" in name for name, _ in extractor.named_parameters())  # no text tower
    narrow = create_extractor(ACNetConfig(**SMALL | {"extractor": "backbone", "image_size": 64}), tiny_config(None))
    assert narrow(HALF(images)).shape == (2, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gan": "lsgn"}, "acnet.gan must be one of lsgan, vanilla, got 'lsgn'; did you mean lsgan?"),
        ({"loss": "softmax"}, "acnet.loss must be one of normsoftmax, cross_entropy"),
        ({"image_size": 30}, "acnet.image_size must be a multiple of 4 and at least 24, got 30"),
        ({"image_size": 20}, "acnet.image_size must be a multiple of 4 and at least 24, got 20"),
        ({"temperature": 0.0}, "acnet.temperature must be greater than 0 and finite, got 0.0"),
        ({"gamma_identity": -1.0}, "acnet.gamma_identity must be at least 0, got -1.0"),
        ({"flip": 1.5}, "acnet.flip must be between 0 and 1, got 1.5"),
        ({"extractor": "resnet50"}, 'acnet.extractor must be "timm:<name>" or "backbone", got \'resnet50\''),
        ({"synthesis": "none", "sketch_term": False}, 'acnet.sketch_term must be true for acnet.synthesis = "none"'),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ACNetConfig(**changes)
    if "gan" in changes:
        with pytest.raises(ValueError, match="settings must be those of ACNet, got 'chanels'; did you mean channels"):
            ACNetConfig.from_dict({"chanels": 3})
