"""A step of ACNet: which part gets a gradient from which loss, one pass instead of several, warm-up, learning."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hystar_fast.methods.acnet.acnet_config import ACNetConfig
from hystar_fast.methods.acnet.acnet_losses import NormSoftmax
from hystar_fast.methods.acnet.acnet_method import ACNet
from hystar_fast.methods.acnet.augment import change_colours
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.step_trained import StepPlan
from hystar_fast.methods.suite import tiny_config
from hystar_fast.retrieval.definitions import Metric, measure
from tests.support.acnet_cases import SMALL, gradients, inputs, moved, shapes, small_acnet

PARTS = ("extractor", "proxies", "generator", "discriminator")


def reached(method: ACNet, loss: Tensor) -> set[str]:
    """Return the parts whose parameters get a gradient other than zero from a loss."""
    method.model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {name.partition(".")[0] for name, g in gradients(method).items() if g is not None and bool(g.any())}


def test_each_loss_reaches_its_parts_and_no_other() -> None:
    method = small_acnet()
    sketches, photos, labels = inputs(shapes())
    found, fakes = method.losses(sketches, photos, labels)
    assert fakes is not None
    assert reached(method, found["adversarial"]) == {"generator"}
    assert reached(method, found["identity"]) == {"generator"}
    assert reached(method, found["sketch"]) == reached(method, found["photo"]) == {"extractor", "proxies"}
    assert reached(method, found["synthesised"]) == {"extractor", "proxies", "generator"}
    assert reached(method, found["loss"]) == {"extractor", "proxies", "generator"}
    assert reached(method, method.discriminator_loss(photos, fakes)) == {"discriminator"}
    expected = found["adversarial"] + 0.1 * found["identity"]
    expected = expected + 10 * (found["sketch"] + found["photo"] + found["synthesised"]) / 3
    assert torch.allclose(found["loss"], expected)
    assert all(p.requires_grad for p in method.model["discriminator"].parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_pass_is_as_good_as_several(dtype: torch.dtype) -> None:
    method = small_acnet(double=dtype == torch.float64)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    sketches, photos, labels = inputs(shapes(), dtype)
    found, _ = method.losses(sketches, photos, labels)
    found["loss"].backward()
    merged = gradients(method)
    method.model.zero_grad(set_to_none=True)
    phi, proxies, generator, judge = (method.model[name] for name in PARTS)
    fakes, same = generator(sketches), generator(photos)
    terms = [proxies(phi(images), labels) for images in (sketches, photos, fakes)]
    separate = (judge(fakes) - 1).square().mean() + 0.1 * (same - photos).abs().mean() + 10 * sum(terms) / 3
    assert torch.allclose(separate, found["loss"], rtol=tolerance, atol=0)
    separate.backward()
    for name, gradient in gradients(method).items():
        if name.startswith("discriminator."):
            assert merged[name] is None
        else:
            assert (gradient - merged[name]).norm() <= tolerance * gradient.norm() + tolerance, name


def test_chunks_give_the_gradients_of_the_whole_batch() -> None:
    batch = shapes(count=10)
    whole, parts = (small_acnet(double=True, chunk_size=size) for size in (0, 4))
    for method in (whole, parts):
        losses = method.step(batch, 1, 0)
        assert set(losses) == {"loss", "adversarial", "identity", "sketch", "photo", "synthesised", "discriminator"}
    for name, gradient in gradients(whole).items():
        assert torch.allclose(gradient, gradients(parts)[name], rtol=1e-9, atol=1e-12), name


def test_warm_up_moves_the_last_layer_of_the_extractor_only_and_no_statistics() -> None:
    method = small_acnet()
    before = copy.deepcopy(method.model.state_dict())
    method.step(shapes(), 0, 0)
    changed = moved(before, method)
    assert {n for n in changed if n.startswith("extractor.")} == {"extractor.net.fc.weight", "extractor.net.fc.bias"}
    # a convolution before InstanceNorm has a bias without effect, whose gradient is rounding alone
    for part in ("proxies.", "generator.", "discriminator."):
        weights = {n for n in before if n.startswith(part) and before[n].ndim > 1}
        assert weights and weights <= changed
    for step in (1, 2):  # a block's last BatchNorm starts at zero, and hides the others from the first step
        method.step(shapes(), 1, step)
    changed = moved(before, method)
    parameters = {f"extractor.{n}" for n, p in method.model["extractor"].named_parameters()}
    assert {n for n in changed if n.startswith("extractor.")} == parameters
    for name, tensor in method.model["extractor"].named_buffers():
        assert torch.equal(tensor, before[f"extractor.{name}"]), name


def test_statistics_of_the_batch() -> None:
    method = small_acnet(norm_statistics="batch")
    before = copy.deepcopy(method.model.state_dict())
    method.step(shapes(), 1, 0)
    buffers = {f"extractor.{name}" for name, _ in method.model["extractor"].named_buffers()}
    assert buffers <= moved(before, method)
    assert all(int(m.num_batches_tracked) == 3 for m in method.model.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize(
    "changes",
    [{"norm_statistics": "batch"}, *({"loss": name} for name in ("proxy_anchor", "triplet", "margin"))],
    ids=str,
)
def test_losses_of_the_whole_batch_refuse_chunks(changes: dict[str, str]) -> None:
    refused = ACNet(tiny_config(None), ACNetConfig(**SMALL | changes))
    with pytest.raises(ValueError, match=r"optim\.chunk_size must be 0 .*, got 2"):
        refused.begin(StepPlan(8, 1e-3, chunk_size=2))


def extractor_after(lambda_norm: float, *, generator_moves: bool, steps: int = 2) -> dict[str, Tensor]:
    method = small_acnet(double=True, lambda_norm=lambda_norm)
    for optimizer in method.optimizers().values():
        for group in optimizer.param_groups:
            group["eps"] = 1e-30
            if group["name"] == "generator" and not generator_moves:
                group["lr"] = 0.0
    for step in range(steps):
        method.step(shapes(seed=step), 1, step)
    return {n: p.detach() for n, p in method.model.named_parameters() if n.startswith(("extractor.", "proxies."))}


def test_the_weight_of_the_retrieval_loss_reaches_the_generator_only() -> None:
    one, ten = (extractor_after(weight, generator_moves=False) for weight in (1.0, 10.0))
    assert all(torch.allclose(one[name], ten[name], rtol=1e-7, atol=1e-9) for name in one)
    one, ten = (extractor_after(weight, generator_moves=True) for weight in (1.0, 10.0))
    assert any(not torch.allclose(one[name], ten[name], rtol=1e-7, atol=1e-9) for name in one)


def test_a_query_goes_through_the_generator_and_the_gallery_does_not() -> None:
    method = small_acnet()
    method.train(False)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    pixels = images / 127.5 - 1
    phi, generator = method.model["extractor"], method.model["generator"]
    assert torch.allclose(method.encode_image(images), F.normalize(phi(pixels), dim=-1), atol=1e-6)
    assert torch.allclose(method.encode_query(images), F.normalize(phi(generator(pixels)), dim=-1), atol=1e-5)
    assert torch.allclose(method.encode_query(images.float() / 255), method.encode_query(images), atol=1e-6)
    assert method.encode_text(["dog"]) is None
    with pytest.raises(
        TypeError, match="method must have a loss of pairs, got 'acnet', which trains by its own `step`"
    ):
        method.loss(pixels, pixels)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, "loss adversarial identity sketch photo synthesised discriminator"),
        ({"gamma_identity": 0.0}, "loss adversarial sketch photo synthesised discriminator"),
        ({"sketch_term": False}, "loss adversarial identity photo synthesised discriminator"),
        ({"synthesis": "none"}, "loss sketch photo"),
        (
            {"gan": "vanilla", "norm_reduction": "sum"},
            "loss adversarial identity sketch photo synthesised discriminator",
        ),
        ({"loss": "cross_entropy"}, "loss adversarial identity sketch photo synthesised discriminator"),
        ({"loss": "proxy_anchor"}, "loss adversarial identity sketch photo synthesised discriminator"),
        ({"loss": "triplet"}, "loss adversarial identity retrieval discriminator"),
        ({"loss": "margin", "augment": "both"}, "loss adversarial identity retrieval discriminator"),
    ],
)
def test_every_option_makes_its_losses(changes: dict[str, object], names: str) -> None:
    method = small_acnet(**changes)
    before = copy.deepcopy(method.model.state_dict())
    losses = method.step(shapes(), 1, 0)
    assert set(losses) == set(names.split())
    terms = [losses[name] for name in ("sketch", "photo", "synthesised", "retrieval") if name in losses]
    norm = sum(terms) / (1 if changes.get("norm_reduction") == "sum" else len(terms))
    expected = losses.get("adversarial", 0.0) + 0.1 * losses.get("identity", 0.0) + 10 * norm
    assert losses["loss"] == pytest.approx(expected, rel=1e-5)
    assert {name.partition(".")[0] for name in moved(before, method)} == set(count_parameters(method))
    assert ("generator" in method.model) == (changes.get("synthesis") != "none")


def test_colours_follow_from_the_generator_and_stay_in_range() -> None:
    images = torch.rand(40, 3, 8, 8)

    def changed(kind: str, seed: int = 0) -> Tensor:
        return change_colours(images, kind, torch.Generator().manual_seed(seed))

    assert changed("flip") is images
    for kind, share in (("color", 0.8), ("solarize", 0.2), ("both", 1 - 0.2 * 0.8)):
        found = changed(kind)
        assert torch.equal(found, changed(kind)) and not torch.equal(found, changed(kind, 1))
        assert float(found.min()) >= 0 and float(found.max()) <= 1
        different = (found != images).flatten(1).any(1).float().mean()
        assert abs(float(different) - share) < 0.2
    inverted = changed("solarize") != images
    assert torch.allclose(changed("solarize")[inverted], 1 - images[inverted])


def test_a_run_begins_once() -> None:
    method = ACNet(tiny_config(None), ACNetConfig(**SMALL))
    with pytest.raises(ValueError, match="begin must be called before the first step"):
        method.step(shapes(), 0, 0)
    method.begin(StepPlan(8, 1e-3))
    assert method.settings["categories"] == 8 and count_parameters(method)["proxies"] == 8 * 16
    proxies = method.model["proxies"]
    assert isinstance(proxies, NormSoftmax) and proxies.temperature == 0.05
    with pytest.raises(ValueError, match=re.escape("begin must be called once")):
        method.begin(StepPlan(8, 1e-3))


def test_it_learns_shapes() -> None:
    method = small_acnet(rate=1e-3, embedding=32, generator_lr=5e-4)
    batch = shapes()
    first = method.step(batch, 1, 0)
    for step in range(1, 120):
        last = method.step(batch, 1, step)
    assert (last["sketch"] + last["photo"] + last["synthesised"]) / 3 < 0.05
    assert last["identity"] < first["identity"]
    method.train(False)
    with torch.no_grad():
        vectors = method.encode_query(batch.queries), method.encode_image(batch.targets)
        metric = Metric.parse("mAP@all")
        found = measure(*vectors, batch.labels, batch.labels, [metric]).interval(metric)
        assert found is not None and found.value == 1.0
        sketches, photos, _ = inputs(batch)
        made = method.generate(sketches)
    means = [images.mean((0, 2, 3)) for images in (sketches, made, photos)]
    assert (means[1] - means[2]).norm() < (means[0] - means[2]).norm()
