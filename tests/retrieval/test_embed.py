"""Running a method over many images, texts and records."""

from __future__ import annotations

import pytest
import torch

from hystar_fast.methods.pixels import Pixels
from hystar_fast.retrieval.embed import embed_images, embed_styles, embed_texts


def test_batches_do_not_change_the_embeddings_and_progress_counts_them_all():
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    done: list[int] = []
    whole = embed_images(Pixels(), images, batch_size=100)
    split = embed_images(Pixels(), images, batch_size=3, progress=done.append)
    assert torch.equal(whole, split)
    assert done == [3, 3, 1]
    assert torch.allclose(whole, embed_images(Pixels(), images.float() / 255))


def test_a_method_without_text_or_style_returns_none():
    assert embed_texts(Pixels(), ["a"]) is None
    assert embed_styles(Pixels(), torch.zeros(1, 3, 8, 8)) is None


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 8, 8), (2, 1, 8, 8)])
def test_a_wrong_shape_is_rejected(shape):
    with pytest.raises(ValueError, match=r"images must be \[n, 3, H, W\]"):
        embed_images(Pixels(), torch.zeros(shape))
