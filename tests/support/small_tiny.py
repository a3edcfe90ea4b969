"""A narrow tiny backbone for tests of what is done with a model, where its random weights and size do not matter."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from hystar_fast.models import tiny


def shrink_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the tiny backbone without weights its blocks and pictures, but 16 patches and a width of 32.

    The shipped weights, a file of weights, and other processes keep the whole one.
    """
    whole = tiny.create_tiny

    def narrow(
        pretrained: str | Path | None = tiny.PACKAGED, *, tokenizer: tiny.TinyTokenizer | None = None
    ) -> tuple[open_clip.CLIP, tiny.TinyTokenizer]:
        if pretrained is not None:
            return whole(pretrained, tokenizer=tokenizer)
        vision = {"image_size": tiny.IMAGE_SIZE, "layers": tiny.LAYERS, "width": 32, "head_width": 8, "patch_size": 16}
        text = {
            "context_length": tiny.CONTEXT_LENGTH,
            "vocab_size": tiny.VOCABULARY,
            "width": 32,
            "heads": 2,
            "layers": 2,
        }
        clip = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()
        return clip, tokenizer or tiny.TinyTokenizer()

    monkeypatch.setattr(tiny, "create_tiny", narrow)
