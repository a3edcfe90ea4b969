"""Hystar end to end, compared with the encoder that it adapts: encoding a batch of images, and a training step.

On a GPU the model is ViT-L/14 with DINOv2-B for the style, both with random weights, because speed does not depend on
them. On a CPU it is the tiny backbone, whose own embedding is the style. ACNet's training step is compared with the
passes of its public code, which makes one for each kind of picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
import torch
from device_time import replayed
from harness import DEVICE, OURS, PLAN, Outputs, forward
from PIL import Image
from torch import Tensor
from torch.nn import functional

import hystar_fast as hf
from hystar_fast.index.generation_methods import Encoder
from hystar_fast.index.local import LocalEngine
from hystar_fast.index.stamp import Stamp
from hystar_fast.index.sync import add
from hystar_fast.methods.acnet.acnet_config import ACNetConfig
from hystar_fast.methods.acnet.acnet_method import ACNet
from hystar_fast.methods.device import batch_size_on
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.naive import naive_path
from hystar_fast.methods.step_trained import StepPlan
from hystar_fast.models.backbones import Backbone, create_backbone
from hystar_fast.nn import fast_svd_linear
from hystar_fast.nn.factors import SVDFactors
from hystar_fast.ref.style_nce import style_nce

GPU = PLAN == "cuda"
DTYPE = torch.bfloat16 if GPU else torch.float32
BATCHES = (48, 1, 8) if GPU else (48,)
MERGED, PREFIX, FP8, GRAPH = ", merged", ", prefix style", ", fp8", ", CUDA graph"
AUTHORS = "authors' path"
SEPARATE = "a pass for each kind of picture"
OVERLAPPED = f"{OURS}, style beside"  # the style of the next batch is computed on a second stream
PROVIDERS = ["CLIP", OURS, OURS + MERGED, OURS + PREFIX, AUTHORS]
if GPU:  # the providers with goals first
    VARIANTS = [OURS, OURS + PREFIX + MERGED, OURS + MERGED, OURS + PREFIX, OVERLAPPED, OURS + FP8, OURS + MERGED + FP8]
    GRAPHED = [provider + GRAPH for provider in ("CLIP", *VARIANTS) if provider != OVERLAPPED]
    PROVIDERS = ["CLIP", *VARIANTS, *GRAPHED, AUTHORS]


PHOTOS, PHOTO = 256, (4000, 3000)  # 12 megapixels


def backbone_name(quick: bool) -> str:
    return "ViT-L-14" if GPU and not quick else "tiny"


def config(quick: bool, **changes: object) -> hf.HystarConfig:
    settings: dict[str, object] = {"backbone": "tiny", "pretrained": None, "style": "clip", "blocks": None}
    if GPU and not quick:
        settings |= {"backbone": f"open_clip:{backbone_name(quick)}", "blocks": (4, 7, 10, 13)}
    return hf.HystarConfig(**{**settings, **changes})


@cache
def frozen_encoder(quick: bool) -> Backbone:
    """Build the encoder without an adapter."""
    with torch.device(DEVICE):  # draws the weights there
        return create_backbone(config(quick)).to(DEVICE, DTYPE)


def gram_factors(weight: Tensor, rank: int | None = None, **_: object) -> SVDFactors:
    """Factor a weight by the eigenvectors of its Gram matrix: a minute less for a model than float64 SVDs on a CPU.

    The speed of the model does not depend on the accuracy that this loses.
    """
    w = weight.detach().to(DEVICE, torch.float64)
    wide = w.shape[0] < w.shape[1]
    w = w.mT if wide else w
    values, v = (a.flip(-1)[..., :rank] for a in torch.linalg.eigh(w.mT @ w))
    s = values.clamp_min(1e-30).sqrt()
    found = (v, s, (w @ v / s).mT) if wide else (w @ v / s, s, v.mT)
    return SVDFactors(*(a.to(weight.device, torch.float32).contiguous() for a in found))


@cache
def _hystar(*, quick: bool, prefix: bool, merged: bool, fp8: bool) -> hf.Hystar:
    patched = mock.patch.object(fast_svd_linear, "svd_factors", gram_factors)
    with TemporaryDirectory() as folder, torch.device(DEVICE), patched:
        if prefix:
            chosen = config(quick, style="prefix")
        elif quick or not GPU:
            chosen = config(quick)
        else:
            from transformers import Dinov2Config, Dinov2Model

            Dinov2Model(Dinov2Config(image_size=518, patch_size=14)).save_pretrained(folder)
            chosen = config(quick, style="dinov2", style_pretrained=str(Path(folder)))
        model = hf.Hystar(chosen)
    model = model.to(DEVICE, DTYPE)
    if merged:
        model.merge_static_()
    for layer in model.modules():
        if fp8 and isinstance(layer, hf.FastSVDLinear):
            layer.precision = "fp8"
    return model


def hystar(quick: bool, provider: str = OURS) -> hf.Hystar:
    """Return the model that a provider's name describes.

    On a GPU and unless `quick`, a style of its own comes from a DINOv2 as large as the paper's.
    """
    return _hystar(quick=quick, prefix=PREFIX in provider, merged=MERGED in provider, fp8=FP8 in provider)


def random_images(quick: bool, count: int, seed: int = 0) -> Tensor:
    """Return normally distributed noise of the shape that the encoder takes."""
    height, width = frozen_encoder(quick).image_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=generator).to(DEVICE, DTYPE)


def overlap_next_style(model: hf.Hystar, batch: Tensor) -> Callable[[], Tensor]:
    """Return a step of a server's loop: a batch is encoded while a second stream computes the style of the next one."""
    side, ready = torch.cuda.Stream(), [model.style(batch)]

    def step() -> Tensor:
        style = ready[0]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            ready[0] = model.style(batch)
        embedding = model.encode_image(batch, style)
        torch.cuda.current_stream().wait_stream(side)
        return embedding

    return step


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("count", BATCHES)
def bench_encode_image(record: Callable[..., None], quick: bool, count: int, provider: str) -> None:
    if DEVICE == "cpu" and (GRAPH in provider or provider == OVERLAPPED):
        pytest.skip("streams and graphs need CUDA")
    count = min(count, 2) if quick else count
    batch = random_images(quick, count)
    path: AbstractContextManager[object] = nullcontext()
    if provider.startswith("CLIP"):
        function = lambda: frozen_encoder(quick).encode_image(batch)  # noqa: E731
    else:
        model = hystar(quick, provider)
        function = overlap_next_style(model, batch) if provider == OVERLAPPED else lambda: model.encode_image(batch)
        path = naive_path(model) if provider == AUTHORS else path
    with torch.inference_mode(), path:
        run = forward(function)
        run = replayed(run)[0] if GRAPH in provider else run
        record("model", f"{backbone_name(quick)} B{count}", provider, "forward", DTYPE, run, None, images=count)


@pytest.mark.parametrize("provider", [OURS, AUTHORS])
def bench_training_step(record: Callable[..., None], quick: bool, provider: str) -> None:
    """Encode queries and targets, compute StyleNCE, and take the gradients of every trainable parameter."""
    model, count = hystar(quick), 2 if quick else 48
    query, target = random_images(quick, count), random_images(quick, count, seed=1)
    parameters = model.trainable_parameters()
    loss = hf.style_nce if provider == OURS else style_nce

    def run() -> Outputs:
        value = loss(model.encode_image(query), model.encode_image(target))
        return [value, *torch.autograd.grad(value, parameters)]

    with nullcontext() if provider == OURS else naive_path(model):
        case = f"{backbone_name(quick)} B{count}, training step"
        record("model", case, provider, "forward+backward", DTYPE, run, None, images=count)


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEGs of a cloudy picture; bytes behind their end make each another file."""
    small = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    large = functional.interpolate(small, (size[1], size[0]), mode="bicubic").clamp(0, 1)[0]
    content = BytesIO()
    Image.fromarray((255 * large).byte().permute(1, 2, 0).numpy()).save(content, "JPEG", quality=90)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(content.getvalue() + number.to_bytes(4, "big"))


def bench_embed_photos(record: Callable[..., None], quick: bool, tmp_path: Path) -> None:
    """Add photos to an index as `hystar-fast embed` does; "busy" is the share of the time in which they are encoded."""
    count, size = (4, (160, 120)) if quick else (PHOTOS, PHOTO) if GPU else (32, PHOTO)
    (tmp_path / "photos").mkdir()
    write_photos(tmp_path / "photos", count, size)
    method = HystarMethod(hystar(quick))
    normalise = method.normalise
    method.normalise = lambda images: normalise(images).to(DTYPE)
    device = torch.device(DEVICE)
    dimension = method.model.encode_image(random_images(quick, 1)).shape[1]
    encoding, whole = [], []

    class Timed(Encoder):
        def encode(self, pixels: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
            start = time.perf_counter()
            with torch.inference_mode():  # what it returns is on the CPU, so the GPU is done; bfloat16 is 1e-3 off 1
                found = {"adapted": functional.normalize(method.encode_image(pixels.to(device)).float()).cpu()}
            encoding.append(time.perf_counter() - start)
            return found

    encoder = Timed({"adapted": method}, 2 if quick else batch_size_on(device))

    def run() -> Outputs:
        with (
            TemporaryDirectory(dir=tmp_path) as index,
            LocalEngine.create(index, {"adapted": Stamp({"dimension": dimension})}) as engine,
        ):
            start = time.perf_counter()
            done = add(engine, [tmp_path / "photos"], lambda: encoder)
            whole.append(time.perf_counter() - start)
            assert done.added == count
        return []

    case = f"{backbone_name(quick)}, embed photos of 12 megapixels"
    extra: dict[str, object] = {"images": count}
    with torch.inference_mode():
        run()
        encoding.clear()
        whole.clear()
        run()
        extra["busy"] = round(sum(encoding) / sum(whole), 3)
        record("model", case, OURS, "forward", DTYPE, run, None, **extra)


@cache
def acnet(quick: bool) -> ACNet:
    """Build ACNet with random weights, begun for 74 categories: on a GPU with ResNet-50 at 224 pixels."""
    large = GPU and not quick
    own = {"embedding": 192, "image_size": 64, "generator_blocks": 4, "extractor": "backbone"}
    with torch.device(DEVICE):
        method = ACNet(config(quick=True), ACNetConfig(**({"weights": "random"} if large else own)))
        method.begin(StepPlan(categories=74, learning_rate=1e-5))
        method.extractor.set_training(last_layer_only=False)
        method.model.to(DEVICE)
    method.train(True)
    return method


def acnet_batch(quick: bool) -> int:
    return 2 if quick else 32


def acnet_case(quick: bool) -> str:
    return f"ACNet {'ResNet-50' if GPU and not quick else 'tiny'} B{acnet_batch(quick)}, step"


def separate_losses(method: ACNet, sketches: Tensor, photos: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of `ACNet.losses` by two passes of G and three of Φ, and G(sketches)."""
    phi, proxies, generator, judge = (
        method.model[name] for name in ("extractor", "proxies", "generator", "discriminator")
    )
    fakes, same = generator(sketches), generator(photos)
    terms = [proxies(phi(images), labels) for images in (sketches, photos, fakes)]
    real = (judge(fakes) - 1).square().mean()
    own = method.own
    return real + own.gamma_identity * (same - photos).abs().mean() + own.lambda_norm * sum(terms) / 3, fakes


@pytest.mark.parametrize("provider", [OURS, SEPARATE])
def bench_acnet_step(record: Callable[..., None], quick: bool, provider: str) -> None:
    """Compute the losses of ACNet, and the gradients of every parameter; the optimisers are the same for both."""
    method, count = acnet(quick), acnet_batch(quick)
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, method.own.image_size, method.own.image_size)
    sketches, photos = (torch.rand(shape, generator=generator).mul(2).sub(1).to(DEVICE) for _ in range(2))
    labels = torch.randint(74, (count,), generator=generator).to(DEVICE)
    parts = {name: [*method.model[name].parameters()] for name in method.parameter_groups()}
    judged = parts.pop("discriminator")
    others = [p for members in parts.values() for p in members]

    def run() -> Outputs:
        if provider == OURS:
            found, fakes = method.losses(sketches, photos, labels)
            loss, wanted = found["loss"], others
        else:
            loss, fakes = separate_losses(method, sketches, photos, labels)
            wanted = [*others, *judged]  # which the public code computes and throws away
        gradients = torch.autograd.grad(loss, wanted)
        return [loss, *gradients[: len(others)], *torch.autograd.grad(method.discriminator_loss(photos, fakes), judged)]

    size = "ResNet-50" if GPU and not quick else "tiny"
    record(
        "model", f"ACNet {size} B{count}, step", provider, "forward+backward", torch.float32, run, None, images=count
    )
