"""The one way of reading pictures has the very pixels of each library's own preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from hystar_fast.models.backbones import create_backbone
from hystar_fast.models.backbones.open_clip import image_processing
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from tests.support.small_backbones import WRITERS, Small
from tests.support.small_clip import IMAGE_SIZE

SHAPES = [(60, 40), (40, 61), (32, 32), (17, 90), (7, 5)]
ALBEF = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module", params=WRITERS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return WRITERS[request.param](tmp_path_factory.mktemp("backbone"))


def librarys_own(small: Small) -> Callable[[Image.Image], Tensor]:
    """Return the preprocessing that the library itself loads for these files."""
    kind, _, place = small.backbone.partition(":")
    if kind == "open_clip":
        return open_clip.create_model_and_transforms(place)[2]
    if kind == "transformers":
        settings: dict[str, Any] = {}
        processor = transformers.AutoImageProcessor.from_pretrained(place)
        if "Siglip2" in type(processor).__name__:  # read as square pictures of one size
            settings = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "resample": processor.resample}
            settings |= {"image_mean": processor.image_mean, "image_std": processor.image_std}
            processor = transformers.SiglipImageProcessor(**settings)
        return lambda picture: processor(images=picture, return_tensors="pt")["pixel_values"][0]

    def published_albef(picture: Image.Image) -> Tensor:
        square = TF.resize(picture, [IMAGE_SIZE, IMAGE_SIZE], interpolation=InterpolationMode.BICUBIC)
        return TF.normalize(TF.pil_to_tensor(square).float() / 255, *map(list, ALBEF))

    return published_albef


def noise(shape: tuple[int, int]) -> Image.Image:
    pixels = torch.randint(256, (shape[1], shape[0], 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_preprocess_is_the_librarys_own(small: Small) -> None:
    config = HystarConfig(backbone=small.backbone, pretrained=small.pretrained, style="clip", blocks=(2,), static=False)
    model, own = Hystar(config), librarys_own(small)
    resize, normalise = model.backbone.resize, model.backbone.normalise
    for shape in SHAPES:
        picture = noise(shape)
        pixels = resize(picture)
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, *resize.size) == (3, IMAGE_SIZE, IMAGE_SIZE)
        torch.testing.assert_close(normalise(pixels), own(picture), atol=2e-6, rtol=0)
        assert torch.equal(model.preprocess(picture), normalise(pixels))


def test_transparent_parts_are_white_in_every_models_input(small: Small) -> None:
    backbone = create_backbone(HystarConfig(backbone=small.backbone, pretrained=None))
    clear = Image.new("RGBA", (50, 40), (255, 0, 0, 0))
    white = backbone.normalise(torch.full((3, *backbone.image_size), 255, dtype=torch.uint8))
    torch.testing.assert_close(backbone.preprocess(clear), white)


@pytest.mark.parametrize(
    ("name", "pretrained", "fit"), [("ViT-B-32", "openai", "crop"), ("ViT-B-16-SigLIP", "webli", "squash")]
)
def test_published_weights_of_open_clip_have_their_own_fit(
    name: str, pretrained: str, fit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: "not read")
    with torch.device("meta"):
        clip = open_clip.create_model(name, pretrained=pretrained, load_weights=False, device="meta")
    resize, _ = image_processing(clip.visual)
    assert resize.fit == fit and resize.size == (224, 224)


def test_another_image_size_is_the_size_of_the_pictures(tmp_path: Any) -> None:
    small = WRITERS["open_clip"](tmp_path)
    backbone = create_backbone(HystarConfig(backbone=small.backbone, pretrained=small.pretrained, image_size=48))
    assert backbone.resize.size == backbone.image_size == (48, 48)
    assert backbone.encode_image(backbone.preprocess(noise((60, 40)))[None]).shape == (1, small.embed_dim)
