"""The tiny backbone: a CLIP of 64-pixel drawings, small enough to ship and to adapt in minutes on a laptop.

It is an ordinary `open_clip.CLIP` (ViT of width 192, patch 8, as many blocks as its weights have, 8 in the shipped
ones; a 2-layer text tower). Its weights, tokenizer and card are in ``hystar_fast/models/assets``; the recipe is
``python -m hystar_fast.train.pretrain``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from hystar_fast.data.images import Normalise, ResizeTo

IMAGE_SIZE = 64
CONTEXT_LENGTH = 16
VOCABULARY = 4096
LAYERS = 8
PACKAGED = "packaged"
RESIZE = ResizeTo((IMAGE_SIZE, IMAGE_SIZE), "crop", "bilinear")
NORMALISE = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _asset(name: str) -> Path:
    return Path(str(files("hystar_fast.models").joinpath("assets", name)))


class TinyTokenizer:
    """Byte-pair encoding of captions: int64 [n, 16], padded with 0; the largest id ends a text, as in open_clip.

    Example:
        >>> TinyTokenizer()(["dog face", "red heart"]).shape
        torch.Size([2, 16])
    """

    START, END = 1, VOCABULARY - 1
    _OFFSET = 2

    def __init__(self, path: str | Path | None = None) -> None:
        self._tokenizer = Tokenizer.from_file(str(path or _asset("tiny_tokenizer.json")))

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
        for row, encoding in zip(tokens, self._tokenizer.encode_batch([t.lower() for t in texts]), strict=True):
            ids = [self.START, *(i + self._OFFSET for i in encoding.ids[: CONTEXT_LENGTH - 2]), self.END]
            row[: len(ids)] = torch.tensor(ids)
        return tokens


def create_tiny(
    pretrained: str | Path | None = PACKAGED, *, tokenizer: TinyTokenizer | None = None
) -> tuple[open_clip.CLIP, TinyTokenizer]:
    """Build the tiny backbone.

    Args:
        pretrained: "packaged" (the shipped weights), the path of a safetensors file, or None for random weights.
        tokenizer: used instead of the shipped one.

    Returns:
        The model in eval mode and the tokenizer; `RESIZE` and `NORMALISE` make its input of a picture.

    Raises:
        ValueError: `pretrained` names no file.
    """
    if pretrained is None:
        return build_tiny(LAYERS), tokenizer or TinyTokenizer()
    path = _asset("tiny.safetensors") if pretrained == PACKAGED else Path(pretrained)
    if not path.is_file():
        raise ValueError(f"pretrained must be {PACKAGED!r}, None or a safetensors file, got {str(pretrained)!r}")
    try:
        weights = {name: value.float() for name, value in load_file(path).items()}
        blocks = {name.split(".")[3] for name in weights if name.startswith("visual.transformer.resblocks.")}
        model = build_tiny(len(blocks))
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"pretrained must hold the tiny backbone, got {str(path)!r}: {error}") from error
    return model, tokenizer or TinyTokenizer()


def build_tiny(layers: int) -> open_clip.CLIP:
    """Build the model with random weights and `layers` blocks in its image tower, in eval mode."""
    vision = {"image_size": IMAGE_SIZE, "layers": layers, "width": 192, "head_width": 32, "patch_size": 8}
    text = {"context_length": CONTEXT_LENGTH, "vocab_size": VOCABULARY, "width": 192, "heads": 6, "layers": 2}
    return open_clip.CLIP(embed_dim=192, vision_cfg=vision, text_cfg=text).eval()
