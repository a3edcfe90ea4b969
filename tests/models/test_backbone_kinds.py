"""Every kind of backbone: the embeddings of its library, offsets that reach their weight, gradients, adapters."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.tower import TowerBackbone
from hystar_fast.models.backbones.transformers import SiglipTower
from hystar_fast.models.config import HystarConfig, default_blocks
from hystar_fast.models.hystar import Hystar
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from tests.support.small_backbones import ALL_WRITERS, POSITIONED, Images, Small
from tests.support.small_clip import IMAGE_SIZE
from tests.support.tolerance import relative_error

QKV = ("in_proj_weight", "qkv.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight")


@pytest.fixture(scope="module", params=ALL_WRITERS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return ALL_WRITERS[request.param](tmp_path_factory.mktemp("backbone"))


def backbone_of(small: Small) -> TowerBackbone:
    backbone = create_backbone(HystarConfig(backbone=small.backbone, pretrained=small.pretrained))
    assert isinstance(backbone, TowerBackbone)
    return backbone


def model_of(small: Small, offsets: float = 0.1, **fields: Any) -> Hystar:
    """Create a Hystar with blocks 2 and 3 modulated and random offsets of deviation `offsets`."""
    torch.manual_seed(1)
    settings = {"backbone": small.backbone, "pretrained": small.pretrained, "style": "clip", "blocks": (2, 3), **fields}
    model = Hystar(HystarConfig(**settings))
    with torch.no_grad():
        last = [parameter for name, parameter in model.dynamic_parameters() if ".layers.1." in name]
        for parameter in (*dict(model.static_parameters()).values(), *last):
            parameter.normal_(std=offsets) if offsets else parameter.zero_()
    return model


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE)


def inject_all(backbone: TowerBackbone) -> list[str]:
    names = []
    for number in range(1, backbone.depth + 1):
        assert backbone.inject_dynamic(number, None) == backbone.width
        names += backbone.inject_static(number, None)
    return names


def step(model: Hystar, queries: Tensor, targets: Tensor) -> list[Tensor]:
    """Return the gradients of a contrastive loss of two encodings, for every trained parameter."""
    model.zero_grad(set_to_none=True)
    logits = model.encode_image(queries) @ model.encode_image(targets).T / 0.07
    F.cross_entropy(logits, torch.arange(len(queries))).backward()
    gradients = [parameter.grad for parameter in model.trainable_parameters()]
    return [gradient.clone() for gradient in gradients if gradient is not None]


def test_zero_offsets_give_the_embeddings_of_the_library(small: Small) -> None:
    backbone, truth, images = backbone_of(small), Images(small), images_of(3)
    expected = truth(images)
    assert expected.shape == (3, small.embed_dim)
    assert (backbone.depth, backbone.width, backbone.embed_dim) == (small.depth, small.width, small.embed_dim)
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in truth.parameters())
    assert relative_error(backbone.encode_image(images), expected) < 1e-5
    inject_all(backbone)
    zero = {number: torch.zeros(3, backbone.width) for number in range(1, backbone.depth + 1)}
    assert relative_error(backbone.encode_image(images), expected) < 1e-5
    assert relative_error(backbone.encode_image(images, zero), expected) < 1e-5
    assert relative_error(truth(images + 0.1 * torch.randn_like(images)), expected) > 1e-3


def test_text_embeddings_equal_those_of_the_library(small: Small) -> None:
    backbone, truth = backbone_of(small), small.untouched()
    tokens = backbone.tokenizer(["a drawing of a red cat", "cat", ""])
    expected = small.encode_text(truth, tokens)
    assert expected.shape == (3, small.embed_dim)
    assert relative_error(backbone.encode_text(tokens), expected) < 1e-5
    assert relative_error(expected[:1], expected[1:2]) > 1e-3
    torch.manual_seed(0)
    assert torch.equal(backbone.train().encode_text(tokens), backbone.eval().encode_text(tokens))
    with pytest.raises(TypeError, match="tokens"):
        backbone.encode_text(tokens.float())


def test_offsets_and_their_gradients_equal_those_of_weights_built_for_each_sample(small: Small) -> None:
    """The library's model embeds each sample, with its weights replaced by U diag(s + offset) Vh."""
    backbone, truth, images, number = backbone_of(small), Images(small), images_of(3), 2
    names = inject_all(backbone)
    offsets = [(0.2 * torch.randn(backbone.get_submodule(name).rank)).requires_grad_() for name in names]
    delta_s = (0.3 * torch.randn(3, backbone.width)).requires_grad_()
    weights = torch.randn(3, small.embed_dim)

    with torch.no_grad():
        for name, offset in zip(names, offsets, strict=True):
            backbone.get_submodule(name).delta_s_static.copy_(offset)
    embedded = backbone.encode_image(images, {number: delta_s})
    (embedded * weights).sum().backward()
    found = [backbone.get_submodule(name).delta_s_static.grad for name in names]
    found_delta, delta_s.grad = delta_s.grad, None

    attention = f"{backbone.visual_at}.{backbone.tower.blocks_at}.{number - 1}.{backbone.tower.attention_at}"
    prefix = f"model.{attention.partition('.')[2]}."
    packed = [prefix + name for name in QKV if prefix + name in dict(truth.named_parameters())]
    assert len(packed) in (1, 3)
    layer = backbone.get_submodule(attention).in_proj
    expected = []
    for sample in range(3):
        own = (layer.u * (layer.s + delta_s[sample])) @ layer.vh
        replaced = dict(zip(packed, own.chunk(len(packed)), strict=True))
        for name, offset in zip(names, offsets, strict=True):
            static = backbone.get_submodule(name)
            replaced[f"model.{name.partition('.')[2]}.weight"] = (static.u * (static.s + offset)) @ static.vh
        expected.append(functional_call(truth, replaced, (images[sample : sample + 1],)))
    together = torch.cat(expected)
    assert relative_error(embedded, together) < 1e-5
    (together * weights).sum().backward()
    for gradient, offset in zip([*found, found_delta], [*offsets, delta_s], strict=True):
        assert gradient is not None and offset.grad is not None and offset.grad.any()
        assert relative_error(gradient, offset.grad) < 1e-4


def test_queries_attend_to_keys_and_not_keys_to_queries(small: Small) -> None:
    """Large weights make attention sharp, so that an exchange of queries and keys changes the embeddings."""
    backbone, truth, images = backbone_of(small).double(), Images(small).double(), images_of(3).double()
    own, sharp, exchanged = backbone.state_dict(), {}, {}
    for number in range(backbone.depth):
        attention = f"{backbone.visual_at}.{backbone.tower.blocks_at}.{number}.{backbone.tower.attention_at}"
        names = [f"{attention}.{name}" for name in QKV if f"{attention}.{name}" in own]
        query, key, value = torch.cat([own[name] for name in names]).chunk(3)
        sharp |= dict(zip(names, torch.cat([5 * query, 5 * key, value]).chunk(len(names)), strict=True))
        exchanged |= dict(zip(names, torch.cat([5 * key, 5 * query, value]).chunk(len(names)), strict=True))

    def by_the_library(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(truth, {f"model.{name.partition('.')[2]}": w for name, w in weights.items()}, (images,))

    expected = by_the_library(sharp)
    assert relative_error(by_the_library(exchanged), expected) > 1e-2
    backbone.load_state_dict(sharp, strict=False)
    assert relative_error(backbone.encode_image(images), expected) < 1e-10
    inject_all(backbone)
    assert relative_error(backbone.encode_image(images), expected) < 1e-10


def test_injection_changes_only_the_modules_that_it_names(small: Small) -> None:
    backbone = backbone_of(small)
    before = set(backbone.state_dict())
    names = backbone.inject_static(1, None)
    assert len(names) == 2 and all(isinstance(backbone.get_submodule(name), FastSVDLinear) for name in names)
    assert backbone.inject_dynamic(3, 5) == 5
    blocks = f"{backbone.visual_at}.{backbone.tower.blocks_at}"
    parts = (f"{blocks}.0.mlp.", f"{blocks}.2.{backbone.tower.attention_at}.")
    changed = set(backbone.state_dict()) ^ before
    assert changed and all(name.startswith(parts) for name in changed)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.delta_s_static" for name in names}


def test_a_modulated_attention_loads_the_keys_of_its_library(small: Small) -> None:
    backbone = backbone_of(small)
    attention = backbone.blocks[1].get_submodule(backbone.tower.attention_at)
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in attention.state_dict().items()}
    attention.load_state_dict(state)
    images = images_of(2)
    expected = backbone.encode_image(images)
    again = backbone_of(small)
    again.inject_dynamic(2, None)
    assert relative_error(again.encode_image(images), expected) > 1e-3
    again.blocks[1].get_submodule(backbone.tower.attention_at).load_state_dict(state, strict=False)
    assert relative_error(again.encode_image(images), expected) < 1e-5


def test_the_frozen_encoder_keeps_the_weights_that_injection_replaces(small: Small) -> None:
    backbone, images = backbone_of(small), images_of(2)
    frozen = backbone.frozen_image_encoder()
    expected = Images(small)(images)
    shared = {parameter.data_ptr() for parameter in backbone.parameters()}
    assert all(parameter.data_ptr() in shared for parameter in frozen.parameters())
    assert not any("text" in name for name, _ in frozen.named_modules())
    for name in inject_all(backbone):
        nn.init.normal_(backbone.get_submodule(name).delta_s_static)
    assert relative_error(frozen(images), expected) < 1e-5
    assert relative_error(backbone.encode_image(images), expected) > 1e-2


def test_hystar_trains_every_offset_and_hypernetwork_and_nothing_else(small: Small) -> None:
    model = model_of(small)
    step(model, images_of(3), images_of(3))
    trained = {id(parameter) for parameter in model.trainable_parameters()}
    for name, parameter in model.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.isfinite().all() and parameter.grad.any())
        assert parameter.requires_grad == has_gradient == (id(parameter) in trained), name
    counts, dim, rank = model.parameter_counts(), small.embed_dim, small.width
    assert counts["static"] == small.depth * 2 * small.width
    assert counts["dynamic"] == 2 * ((dim + 1) * 2 * rank + (2 * rank + 1) * rank)
    assert counts["backbone"] == sum(parameter.numel() for parameter in small.untouched().parameters())


def test_blocks_follow_the_depth_and_zero_offsets_give_the_untouched_model(small: Small) -> None:
    model, images = model_of(small, offsets=0.0, blocks=None), images_of(2)
    assert sorted(map(int, model.hypernetworks)) == list(default_blocks(small.depth))
    expected = F.normalize(Images(small)(images), dim=-1)
    assert relative_error(model.encode_image(images), expected) < 1e-5
    assert relative_error(model.style(images), expected) < 1e-5


def test_the_prefix_style_is_computed_from_the_tokens_before_the_first_modulated_block(small: Small) -> None:
    model, images = model_of(small, style="prefix", blocks=(2, 3)), images_of(3)
    z = model.style(images)
    has_class_token = not isinstance(model.backbone.tower, SiglipTower)
    assert z.shape == (3, (2 + has_class_token) * small.width) and relative_error(z[:1], z[1:2]) > 1e-3
    leading = has_class_token + small.registers
    assert model.backbone.leading_tokens == (has_class_token, leading)
    patches = model.backbone.prefix(images, 1)[:, leading:]
    assert patches.shape[1] ** 0.5 % 1 == 0, "the patches must be a square"
    mean = F.layer_norm(patches.mean(1), (small.width,))
    assert relative_error(F.normalize(mean), F.normalize(z[:, -2 * small.width : -small.width])) < 1e-5
    step(model, images, images_of(3))
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(model.style(images), z)
    assert not any(parameter.requires_grad for parameter in model.extractor.parameters())


def test_two_encodings_under_gradient_checkpointing_have_the_reference_gradients(small: Small) -> None:
    model, queries, targets = model_of(small), images_of(4), images_of(4)
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    model.backbone.blocks[2].get_submodule("mlp").register_forward_pre_hook(count)
    expected = step(model, queries, targets)
    plain_runs = runs
    model.set_gradient_checkpointing(True)
    found = step(model, queries, targets)
    assert runs - plain_runs == 2 * plain_runs, "the blocks were not recomputed"
    for gradient, reference in zip(found, expected, strict=True):
        assert relative_error(gradient, reference) < 1e-6


def test_threads_do_not_mix_their_styles(small: Small) -> None:
    model, images = model_of(small), images_of(2)
    styles = F.normalize(torch.randn(4, 2, small.embed_dim), dim=-1)
    with torch.no_grad():
        expected = [model.encode_image(images, z) for z in styles]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda k: torch.no_grad()(model.encode_image)(images, styles[k % 4]), range(16)))
    assert relative_error(expected[0], expected[1]) > 1e-3
    for k, embedded in enumerate(found):  # the last bits of products depend on where their buffers begin
        assert relative_error(embedded, expected[k % 4]) < 1e-6


@pytest.mark.parametrize("kind", ["transformers siglip2", "transformers blip", *POSITIONED])
def test_compiles_as_one_graph(kind: str, tmp_path: Path) -> None:
    """Other towers and other attention than open_clip's, which is in test_hystar."""
    model, images = model_of(ALL_WRITERS[kind](tmp_path)), images_of(2)
    z = model.style(images)
    torch.compiler.reset()
    compiled = torch.compile(model.encode_image, fullgraph=True, backend="aot_eager")(images, z)
    assert relative_error(compiled, model.encode_image(images, z)) < 1e-5


def test_a_saved_adapter_reloads_exactly_and_merges(small: Small, tmp_path: Path) -> None:
    model, images = model_of(small), images_of(3)
    z, expected = model.style(images), model.encode_image(images)
    model.save_pretrained(tmp_path)
    again = Hystar.from_pretrained(tmp_path)
    assert torch.equal(again.encode_image(images), expected)
    assert torch.equal(again.style(images), z)
    names = [name.removeprefix("static.").removesuffix(".delta_s_static") for name, _ in again.static_parameters()]
    assert relative_error(again.merge_static_().encode_image(images), expected) < 1e-5
    assert relative_error(again.encode_image(images, z.roll(1, 0)), expected) > 1e-3
    assert torch.equal(again.style(images), z)
    assert not any(isinstance(again.backbone.get_submodule(name), FastSVDLinear) for name in names)


def test_half_precision_and_empty_batches(small: Small) -> None:
    model, images = model_of(small), images_of(2)
    expected = model.encode_image(images).detach()
    with torch.autocast("cpu", torch.bfloat16):
        embedded = model.encode_image(images)
    assert (embedded.float() * expected).sum(-1).min() > 0.99
    assert model.encode_image(images[:0]).shape == model.style(images[:0]).shape == (0, small.embed_dim)
    half = model.to(torch.bfloat16)
    assert (half.encode_image(images).float() * expected).sum(-1).min() > 0.97


def test_preprocess_and_tokenizer_feed_the_encoders(small: Small) -> None:
    backbone = backbone_of(small)
    image = backbone.preprocess(Image.new("RGB", (50, 40), (255, 0, 51)))
    assert tuple(image.shape) == (3, *backbone.image_size)
    seen = image.mean((1, 2)) * torch.tensor(backbone.normalise.std) + torch.tensor(backbone.normalise.mean)
    assert torch.allclose(seen, torch.tensor([1.0, 0.0, 0.2]), atol=1e-3)
    assert backbone.encode_image(image[None]).shape == (1, small.embed_dim)
    tokens = [backbone.tokenizer(texts) for texts in ("cat", ["a " * 200, "cat"])]
    assert tokens[0].shape[0] == 1 and tokens[1].shape[0] == 2 and tokens[0].shape[1] == tokens[1].shape[1]
    assert backbone.encode_text(tokens[1]).shape == (2, small.embed_dim)
