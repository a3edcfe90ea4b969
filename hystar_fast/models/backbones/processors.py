"""Image processors and tokenizers of transformers as the functions a backbone has, or an error without their files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor

from hystar_fast.data.images import Normalise

_HINT = "copy them beside its config.json"


class Missing:
    """Takes the place of a processor whose files are missing: the model works on tensors, and a call says why not."""

    def __init__(self, what: str, source: str, hint: str = _HINT) -> None:
        self.what, self.source, self.hint = what, source, hint

    @property
    def size(self) -> NoReturn:
        self()

    def __call__(self, *_: Any) -> NoReturn:
        raise ValueError(f"{self.source!r} has no files of {self.what}: {self.hint}")


class ProcessorResize:
    """The resizing and cropping of an image processor of transformers, without its normalisation.

    Args:
        processor: of transformers.
        size: height and width of what it returns.
    """

    def __init__(self, processor: Any, size: tuple[int, int]) -> None:
        self.processor, self.size = processor, size

    def __repr__(self) -> str:
        fit = "crop" if getattr(self.processor, "do_center_crop", False) else "squash"
        interpolation = Image.Resampling(int(self.processor.resample)).name.lower()
        return f"ProcessorResize(size={self.size}, fit={fit!r}, interpolation={interpolation!r})"

    def __call__(self, picture: Image.Image) -> Tensor:
        found = self.processor(images=picture, do_rescale=False, do_normalize=False, return_tensors="pt")
        pixels: Tensor = found["pixel_values"][0]
        return pixels.round().clamp(0, 255).to(torch.uint8)


class PaddedTokenizer:
    """Makes token ids [B, length] of texts by a tokenizer of transformers, truncated or padded to one length.

    Args:
        tokenizer: of transformers.
        length: of every row.
        lower: write texts in lower case first.
    """

    def __init__(self, tokenizer: Any, length: int, *, lower: bool = False) -> None:
        self.tokenizer, self.length, self.lower = tokenizer, length, lower

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        texts = [text.lower() for text in texts] if self.lower else texts
        settings = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        return self.tokenizer(texts, **settings)["input_ids"]


def load_image_processing(source: str, fixed_size: int | None = None) -> tuple[Any, Any]:
    """Load the image processor of `source` as a `Resize` and a `Normalise`; both are `Missing` without its files.

    Args:
        source: an id on the hub or a local folder.
        fixed_size: resize to this square, for processors that would keep an image's shape.

    Raises:
        ValueError: the processor does not scale pixels to [0, 1] before it normalises them.
    """
    from transformers import AutoImageProcessor, SiglipImageProcessor

    try:
        processor: Any = AutoImageProcessor.from_pretrained(source)
    except OSError:
        missing = Missing("an image processor", source)
        return missing, missing
    if fixed_size is not None:
        processor = SiglipImageProcessor(
            size={"height": fixed_size, "width": fixed_size},
            resample=processor.resample,
            image_mean=processor.image_mean,
            image_std=processor.image_std,
        )
    if abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError(f"the image processor of {source!r} must scale by 1/255, got {processor.rescale_factor}")
    resize = ProcessorResize(processor, _size(processor))
    return resize, Normalise(tuple(processor.image_mean), tuple(processor.image_std))


def _size(processor: Any) -> tuple[int, int]:
    """Return the height and width of what a processor returns, found on a picture of two by one."""
    pixels = processor(images=Image.new("RGB", (64, 32)), return_tensors="pt")["pixel_values"][0]
    return int(pixels.shape[-2]), int(pixels.shape[-1])


def load_tokenizer(source: str, length: int, *, hint: str = _HINT, lower: bool = False) -> PaddedTokenizer | Missing:
    """Load the tokenizer of `source`; it is `Missing` if transformers made it up from the configuration alone."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        return Missing("a tokenizer", source, hint)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)) + 1:
        return Missing("a tokenizer", source, hint)
    return PaddedTokenizer(tokenizer, length, lower=lower)
