"""FreestyleRet's style prompts: the tokens, their place in the tower, the style space, and the published size."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vgg19

from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.style_prompts import StylePrompted, StylePrompts, StyleSpace, k_means, published_size
from hystar_fast.methods.suite import create_method
from hystar_fast.models.backbones.open_clip import OpenClipBackbone
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.tiny import NORMALISE, RESIZE
from hystar_fast.models.vgg import vgg_features
from tests.support.small_clip import small_config, spy_on_blocks


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> HystarConfig:
    return small_config(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def create(config: HystarConfig, **settings: int) -> StylePrompts:
    method = create_method("freestyle", config, settings=settings)
    assert isinstance(method, StylePrompts)
    return method


def model_of(method: StylePrompts) -> StylePrompted:
    assert isinstance(method.model, StylePrompted)
    return method.model


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_size_with_the_unused_parts_of_the_public_code_is_that_of_table_5():
    with torch.device("meta"):
        clip = open_clip.create_model("ViT-L-14", device="meta")
        unused_maps = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 1024), nn.Linear(1024, 1024))
        unused_embedding = nn.Conv2d(256, 256, 16, 16)
        whole_vgg = size(vgg19().features) + size(nn.Conv2d(3, 3, 1))
    backbone = OpenClipBackbone(clip, RESIZE, NORMALISE, lambda texts: texts)
    plain = size(backbone)
    method = StylePrompts(backbone, F.mse_loss)
    trained = count_parameters(method)["freestyle"]
    model = model_of(method)
    assert trained == size(model.embed) + size(model.pool) + size(model.map) + 4 * 4 * 1024
    assert model.embed.weight.shape == (256, 128, 16, 16)
    tokens = 2 * 4 * 1024  # learned tokens; the centres are a file there
    published = trained - 4 * 4 * 1024 + tokens + size(unused_maps) + size(unused_embedding)
    assert round(published / 1e6, 1) == 28.6, "the public code's own figure is 28 M trained parameters"
    assert (plain + published + whole_vgg) // 10**6 == 476
    assert published_size(model) == published + whole_vgg


def test_tokens_are_mapped_from_the_gram_matrix_of_embedded_vgg_features(config, images):
    model = model_of(create(config))
    found = model.gram_tokens(images)
    maps = model.vgg(images)
    assert maps.shape == (6, 128, 16, 16)
    embedded = F.conv2d(maps, model.embed.weight, model.embed.bias, stride=2)[0].flatten(1)
    matrix = embedded @ embedded.T / embedded.shape[1]
    pooled = (matrix @ model.pool.weight.T + model.pool.bias).T
    for layer in model.map:
        assert isinstance(layer, nn.Linear)
        pooled = pooled @ layer.weight.T + layer.bias
    assert found.shape == (6, 4, 32)
    assert torch.allclose(found[0], pooled, atol=1e-4)


def test_style_tokens_enter_the_first_block_and_gram_tokens_the_last(config, images, monkeypatch):
    method = create(config, prompts=3, centres=2)
    model = model_of(method)
    model.space.place(model.gram_tokens(images).flatten(1))
    deep = model.gram_tokens(images)
    shallow = model.space(deep.flatten(1)).view_as(deep)
    seen, made = spy_on_blocks(model.backbone, monkeypatch)
    found = model.encode_image(images)
    assert [x.shape[1] for x in seen] == [1 + 3 + 16] * 3 + [1 + 3 + 3 + 16]
    assert torch.allclose(seen[0][:, 1:4], shallow, atol=1e-5)
    assert torch.allclose(seen[3][:, 1:4], deep, atol=1e-5)
    visual = model.backbone.visual
    assert torch.allclose(found, visual.ln_post(made[-1][:, 0]) @ visual.proj, atol=1e-5)


def test_gradients_are_the_same_with_checkpointing(config, images):
    model = model_of(create(config))
    model.space.place(model.gram_tokens(images).flatten(1))
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(model.encode_image(images).pow(2).sum(), trained)
    model.backbone.gradient_checkpointing = True
    again = torch.autograd.grad(model.encode_image(images).pow(2).sum(), trained)
    for one, two in zip(plain, again, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)
        assert one.abs().max() > 0


def test_k_means_finds_separated_clusters():
    generator = torch.Generator().manual_seed(1)
    true = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = true.repeat(20, 1) + 0.3 * torch.randn(60, 2, generator=generator)
    found = k_means(points, 3)
    distances = torch.cdist(true, found)
    assert sorted(distances.argmin(1).tolist()) == [0, 1, 2]
    assert distances.amin(1).max() < 0.3
    assert torch.equal(k_means(points[:1], 2), points[:1].expand(2, 2))


def test_the_style_space_mixes_its_centres_by_cosine():
    space = StyleSpace(2, 2)
    with torch.no_grad():
        space.centres.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    weights = torch.tensor([0.6, 0.8]).softmax(0)
    assert torch.allclose(space(torch.tensor([[3.0, 4.0]])), weights @ space.centres)


def test_only_the_first_training_batch_places_the_centres(config, images, tmp_path):
    method = create(config)
    centres = model_of(method).space.centres
    method.encode_image(images)
    assert not bool(centres.any()), "evaluation placed the centres"
    method.train(True)
    method.encode_image(images)
    placed = centres.detach().clone()
    assert bool(placed.any())
    method.encode_image(1 - images)
    assert torch.equal(centres, placed)
    save_method(method, tmp_path)
    again = load_method(tmp_path)
    again.train(True)
    again.encode_image(1 - images)
    assert isinstance(again, StylePrompts)
    assert torch.equal(model_of(again).space.centres, placed)


def test_training_steps_on_one_batch_lower_the_loss(config, images):
    method = create(config)
    method.train(True)
    optimizer = torch.optim.Adam(method.parameter_groups()["freestyle"], lr=3e-4)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = method.loss(method.encode_image(images), method.encode_image(images.flip(1)))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05, losses


def test_vgg_weights_come_from_the_configuration(config, tmp_path):
    torch.manual_seed(4)
    state = {f"features.{name}": value + 0.1 for name, value in vgg_features(None).state_dict().items()}
    torch.save(state, tmp_path / "vgg.pt")
    fields = {**config.to_dict(), "style": "vgg", "style_pretrained": str(tmp_path / "vgg.pt")}
    method = create_method("freestyle", HystarConfig.from_dict(fields))
    assert isinstance(method, StylePrompts)
    assert torch.equal(model_of(method).vgg.state_dict()["0.weight"], state["features.0.weight"])
    save_method(method, tmp_path / "adapter")
    assert load_method(tmp_path / "adapter").fingerprints == method.fingerprints
    with pytest.raises(ValueError, match="was trained on another vgg"):
        load_method(tmp_path / "adapter", style_pretrained=None)
    with pytest.raises(ValueError, match="vgg='NO_SUCH_WEIGHTS' could not be loaded"):
        load_method(tmp_path / "adapter", style_pretrained="NO_SUCH_WEIGHTS")


def test_sizes_that_are_not_positive_are_rejected(config):
    for name in ("prompts", "centres"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            create(config, **{name: 0})
