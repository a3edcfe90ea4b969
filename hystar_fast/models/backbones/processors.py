"""Image processors and tokenizers of transformers as the plain callables a backbone has, or an error without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor

_HINT = "copy them beside its config.json"


class Missing:
    """Stands where files are not there: the model works on tensors, and calling this says what is missing."""

    def __init__(self, what: str, source: str, hint: str = _HINT) -> None:
        self.what, self.source, self.hint = what, source, hint

    def __call__(self, *_: Any) -> NoReturn:
        raise ValueError(f"{self.source!r} has no files of {self.what}: {self.hint}")


class ProcessorPreprocess:
    """PIL image -> [3, H, W] by an image processor of transformers."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.mean: Sequence[float] = tuple(processor.image_mean)
        self.std: Sequence[float] = tuple(processor.image_std)

    def __call__(self, image: Any) -> Tensor:
        return self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]


class PaddedTokenizer:
    """Texts -> token ids [B, length] by a tokenizer of transformers, truncated or padded to one length."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        settings = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        return self.tokenizer(texts, **settings)["input_ids"]


def load_preprocess(source: str, fixed_size: int | None = None) -> ProcessorPreprocess | Missing:
    """The image processor stored in `source`.

    Args:
        fixed_size: resize to this square, for processors that would keep an image's shape.
    """
    from transformers import AutoImageProcessor, SiglipImageProcessor

    try:
        processor: Any = AutoImageProcessor.from_pretrained(source)
    except OSError:
        return Missing("an image processor", source)
    if fixed_size is not None:
        processor = SiglipImageProcessor(
            size={"height": fixed_size, "width": fixed_size},
            resample=processor.resample,
            image_mean=processor.image_mean,
            image_std=processor.image_std,
        )
    return ProcessorPreprocess(processor)


def load_tokenizer(source: str, length: int, *, hint: str = _HINT) -> PaddedTokenizer | Missing:
    """The tokenizer stored in `source`; one that knows only its special tokens was made up from the configuration."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        return Missing("a tokenizer", source, hint)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)) + 1:
        return Missing("a tokenizer", source, hint)
    return PaddedTokenizer(tokenizer, length)
